"""A whole data set -> heatmaps -> Otsu masks -> pixel counts -> tables: `ltcam evaluate --checkpoint PATH`.

The counts of every (image, class) pair and configuration are kept in `counts.csv.gz`; every table is derived from them, so
nothing is run again to be cut again. Heatmaps are of the classes truly present, as is standard for CAM seeds.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from tqdm import tqdm

from ltcam import datasets, metrics, provenance
from ltcam.cam import Options, layer_maps
from ltcam.datasets import Segmentation
from ltcam.segmentation import otsu_mask
from ltcam.tracing import trace
from ltcam.training import Trained
from ltcam.tricks import Scope, layerize
from ltcam.weights import sha256

log = logging.getLogger(__name__)


class Config(NamedTuple):
    """One way to make a heatmap: a method, the layers it fuses (a stage label, a range, or "all") and the truncation."""

    method: str
    layers: str = "S5"
    delta: float | None = None
    per: Scope = "layer"

    @property
    def options(self) -> Options:
        return Options(self.method, self.delta, self.per)

    @property
    def selection(self) -> str | None:
        return None if self.layers == "all" else self.layers

    @classmethod
    def parse(cls, text: str) -> "Config":
        """ "METHOD[:LAYERS[:DELTA]]". Raises ValueError for anything else."""
        parts = text.split(":")
        try:
            name, layers, delta = (*parts, *("", "S5", "")[len(parts) :])
            return cls(name, layers, float(delta) if delta else None)
        except ValueError as error:
            raise ValueError(
                f"{text!r} is no configuration: expected METHOD[:LAYERS[:DELTA]], e.g. gradcam:S1-S5:20"
            ) from error


def evaluate(trained: Trained, part: str, configs: Sequence[Config], out: Path, batch_size: int = 8) -> pd.DataFrame:
    """Pixel counts of `configs` on part `part` of the data the model was trained on: one row a pair and configuration.

    `out/counts.csv.gz` keeps every configuration measured with this checkpoint, data and code; only missing ones are measured.
    An interrupted call goes on after its last whole batch. Raises ValueError for a configuration that does not exist, and
    DataError for data that are not there.
    """
    started = time.time()
    for config in configs:
        config.options  # noqa: B018 - refuses what does not exist before anything is run
    data = datasets.load(trained.recipe.data, part)
    identity = {
        "data": data.title, "part": part, "fingerprint": data.fingerprint, "size": trained.size, "batch_size": batch_size,
        "checkpoint": trained.sha256, "code": provenance.code(),
    }  # fmt: skip
    path = out / "counts.csv.gz"
    known = _known(path, identity)
    missing = [c for c in dict.fromkeys(configs) if c not in set(_configs(known))]
    if missing:
        digest = hashlib.sha256(json.dumps([identity, missing]).encode()).hexdigest()[:12]
        journal = out / f"counts.{digest}.partial.jsonl"
        measured = _measure(trained, data, missing, batch_size, journal)
        known = pd.concat([known, measured], ignore_index=True) if len(known) else measured
        known = known.sort_values(["name", "class", *metrics.CONFIG], ignore_index=True, na_position="first")
        provenance.save(known, path, started, **{**trained.about(data), **identity})
        journal.unlink()
    rows: dict[Config, list[int]] = {config: [] for config in configs}
    for row, config in enumerate(_configs(known)):
        rows.get(config, []).append(row)
    return known.iloc[[row for chosen in rows.values() for row in chosen]].reset_index(drop=True)


def _measure(trained: Trained, data: Segmentation, configs: list[Config], batch_size: int, journal: Path) -> pd.DataFrame:
    """Counts of all batches; each batch is written to a journal as it is done, which a later call reads."""
    done = _journal(journal)
    batches = _batches(data, batch_size)
    for number, indices in enumerate(tqdm(batches, desc=f"{data.title} {data.part}", disable=None, leave=False)):
        if number < len(done):
            continue
        with torch.backends.cudnn.flags(allow_tf32=False):
            done.append(list(_count_batch(trained, data, indices, configs)))
        journal.parent.mkdir(parents=True, exist_ok=True)
        with journal.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        if number % 10 == 9:
            log.info("%s %s: %d of %d batches", data.title, data.part, number + 1, len(batches))
    columns = ["name", "class", *metrics.CONFIG, "tp", "fp", "fn"]
    return pd.DataFrame([row for rows in done for row in rows], columns=columns).astype({"delta": float})


def _count_batch(
    trained: Trained, data: Segmentation, indices: Sequence[int], configs: Sequence[Config]
) -> Iterator[tuple[Any, ...]]:
    """The rows of one batch: one forward and one backward per class rank serve every configuration."""
    device = next(trained.model.parameters()).device
    samples = [data[i] for i in indices]
    images = torch.stack([datasets.preprocess(s.image, trained.size) for s in samples]).to(device)
    labels = torch.stack([s.label for s in samples])
    traced = trace(trained.model, images, labels, fullgrad=any(c.method == "fullgrad" for c in configs))
    for config in configs:
        maps = layer_maps(traced, config.options, config.selection)
        for pair, (image, c) in enumerate(traced.pairs.tolist()):
            mask = samples[image].mask.numpy()
            heatmap = layerize([m[pair : pair + 1] for m in maps.values()], mask.shape)[0]
            yield samples[image].name, c, *config, *metrics.count(otsu_mask(heatmap.cpu().numpy()), mask, c)


def _batches(data: Segmentation, batch_size: int) -> list[list[int]]:
    """Images with equally many classes together, so that no backward runs for an image that does not need it."""
    ranks = data.labels.sum(dim=1).int().tolist()
    ordered = sorted(data.scored, key=lambda i: ranks[i])
    groups = [list(group) for _, group in groupby(ordered, key=lambda i: ranks[i])]
    return [group[i : i + batch_size] for group in groups for i in range(0, len(group), batch_size)]


def _known(path: Path, identity: dict[str, Any]) -> pd.DataFrame:
    """The counts kept at `path`, if they are of the same checkpoint, data and code."""
    record = path.with_name("counts.json")
    if not (path.is_file() and record.is_file()):
        return pd.DataFrame()
    before = json.loads(record.read_text())
    expected = json.loads(json.dumps(identity)) | {"sha256": sha256(path)}
    if expected != {name: before.get(name) for name in expected}:
        log.warning("%s is of another checkpoint, other data or other code; measuring anew", path)
        return pd.DataFrame()
    return pd.read_csv(path, dtype={"delta": float})


def _configs(counts: pd.DataFrame) -> list[Config]:
    """The configuration of each row."""
    columns = (counts[name] for name in metrics.CONFIG) if len(counts) else ([],) * 4
    return [Config(m, layers, None if pd.isna(delta) else delta, per) for m, layers, delta, per in zip(*columns, strict=True)]


def _journal(path: Path) -> list[list[Any]]:
    """The batches an interrupted call finished; a line cut off in the writing does not count."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole))
    return [json.loads(line) for line in whole]

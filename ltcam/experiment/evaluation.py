"""A whole data set -> heatmaps -> Otsu masks -> pixel counts -> tables: `ltcam evaluate --checkpoint PATH`.

`counts.csv.gz` keeps the counts of every (image, class) pair and configuration. Every table is derived from them, so a new
table needs no new run. By default heatmaps are of the classes that are truly present, as is standard for CAM seeds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from ltcam import data as datasets
from ltcam.data import Sample, Segmentation
from ltcam.experiment import journals, metrics, provenance
from ltcam.experiment.checkpoints import Trained
from ltcam.experiment.configs import FLOATS, Config, Protocol, configurations, plain
from ltcam.experiment.counting import count
from ltcam.experiment.locks import alone
from ltcam.experiment.parallel import PartialState, loader, processes
from ltcam.experiment.probe import behaviour
from ltcam.files import AnyPath, sha256, writing

log = logging.getLogger(__name__)


def evaluate(
    trained: Trained, part: str, configs: Sequence[Config], out: AnyPath, protocol: Protocol | None = None
) -> pd.DataFrame:
    """Pixel counts of `configs` on part `part` of the model's data set: one row per pair and configuration.

    `out/counts.csv.gz` keeps every configuration measured with this checkpoint, data and code. Only missing ones are measured.
    An interrupted call goes on after its last complete batch. Under `accelerate launch` the processes share the batches, which
    are the same for any number of processes. Raises InputError for an unknown configuration, DataError if the data are missing
    or not those of the training, and UnavailableError if another run writes into `out`.
    """
    started, out, configs = time.time(), Path(out), [Config._make(plain(tuple(config))) for config in configs]
    for config in configs:
        config.options  # noqa: B018 - raises for unknown options before anything runs
    data, protocol = trained.load(part), protocol or Protocol()
    protocol = replace(protocol, size=protocol.size or trained.size)
    identity = {
        "data": data.title, "part": part, "fingerprint": data.fingerprint, **asdict(protocol),
        "checkpoint": trained.sha256, "probe": behaviour(), "decoded": _decoded(data),
    }  # fmt: skip
    path = out / "counts.csv.gz"
    with alone(out, "write"):
        known = _known(path, identity)
        counted = set(configurations(known))
        workers, missing = processes(), [c for c in dict.fromkeys(configs) if c not in counted]
        if workers.is_main_process:
            journals.forget(out, counted)
        if missing:
            stem = out / f"counts.{hashlib.sha256(json.dumps([identity, missing]).encode()).hexdigest()[:12]}"
            _measure(trained, data, missing, protocol, stem, workers)
            if workers.is_main_process:
                rows = [row for batch in journals.read(stem).values() for row in batch]
                measured = pd.DataFrame(rows, columns=["name", "class", *metrics.CONFIG, "tp", "fp", "fn"]).astype(FLOATS)
                groups = dict(zip((entry.name for entry in data.entries), data.groups, strict=True))
                measured.insert(1, "group", measured["name"].map(groups))
                known = pd.concat([known, measured], ignore_index=True) if len(known) else measured
                known = known.sort_values(["name", "class", *metrics.CONFIG], ignore_index=True, na_position="first")
                provenance.save(known, path, started, **{**trained.about(data), **identity, "processes": workers.num_processes})
                for journal in out.glob(f"{stem.name}.*.partial.jsonl"):
                    journal.unlink()
            workers.wait_for_everyone()
            known = _known(path, identity)
    rows_of: dict[Config, list[int]] = {config: [] for config in configs}
    for row, config in enumerate(configurations(known)):
        rows_of.get(config, []).append(row)
    return known.iloc[[row for chosen in rows_of.values() for row in chosen]].reset_index(drop=True)


def _measure(
    trained: Trained, data: Segmentation, configs: list[Config], protocol: Protocol, stem: Path, workers: PartialState
) -> None:
    """Count this process's share of the batches that no journal has. Each batch goes into its journal as it is done."""
    done, batches = journals.read(stem), _batches(data, protocol.batch_size)
    journal = journals.place(stem, workers.process_index)
    with writing(journal), journal.open("a") as file:
        workers.wait_for_everyone()  # nobody adds to a journal before all have read it
        mine = [n for n in range(len(batches)) if n not in done][workers.process_index :: workers.num_processes]
        loaded = _loader(data, trained, protocol, [batches[n] for n in mine])
        progress = tqdm(zip(mine, loaded, strict=True), f"{data.title} {data.part}", len(mine), disable=None, leave=False)
        for step, (number, samples) in enumerate(progress, 1):
            with torch.backends.cudnn.flags(allow_tf32=False):
                rows = count(trained, samples, configs, protocol)
            file.write(journals.line(number, rows))
            file.flush()
            if step % 10 == 0:
                log.info("%s %s: %d of %d batches", data.title, data.part, step, len(mine))
    workers.wait_for_everyone()


def _loader(data: Segmentation, trained: Trained, protocol: Protocol, batches: list[list[int]]) -> DataLoader[Sample]:
    """Lists of samples whose images are ready for the network."""
    collate = partial(_preprocessed, protocol.size or trained.size)
    return loader(data, next(trained.model.parameters()).device, batch_sampler=batches, collate_fn=collate)


def _preprocessed(size: tuple[int, int], samples: list[Sample]) -> list[Sample]:
    return [sample._replace(image=datasets.preprocess(sample.image, size)) for sample in samples]


def _decoded(data: Segmentation) -> str:
    """SHA-256 of the first scored image, mask and label as they are read."""
    digest = hashlib.sha256()
    for index in data.scored[:1]:
        for value in data[index][:3]:
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _batches(data: Segmentation, batch_size: int) -> list[list[int]]:
    """Batches of images with equally many classes, so that no image gets a backward that it does not need. Among these, images
    of one size come together, so that their masks are scored together."""
    ranks = data.labels.sum(dim=1).int().tolist()
    ordered = sorted(data.scored, key=lambda i: (ranks[i], data.sizes[i]))
    groups = [list(group) for _, group in groupby(ordered, key=lambda i: ranks[i])]
    return [group[i : i + batch_size] for group in groups for i in range(0, len(group), batch_size)]


def _known(path: Path, identity: dict[str, Any]) -> pd.DataFrame:
    """The counts kept at `path`, if checkpoint, data, protocol and code are the same."""
    record = path.with_name("counts.json")
    if not (path.is_file() and record.is_file()):
        return pd.DataFrame(columns=[*metrics.CONFIG])
    try:
        before = json.loads(record.read_text())
    except ValueError:  # cut off, e.g. by a power failure
        before = {}
    expected = json.loads(json.dumps(identity)) | {"sha256": sha256(path)}
    if expected != {name: before.get(name) for name in expected}:
        log.warning("%s: the counts are of another checkpoint, data set, protocol or code: measuring again", path.parent.name)
        return pd.DataFrame(columns=[*metrics.CONFIG])
    return pd.read_csv(path, dtype=FLOATS)

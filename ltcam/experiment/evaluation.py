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
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from ltcam import data as datasets
from ltcam.data import Sample, Segmentation
from ltcam.engine.scales import scaled
from ltcam.experiment import journals, metrics, provenance
from ltcam.experiment.checkpoints import Trained
from ltcam.experiment.configs import FLOATS, UNSCALED, Config, Protocol, counted, pick, plain
from ltcam.experiment.counting import count
from ltcam.experiment.locks import alone
from ltcam.experiment.parallel import PartialState, loader, processes
from ltcam.experiment.probe import behaviour
from ltcam.files import AnyPath, writing

log = logging.getLogger(__name__)


class Wanted(NamedTuple):
    """Configurations to count under a protocol, and the folder that keeps the counts."""

    configs: Sequence[Config]
    out: AnyPath
    protocol: Protocol


def evaluate(
    trained: Trained, part: str, configs: Sequence[Config], out: AnyPath, protocol: Protocol | None = None
) -> pd.DataFrame:
    """Pixel counts of `configs` on part `part` of the model's data set: one row per pair and configuration.

    `out/counts.csv.gz` keeps every configuration measured with this checkpoint, data and code. Only missing ones are measured.
    An interrupted call goes on after its last complete batch. Under `accelerate launch` the processes share the batches, which
    are the same for any number of processes. Raises InputError for an unknown configuration, DataError if the data are missing
    or not those of the training, and UnavailableError if another run writes into `out`.
    """
    return together(trained, part, [Wanted(configs, out, protocol or Protocol())])[0]


def together(trained: Trained, part: str, wanted: Sequence[Wanted]) -> list[pd.DataFrame]:
    """As `evaluate`, for several folders. Protocols that agree in `Protocol.forward` are measured in one pass."""
    started = time.time()
    wanted = [
        each._replace(configs=[Config._make(plain(tuple(c))) for c in each.configs], out=Path(each.out)) for each in wanted
    ]
    for config in (config for each in wanted for config in each.configs):
        config.options  # noqa: B018 - raises for unknown options before anything runs
    data, workers = trained.load(part), processes()
    with ExitStack() as locks:
        for each in wanted:
            locks.enter_context(alone(each.out, "write"))
        kept = [_Counts(each, data, trained) for each in wanted]
        passes: dict[Protocol, list[_Counts]] = {}
        for counts in kept:
            if counts.missing:
                passes.setdefault(counts.protocol.forward, []).append(counts)
        for one in passes.values():
            _measure(trained, data, one, workers)
            if workers.is_main_process:
                for counts in one:
                    counts.add(data, started, {**trained.about(data), "processes": workers.num_processes})
            workers.wait_for_everyone()
        return [pick(kept_counts(c.path, c.identity), each.configs) for c, each in zip(kept, wanted, strict=True)]


class _Counts:
    """The counts that one folder keeps under one protocol, and the configurations that are missing there."""

    def __init__(self, wanted: Wanted, data: Segmentation, trained: Trained) -> None:
        self.protocol = replace(wanted.protocol, size=wanted.protocol.size or trained.size)
        first = b"".join(value.numpy().tobytes() for index in data.scored[:1] for value in data[index][:3])
        self.identity = {
            "data": data.title, "part": data.part, "fingerprint": data.fingerprint, **self.protocol.identity,
            "checkpoint": trained.sha256, "probe": behaviour(), "decoded": hashlib.sha256(first).hexdigest(),
        }  # fmt: skip
        out = Path(wanted.out)
        self.path = out / "counts.csv.gz"
        there = set(counted(kept_counts(self.path, self.identity)))
        self.missing = [c for c in dict.fromkeys(wanted.configs) if c not in there]
        digest = hashlib.sha256(json.dumps([self.identity, self.missing]).encode()).hexdigest()
        self.stem = out / f"counts.{digest[:12]}"
        if processes().is_main_process:
            journals.forget(out, there)

    def add(self, data: Segmentation, started: float, about: dict[str, Any]) -> None:
        """Add to the table what the journals hold, and remove them."""
        rows = [row for batch in journals.read(self.stem).values() for row in batch]
        measured = pd.DataFrame(rows, columns=["name", "class", *metrics.CONFIG, "tp", "fp", "fn"])
        measured = metrics.compact(measured.astype(FLOATS))
        groups = dict(zip((entry.name for entry in data.entries), data.groups, strict=True))
        measured.insert(1, "group", measured["name"].map(groups))
        known = kept_counts(self.path, self.identity)
        if len(known):
            columns = ["name", "group", "class", *metrics.CONFIG, "tp", "fp", "fn"]
            measured = pd.concat([known, measured], ignore_index=True)
            measured = measured[[name for name in columns if name in measured]]
        order = ["name", "class", *metrics.of_config(measured)]
        known = measured.sort_values(order, ignore_index=True, na_position="first")
        provenance.save(known, self.path, started, **{**about, **self.identity})
        for journal in self.path.parent.glob(f"{self.stem.name}.*.partial.jsonl"):
            journal.unlink()


def _measure(trained: Trained, data: Segmentation, kept: Sequence[_Counts], workers: PartialState) -> None:
    """Count this process's share of the batches that a journal lacks. Each batch goes into its journals as it is done."""
    protocol = kept[0].protocol
    done, batches = [journals.read(counts.stem) for counts in kept], _batches(data, protocol.batch_size)
    with ExitStack() as opened:
        paths = [journals.place(counts.stem, workers.process_index) for counts in kept]
        for path in paths:
            opened.enter_context(writing(path))
        files = [opened.enter_context(path.open("a")) for path in paths]
        workers.wait_for_everyone()  # nobody adds to a journal before all have read it
        todo = [n for n in range(len(batches)) if any(n not in its for its in done)]
        mine = todo[workers.process_index :: workers.num_processes]
        loaded = image_loader(data, trained, protocol, [batches[n] for n in mine])
        progress = tqdm(zip(mine, loaded, strict=True), f"{data.title} {data.part}", len(mine), disable=None, leave=False)
        for step, (number, samples) in enumerate(progress, 1):
            lacking = [(c, file) for c, file, its in zip(kept, files, done, strict=True) if number not in its]
            with torch.backends.cudnn.flags(allow_tf32=False):
                found = count(trained, samples, [(c.missing, c.protocol) for c, _ in lacking])
            for (_, file), rows in zip(lacking, found, strict=True):
                file.write(journals.line(number, rows))
                file.flush()
            if step % 10 == 0:
                log.info("%s %s: %d of %d batches", data.title, data.part, step, len(mine))
    workers.wait_for_everyone()


def image_loader(data: Segmentation, trained: Trained, protocol: Protocol, batches: list[list[int]]) -> DataLoader[Sample]:
    """Lists of samples whose images are ready for the network."""
    size = protocol.size or trained.size
    if protocol.views:
        log.info("%s", _cost(size, protocol))
    collate = partial(_preprocessed, scaled(size, max(1.0, *protocol.scales)))  # the largest view, which has all details
    return loader(data, next(trained.model.parameters()).device, batch_sampler=batches, collate_fn=collate)


def _cost(size: tuple[int, int], protocol: Protocol) -> str:
    """How many traces of an image the views are, and their pixels, to which the time of a trace is proportional."""
    pixels = [h * w for h, w in (scaled(size, scale) for scale in protocol.scales)] * (1 + protocol.flip)
    said = f"scales {', '.join(f'{scale:g}' for scale in protocol.scales)}" + ", each mirrored too" * protocol.flip
    return (
        f"{said}: {len(pixels)} traces of an image, {sum(pixels) / (size[0] * size[1]):.4g} times the pixels of one at scale 1"
    )


def _preprocessed(size: tuple[int, int], samples: list[Sample]) -> list[Sample]:
    return [sample._replace(image=datasets.preprocess(sample.image, size)) for sample in samples]


def _batches(data: Segmentation, batch_size: int) -> list[list[int]]:
    """Batches of images with equally many classes, so that no image gets a backward that it does not need. Among these, images
    of one size come together, so that their masks are scored together."""
    ranks = data.labels.sum(dim=1).int().tolist()
    ordered = sorted(data.scored, key=lambda i: (ranks[i], data.sizes[i]))
    groups = [list(group) for _, group in groupby(ordered, key=lambda i: ranks[i])]
    return [group[i : i + batch_size] for group in groups for i in range(0, len(group), batch_size)]


def kept_counts(path: AnyPath, identity: dict[str, Any]) -> pd.DataFrame:
    """The counts kept at `path`, if checkpoint, data, protocol and code are the same."""
    path = Path(path)
    if provenance.made_by(path, UNSCALED | identity):
        return pd.read_csv(path, dtype=FLOATS)
    if path.is_file():
        log.warning("%s: the counts are of another checkpoint, data set, protocol or code: measuring again", path.parent.name)
    return pd.DataFrame(columns=[*metrics.CONFIG])

"""A whole data set -> heatmaps -> Otsu masks -> pixel counts -> tables: `ltcam evaluate --checkpoint PATH`.

`counts.csv.gz` keeps the counts of every (image, class) pair and configuration. Every table is derived from them, so a new
table needs no new run. By default heatmaps are of the classes that are truly present, as is standard for CAM seeds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ltcam import data as datasets
from ltcam.data import Sample, Segmentation
from ltcam.engine.bins import heatmaps, maps_of
from ltcam.engine.cam import Options
from ltcam.engine.stages import stages
from ltcam.engine.tracing import trace
from ltcam.errors import UnavailableError
from ltcam.experiment import journals, metrics, provenance
from ltcam.experiment.checkpoints import Trained
from ltcam.experiment.configs import FLOATS, Config, Protocol, configurations
from ltcam.experiment.locks import alone
from ltcam.experiment.parallel import PartialState, loader, processes
from ltcam.experiment.segmentation import CHUNK, above, otsu_counts
from ltcam.files import sha256, writing

log = logging.getLogger(__name__)


def evaluate(
    trained: Trained, part: str, configs: Sequence[Config], out: Path, protocol: Protocol | None = None
) -> pd.DataFrame:
    """Pixel counts of `configs` on part `part` of the model's data set: one row per pair and configuration.

    `out/counts.csv.gz` keeps every configuration measured with this checkpoint, data and code. Only missing ones are measured.
    An interrupted call goes on after its last complete batch. Under `accelerate launch` the processes share the batches, which
    are the same for any number of processes. Raises InputError for an unknown configuration, DataError if the data are missing
    or not those of the training, and UnavailableError if another run writes into `out`.
    """
    started = time.time()
    for config in configs:
        config.options  # noqa: B018 - raises for unknown options before anything runs
    data, protocol = trained.load(part), protocol or Protocol()
    protocol = replace(protocol, size=protocol.size or trained.size)
    identity = {
        "data": data.title, "part": part, "fingerprint": data.fingerprint, **asdict(protocol),
        "checkpoint": trained.sha256, "code": provenance.code(),
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
                rows = _count(trained, samples, configs, protocol)
            file.write(journals.line(number, rows))
            file.flush()
            if step % 10 == 0:
                log.info("%s %s: %d of %d batches", data.title, data.part, step, len(mine))
    workers.wait_for_everyone()


def _count(trained: Trained, samples: list[Sample], configs: Sequence[Config], protocol: Protocol) -> list[list[Any]]:
    """`_count_batch`, in halves if the GPU's memory does not hold the batch."""
    try:
        return _count_batch(trained, samples, configs, protocol)
    except torch.OutOfMemoryError as error:
        if len(samples) == 1:
            raise UnavailableError(
                f"GPU memory does not hold one image ({samples[0].name}, mask {tuple(samples[0].mask.shape)}): "
                "free memory, ask for fewer configurations, or run on a CPU"
            ) from error
    half = len(samples) // 2
    log.warning("out of GPU memory with %d images at a time: trying %d", len(samples), half)
    torch.cuda.empty_cache()
    return [row for part in (samples[:half], samples[half:]) for row in _count(trained, part, configs, protocol)]


def _count_batch(trained: Trained, samples: list[Sample], configs: Sequence[Config], protocol: Protocol) -> list[list[Any]]:
    """The rows of one batch: one forward and one backward per class rank serve every configuration.

    Nothing but the counts leaves the device.
    """
    layout = torch.channels_last if protocol.bfloat16 else torch.contiguous_format
    model = trained.model.to(memory_format=layout)
    weight = next(model.parameters())
    device = weight.device
    images = torch.stack([s.image for s in samples]).to(weight, memory_format=layout)
    truth = labels = torch.stack([s.label for s in samples])
    full = any(c.method == "fullgrad" for c in configs)
    with torch.autocast(device.type, torch.bfloat16, enabled=protocol.bfloat16):
        if protocol.labels == "predicted":
            labels = _predicted(model, images)
        traced = trace(model, images, labels, stages(model, protocol.outputs), full)
    maps = maps_of(traced, [(c.options, c.selection) for c in configs])
    masks = [s.mask.to(device) for s in samples]
    pairs = traced.pairs.tolist()
    counts = torch.zeros(len(pairs), len(configs), 3, dtype=torch.long, device=device)
    numbers: dict[tuple[Options, float | None], list[int]] = {}
    for i, c in enumerate(configs):
        numbers.setdefault((c.options, c.fraction), []).append(i)
    for part, size in _of_one_size(masks, pairs):
        regions = torch.stack([metrics.regions(masks[image], c) for image, c in (pairs[pair] for pair in part)])
        for (options, fraction), chosen in numbers.items():
            layers = [maps[options, configs[i].selection] for i in chosen]
            heat = heatmaps(layers, part, size, options.fuse, options.normalize)
            found = otsu_counts(heat, regions) if fraction is None else metrics.count(above(heat, fraction), regions)
            counts[torch.tensor(part)[:, None], chosen] = found.transpose(0, 1)
    missed = [
        ([image, c], [[0, 0, int((samples[image].mask == c + 1).sum())]] * len(configs))
        for image, c in torch.nonzero(truth.bool() & ~labels.bool()).tolist()
    ]
    return [
        [samples[image].name, c, *config, *row]
        for (image, c), rows in [*zip(pairs, counts.tolist(), strict=True), *missed]
        for config, row in zip(configs, rows, strict=True)
    ]


@torch.no_grad()
def _predicted(model: nn.Module, images: Tensor) -> Tensor:
    """(N, C) of 0 and 1: every class with a logit above 0, and the class with the largest logit."""
    logits: Tensor = model(images).float().cpu()
    return ((logits > 0) | (logits == logits.amax(dim=1, keepdim=True))).long()


def _of_one_size(masks: Sequence[Tensor], pairs: list[list[int]]) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """The numbers of pairs whose masks have one size, as many as are scored at once, and that size."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for number, (image, _) in enumerate(pairs):
        height, width = masks[image].shape
        by_size.setdefault((height, width), []).append(number)
    for size, numbers in by_size.items():
        step = max(1, CHUNK.get(masks[0].device.type, CHUNK["cuda"]) // (size[0] * size[1]))
        yield from ((numbers[i : i + step], size) for i in range(0, len(numbers), step))


def _loader(data: Segmentation, trained: Trained, protocol: Protocol, batches: list[list[int]]) -> DataLoader[Sample]:
    """Lists of samples whose images are ready for the network."""
    collate = partial(_preprocessed, protocol.size or trained.size)
    return loader(data, next(trained.model.parameters()).device, batch_sampler=batches, collate_fn=collate)


def _preprocessed(size: tuple[int, int], samples: list[Sample]) -> list[Sample]:
    return [sample._replace(image=datasets.preprocess(sample.image, size)) for sample in samples]


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

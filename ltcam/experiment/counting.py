"""One batch -> one trace -> heatmaps -> masks -> pixel counts, and a whole data set batch by batch. Only counts are kept.

`COUNTS` is part of every pass. Raise it when the counts of tests/experiment/test_counting.py's fixed probe change.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from tqdm import tqdm

from ltcam import data as datasets
from ltcam.data import Sample, Segmentation
from ltcam.engine.config import Config
from ltcam.engine.stages import stages
from ltcam.engine.tricks import normalized
from ltcam.engine.views import Maps, over_views, scaled
from ltcam.errors import UnavailableError
from ltcam.experiment.otsu import CHUNK, above, argmax_counts, count, otsu_counts, regions
from ltcam.experiment.parallel import alone, gather_object, loader, processes
from ltcam.experiment.protocol import Protocol, Way, explained
from ltcam.experiment.store import Row, Store
from ltcam.experiment.trained import Trained

log = logging.getLogger(__name__)
COUNTS = 4
Batch = tuple[list[Row], dict[str, list[float]]]  # counts, and the logits of each image


def measure(
    store: Store, number: int, trained: Trained, data: Segmentation, ways: Sequence[Way], protocol: Protocol, **about: Any
) -> None:
    """Count `ways` on every image of `data` in pass `number` of `store`, and go on where an interrupted call stopped.

    Processes share the batches, which are the same for any number of them. about: what the record of the pass says beside the
    environment. Raises UnavailableError if another run measures into the same folder.
    """
    started, workers = time.time(), processes()
    with alone(store.folder):
        done = store.done(number)
        missing, work = [way for way in ways if way not in done], []
        begun = store.begun(number) if missing else {}
        for batch in batches(data, protocol, any(way.cut == "argmax" for way in missing)):
            there = begun.get(data.entries[batch[0]].name, ())  # a batch is kept whole, so its first image speaks for it
            if lacking := [way for way in missing if way not in there]:
                work.append((batch, lacking))
        groups = dict(zip((entry.name for entry in data.entries), data.groups, strict=True))
        mine = work[workers.process_index :: workers.num_processes]
        loaded = iter(image_loader(data, trained, protocol, [batch for batch, _ in mine]))
        steps = range(-(-len(work) // workers.num_processes))
        for step in tqdm(steps, f"{data.title} {data.part}", disable=None, leave=False):
            found = [count_batch(trained, next(loaded), mine[step][1], protocol)] if step < len(mine) else []
            for rows, logits in gather_object(found):
                if workers.is_main_process:
                    store.add(number, rows, groups, logits)
            if (step + 1) % 10 == 0:
                log.info("%s %s: %d of %d batches", data.title, data.part, step + 1, len(steps))
        if workers.is_main_process:
            images = {"part": len(data), "scored": len(data.scored)}
            store.finish(number, ways, started, images=images, processes=workers.num_processes, **about)
        workers.wait_for_everyone()


def identity(trained: Trained, data: Segmentation, protocol: Protocol) -> dict[str, Any]:
    """All that the counts of a pass depend on. decoded: the first image as this machine's libraries decode it."""
    first = b"".join(value.numpy().tobytes() for index in data.scored[:1] for value in data[index][:3])
    return {
        "checkpoint": trained.sha256, "data": data.title, "part": data.part, "fingerprint": data.fingerprint,
        "decoded": hashlib.sha256(first).hexdigest(), "counts": COUNTS, **protocol.identity(trained.size),
    }  # fmt: skip


def batches(data: Segmentation, protocol: Protocol, annotated: bool) -> list[list[int]]:
    """Batches of images with equally many classes, so that no image gets a backward that it does not need. Among these, images
    of one size come together, so that their masks are scored together. annotated: with the images that have no class."""
    ranks = data.labels.sum(dim=1).int().tolist()
    ordered = sorted(data.annotated if annotated else data.scored, key=lambda i: (ranks[i], data.sizes[i]))
    groups = [list(group) for _, group in groupby(ordered, key=lambda i: ranks[i])]
    return [group[i : i + protocol.batch_size] for group in groups for i in range(0, len(group), protocol.batch_size)]


def image_loader(data: Segmentation, trained: Trained, protocol: Protocol, batches: list[list[int]]) -> DataLoader[Sample]:
    """Lists of samples whose images are ready for the network, at the size of the largest view, which has all details."""
    largest = scaled(protocol.size or trained.size, max(1.0, *protocol.scales))
    collate = partial(_preprocessed, largest)
    return loader(data, next(trained.model.parameters()).device, batch_sampler=batches, collate_fn=collate)


def _preprocessed(size: tuple[int, int], samples: list[Sample]) -> list[Sample]:
    return [sample._replace(image=datasets.preprocess(sample.image, size)) for sample in samples]


def count_batch(trained: Trained, samples: list[Sample], ways: Sequence[Way], protocol: Protocol) -> Batch:
    """The counts of every way. A GPU whose memory does not hold the batch gets it in halves."""
    try:
        return _count(trained, samples, ways, protocol)
    except torch.OutOfMemoryError as error:
        if len(samples) == 1:
            raise UnavailableError(
                f"GPU memory does not hold one image ({samples[0].name}, mask {tuple(samples[0].mask.shape)}): "
                "free memory, ask for fewer configurations, or run on a CPU"
            ) from error
    half = len(samples) // 2
    log.warning("out of GPU memory with %d images at a time: trying %d", len(samples), half)
    torch.cuda.empty_cache()
    (rows, logits), (more, others) = (count_batch(trained, s, ways, protocol) for s in (samples[:half], samples[half:]))
    return rows + more, logits | others


def _count(trained: Trained, samples: list[Sample], ways: Sequence[Way], protocol: Protocol) -> Batch:
    labels = torch.stack([s.label for s in samples]).bool()
    if protocol.labels == "every":
        labels |= _named(trained, samples, protocol)
    rows, logits, argmax = list[Row](), dict[str, list[float]](), [way for way in ways if way.cut == "argmax"]
    counts = labels.sum(dim=1).tolist()
    least = min((n for n in counts if n), default=0)  # images without a class go with others, whose trace gives their logits
    for n in sorted({*counts} - {0} or {0}):  # as in `batches`, which does not know what is named
        alike = [i for i, own in enumerate(counts) if max(own, least) == n]
        part, own = [samples[i] for i in alike], labels[alike]
        maps = maps_of_batch(trained, part, own, list(dict.fromkeys(way.config for way in ways)), protocol)
        if cut := {way.config for way in ways if way.cut == "otsu"}:
            rows += _otsu(maps, part, cut)
        for sample, config, classes, heats in each(maps, part) if argmax else ():
            mine = sorted((way for way in argmax if way.config == config), key=lambda way: way.t)
            rows += _argmax(sample, heats, classes, mine)
        if own.any():
            logits |= {sample.name: row for sample, row in zip(part, maps.logits.float().tolist(), strict=True)}
    return rows, logits


def maps_of_batch(
    trained: Trained, samples: Sequence[Sample], labels: Tensor, configs: Sequence[Config], protocol: Protocol
) -> Maps:
    """The maps of every configuration, for the classes that `labels` (N, C) name."""
    if not labels.any():
        return Maps(torch.zeros(0, 2, dtype=torch.long), labels, {config: {} for config in configs})
    size, layers, images = protocol.size or trained.size, stages(trained.model, protocol.outputs), _inputs(trained, samples)
    with (
        torch.backends.cudnn.flags(allow_tf32=False),
        torch.autocast(images.device.type, torch.bfloat16, enabled=protocol.bfloat16),
    ):
        classes = [row.nonzero().flatten().tolist() for row in labels]  # of a model that may have a logit for "none"
        return over_views(trained.model, images, classes, configs, layers, size, protocol.scales, protocol.flip)


def each(maps: Maps, samples: Sequence[Sample], stride: int = 1) -> Iterator[tuple[Sample, Config, Tensor, Tensor]]:
    """Each image with each configuration, its n classes (n,) and their heatmaps (n, H, W), each over its maximum.

    (H, W): the size of the mask, divided by `stride` and rounded up.
    """
    for number, sample in enumerate(samples):
        own = torch.nonzero(maps.pairs[:, 0] == number).flatten()
        height, width = (-(-side // stride) for side in sample.mask.shape)
        if not len(own):
            yield from ((sample, config, own, torch.zeros(0, height, width)) for config in maps.of)
            continue
        for group, heat in maps.heatmaps(own.tolist(), (height, width)):
            for config, heats in zip(group, heat, strict=True):
                yield sample, config, maps.pairs[own, 1], normalized([heats], "max")[0]


def _otsu(maps: Maps, samples: list[Sample], cut: set[Config]) -> Iterator[Row]:
    """The rows of masks at Otsu's threshold, or at a configuration's own fraction of the maximum."""
    pairs, device = maps.pairs.tolist(), maps.pairs.device
    for chosen, size in _of_one_size(pairs, samples, CHUNK.get(device.type, CHUNK["cuda"])):
        own = [(samples[image], c) for image, c in (pairs[pair] for pair in chosen)]
        region = torch.stack([regions(sample.mask.to(device), c) for sample, c in own])
        for group, heat in maps.heatmaps(chosen, size):
            for fraction in {config.fraction: None for config in group if config in cut}:
                its = [n for n, config in enumerate(group) if config.fraction == fraction and config in cut]
                found = otsu_counts(heat[its], region) if fraction is None else count(above(heat[its], fraction), region)
                for n, of_config in zip(its, found.tolist(), strict=True):
                    for (sample, c), row in zip(own, of_config, strict=True):
                        yield Row(sample.name, c, Way(group[n]), *row)


def _of_one_size(pairs: list[list[int]], samples: list[Sample], chunk: int) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """The numbers of pairs whose masks have one size, as many as the caches hold, and that size.

    Images stay whole: the last bits of a resize depend on how many maps it is given.
    """
    chosen, before = list[int](), (0, 0)
    for image, numbers in groupby(range(len(pairs)), key=lambda number: pairs[number][0]):
        own, (height, width) = list(numbers), samples[image].mask.shape
        if chosen and ((height, width) != before or (len(chosen) + len(own)) * height * width > chunk):
            yield chosen, before
            chosen = []
        chosen, before = chosen + own, (height, width)
    if chosen:
        yield chosen, before


def _argmax(sample: Sample, heats: Tensor, classes: Tensor, ways: Sequence[Way]) -> Iterator[Row]:
    """The rows of one image and configuration, under ascending t."""
    found = argmax_counts(heats, classes, sample.mask.to(heats.device), [way.t for way in ways]) if ways else ()
    for way, of_way in zip(ways, found, strict=True):
        for label, row in enumerate(of_way.tolist()):
            if any(row):
                yield Row(sample.name, label - 1, way, *row)


@torch.no_grad()
def _named(trained: Trained, samples: Sequence[Sample], protocol: Protocol) -> Tensor:
    """(N, C) bool: the classes that the model predicts, at scale 1 whatever the views. "none" is not one."""
    images, size = _inputs(trained, samples), protocol.size or trained.size
    if images.shape[2:] != size:
        images = interpolate(images, size, mode="bilinear", antialias=True)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=protocol.bfloat16):
        logits: Tensor = trained.model(images).float().cpu()
    return explained(logits, "predicted", trained.recipe.loss)[:, : len(trained.classes)]


def _inputs(trained: Trained, samples: Sequence[Sample]) -> Tensor:
    return torch.stack([sample.image for sample in samples]).to(next(trained.model.parameters()))

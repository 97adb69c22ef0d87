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
from ltcam.data.base import VOID
from ltcam.engine.config import Config
from ltcam.engine.stages import stages
from ltcam.engine.tricks import normalized
from ltcam.engine.views import Maps, over_views, scaled
from ltcam.errors import UnavailableError
from ltcam.experiment.otsu import CHUNK, above, count, otsu_counts, regions
from ltcam.experiment.parallel import alone, gather_object, loader, processes
from ltcam.experiment.protocol import Protocol, Way
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
        missing = [way for way in ways if way not in store.done(number)]
        batches = [(batch, missing) for batch in _batches(data, protocol, missing) if missing]
        if store.begun(number):  # a batch is kept whole, so its first image speaks for it
            there = [store.counted(number, data.entries[batch[0]].name) for batch, _ in batches]
            batches = [
                (batch, [way for way in missing if way not in own]) for (batch, _), own in zip(batches, there, strict=True)
            ]
            batches = [(batch, lacking) for batch, lacking in batches if lacking]
        groups = dict(zip((entry.name for entry in data.entries), data.groups, strict=True))
        mine = batches[workers.process_index :: workers.num_processes]
        loaded = iter(image_loader(data, trained, protocol, [batch for batch, _ in mine]))
        steps = range(-(-len(batches) // workers.num_processes))
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
    truth = torch.stack([s.label for s in samples]).bool()
    images = torch.stack([s.image for s in samples]).to(next(trained.model.parameters()))
    labels = truth if protocol.labels == "true" else _predicted(trained, images, protocol)
    if not labels.any():  # images without a class, which argmax counts as background
        return [row for s in samples for row in _argmax(s, torch.zeros(0), [], [w for w in ways if w.cut == "argmax"])], {}
    maps = maps_of_batch(trained, images, labels, list(dict.fromkeys(way.config for way in ways)), protocol)
    rows = []
    for sample, absent in zip(samples, truth & ~labels, strict=True):  # what no map claims is missed
        pixels = {c: int((sample.mask == c + 1).sum()) for c in absent.nonzero().flatten().tolist()}
        rows += [Row(sample.name, c, way, 0, 0, missed) for c, missed in pixels.items() for way in ways]
    device = maps.pairs.device
    for chosen, size in _of_one_size(maps.pairs.tolist(), samples, CHUNK.get(device.type, CHUNK["cuda"])):
        pairs = maps.pairs[chosen].tolist()
        masks = {image: samples[image].mask.to(device) for image, _ in pairs}
        region = torch.stack([regions(masks[image], c) for image, c in pairs])
        for group, heat in maps.heatmaps(chosen, size):
            rows += _cut(group, heat, region, pairs, samples, ways)
    return rows, {s.name: row for s, row in zip(samples, maps.logits.float().tolist(), strict=True)}


def maps_of_batch(trained: Trained, images: Tensor, labels: Tensor, configs: Sequence[Config], protocol: Protocol) -> Maps:
    """The maps of every configuration, for the classes that `labels` (N, C) name."""
    size, layers = protocol.size or trained.size, stages(trained.model, protocol.outputs)
    with (
        torch.backends.cudnn.flags(allow_tf32=False),
        torch.autocast(images.device.type, torch.bfloat16, enabled=protocol.bfloat16),
    ):
        return over_views(trained.model, images, labels.long(), configs, layers, size, protocol.scales, protocol.flip)


def _cut(
    group: list[Config], heat: Tensor, region: Tensor, pairs: list[list[int]], samples: list[Sample], ways: Sequence[Way]
) -> Iterator[Row]:
    """The rows of configurations whose heatmaps are (len(group), P, H, W)."""
    for fraction in dict.fromkeys(config.fraction for config in group):
        its = [n for n, config in enumerate(group) if config.fraction == fraction and Way(config) in ways]
        if its:
            found = otsu_counts(heat[its], region) if fraction is None else count(above(heat[its], fraction), region)
            for n, of_config in zip(its, found.tolist(), strict=True):
                for (image, c), row in zip(pairs, of_config, strict=True):
                    yield Row(samples[image].name, c, Way(group[n]), *row)
    for n, config in enumerate(group):
        if cuts := [way for way in ways if way.cut == "argmax" and way.config == config]:
            for image in dict.fromkeys(image for image, _ in pairs):
                own = [p for p, (other, _) in enumerate(pairs) if other == image]
                yield from _argmax(samples[image], normalized([heat[n, own]], "max")[0], [pairs[p][1] for p in own], cuts)


def _argmax(sample: Sample, maps: Tensor, classes: list[int], ways: Sequence[Way]) -> Iterator[Row]:
    """The rows of one image; maps (n, H, W) in [0, 1] of its classes. A class wins where it is above t, as in IRN."""
    mask = sample.mask.to(maps.device)
    known, truth = mask != VOID, mask.long()
    for way in ways:
        claimed = torch.zeros_like(truth)
        if len(classes):
            largest, place = maps.max(dim=0)
            claimed = torch.where(largest > torch.tensor(way.t).to(largest), torch.tensor(classes).to(truth)[place] + 1, 0)
        for label in range(max([*classes, int(truth[known].max()) - 1 if known.any() else -1]) + 2):
            own, found = truth == label, claimed == label
            tp, fp, fn = (int((part & known).sum()) for part in (own & found, ~own & found, own & ~found))
            if tp or fp or fn:
                yield Row(sample.name, label - 1, way, tp, fp, fn)


@torch.no_grad()
def _predicted(trained: Trained, images: Tensor, protocol: Protocol) -> Tensor:
    """(N, C) bool: every class with a logit above 0, and the class with the largest logit, at scale 1 whatever the views."""
    if images.shape[2:] != (size := protocol.size or trained.size):
        images = interpolate(images, size, mode="bilinear", antialias=True)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=protocol.bfloat16):
        logits: Tensor = trained.model(images).float().cpu()
    return (logits > 0) | (logits == logits.amax(dim=1, keepdim=True))


def _of_one_size(pairs: list[list[int]], samples: list[Sample], chunk: int) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """The numbers of pairs whose masks have one size, whole images and as many as are scored at once, and that size."""
    by_size: dict[tuple[int, int], dict[int, list[int]]] = {}
    for number, (image, _) in enumerate(pairs):
        height, width = samples[image].mask.shape
        by_size.setdefault((height, width), {}).setdefault(image, []).append(number)
    for size, images in by_size.items():
        most, chosen = chunk // (size[0] * size[1]), list[int]()
        for own in images.values():
            if chosen and len(chosen) + len(own) > most:
                yield chosen, size
                chosen = []
            chosen = chosen + own
        yield chosen, size


def image_loader(data: Segmentation, trained: Trained, protocol: Protocol, batches: list[list[int]]) -> DataLoader[Sample]:
    """Lists of samples whose images are ready for the network."""
    size = protocol.size or trained.size
    if protocol.several:
        log.info("%s", _cost(size, protocol))
    collate = partial(_preprocessed, scaled(size, max(1.0, *protocol.scales)))  # the largest view, which has all details
    return loader(data, next(trained.model.parameters()).device, batch_sampler=batches, collate_fn=collate)


def _cost(size: tuple[int, int], protocol: Protocol) -> str:
    """How many traces of an image the views are, and their pixels, to which the time of a trace is proportional."""
    pixels = [h * w for h, w in (scaled(size, scale) for scale in protocol.scales)] * (1 + protocol.flip)
    said = f"scales {', '.join(f'{scale:g}' for scale in protocol.scales)}" + ", mirrored too" * protocol.flip
    return f"{said}: {len(pixels)} traces, {sum(pixels) / (size[0] * size[1]):.4g} times the pixels of one at scale 1"


def _preprocessed(size: tuple[int, int], samples: list[Sample]) -> list[Sample]:
    return [sample._replace(image=datasets.preprocess(sample.image, size)) for sample in samples]


def _batches(data: Segmentation, protocol: Protocol, ways: Sequence[Way]) -> list[list[int]]:
    """Batches of images with equally many classes, so that no image gets a backward that it does not need. Among these, images
    of one size come together, so that their masks are scored together. argmax counts images without a class too."""
    images = data.annotated if any(way.cut == "argmax" for way in ways) else data.scored
    ranks = data.labels.sum(dim=1).int().tolist()
    ordered = sorted(images, key=lambda i: (ranks[i], data.sizes[i]))
    groups = [list(group) for _, group in groupby(ordered, key=lambda i: ranks[i])]
    return [group[i : i + protocol.batch_size] for group in groups for i in range(0, len(group), protocol.batch_size)]

"""One batch -> one trace -> heatmaps -> masks -> pixel counts. Nothing but the counts leaves the device."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ltcam.data import Sample
from ltcam.engine.bins import heatmaps, maps_of
from ltcam.engine.cam import Options
from ltcam.engine.stages import stages
from ltcam.engine.tracing import trace
from ltcam.errors import UnavailableError
from ltcam.experiment import metrics
from ltcam.experiment.checkpoints import Trained
from ltcam.experiment.configs import Config, Protocol
from ltcam.experiment.segmentation import CHUNK, above, otsu_counts

log = logging.getLogger(__name__)


def count(trained: Trained, samples: list[Sample], configs: Sequence[Config], protocol: Protocol) -> list[list[Any]]:
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
    return [row for part in (samples[:half], samples[half:]) for row in count(trained, part, configs, protocol)]


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
            heat = heatmaps(layers, part, size, *options.fusion)
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

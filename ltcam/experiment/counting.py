"""One batch -> one trace -> heatmaps -> masks -> pixel counts. Nothing but the counts leaves the device."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ltcam.data import Sample
from ltcam.engine.bins import heatmaps, maps_of
from ltcam.engine.cam import Options
from ltcam.engine.scales import Found, averaged, views
from ltcam.engine.stages import Outputs, stages
from ltcam.engine.traces import Trace
from ltcam.engine.tracing import trace
from ltcam.errors import UnavailableError
from ltcam.experiment import metrics
from ltcam.experiment.checkpoints import Trained
from ltcam.experiment.configs import Config, Labels, Protocol
from ltcam.experiment.segmentation import CHUNK, above, otsu_counts

log = logging.getLogger(__name__)

Reading = tuple[Sequence[Config], Protocol]


def count(trained: Trained, samples: list[Sample], readings: Sequence[Reading]) -> list[list[list[Any]]]:
    """The rows of one batch, for each of `readings`. Their protocols have one `forward`.

    A GPU whose memory does not hold the batch gets it in halves.
    """
    try:
        return _count_batch(trained, samples, readings)
    except torch.OutOfMemoryError as error:
        if len(samples) == 1:
            raise UnavailableError(
                f"GPU memory does not hold one image ({samples[0].name}, mask {tuple(samples[0].mask.shape)}): "
                "free memory, ask for fewer configurations, or run on a CPU"
            ) from error
    half = len(samples) // 2
    log.warning("out of GPU memory with %d images at a time: trying %d", len(samples), half)
    torch.cuda.empty_cache()
    first, second = (count(trained, part, readings) for part in (samples[:half], samples[half:]))
    return [a + b for a, b in zip(first, second, strict=True)]


def _count_batch(trained: Trained, samples: list[Sample], readings: Sequence[Reading]) -> list[list[list[Any]]]:
    """One forward and one backward per class rank, of each view, serve every reading. What several count is counted once."""
    protocol, size = readings[0][1], readings[0][1].size or trained.size
    layout = torch.channels_last if protocol.layout == "channels_last" else torch.contiguous_format
    model, weight = trained.model, next(trained.model.parameters())
    images = torch.stack([s.image for s in samples]).to(weight, memory_format=layout)
    truth = torch.stack([s.label for s in samples]).bool()
    labels: dict[Labels, Tensor] = {"true": truth}
    stages_of = {p.outputs: stages(model, p.outputs) for _, p in readings}
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=protocol.bfloat16):
        if any(p.labels == "predicted" for _, p in readings):
            labels["predicted"] = _predicted(model, next(views(images, size, (1.0,), False))[0])
        wanted = torch.stack([labels[p.labels] for _, p in readings]).any(dim=0)
        layers = [layer for found in stages_of.values() for layer in found.values()]
    full, pairs = any(c.method == "fullgrad" for configs, _ in readings for c in configs), torch.nonzero(wanted)
    alike = _alike(pairs.tolist(), readings, labels)

    def read(view: Tensor) -> list[Found]:
        with torch.autocast(weight.device.type, torch.bfloat16, enabled=protocol.bfloat16):
            traced = trace(model, view, wanted.long(), layers, full)
        parts = (_part(traced, numbers, stages_of[outputs], [*stages_of.values()]) for (outputs, _), numbers in alike.items())
        return [maps_of(p, [(c.options, c.selection) for c in configs]) for p, (_, configs) in zip(parts, alike, strict=True)]

    seen = [(read(view), mirrored) for view, mirrored in views(images, size, protocol.scales, protocol.flip)]
    counted: dict[tuple[Outputs, int, int], dict[Config, list[int]]] = {}
    for n, ((outputs, configs), numbers) in enumerate(alike.items()):
        maps, chosen = averaged([(found[n], mirrored) for found, mirrored in seen], size), pairs[numbers].tolist()
        for (image, c), rows in zip(chosen, _counts(maps, chosen, samples, configs, protocol.several).tolist(), strict=True):
            counted[outputs, image, c] = dict(zip(configs, rows, strict=True))

    def row(image: int, c: int, config: Config, protocol: Protocol) -> list[Any]:
        there = labels[protocol.labels][image, c]
        found = counted[_at(config, protocol, readings), image, c][config] if there else missed[image, c]
        return [samples[image].name, c, *config, *found]

    missed = {(image, c): [0, 0, int((samples[image].mask == c + 1).sum())] for image, c in torch.nonzero(truth).tolist()}
    return [
        [row(image, c, config, p) for image, c in torch.nonzero(truth | labels[p.labels]).tolist() for config in configs]
        for configs, p in readings
    ]


def _alike(
    pairs: list[list[int]], readings: Sequence[Reading], labels: dict[Labels, Tensor]
) -> dict[tuple[Outputs, tuple[Config, ...]], list[int]]:
    """The numbers of the pairs that are read at the same outputs with the same configurations."""
    found: dict[tuple[Outputs, tuple[Config, ...]], list[int]] = {}
    for number, (image, c) in enumerate(pairs):
        own = [reading for reading in readings if labels[reading[1].labels][image, c]]
        wanted = dict.fromkeys((_at(config, p, readings), config) for configs, p in own for config in configs)
        for outputs in dict.fromkeys(at for at, _ in wanted):
            found.setdefault((outputs, tuple(config for at, config in wanted if at == outputs)), []).append(number)
    return found


def _at(config: Config, protocol: Protocol, readings: Sequence[Reading]) -> Outputs:
    """Where the stages are read. FullGrad of all layers does not depend on it, so it is read once."""
    anywhere = (config.method, config.layers) == ("fullgrad", "all") and not config.refine
    return readings[0][1].outputs if anywhere else protocol.outputs


def _part(traced: Trace, numbers: list[int], own: dict[str, str], every: list[dict[str, str]]) -> Trace:
    """The pairs `numbers` of a trace, read at the stages `own`; every: all stages that were traced.

    The trace gives a bias to the traced layer that follows, which may be the stage of another reading.
    """
    chosen = slice(None) if len(numbers) == len(traced.pairs) else torch.tensor(numbers, device=traced.pairs.device)
    label = {layer: label for found in every for label, layer in found.items()}
    biases = [
        replace(
            b,
            stage=own[label[b.stage]] if b.stage in label else b.stage,
            gradient=b.gradient[chosen],
            bias=b.bias[chosen] if len(b.bias) == len(traced.pairs) and b.bias.ndim > 1 else b.bias,
        )
        for b in traced.biases
    ]
    return replace(
        traced,
        pairs=traced.pairs[chosen],
        layers=[layer for layer in traced.layers if layer in own.values()],
        stages=own,
        biases=biases,
        inputs=traced.inputs and (traced.inputs[0][chosen], traced.inputs[1][chosen]),
        _gradients={layer: traced.gradient(layer)[chosen] for layer in own.values()},
    )


def _counts(maps: Found, pairs: list[list[int]], samples: list[Sample], configs: Sequence[Config], fused: bool) -> Tensor:
    """(tp, fp, fn) of every pair and configuration: (P, len(configs), 3) long. fused: the maps are fused already."""
    device = next(m.device for layers in maps.values() for m in layers.values())
    masks = [s.mask.to(device) for s in samples]
    counts = torch.zeros(len(pairs), len(configs), 3, dtype=torch.long, device=device)
    numbers: dict[tuple[Options, float | None], list[int]] = {}
    for i, c in enumerate(configs):
        numbers.setdefault((c.options, c.fraction), []).append(i)
    for part, size in _of_one_size(masks, pairs):
        regions = torch.stack([metrics.regions(masks[image], c) for image, c in (pairs[pair] for pair in part)])
        for (options, fraction), chosen in numbers.items():
            layers = [maps[options, configs[i].selection] for i in chosen]
            heat = heatmaps(layers, part, size, *(Options() if fused else options).fusion)
            found = otsu_counts(heat, regions) if fraction is None else metrics.count(above(heat, fraction), regions)
            counts[torch.tensor(part)[:, None], chosen] = found.transpose(0, 1)
    return counts


@torch.no_grad()
def _predicted(model: nn.Module, images: Tensor) -> Tensor:
    """(N, C) bool: every class with a logit above 0, and the class with the largest logit."""
    logits: Tensor = model(images).float().cpu()
    return (logits > 0) | (logits == logits.amax(dim=1, keepdim=True))


def _of_one_size(masks: Sequence[Tensor], pairs: list[list[int]]) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """The numbers of pairs whose masks have one size, as many as are scored at once, and that size."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for number, (image, _) in enumerate(pairs):
        height, width = masks[image].shape
        by_size.setdefault((height, width), []).append(number)
    for size, numbers in by_size.items():
        step = max(1, CHUNK.get(masks[0].device.type, CHUNK["cuda"]) // (size[0] * size[1]))
        yield from ((numbers[i : i + step], size) for i in range(0, len(numbers), step))

"""Every delta of every method from one sort: how `ltcam evaluate` reads a trace.

The thresholds of all deltas cut the gradients of a layer into bins. Each method is a sum over G (see `methods`), so it is
summed once in each bin, and what a delta keeps are the bins from the largest down to its own. The maps are those that
`ltcam.engine.cam.layer_maps` makes one by one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from typing import get_args

import torch
from torch import Tensor

from ltcam.engine.cam import Options, Selection, input_map, layer_maps, wide
from ltcam.engine.methods import MAPS, WEIGHTS
from ltcam.engine.traces import Trace
from ltcam.engine.tricks import Fuse, Normalize, Scope, layerize, thresholds

CHUNK = {"cpu": 2**20, "cuda": 2**26}  # values cut at a time: few enough for the caches, or to leave memory alone

Maps = dict[str, Tensor]


def maps_of(trace: Trace, wanted: Iterable[tuple[Options, Selection]]) -> dict[tuple[Options, Selection], Maps]:
    """{(options, layers): {layer: (P, h, w) float32}}, what `layer_maps` gives for each. Raises InputError as it does."""
    names = {item: _names(trace, *item) for item in wanted}
    needed: dict[Options, set[str]] = {}
    for (options, _), found in names.items():
        needed.setdefault(_unfused(options), set()).update(found)
    made = {
        o: layer_maps(trace, o, None if o.method == "fullgrad" else [name for name in trace.layers if name in layers])
        for o, layers in needed.items()
        if not _in_bins(o)
    }
    with torch.autocast(trace.logits.device.type, enabled=False):
        made |= _all_at_once(trace, {o: layers for o, layers in needed.items() if _in_bins(o)})
    return {item: {name: made[_unfused(item[0])][name] for name in found} for item, found in names.items()}


def heatmaps(
    layers: Sequence[Maps], pairs: Sequence[int], size: tuple[int, int], fuse: Fuse = "sum", normalize: Normalize = "none"
) -> Tensor:
    """Several selections of layers of one method and delta, each fused at `size` (Eq. 8): (len(layers), len(pairs), H, W).

    Of plain sums a layer's map is resized once, whatever number of selections it is in.
    """
    if (fuse, normalize) != ("sum", "none"):
        return torch.stack([layerize([m[pairs] for m in maps.values()], size, fuse, normalize) for maps in layers])
    resized: dict[tuple[str, ...], Tensor] = {}
    found = []
    for maps in layers:
        by_shape: dict[torch.Size, tuple[str, ...]] = {}
        for name, m in maps.items():
            by_shape[m.shape] = (*by_shape.get(m.shape, ()), name)
        for names in by_shape.values():
            if names not in resized:
                resized[names] = layerize([maps[name][pairs] for name in names], size)
        found.append(reduce(torch.add, [resized[names] for names in by_shape.values()]))
    return torch.stack(found)


def _names(trace: Trace, options: Options, layers: Selection) -> list[str]:
    if options.method != "fullgrad":
        return trace.select(layers)
    return [term.name for term in trace.terms(layers)] + (["input"] if layers is None else [])


def _unfused(options: Options) -> Options:
    """Maps are fused later: these options have them in common with others."""
    return replace(options, fuse="sum", normalize="none")


def _in_bins(options: Options) -> bool:
    known = options.method in WEIGHTS or options.method in MAPS or (options.method == "fullgrad" and not options.per_channel)
    return options.delta is not None and options.compare == "ge" and known


def _all_at_once(trace: Trace, needed: dict[Options, set[str]]) -> dict[Options, Maps]:
    made: dict[Options, Maps] = {o: {} for o in needed}
    full = any(o.method == "fullgrad" for o in needed)
    sources: list[tuple[str, Tensor | None, Tensor]] = [(name, None, trace.gradient(name)) for name in trace.layers]
    for name, bias, gradient in sources + [(t.name, t.value, t.gradient) for t in (trace.terms() if full else [])]:
        step = max(1, CHUNK.get(gradient.device.type, CHUNK["cuda"]) // gradient[0].numel())
        parts = [slice(start, start + step) for start in range(0, len(gradient), step)]
        for per in get_args(Scope):
            its = [o for o in needed if name in needed[o] and (o.method == "fullgrad") == (bias is not None)]
            if chosen := [o for o in its if o.per == per]:
                values = (trace.activation(name, part) if bias is None else bias for part in parts)
                maps = [_cut(wide(v), wide(gradient[part]), chosen) for v, part in zip(values, parts, strict=True)]
                for options, pieces in zip(chosen, zip(*maps, strict=True), strict=True):
                    made[options][name] = torch.cat(pieces)
    for options in needed:
        if "input" in needed[options]:
            made[options]["input"] = input_map(trace, options)
    return made


def _cut(value: Tensor, gradient: Tensor, chosen: Sequence[Options]) -> list[Tensor]:
    """The maps (p, h, w) of each of `chosen`, which share a scope, from A (p, K, h, w), or FullGrad's bias, and G."""
    deltas = sorted({o.delta or 0.0 for o in chosen})
    rows = gradient.flatten(1 if chosen[0].per == "layer" else 2)
    limits = thresholds(rows, deltas).view(len(gradient), -1, 1, 1, len(deltas))
    bins = torch.zeros_like(gradient, dtype=torch.uint8)
    for d in range(len(deltas)):  # ties are in one bin
        bins += gradient >= limits[..., d]
    index = bins.long()
    maps = {m: _maps(m, value, gradient, index, len(deltas)).float() for m in dict.fromkeys(o.method for o in chosen)}
    return [maps[o.method][:, deltas.index(o.delta or 0.0)] for o in chosen]


def _maps(method: str, value: Tensor, gradient: Tensor, index: Tensor, count: int) -> Tensor:
    """The maps of one method at all `count` deltas, (p, D, h, w); index (p, K, h, w): how many thresholds G is not below."""
    pairs, channels, height, width = gradient.shape
    if method in WEIGHTS:
        sums = gradient.new_zeros(pairs, channels, height, count + 1).scatter_add_(3, index, WEIGHTS[method](value, gradient))
        weights = _from_largest(sums.sum(dim=2).movedim(-1, 1))
        return torch.einsum("pdk,pkhw->pdhw", weights, value).relu()
    empty = gradient.new_zeros(pairs, count + 1, height, width)
    if method in MAPS:
        return _from_largest(empty.scatter_add_(1, index, MAPS[method](value, gradient))).relu()
    product = (gradient * value).abs()
    sums = _from_largest(empty.scatter_add(1, index, product))
    largest = empty.scatter_reduce(1, index, product, "amax").amax(dim=(2, 3))
    high = largest.flip(1).cummax(dim=1).values.flip(1)[:, 1:]
    whole = index.amin(dim=(1, 2, 3))[:, None] > torch.arange(count, device=index.device)  # what is dropped would be a zero
    low = torch.where(whole, product.amin(dim=(1, 2, 3))[:, None], 0)
    span = torch.where(high > low, high - low, torch.inf)
    return (sums - channels * low[..., None, None]) / span[..., None, None]


def _from_largest(bins: Tensor) -> Tensor:
    """(p, D + 1, ...) -> (p, D, ...): for each threshold what is at or above it, summed from the largest down."""
    return bins.flip(1).cumsum(dim=1).flip(1)[:, 1:]

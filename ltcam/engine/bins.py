"""Every delta of every method from one count of the gradients: how `ltcam evaluate` reads a trace.

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

from ltcam.engine.cam import Options, Selection, input_map, layer_maps, refined, wide
from ltcam.engine.methods import MAPS, WEIGHTS, fullgrad
from ltcam.engine.percentiles import places, thresholds
from ltcam.engine.refine import similarity
from ltcam.engine.traces import Trace
from ltcam.engine.tricks import Fuse, Normalize, Scope, layerize, truncate

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
    maps = {item: {name: made[_unfused(item[0])][name] for name in found} for item, found in names.items()}
    for how in {o.refine: None for o, _ in maps if o.refine is not None}:  # a similarity serves all maps that it spreads
        alike = similarity(trace, how)
        maps |= {(o, layers): refined(m, trace, o, alike) for (o, layers), m in maps.items() if o.refine == how}
    return maps


def heatmaps(
    layers: Sequence[Maps], pairs: Sequence[int], size: tuple[int, int], fuse: Fuse = "sum", normalize: Normalize = "none",
    align_corners: bool = False,
) -> Tensor:  # fmt: skip
    """Several selections of layers of one method and delta, each fused at `size` (Eq. 8): (len(layers), len(pairs), H, W).

    Of plain sums a layer's map is resized once, whatever number of selections it is in.
    """
    if (fuse, normalize) != ("sum", "none"):
        chosen = [[m[pairs] for m in maps.values()] for maps in layers]
        return torch.stack([layerize(maps, size, fuse, normalize, align_corners) for maps in chosen])
    resized: dict[tuple[str, ...], Tensor] = {}
    found = []
    for maps in layers:
        by_shape: dict[torch.Size, tuple[str, ...]] = {}
        for name, m in maps.items():
            by_shape[m.shape] = (*by_shape.get(m.shape, ()), name)
        for names in by_shape.values():
            if names not in resized:
                resized[names] = layerize([maps[name][pairs] for name in names], size, align_corners=align_corners)
        found.append(reduce(torch.add, [resized[names] for names in by_shape.values()]))
    return torch.stack(found)


def _names(trace: Trace, options: Options, layers: Selection) -> list[str]:
    if options.method != "fullgrad":
        return trace.select(layers)
    return [term.name for term in trace.terms(layers)] + (["input"] if layers is None else [])


def _unfused(options: Options) -> Options:
    """Maps are fused and spread later: these options have them in common with others."""
    return replace(options, fuse="sum", normalize="none", align_corners=False, refine=None)


def _in_bins(options: Options) -> bool:
    known = options.method in WEIGHTS or options.method in MAPS or (options.method == "fullgrad" and not options.per_channel)
    return options.delta is not None and options.compare == "ge" and known


def _all_at_once(trace: Trace, needed: dict[Options, set[str]]) -> dict[Options, Maps]:
    made: dict[Options, Maps] = {o: {} for o in needed}
    full = any(o.method == "fullgrad" for o in needed)
    sources: list[tuple[str, Tensor | None, Tensor]] = [(name, None, trace.gradient(name)) for name in trace.layers]
    terms = [(t.name, t.value.expand(len(trace.pairs), -1, -1, -1), t.gradient) for t in (trace.terms() if full else [])]
    for name, bias, gradient in sources + terms:
        step = max(1, CHUNK.get(gradient.device.type, CHUNK["cuda"]) // gradient[0].numel())
        parts = [slice(start, start + step) for start in range(0, len(gradient), step)]
        for per in get_args(Scope):
            its = [o for o in needed if name in needed[o] and (o.method == "fullgrad") == (bias is not None)]
            if chosen := [o for o in its if o.per == per]:
                values = (
                    trace.activation(name, part) if bias is None else bias[part] if len(bias) > 1 else bias for part in parts
                )
                maps = [_cut(wide(v), wide(gradient[part]), chosen) for v, part in zip(values, parts, strict=True)]
                for options, pieces in zip(chosen, zip(*maps, strict=True), strict=True):
                    made[options][name] = torch.cat(pieces)
    for options in needed:
        if "input" in needed[options]:
            made[options]["input"] = input_map(trace, options)
    return made


def _cut(value: Tensor, gradient: Tensor, chosen: Sequence[Options]) -> list[Tensor]:
    """The maps (p, h, w) of each of `chosen`, which share a scope, from A (p, K, h, w), or FullGrad's bias, and G."""
    if (
        chosen[0].method == "fullgrad" and value.shape[2:] == gradient.shape[2:]
    ):  # a bias that varies in space: its extremes too
        return [fullgrad(value, truncate(gradient, o.delta, o.per)).float() for o in chosen]
    deltas = sorted({o.delta or 0.0 for o in chosen})
    by_layer = chosen[0].per == "layer"
    limits = thresholds(gradient.flatten(1 if by_layer else 2), deltas)
    pairs, channels, *place = gradient.shape
    size = {m: (channels, len(deltas) + 1) if m in WEIGHTS else (len(deltas) + 1, *place) for m in (o.method for o in chosen)}
    sums = {m: gradient.new_zeros(pairs, *shape) for m, shape in size.items()}
    step = max(1, CHUNK.get(gradient.device.type, CHUNK["cuda"]) // gradient[:, 0].numel())
    for part in (slice(start, start + step) for start in range(0, channels, step)):
        some = gradient[:, part]
        rows = some.flatten(1 if by_layer else 2)
        index = places(rows, limits if by_layer else limits[:, part]).view_as(some)  # ties are in one bin
        for m, total in sums.items():
            _add(m, total[:, part] if m in WEIGHTS else total, value[:, part], some, index)
    kept = {m: _kept(m, total, value, gradient, limits).float() for m, total in sums.items()}
    return [kept[o.method][:, deltas.index(o.delta or 0.0)] for o in chosen]


def _add(method: str, total: Tensor, value: Tensor, gradient: Tensor, index: Tensor) -> None:
    """Add the terms of some channels to their bins; index (p, k, h, w): how many thresholds G is not below.

    total (p, k, D + 1), of sums over positions, or (p, D + 1, h, w), over channels.
    """
    if method in WEIGHTS:
        empty = gradient.new_zeros(*gradient.shape[:3], total.shape[2])
        total += empty.scatter_add_(3, index, WEIGHTS[method](value, gradient)).sum(dim=2)
    else:
        total.scatter_add_(1, index, MAPS[method](value, gradient) if method in MAPS else gradient * value.abs())


def _kept(method: str, total: Tensor, value: Tensor, gradient: Tensor, limits: Tensor) -> Tensor:
    """(p, D, h, w): the maps of what each threshold keeps; limits (p[, K], D)."""
    if method in WEIGHTS:
        return torch.einsum("pdk,pkhw->pdhw", _from_largest(total.movedim(-1, 1)), value).relu()
    sums = _from_largest(total)
    return sums.relu() if method in MAPS else _scaled(sums, value[0].abs().flatten(), gradient, limits)


def _scaled(sums: Tensor, size: Tensor, gradient: Tensor, limits: Tensor) -> Tensor:
    """FullGrad's normalization of Eq. 7; size (K,): |b|. What is kept is positive, so that in a channel the largest and the
    least |G b| are those of G."""
    limits = limits.view(len(sums), -1, sums.shape[1]).movedim(-1, 1)  # (p, D, 1 or K)
    least, most = gradient.amin(dim=(2, 3))[:, None], gradient.amax(dim=(2, 3))[:, None]
    high = torch.where(most >= limits, most * size, 0).amax(dim=2)
    low = torch.where((least >= limits).all(dim=2), (least * size).amin(dim=2), 0)  # what is dropped would be a zero
    span = torch.where(high > low, high - low, torch.inf)
    return (sums - gradient.shape[1] * low[..., None, None]) / span[..., None, None]


def _from_largest(bins: Tensor) -> Tensor:
    """(p, D + 1, ...) -> (p, D, ...): for each threshold what is at or above it, summed from the largest down."""
    return bins.flip(1).cumsum(dim=1).flip(1)[:, 1:]

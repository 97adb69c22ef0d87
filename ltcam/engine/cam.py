"""Eqs. 10 and 11: LT + a method = layerize([method(A, truncate(G, delta)) for each layer]).

Many configurations of one trace share what they can: the thresholds of all deltas cut the gradients of a layer into bins. Each
method is a sum over G (see `methods`), so it is summed once in each bin. A delta keeps the bins from the largest down to its
own.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from ltcam.engine.config import READINGS, Config
from ltcam.engine.methods import MAPS, METHODS, WEIGHTS, constant_in_space, fullgrad
from ltcam.engine.refine import refine, similarity
from ltcam.engine.shapes import Output, Reshape, wide
from ltcam.engine.stages import Layers
from ltcam.engine.targets import Score
from ltcam.engine.trace import Trace, trace
from ltcam.engine.tricks import By, Scope, layerize, limits, normalized, truncate
from ltcam.errors import InputError

LayerMaps = dict[str, Tensor]  # a map (P, h, w) of each layer, at the layer's size
# What a layer's map is made of: A of some pairs, or for FullGrad a bias or the image, and G of all.
Source = tuple[Callable[..., Tensor], Tensor]

CHUNK = {"cpu": 2**20, "cuda": 2**26}  # values cut at a time: few enough for the caches, or to leave memory alone


def explain(
    trace: Trace, method: str, layers: str | Sequence[str] | None = None, delta: float | None = None,
    size: tuple[int, int] | None = None, per: Scope = "layer", **options: Any,
) -> Tensor:  # fmt: skip
    """Heatmaps of every pair of a trace: (P, H, W) float32 on its device, non-negative, not normalized.

    method  a name in METHODS; "fullgrad" needs `trace(..., fullgrad=True)`
    layers  which of the traced layers to fuse: a name, a stage label ("S5"), a range ("S3-S5"), several, or None for all.
            FullGrad takes the biases of those stages. The input term is in its sum only with None
    size    (H, W) of the maps; None: the images' own
    delta, per and the other options  as in `ltcam.Config`: compare, fuse, normalize, refine, align_corners, per_channel, by

    Raises InputError for options that do not go together, an untraced layer, or a trace without what FullGrad needs.
    """
    config = Config(method, layers, delta, per, **options)  # type: ignore[arg-type]  # which makes lists and None its own
    return fused(layer_maps(trace, config), config, trace.size if size is None else size)


def fused(maps: LayerMaps, config: Config, size: tuple[int, int]) -> Tensor:
    """Eq. 8 with the options of `config`: (P, *size)."""
    return layerize(list(maps.values()), size, *config.fusion)


def layer_maps(trace: Trace, config: Config) -> LayerMaps:
    """The maps that `explain` fuses: float32, computed in float64 for a float64 model, else in float32."""
    with torch.autocast(trace.logits.device.type, enabled=False):
        return _spread({name: _map(config, name, *source) for name, source in _sources(trace, config).items()}, trace, config)


def maps_of(trace: Trace, configs: Iterable[Config]) -> dict[Config, LayerMaps]:
    """What `layer_maps` gives for each of `configs`, up to rounding. What they have in common is computed once.

    Raises InputError as `layer_maps` does.
    """
    sources = {config: _sources(trace, config) for config in configs}
    unfused: dict[str, Any] = {"layers": "all", "fuse": "sum", "normalize": "none", "align_corners": False}
    alike = {config: replace(config, refine=None, fraction=None, **unfused) for config in sources}
    wanted: dict[tuple[bool, str], tuple[Source, dict[Config, None]]] = {}  # a layer and a bias may have one name
    for config, own in sources.items():
        for name, source in own.items():
            wanted.setdefault((config.method == "fullgrad", name), (source, {}))[1][alike[config]] = None
    with torch.autocast(trace.logits.device.type, enabled=False):
        made = {(full, name): _of_layer(name, [*some], *source) for (full, name), (source, some) in wanted.items()}
        maps = {c: {name: made[c.method == "fullgrad", name][alike[c]] for name in own} for c, own in sources.items()}
        for how in dict.fromkeys(config.refine for config in maps if config.refine is not None):
            cosines = similarity(trace, how)  # serves all maps that it spreads
            maps |= {config: _spread(m, trace, config, cosines) for config, m in maps.items() if config.refine == how}
    return maps


def _sources(trace: Trace, config: Config) -> dict[str, Source]:
    if config.method != "fullgrad":
        return {name: (partial(trace.activation, name), trace.gradient(name)) for name in trace.select(config.layers)}

    def rows(value: Tensor, part: slice = slice(None)) -> Tensor:
        return value if len(value) == 1 else value[part]

    given = [(term.name, term.value, term.gradient) for term in trace.terms(config.layers)]
    if trace.inputs and config.layers == "all":
        given.append(("input", *trace.inputs))
    return {name: (partial(rows, value), gradient) for name, value, gradient in given}


def _map(config: Config, name: str, value: Callable[[], Tensor], gradient: Tensor) -> Tensor:
    a, g = wide(value()), wide(gradient)
    of_image = config.method == "fullgrad" and name == "input"  # whose term is never truncated
    if config.by in READINGS and config.delta is not None:
        g = torch.where(READINGS[config.by](a, g, config.delta), g, 0)
    elif config.compare == "gt" and not of_image and constant_in_space(g):
        raise InputError(f"compare='gt' at {name!r} would empty maps: its gradients are constant in space; use 'ge'")
    elif not of_image:
        g = truncate(g, config.delta, config.per, config.compare, config.by)  # type: ignore[arg-type]
    return (fullgrad(a, g, True) if config.per_channel else METHODS[config.method](a, g)).float()


def _of_layer(name: str, configs: Sequence[Config], value: Callable[..., Tensor], gradient: Tensor) -> dict[Config, Tensor]:
    """What `_map` gives for each config, up to rounding: one count of the layer's gradients serves all deltas and methods."""
    sums, made = {*WEIGHTS, *MAPS}, dict[Config, Tensor]()  # of terms that are zero where G is
    if configs[0].method == "fullgrad" and name != "input" and value().shape[2:] != gradient.shape[2:]:
        sums.add("fullgrad")  # with a bias a channel, whose extremes are where those of G are
    for per, by in product(get_args(Scope), get_args(By)):
        usual = (per, "ge", by, False)
        delta_of = {
            c: c.delta for c in configs
            if c.delta is not None and c.method in sums and (c.per, c.compare, c.by, c.per_channel) == usual
        }  # fmt: skip
        if delta_of:
            deltas, methods, parts = sorted({*delta_of.values()}), {c.method for c in delta_of}, chunks(gradient, 0)
            pieces = [at_each(methods, wide(value(part)), wide(gradient[part]), deltas, per == "layer", by) for part in parts]
            made |= {c: torch.cat([p[c.method][:, deltas.index(delta)] for p in pieces]) for c, delta in delta_of.items()}
    return made | {config: _map(config, name, value, gradient) for config in configs if config not in made}


def at_each(
    methods: Collection[str], value: Tensor, gradient: Tensor, deltas: Sequence[float], by_layer: bool, by: By = "percentile"
) -> dict[str, Tensor]:
    """The maps (P, D, h, w) float32 of each of `methods` at each of the `deltas`, ascending, from A (P, K, h, w) and G.

    For "fullgrad" the value is the bias (P, K, 1, 1). by_layer  whether thresholds are of the layer, not of each channel; by
    as in `truncate`
    """
    cuts = limits(gradient.flatten(1 if by_layer else 2), deltas, by)
    pairs, channels, *place = gradient.shape
    shape = {m: (channels, len(deltas) + 1) if m in WEIGHTS else (len(deltas) + 1, *place) for m in methods}
    sums = {m: gradient.new_zeros(pairs, *shape[m]) for m in methods}
    for part in chunks(gradient, 1):
        some = gradient[:, part]
        rows = some.flatten(1 if by_layer else 2)
        index = places(rows, cuts if by_layer else cuts[:, part]).view_as(some)  # ties are in one bin
        for m, total in sums.items():
            if m in WEIGHTS:
                empty = some.new_zeros(*some.shape[:3], len(deltas) + 1)
                total[:, part] += empty.scatter_add_(3, index, WEIGHTS[m](value[:, part], some)).sum(dim=2)
            else:
                terms = MAPS[m](value[:, part], some) if m in MAPS else some * value[:, part].abs()
                total.scatter_add_(1, index, terms)
    for m, total in sums.items():
        bins = total.movedim(-1, 1) if m in WEIGHTS else total
        kept = bins.flip(1).cumsum(dim=1).flip(1)[:, 1:]  # at or above each threshold, summed from the largest down
        if m in WEIGHTS:
            kept = torch.einsum("pdk,pkhw->pdhw", kept, value)
        elif m == "fullgrad":  # Eq. 7. All that is kept is positive, so a channel's extremes of |G b| are where those of G are
            bounds, size = cuts.view(pairs, -1, len(deltas)).movedim(-1, 1), value[0].abs().flatten()  # (P, D, 1 or K), (K,)
            least, most = gradient.amin(dim=(2, 3))[:, None], gradient.amax(dim=(2, 3))[:, None]
            high = torch.where(most >= bounds, most * size, 0).amax(dim=2)
            low = torch.where((least >= bounds).all(dim=2), (least * size).amin(dim=2), 0)  # what is dropped would be a zero
            span = torch.where(high > low, high - low, torch.inf)
            kept = (kept - channels * low[..., None, None]) / span[..., None, None]
        sums[m] = (kept if m == "fullgrad" else kept.relu()).float()
    return sums


def chunks(values: Tensor, dim: int) -> list[slice]:
    """The parts of a dimension that are cut at a time."""
    step = max(1, CHUNK.get(values.device.type, CHUNK["cuda"]) // values.select(dim, 0).numel())
    return [slice(start, start + step) for start in range(0, values.shape[dim], step)]


def places(rows: Tensor, limits: Tensor) -> Tensor:
    """How many of its row's limits each value is not below: rows (..., n), limits (..., d) ascending -> (..., n) long."""
    found = torch.zeros_like(rows, dtype=torch.int16)
    for limit in limits.unbind(-1):
        found += rows >= limit[..., None]
    return found.long()


def _spread(maps: LayerMaps, trace: Trace, config: Config, cosines: Tensor | None = None) -> LayerMaps:
    """With `refine` the layers' maps, fused at the size of the largest and spread: one map under all their names."""
    if config.refine is None:
        return maps
    largest = max((m.shape[1], m.shape[2]) for m in maps.values())
    together = layerize(list(maps.values()), largest, config.fuse, config.normalize, config.align_corners)
    return {" + ".join(maps): refine(together, trace, config.refine, cosines)}


class CAM:
    """The engine as an object, called as users of pytorch-grad-cam do: `CAM(model, [model.layer4])(images, targets)`.

    target_layers  modules, names or stage labels, as `trace` takes layers; None: all stages, fused
    method, delta and the other options  as in `ltcam.Config`; reshape, output and create_graph as in `trace`

    Maps of several layers are summed as they are (Eq. 8). pytorch-grad-cam min-maxes each layer's map, takes their mean and
    min-maxes that: normalize="minmax" gives its maps, also of one layer. Hooks live only inside a call, so the context manager
    does nothing. Raises InputError as `Config` does.
    """

    logits: Tensor

    def __init__(
        self, model: nn.Module, target_layers: Layers = None, method: str = "gradcam", delta: float | None = None, *,
        reshape: Reshape | None = None, output: Output | None = None, create_graph: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        self.model, self.target_layers, self.config = model, target_layers, Config(method, "all", delta, **options)
        self.how: dict[str, Any] = {"reshape": reshape, "output": output, "create_graph": create_graph}

    def __call__(self, input_tensor: Tensor, targets: int | Sequence[int] | Score | Sequence[Score] | None = None) -> Tensor:
        """(N, H, W) in [0, 1]: each map over its maximum, or min-maxed with normalize="minmax"; zero without evidence.

        targets: one per image, a class or a function of its logits such as that library's target objects; None: the largest
        logit. `.logits` then has the logits of this pass. Raises InputError as `trace` does.
        """
        traced = trace(self.model, input_tensor, targets, self.target_layers, self.config.method == "fullgrad", **self.how)
        if traced.pairs[:, 0].tolist() != list(range(len(input_tensor))):
            raise InputError(f"{len(traced.pairs)} targets for {len(input_tensor)} images: expected one per image")
        self.logits = traced.logits
        maps = fused(layer_maps(traced, self.config), self.config, traced.size)
        return normalized([maps], "minmax" if self.config.normalize == "minmax" else "max")[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

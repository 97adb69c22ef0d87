"""Eqs. 10 and 11: LT + a method = layerize([method(A, truncate(G, delta)) for each layer])."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from ltcam.engine.borrow import Output
from ltcam.engine.config import READINGS, Config
from ltcam.engine.deltas import at_each, chunk
from ltcam.engine.methods import MAPS, METHODS, WEIGHTS, constant_in_space, fullgrad
from ltcam.engine.refine import Refine, refine, similarity
from ltcam.engine.shapes import Reshape, wide
from ltcam.engine.stages import Layers
from ltcam.engine.targets import Score
from ltcam.engine.trace import Trace, trace
from ltcam.engine.tricks import Normalize, Scope, layerize, normalized, truncate
from ltcam.errors import InputError

LayerMaps = dict[str, Tensor]  # a map (P, h, w) of each layer, at the layer's size
Source = tuple[Callable[..., Tensor], Tensor]


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
        maps = _one_by_one(trace, config, _names(trace, config))
        return maps if config.refine is None else _refined(maps, trace, config)


def maps_of(trace: Trace, configs: Iterable[Config]) -> dict[Config, LayerMaps]:
    """What `layer_maps` gives for each of `configs`, up to rounding. What they have in common is computed once.

    Raises InputError as `layer_maps` does.
    """
    names = {config: _names(trace, config) for config in configs}
    unfused: dict[str, Any] = {"layers": "all", "fuse": "sum", "normalize": "none", "align_corners": False}
    alike = {config: replace(config, refine=None, fraction=None, **unfused) for config in names}
    needed: dict[Config, dict[str, None]] = {}
    for config, found in names.items():
        needed.setdefault(alike[config], {}).update(dict.fromkeys(found))
    with torch.autocast(trace.logits.device.type, enabled=False):
        sums = {*WEIGHTS, *MAPS, "fullgrad"}  # of terms that are zero where G is
        made = _at_once(trace, {
            config: found for config, found in needed.items() if config.method in sums and not config.per_channel
            and config.delta is not None and (config.compare, config.by) == ("ge", "percentile")
        })  # fmt: skip
        made |= {config: _one_by_one(trace, config, found) for config, found in needed.items() if config not in made}
        maps = {config: {name: made[alike[config]][name] for name in found} for config, found in names.items()}
        for how in dict.fromkeys(config.refine for config in maps if config.refine is not None):
            cosines = similarity(trace, how)  # serves all maps that it spreads
            maps |= {config: _refined(m, trace, config, cosines) for config, m in maps.items() if config.refine == how}
    return maps


def _names(trace: Trace, config: Config) -> list[str]:
    if config.method != "fullgrad":
        return trace.select(config.layers)
    return [term.name for term in trace.terms(config.layers)] + ["input"] * (config.layers == "all")


def _sources(trace: Trace, full: bool) -> dict[str, Source]:
    """What maps are made of: A of some pairs and G of all, by layer; with `full` a bias or the image in place of A."""
    if not full:
        return {name: (partial(trace.activation, name), trace.gradient(name)) for name in trace.layers}

    def rows(value: Tensor, part: slice = slice(None)) -> Tensor:
        return value if len(value) == 1 else value[part]

    given = [(term.name, term.value, term.gradient) for term in trace.terms()] + [("input", *i) for i in [trace.inputs] if i]
    return {name: (partial(rows, value), gradient) for name, value, gradient in given}


def _one_by_one(trace: Trace, config: Config, names: Iterable[str]) -> LayerMaps:
    sources = _sources(trace, config.method == "fullgrad")
    return {name: _map(config, name, *sources[name]) for name in names}


def _map(config: Config, name: str, value: Callable[[], Tensor], gradient: Tensor) -> Tensor:
    a, g = wide(value()), wide(gradient)
    if config.method == "fullgrad":  # the term of the image is never truncated
        return fullgrad(a, g if name == "input" else _truncated(a, g, config, name), config.per_channel).float()
    return METHODS[config.method](a, _truncated(a, g, config, name)).float()


def _truncated(a: Tensor, g: Tensor, config: Config, name: str) -> Tensor:
    if config.by != "percentile" and config.delta is not None:
        return torch.where(READINGS[config.by](a, g, config.delta), g, 0)
    if config.compare == "gt" and constant_in_space(g):
        raise InputError(f"compare='gt' at {name!r} would empty maps: its gradients are constant in space; use 'ge'")
    return truncate(g, config.delta, config.per, config.compare)


def _at_once(trace: Trace, needed: Mapping[Config, Collection[str]]) -> dict[Config, LayerMaps]:
    """What `_one_by_one` gives for each config, up to rounding: one count of a layer serves all deltas and methods."""
    made: dict[Config, LayerMaps] = {config: {} for config in needed}
    for full, per in product((False, True), get_args(Scope)):
        own = [config for config in needed if (config.method == "fullgrad", config.per) == (full, per)]
        for name, (value, gradient) in _sources(trace, full).items() if own else ():
            if not (chosen := {config: config.delta or 0.0 for config in own if name in needed[config]}):
                continue
            if full and (name == "input" or value().shape[2:] == gradient.shape[2:]):  # extremes are not where those of G are
                made |= {config: made[config] | {name: _map(config, name, value, gradient)} for config in chosen}
                continue
            step, deltas = chunk(gradient[0]), sorted({*chosen.values()})
            methods = dict.fromkeys(config.method for config in chosen)
            parts = [slice(start, start + step) for start in range(0, len(gradient), step)]
            pieces = [at_each(methods, wide(value(part)), wide(gradient[part]), deltas, per == "layer") for part in parts]
            for config, delta in chosen.items():
                made[config][name] = torch.cat([piece[config.method][:, deltas.index(delta)] for piece in pieces])
    return made


def _refined(maps: LayerMaps, trace: Trace, config: Config, cosines: Tensor | None = None) -> LayerMaps:
    """The layers' maps, fused at the size of the largest and spread. What is left is one map under all their names."""
    largest = max((m.shape[1], m.shape[2]) for m in maps.values())
    together = layerize(list(maps.values()), largest, config.fuse, config.normalize, config.align_corners)
    return {" + ".join(maps): refine(together, trace, config.refine or Refine(), cosines)}


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
        self.reshape, self.output, self.create_graph = reshape, output, create_graph

    def __call__(self, input_tensor: Tensor, targets: int | Sequence[int] | Score | Sequence[Score] | None = None) -> Tensor:
        """(N, H, W) in [0, 1] on the images' device: each map over its maximum, or min-maxed with normalize="minmax".

        The map of an image without evidence is zero.

        targets: one per image. A target is a class, or a function of the image's logits such as that library's target objects.
        None is the largest logit. `.logits` then has the logits of this pass. Raises InputError as `trace` does.
        """
        traced = trace(
            self.model, input_tensor, targets, self.target_layers, self.config.method == "fullgrad",
            reshape=self.reshape, output=self.output, create_graph=self.create_graph,
        )  # fmt: skip
        if traced.pairs[:, 0].tolist() != list(range(len(input_tensor))):
            raise InputError(f"{len(traced.pairs)} targets for {len(input_tensor)} images: expected one per image")
        self.logits = traced.logits
        how: Normalize = "minmax" if self.config.normalize == "minmax" else "max"
        return normalized([fused(layer_maps(traced, self.config), self.config, traced.size)], how)[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

"""Eqs. 10 and 11: LT + a method = layerize([method(A, truncate(G, delta)) for each layer])."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from ltcam.engine.methods import constant_in_space, fullgrad, method
from ltcam.engine.outputs import Output
from ltcam.engine.refine import Refine, refine
from ltcam.engine.shapes import Reshape
from ltcam.engine.targets import Score
from ltcam.engine.traces import Trace
from ltcam.engine.tracing import Layers, trace
from ltcam.engine.tricks import Compare, Fuse, Normalize, Scope, check, layerize, normalized, one_of, truncate
from ltcam.errors import InputError

Selection = str | Sequence[str] | None


@dataclass(frozen=True)
class Options:
    """How a trace becomes maps, apart from the layers: the design's choices, validated together.

    method     a name in METHODS
    delta      None (as published), or the percentile of Eq. 9 in [0, 100); `per` and `compare` as in `truncate`
    fuse, normalize  as in `layerize`
    per_channel  the literal reading of FullGrad's Eq. 7
    align_corners  as in `layerize`: True for the maps of FullGrad's reference implementation
    refine     spread the fused map along the trace's own features; None: not
    """

    method: str = "gradcam"
    delta: float | None = None
    per: Scope = "layer"
    compare: Compare = "ge"
    fuse: Fuse = "sum"
    normalize: Normalize = "none"
    per_channel: bool = False
    align_corners: bool = False
    refine: Refine | None = None

    @property
    def fusion(self) -> tuple[Fuse, Normalize, bool]:
        """How what `layer_maps` gives is fused: a refined map is fused already."""
        fuse, normalize = (self.fuse, self.normalize) if self.refine is None else ("sum", "none")
        return fuse, normalize, self.align_corners

    def __post_init__(self) -> None:
        full = method(self.method) is fullgrad
        check(self.delta, self.per, self.compare)
        one_of("fuse", self.fuse, Fuse)
        one_of("normalize", self.normalize, Normalize)
        if self.delta is None and self.compare == "gt":
            raise InputError("compare='gt' without delta compares nothing: pass delta, or leave compare out")
        if self.per_channel and not full:
            raise InputError(f"per_channel=True is an option of fullgrad: {self.method} does not normalize")
        if full and self.normalize != "none":
            raise InputError(f"normalize={self.normalize!r} with fullgrad, whose terms Eq. 7 normalizes: use 'none'")
        if self.refine is not None and not isinstance(self.refine, Refine):
            raise InputError(f"refine={self.refine!r}: expected ltcam.Refine(...), or None")
        if self.refine is not None:
            self.refine.checked()


def explain(
    trace: Trace,
    method: str,
    layers: Selection = None,
    delta: float | None = None,
    size: tuple[int, int] | None = None,
    per: Scope = "layer",
    **options: Any,
) -> Tensor:
    """Heatmaps of every pair of a trace: (P, H, W) float32 on its device, non-negative, not normalized.

    method  a name in METHODS; "fullgrad" needs `trace(..., fullgrad=True)`
    layers  which of the traced layers to fuse: a name, a stage label ("S5"), a range ("S3-S5"), several, or None for all.
            FullGrad takes the biases of those stages. The input term is in its sum only with None
    size    (H, W) of the maps; None: the images' own
    delta, per and the other options  as in `Options`: compare, fuse, normalize, per_channel, align_corners, refine

    Raises InputError for options that do not go together, an untraced layer, or a trace without what FullGrad needs.
    """
    chosen = Options(method, delta, per, **options)
    return fused(layer_maps(trace, chosen, layers), chosen, trace.size if size is None else size)


def fused(maps: dict[str, Tensor], options: Options, size: tuple[int, int]) -> Tensor:
    """Eq. 8 with the chosen options: (P, *size)."""
    return layerize(list(maps.values()), size, *options.fusion)


def layer_maps(trace: Trace, options: Options, layers: Selection = None) -> dict[str, Tensor]:
    """The maps that `explain` fuses, {layer name: (P, h, w) float32}, each at its own size.

    They are computed in float64 for a float64 model, else in float32.
    """
    maps = _layer_maps(trace, options, layers)
    return maps if options.refine is None else refined(maps, trace, options)


def refined(maps: dict[str, Tensor], trace: Trace, options: Options, alike: Tensor | None = None) -> dict[str, Tensor]:
    """The layers' maps, fused at the size of the largest and spread. What is left is one map under all their names."""
    largest = max((m.shape[1], m.shape[2]) for m in maps.values())
    together = layerize(list(maps.values()), largest, options.fuse, options.normalize, options.align_corners)
    return {" + ".join(maps): refine(together, trace, options.refine, alike)}


def _layer_maps(trace: Trace, options: Options, layers: Selection) -> dict[str, Tensor]:
    function = method(options.method)
    with torch.autocast(trace.logits.device.type, enabled=False):
        if function is fullgrad:
            maps = {
                term.name: fullgrad(term.value, _truncated(term.gradient, options, term.name), options.per_channel).float()
                for term in trace.terms(layers)
            }
            return maps if layers is not None else {**maps, "input": input_map(trace, options)}
        return {
            layer: function(wide(trace.activation(layer)), _truncated(trace.gradient(layer), options, layer)).float()
            for layer in trace.select(layers)
        }


def input_map(trace: Trace, options: Options) -> Tensor:
    """FullGrad's term of the image itself: (P, H, W). It is never truncated."""
    assert trace.inputs is not None
    image, gradient = trace.inputs
    return fullgrad(image, wide(gradient), options.per_channel).float()


def _truncated(gradient: Tensor, options: Options, layer: str) -> Tensor:
    if options.compare == "gt" and constant_in_space(gradient):
        raise InputError(f"compare='gt' at {layer!r} would empty maps: its gradients are constant in space; use 'ge'")
    return truncate(wide(gradient), options.delta, options.per, options.compare)


def wide(value: Tensor) -> Tensor:
    """`value` in at least float32, because bfloat16 cannot hold sums over thousands of pixels."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


class CAM:
    """The engine as an object, called as users of pytorch-grad-cam do: `CAM(model, [model.layer4])(images, targets)`.

    target_layers  modules, names or stage labels, as `trace` takes layers; None: all stages, fused
    method, delta and the other options  as in `Options`; reshape, output and create_graph as in `trace`

    Maps of several layers are summed as they are (Eq. 8). pytorch-grad-cam min-maxes each layer's map, takes their mean and
    min-maxes that: normalize="minmax" gives its maps, also of one layer. Hooks live only inside a call, so the context manager
    does nothing. Raises InputError as `Options` does.
    """

    logits: Tensor

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers = None,
        method: str = "gradcam",
        delta: float | None = None,
        *,
        reshape: Reshape | None = None,
        output: Output | None = None,
        create_graph: bool = False,
        **options: Any,
    ) -> None:
        self.model, self.target_layers, self.options = model, target_layers, Options(method, delta, **options)
        self.reshape, self.output, self.create_graph = reshape, output, create_graph

    def __call__(self, input_tensor: Tensor, targets: int | Sequence[int] | Score | Sequence[Score] | None = None) -> Tensor:
        """(N, H, W) in [0, 1] on the images' device: each map over its maximum, or min-maxed with normalize="minmax".

        The map of an image without evidence is zero.

        targets: one per image. A target is a class, or a function of the image's logits such as that library's target objects.
        None is the largest logit. `.logits` then has the logits of this pass. Raises InputError as `trace` does.
        """
        traced = trace(
            self.model, input_tensor, targets, self.target_layers, self.options.method == "fullgrad",
            reshape=self.reshape, output=self.output, create_graph=self.create_graph,
        )  # fmt: skip
        if traced.pairs[:, 0].tolist() != list(range(len(input_tensor))):
            raise InputError(f"{len(traced.pairs)} targets for {len(input_tensor)} images: expected one per image")
        self.logits = traced.logits
        how: Normalize = "minmax" if self.options.normalize == "minmax" else "max"
        return normalized([fused(layer_maps(traced, self.options), self.options, traced.size)], how)[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

"""Eqs. 10 and 11: LT + a method = layerize([method(A, truncate(G, delta)) for each layer])."""

from collections.abc import Sequence

from torch import Tensor

from ltcam.methods import fullgrad, method
from ltcam.tracing import Trace
from ltcam.tricks import Scope, layerize, truncate

Selection = str | Sequence[str] | None


def explain(
    trace: Trace,
    method: str,
    layers: Selection = None,
    delta: float | None = None,
    size: tuple[int, int] | None = None,
    per: Scope = "layer",
) -> Tensor:
    """Heatmaps of every pair of a trace: (P, H, W) float32 on its device, non-negative, not normalised.

    method  a name in METHODS; "fullgrad" needs `trace(..., fullgrad=True)`
    layers  which of the traced layers to fuse: a name, a stage label ("S5"), a range ("S3-S5"), several, or None for all.
            FullGrad takes the convolutions and batch norms of those stages; only with None does its sum hold the input term
    delta   None (as published) or the percentile in [0, 100) of Eq. 9; `per` as in `truncate`
    size    (H, W) of the maps; None: the images' own

    Raises ValueError for an unknown method, layer or delta, or a trace that lacks what FullGrad needs.
    """
    return layerize(list(layer_maps(trace, method, layers, delta, per).values()), size or trace.size)


def layer_maps(
    trace: Trace, name: str, layers: Selection = None, delta: float | None = None, per: Scope = "layer"
) -> dict[str, Tensor]:
    """The maps that `explain` fuses, each at its layer's own size: {layer name: (P, h, w) float32}."""
    function = method(name)
    if function is fullgrad:
        return _fullgrad_maps(trace, layers, delta, per)
    return {
        layer: function(trace.activation(layer), truncate(trace.gradient(layer), delta, per)).float()
        for layer in trace.select(layers)
    }


def _fullgrad_maps(trace: Trace, layers: Selection, delta: float | None, per: Scope) -> dict[str, Tensor]:
    if trace.inputs is None:
        raise ValueError("method 'fullgrad' needs the gradients at the biases: trace(..., fullgrad=True)")
    chosen = trace.select(layers)
    maps = {
        term.name: fullgrad(term.bias.view(1, -1, 1, 1), truncate(term.gradient, delta, per)).float()
        for term in trace.biases
        if term.gradient.ndim == 4 and (layers is None or term.stage in chosen)
    }
    return maps if layers is not None else {**maps, "input": fullgrad(*trace.inputs).float()}

"""FullGrad's own check (Srinivas and Fleuret 2019, Proposition 1): input.grad + sum(bias.grad) is the logit.

It holds where the network is piecewise linear and every bias was seen. What is missing is measured in each trace.
"""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ltcam.engine.biases import ancestors
from ltcam.engine.traces import Bias
from ltcam.errors import InputError

# Autograd nodes that are linear between their kinks, and add no hidden constant; what is not here bends.
LINEAR = {
    "Abs", "AccumulateGrad", "AdaptiveAvgPool2D", "AdaptiveMaxPool2D", "Add", "Addmm", "Alias", "Amax", "AsStrided",
    "AvgPool2D", "Cat", "Clone", "ConstantPadNd", "Convolution", "CopySlices", "CopyBackwards", "CudnnBatchNorm",
    "CudnnConvolution", "Expand", "Flip", "Index", "LeakyRelu", "Max", "MaxPool2DWithIndices", "Mean",
    "MkldnnConvolution", "NativeBatchNorm", "NativeGroupNorm", "NativeLayerNorm", "Neg", "Permute", "PreluKernel",
    "ReflectionPad2D", "Relu", "Repeat", "ReplicationPad2D", "ReshapeAlias", "Rsub", "Select", "Slice", "Split",
    "SplitWithSizes", "Squeeze", "Stack", "Sub", "Sum", "T", "ToCopy", "Transpose", "Unbind", "UnsafeView",
    "Unsqueeze", "UpsampleBilinear2D", "UpsampleNearest2D", "View", "Where",
}  # fmt: skip
PRODUCTS = {"Bmm", "Div", "Mm", "Mul", "Mv"}  # linear if one of their factors is a constant


def residual(score: Tensor, inputs: tuple[Tensor, Tensor], biases: Sequence[Bias]) -> Tensor:
    """(P,) float64: (input term + bias terms - score) over the sum of the terms' absolute values."""
    terms = torch.stack([_sum(*inputs), *(_sum(t.bias, t.gradient) for t in biases)])
    return (terms.sum(dim=0) - score.detach().double()) / terms.abs().sum(dim=0).clamp(min=torch.finfo(torch.float64).tiny)


def check(
    found: Tensor, score: Tensor, biases: Sequence[Bias], layers: Mapping[str, tuple[Tensor, Tensor]], of_classes: bool
) -> None:
    """Warns of a residual (P,) that the network's curvature leaves. Raises InputError where only a missed bias can leave it."""
    eps = max(torch.finfo(t.dtype).eps for t in (score, *(bias.gradient for bias in biases)))
    worst = found.abs().max().item()
    allowed = max(1e-7 if eps < 1e-10 else 1e-4, 16 * eps)
    if worst <= allowed:
        return
    bent = sorted({kind for node in ancestors(score.grad_fn) if (kind := _bends(node))})
    if bent or not of_classes:
        warnings.warn(
            f"FullGrad is {worst:.2%} from complete: the model is not piecewise linear ({', '.join(bent[:4]) or 'the target'})",
            stacklevel=3,
        )
        return
    if worst <= 10 * allowed:
        return  # what rounding may leave of a deep network
    raise InputError(
        f"FullGrad misses a bias {_where(score, biases, layers)}: its terms are {worst:.2%} from the logit. "
        "Add it in Python by torch's functions, or choose another method"
    )


def _sum(bias: Tensor, gradient: Tensor) -> Tensor:
    """(P,): the sum of bias times gradient."""
    if bias.ndim == 1:
        return gradient.unsqueeze(2).flatten(2).sum(dim=2, dtype=torch.float64) @ bias.double()
    return (bias.double() * gradient.double()).flatten(1).sum(dim=1)


def _bends(node: object) -> str:
    """The kind of an autograd node that is not linear between its kinks, or nothing."""
    kind = node.name().split("::")[-1].rstrip("0123456789").removesuffix("Backward")  # type: ignore[attr-defined]
    factors = [below for below, _ in node.next_functions if below is not None]  # type: ignore[attr-defined]
    return "" if kind in LINEAR or (kind in PRODUCTS and len(factors) < 2) else kind


def _where(score: Tensor, biases: Sequence[Bias], layers: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    """Between which traced layers, from the deepest one above which the terms add up no more."""
    below, rest = "the logits", [t for t in biases if t.stage not in layers]
    for name, (activation, gradient) in reversed(list(layers.items())):
        lacking = residual(score, (activation, gradient), rest).abs().max()
        if lacking > 1e-3:
            return f"between layer {name!r} and {below}"
        below, rest = f"layer {name!r}", rest + [t for t in biases if t.stage == name]
    return f"between the image and {below}"

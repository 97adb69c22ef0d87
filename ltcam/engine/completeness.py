"""FullGrad's own check (Srinivas and Fleuret 2019, Proposition 1): input.grad + sum(bias.grad) is the logit.

It holds if the network is piecewise linear and every bias is found. Each trace measures what is missing.
"""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ltcam.engine.biases import ancestors, kind_of
from ltcam.engine.traces import Bias
from ltcam.errors import InputError

# Autograd nodes that are linear between their kinks and add no hidden constant. All other nodes bend.
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

Pair = tuple[Tensor, Tensor]  # a value (P, ...) and its gradient


def residual(score: Tensor, inputs: Pair, biases: Sequence[Bias]) -> Tensor:
    """(P,) float64: (input term + bias terms - score) over the sum of the terms' absolute values and of the input term's norm.

    The norm is the size that the input term has by chance. Without it, rounding looks large where all terms are about 0.
    """
    value, gradient = (t.double().flatten(1) for t in inputs)
    terms = torch.stack([_sum(value, gradient), *(_sum(t.bias, t.gradient) for t in biases)])
    size: Tensor = terms.abs().sum(dim=0) + (value * gradient).norm(dim=1)
    missing: Tensor = terms.sum(dim=0) - score.detach().double()
    return missing / size.clamp(min=torch.finfo(torch.float64).tiny)


@torch.no_grad()
def check(score: Tensor, inputs: Pair, biases: Sequence[Bias], layers: Mapping[str, Pair], of_classes: bool) -> Tensor:
    """The residual (P,). Warns if the network's curvature leaves one. Raises InputError if only a missed bias explains it."""
    found = residual(score, inputs, biases)
    eps = max(torch.finfo(t.dtype).eps for t in (score, *(bias.gradient for bias in biases)))
    worst = found.abs().max().item()
    allowed = max(1e-7 if eps < 1e-10 else 1e-4, 16 * eps)
    if worst <= allowed:
        return found
    bent = sorted({kind for node in ancestors(score.grad_fn) if (kind := _bends(node))})
    if bent or not of_classes:
        which = ", ".join(bent[:4]) or "the target"
        warnings.warn(f"FullGrad is {worst:.2%} from complete: the model is not piecewise linear ({which})", stacklevel=3)
    elif worst > 10 * allowed:  # less may be the rounding of a deep network
        place = _where(score, biases, layers)
        raise InputError(f"FullGrad misses a bias {place}, {worst:.2%} of its terms: add it by torch's functions")
    return found


def _sum(bias: Tensor, gradient: Tensor) -> Tensor:
    """(P,): the sum of bias times gradient."""
    if bias.ndim == 1:
        return gradient.unsqueeze(2).flatten(2).sum(dim=2, dtype=torch.float64) @ bias.double()
    return (bias.double() * gradient.double()).flatten(1).sum(dim=1)


def _bends(node: object) -> str:
    """The kind of an autograd node if it is not linear between its kinks, else nothing."""
    factors = [below for below, _ in node.next_functions if below is not None]  # type: ignore[attr-defined]
    return "" if kind_of(node) in LINEAR or (kind_of(node) in PRODUCTS and len(factors) < 2) else kind_of(node)


def _where(score: Tensor, biases: Sequence[Bias], layers: Mapping[str, Pair]) -> str:
    """Between which traced layers: the first is the deepest above which the terms do not add up."""
    below, rest = "the logits", [t for t in biases if t.stage not in layers]
    for name, (activation, gradient) in reversed(list(layers.items())):
        lacking = residual(score, (activation, gradient), rest).abs().max()
        if lacking > 1e-3:
            return f"between layer {name!r} and {below}"
        below, rest = f"layer {name!r}", rest + [t for t in biases if t.stage == name]
    return f"between the image and {below}"

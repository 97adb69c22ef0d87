"""The gradient-free CAMs of the paper's introduction, as baselines: (model, images, targets, layer) -> (P, h, w).

images (N, 3, H, W), targets as in `ltcam.trace` but no functions, layer a module or its name; None: the deepest of `stages`.
There is one map per pair (image, class), sorted, at the layer's size: ReLU(sum_k w_k A_k), non-negative, not normalized. No w
(P, K) is a plain gradient, so truncation (Eq. 9) does not apply. Score-CAM and Ablation-CAM need one forward per channel, and
take `reshape` as `ltcam.trace` does. The model stays as it was. All raise InputError for what `ltcam.trace` refuses.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltcam.engine.fullgrad import ancestors
from ltcam.engine.methods import weighted
from ltcam.engine.shapes import Reshape, logits_of
from ltcam.engine.stages import borrowed, stages, unwrap
from ltcam.engine.targets import Targets
from ltcam.engine.trace import Trace, trace
from ltcam.engine.tricks import whole
from ltcam.errors import InputError

Layer = str | nn.Module | None
# Of a module, its input and output, and what arrives at the output.
Rule = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]

POOLS = (nn.MaxPool2d, nn.AdaptiveMaxPool2d)
NONLINEAR = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.Tanh, nn.Softplus, *POOLS)
LINEAR = (nn.Conv2d, nn.Linear, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.BatchNorm2d)
# Autograd nodes whose gradient is relevance already: copies, views, and pools whose winner takes all.
PASSING = {
    "_Ruled", "AccumulateGrad", "AdaptiveMaxPool2D", "Cat", "Clone", "MaxPool2DWithIndices", "Permute", "Relu",
    "Squeeze", "Transpose", "UnsafeView", "Unsqueeze", "View",
}  # fmt: skip


def liftcam(model: nn.Module, images: Tensor, targets: Targets = None, layer: Layer = None) -> Tensor:
    """LIFT-CAM (Jung and Oh 2021): w_k = sum_ij C_kij, the contributions of A_k to the logit by DeepLIFT's rescale rule.

    The reference is A = 0, so sum_kij C_kij = y(A) - y(0). The rule is for modules: ReLU, LeakyReLU, ELU, Sigmoid, Tanh,
    Softplus and max-pools. Raises InputError if the sum is another, because of another or a functional nonlinearity.
    """
    model, module, traced, a = _trace(model, images, targets, layer)
    both, (image, c) = torch.cat([a, torch.zeros_like(a)]).requires_grad_(), traced.pairs.T
    logits = _above(model, module, both, images[image].repeat(2, 1, 1, 1), NONLINEAR, _rescaled)
    chosen = F.one_hot(c.repeat(2), logits.shape[1]).to(logits)
    (multiplier,) = torch.autograd.grad(logits, both, chosen)
    found, (y, y_of_0) = a * multiplier[: len(a)], logits.detach()[chosen > 0].chunk(2)
    rounding = torch.finfo(a.dtype).eps * (100 * found.abs().sum(dim=(1, 2, 3)) + 10 * y.abs())
    if not ((found.sum(dim=(1, 2, 3)) - (y - y_of_0)).abs() <= rounding).all():
        raise InputError(f"no DeepLIFT rule above {traced.layers[0]!r} (see liftcam): choose a later layer")
    return weighted(found.sum(dim=(2, 3)), a)


def relevancecam(
    model: nn.Module, images: Tensor, targets: Targets = None, layer: Layer = None, contrastive: bool = True,
) -> Tensor:  # fmt: skip
    """Relevance-CAM (Lee et al. 2021): w_k = sum_ij R_kij, the relevance that reaches the layer from the logits.

    It starts as |y^c| at class c and, if contrastive, as -|y^c| / (C - 1) at the others. With the paper's y^c a negative
    logit would invert the map; the authors' code has 1. Conv2d, Linear and average pools hand it on by the z+ rule, no biases:
    R_i = sum_j R_j (x_i w_ij)^+ / sum_i (x_i w_ij)^+. A max-pool's winner takes all; ReLU, dropout, views and batch norm keep
    it. It is lost only at units without a positive input, and at zeros before a batch norm. Raises InputError for any other
    operation above the layer (residual additions, functional averages, other activations), and if contrastive for one logit.
    """
    model, module, traced, activation = _trace(model, images, targets, layer)
    classes, a = traced.logits.shape[1], activation.clone().requires_grad_()
    if contrastive and classes == 1:
        raise InputError("a single logit has no others to contrast with: pass contrastive=False")
    target = F.one_hot(traced.pairs[:, 1], classes).to(traced.logits)
    start = target - (1 - target) / (classes - 1) if contrastive else target
    logits = _above(model, module, a, images[traced.pairs[:, 0]], LINEAR, _z_plus)
    for node in ancestors(logits.grad_fn):
        kind = node.name().split("::")[-1].rstrip("0123456789").removesuffix("Backward")  # "Relu" of ReluBackward0
        if kind not in PASSING:
            said = f"no relevance rule for {node.name()} above {traced.layers[0]!r} (see relevancecam)"
            raise InputError(f"{said}: choose a later layer")
        if kind == "Relu":
            node.register_hook(lambda inputs, outputs: outputs)  # relevance passes
    (relevance,) = torch.autograd.grad(logits, a, start * traced.logits[traced.pairs[:, 0], traced.pairs[:, 1], None].abs())
    return weighted(relevance.sum(dim=(2, 3)), activation)


def scorecam(
    model: nn.Module, images: Tensor, targets: Targets = None, layer: Layer = None, batch_size: int = 32,
    reshape: Reshape | None = None,
) -> Tensor:  # fmt: skip
    """Score-CAM (Wang et al. 2020): w = softmax over k of y^c(X M_k) - y^c(0), M_k = A_k upsampled and scaled to [0, 1].

    This is the paper's formula with the logit as y^c, as in pytorch-grad-cam and torchcam. In the authors' code w_k is c's
    probability. The baseline of zeros (the mean colour) cancels in the softmax, so it is not run. A constant A_k has M_k = 0.
    """

    def masked(inputs: Tensor, maps: Tensor, k: Tensor) -> Any:
        masks = F.interpolate(maps[:, None], size=inputs.shape[2:], mode="bilinear", align_corners=False)
        low, high = masks.amin(dim=(2, 3), keepdim=True), masks.amax(dim=(2, 3), keepdim=True)
        return model(inputs * (masks - low) / torch.where(high > low, high - low, 1))

    model, _, traced, activation = _trace(model, images, targets, layer, reshape)
    return weighted(_per_channel(model, images, traced, batch_size, masked).softmax(dim=1), activation)


def ablationcam(
    model: nn.Module, images: Tensor, targets: Targets = None, layer: Layer = None, batch_size: int = 32,
    reshape: Reshape | None = None,
) -> Tensor:  # fmt: skip
    """Ablation-CAM (Desai and Ramaswamy 2020): w_k = (y^c - y^c_k) / |y^c|, y^c_k the logit with channel k set to zero.

    The paper divides by y^c. That is the same if y^c is positive, but a negative y^c would invert the map. If y^c is 0, the
    drop itself is the weight. With `reshape` the channels are those of its result.
    """

    def ablated(inputs: Tensor, maps: Tensor, k: Tensor) -> Any:
        at = torch.arange(len(k), device=k.device), k

        def ablate(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
            # Which of the output's values `reshape` puts into channel k: a mask goes the same way back.
            with torch.enable_grad():
                ones = torch.ones_like(output, dtype=torch.float32).requires_grad_()
                shaped = ones.clone() if reshape is None else reshape(ones)
                (channel,) = torch.autograd.grad(shaped[at].sum(), ones)
            own = output.clone() if any(output is value for value in arguments) else output  # which others may read too
            return own.masked_fill_(channel != 0, 0)

        with module.register_forward_hook(ablate):
            return model(inputs)

    model, module, traced, activation = _trace(model, images, targets, layer, reshape)
    y = traced.logits[traced.pairs[:, 0], traced.pairs[:, 1], None]
    drop = y - _per_channel(model, images, traced, batch_size, ablated)
    return weighted(drop / torch.where(y != 0, y.abs(), 1), activation)


BASELINES: dict[str, Callable[..., Tensor]] = {f.__name__: f for f in (liftcam, relevancecam, scorecam, ablationcam)}


def _trace(
    model: nn.Module, images: Tensor, targets: Targets, layer: Layer, reshape: Reshape | None = None
) -> tuple[nn.Module, nn.Module, Trace, Tensor]:
    """The model inside any wrapper, the layer's module, its trace and its activation (P, K, h, w)."""
    chosen = list(stages(model, images=images).values())[-1] if layer is None else layer
    traced = trace(model, images, targets, [chosen], reshape=reshape)
    if len(traced.layers) > 1 or (traced.pairs < 0).any():
        raise InputError("a baseline explains a class by one layer: expected no range of layers and no functions as targets")
    inside, name = unwrap(model), traced.layers[0]
    return inside, inside.get_submodule(name), traced, traced.activation(name)


def _per_channel(model: nn.Module, images: Tensor, traced: Trace, size: int, run: Callable[..., Any]) -> Tensor:
    """(P, K): each pair's logit per channel. run(the image B times (B, 3, H, W), A_k (B, h, w), k (B,)) gives (B, C)."""
    whole("batch_size", size)
    activation, pairs = traced.activation(traced.layers[0]), traced.pairs
    scores = torch.empty_like(activation[:, :, 0, 0])
    chunks = torch.split(torch.arange(scores.shape[1], device=images.device), size)
    jobs = [(i, k) for i in sorted(set(pairs[:, 0].tolist())) for k in chunks]  # one forward serves all classes of an image
    with torch.no_grad(), borrowed(model):
        for i, k in jobs:
            rows = torch.nonzero(pairs[:, 0] == i)
            logits = _logits(run(images[i].repeat(len(k), 1, 1, 1), activation[rows[0], k], k), len(k))
            scores[rows, k] = logits[:, pairs[rows[:, 0], 1]].T
    return scores


def _logits(returned: Any, count: int) -> Tensor:
    logits = logits_of(returned, count)
    return logits.mean(dim=(2, 3)) if logits.ndim == 4 else logits


def _above(
    model: nn.Module, module: nn.Module, values: Tensor, images: Tensor, kinds: tuple[type[nn.Module], ...], rule: Rule
) -> Tensor:
    """The logits of `images` with `values` in place of a module's output. Gradients obey the rule at modules of some kinds."""

    def ruled(m: nn.Module, x: Any, y: Tensor) -> Any:
        return _Ruled.apply(x[0], y.detach(), m, rule) if x else None

    with torch.enable_grad(), borrowed(model), ExitStack() as stack:
        for m in model.modules():
            if type(m) in kinds:  # a subclass may compute something else
                if getattr(m, "inplace", False):  # the rule needs the input
                    m.inplace = False  # type: ignore[assignment]
                    stack.callback(setattr, m, "inplace", True)
                stack.enter_context(m.register_forward_hook(ruled))
        stack.enter_context(module.register_forward_hook(lambda *_: values.clone()))
        return _logits(model(images.detach()), len(images))


class _Ruled(torch.autograd.Function):
    """A module's output. Its backward hands on what a rule says in place of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor, module: nn.Module, rule: Rule) -> Tensor:
        ctx.save_for_backward(x, output)
        ctx.module, ctx.rule = module, rule
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *arrives: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.rule(ctx.module, *ctx.saved_tensors, *arrives), None, None, None


def _rescaled(module: nn.Module, x: Tensor, output: Tensor, arrives: Tensor) -> Tensor:
    """DeepLIFT's rescale rule. The first half of the rows are values, the second their references."""

    def below(arrives: Tensor) -> Tensor:
        with torch.enable_grad():
            start = x.detach().requires_grad_()
            return torch.autograd.grad(module.forward(start.clone()), start, arrives)[0]

    (value, reference), (of_value, of_reference) = x.chunk(2), output.chunk(2)
    change, share = torch.cat([value - reference] * 2), arrives * torch.cat([of_value - of_reference] * 2)
    if isinstance(module, POOLS):  # each half hands its share of the change to the place of its own maximum
        largest = torch.maximum(of_value, of_reference)
        first, second = below(arrives * torch.cat([largest - of_reference, of_value - largest])).chunk(2)
        share = torch.cat([first + second] * 2)
    return torch.where(change.abs() < 1e-10, below(arrives), share / change)


def _z_plus(module: Any, x: Any, output: Tensor, arrives: Tensor) -> Tensor:
    """Relevance by the z+ rule."""
    with torch.enable_grad():
        x = z = x.detach().requires_grad_()  # a batch norm's outputs have one input, which takes all
        if isinstance(module, nn.Conv2d | nn.Linear):  # sum_i (x_i w_ij)^+ at each output j
            linear = F.linear if isinstance(module, nn.Linear) else lambda x, w: module._conv_forward(x, w, None)
            sides: Any = ({"min": 0}, {"max": 0})
            z = sum(linear(x.clamp(**side), module.weight.clamp(**side)) for side in sides)
        elif not isinstance(module, nn.BatchNorm2d):  # an average
            z = module.forward(x.clamp(min=0))
        (share,) = torch.autograd.grad(z, x, torch.where(z != 0, arrives / z, 0))
    return x.detach() * share  # type: ignore[no-any-return]

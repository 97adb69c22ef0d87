"""The gradient-free CAMs of the paper's introduction, as baselines: (model, images, targets, layer) -> (P, h, w).

images (N, 3, H, W), targets as in `ltcam.trace` but no functions, layer a module or its name; None: the deepest of `stages`.
There is one map per pair (image, class), sorted, at the layer's size: ReLU(sum_k w_k A_k), non-negative, not normalized. No w
(P, K) is a plain gradient, so truncation (Eq. 9) does not apply. Score-CAM and Ablation-CAM need one forward per channel, and
take `reshape` as `ltcam.trace` does. The model stays as it was. All raise InputError for what `ltcam.trace` refuses.
"""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.hub import tqdm  # type: ignore[attr-defined]  # the real one if it is installed, else a quiet one
from torch.nn import functional as F

from ltcam.engine.fullgrad import ancestors
from ltcam.engine.methods import weighted
from ltcam.engine.shapes import Reshape, logits_of
from ltcam.engine.stages import borrowed, stages, unwrap
from ltcam.engine.targets import Targets
from ltcam.engine.trace import Trace, trace
from ltcam.engine.tricks import whole
from ltcam.errors import InputError, PackageError

Layer = str | nn.Module | None


def liftcam(model: nn.Module, images: Tensor, targets: Targets = None, layer: Layer = None) -> Tensor:
    """LIFT-CAM (Jung and Oh 2021): w_k = sum_ij C_kij, the contributions of A_k to the logit by DeepLIFT's rescale rule.

    The reference is A = 0, so sum_kij C_kij = y(A) - y(0). captum knows ReLU, LeakyReLU, ELU, Sigmoid, Tanh, Softplus and
    max-pools as modules. Raises PackageError without captum. Raises InputError if one of them runs twice above the layer, or
    if the sum is not y(A) - y(0): other or functional nonlinearities, overlapping max-pools, modules with backward hooks.
    """
    try:
        captum = import_module("captum.attr._core.deep_lift")
    except ImportError as error:
        raise PackageError("liftcam needs captum: pip install ltcam[baselines]") from error
    model, module, traced, activation = _trace(model, images, targets, layer)
    weights = torch.empty_like(activation[:, :, 0, 0])

    class Above(nn.Module):  # the model as a function of the layer's activation, for one image
        def __init__(self, image: Tensor) -> None:
            super().__init__()
            self.model = model
            self.image = image.detach().requires_grad_()  # captum also hooks modules below the layer, which need a gradient

        def forward(self, a: Tensor) -> Any:
            with module.register_forward_hook(lambda *_: a.clone()):
                return model(self.image.repeat(len(a), 1, 1, 1))

    with torch.compiler.set_stance("force_eager"), torch.enable_grad(), borrowed(model), ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Setting forward, backward hooks", UserWarning)  # captum's, on every call
        for m in model.modules():  # captum leaves attributes on them; the last callback runs first
            stack.callback(vars(m).update, dict(vars(m)))
            stack.callback(vars(m).clear)
            if type(m) in captum.SUPPORTED_NON_LINEAR:
                # Else a ReLU's output is also the max-pool's input, and the ReLU misses the max-pool's multipliers.
                stack.enter_context(m.register_forward_pre_hook(lambda m, arguments: arguments[0].clone()))
        # One by one: if a max-pool's input is its reference, captum uses the first image's gradient for all (issue 1276).
        for p, (i, c) in enumerate(traced.pairs.tolist()):
            a = activation[p : p + 1].requires_grad_()
            try:
                found, gap = captum.DeepLift(Above(images[i : i + 1])).attribute(a, 0, c, return_convergence_delta=True)
            except RuntimeError as error:
                if "more than once" not in str(error):
                    raise
                raise InputError("a nonlinear module runs more than once: DeepLIFT needs one module per run") from error
            rounding = torch.finfo(a.dtype).eps * (100 * found.abs().sum() + 10 * traced.logits[i, c].abs())
            if not gap.abs().item() <= rounding.item():
                raise InputError(f"no DeepLIFT rule above {traced.layers[0]!r} (see liftcam): choose a later layer")
            weights[p] = found.detach().sum(dim=(0, 2, 3))
    return weighted(weights, activation)


def relevancecam(
    model: nn.Module, images: Tensor, targets: Targets = None, layer: Layer = None, contrastive: bool = True,
) -> Tensor:  # fmt: skip
    """Relevance-CAM (Lee et al. 2021): w_k = sum_ij R_kij, the relevance that reaches the layer from the logits.

    It starts as |y^c| at class c and, if contrastive, -|y^c| / (C - 1) at the others. The paper's y^c would invert the map of a
    negative logit; the authors' code has 1. Conv2d, Linear and average pools hand it on by the z+ rule without biases,
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
    with torch.compiler.set_stance("force_eager"), torch.enable_grad(), borrowed(model), ExitStack() as stack:
        for m in model.modules():
            if type(m) in _RULES:  # a subclass may compute something else
                # Above the layer, relevance instead of the gradient.
                stack.enter_context(m.register_forward_hook(lambda m, x, y: _ZPlus.apply(x[0], y.detach(), m) if x else None))
        stack.enter_context(module.register_forward_hook(lambda *_: a.clone()))
        logits = model(images.detach()[traced.pairs[:, 0]])
        for node in ancestors(logits.grad_fn):
            kind = node.name().split("::")[-1].rstrip("0123456789").removesuffix("Backward")  # "Relu" of ReluBackward0
            if kind not in _PASSING:
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

    This is the paper's, with the logit as y^c like pytorch-grad-cam and torchcam. The authors' code has w_k = c's probability.
    The baseline of zeros (the mean colour) cancels in the softmax, so it is not run. A constant A_k has M_k = 0.
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
    drop itself is the weight. With `reshape` a channel is what `reshape` makes a channel.
    """

    def ablated(inputs: Tensor, maps: Tensor, k: Tensor) -> Any:
        at = torch.arange(len(k), device=k.device), k

        def ablate(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
            # Which of the output's values `reshape` puts into channel k: a mask goes the same way back.
            with torch.enable_grad():
                ones = torch.ones_like(output, dtype=torch.float32).requires_grad_()
                shaped = ones.clone() if reshape is None else reshape(ones)
                (channel,) = torch.autograd.grad(shaped[at].sum(), ones)
            return output.masked_fill(channel != 0, 0)

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
    with torch.compiler.set_stance("force_eager"), torch.no_grad(), borrowed(model):
        for i, k in tqdm(jobs, desc=run.__name__, disable=None, leave=False):
            rows = torch.nonzero(pairs[:, 0] == i)
            logits = logits_of(run(images[i].repeat(len(k), 1, 1, 1), activation[rows[0], k], k), len(k))
            logits = logits.mean(dim=(2, 3)) if logits.ndim == 4 else logits
            scores[rows, k] = logits[:, pairs[rows[:, 0], 1]].T
    return scores


class _ZPlus(torch.autograd.Function):
    """A module's output. Its backward hands on relevance in place of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor, module: nn.Module) -> Tensor:
        ctx.save_for_backward(x)
        ctx.module = module
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, None, None]:
        module = ctx.module
        with torch.enable_grad():
            x = z = ctx.saved_tensors[0].detach().requires_grad_()  # a batch norm's outputs have one input, which takes all
            if isinstance(module, nn.Conv2d | nn.Linear):  # sum_i (x_i w_ij)^+ at each output j
                linear = F.linear if isinstance(module, nn.Linear) else lambda x, w: module._conv_forward(x, w, None)
                sides: Any = ({"min": 0}, {"max": 0})
                z = sum(linear(x.clamp(**side), module.weight.clamp(**side)) for side in sides)
            elif not isinstance(module, nn.BatchNorm2d):  # an average
                z = module.forward(x.clamp(min=0))
            (share,) = torch.autograd.grad(z, x, torch.where(z != 0, relevance[0] / z, 0))
        return x.detach() * share, None, None


_RULES = (nn.Conv2d, nn.Linear, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.BatchNorm2d)
# Autograd nodes whose gradient is relevance already: copies, views, and pools whose winner takes all.
_PASSING = {
    "_ZPlus", "AccumulateGrad", "AdaptiveMaxPool2D", "Cat", "Clone", "MaxPool2DWithIndices", "Permute", "Relu", "Squeeze",
    "Transpose", "UnsafeView", "Unsqueeze", "View",
}  # fmt: skip

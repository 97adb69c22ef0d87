"""One short pure function per method: the map of one layer from its activation and gradient.

Shapes: the activation A and the gradient G are (P, K, h, w) for P (image, class) pairs. The map is (P, h, w), non-negative, at
the layer's own size and in its own scale. Truncation (`tricks.truncate`) changes G before; these functions do not know of it.

Each method but CAM and FullGrad is written as its term at a position and channel, (P, K, h, w), which is zero if G is zero.
Summed over positions, the terms weigh the channels (WEIGHTS). Summed over channels, they are the map (MAPS). So a sum over any
part of G is a part of the sum. All raise InputError for empty tensors and for other shapes.
"""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from ltcam.engine.targets import describe
from ltcam.errors import InputError

Method = Callable[[Tensor, Tensor], Tensor]  # of A and G: the map, or its terms

METHODS: dict[str, Method] = {}
WEIGHTS: dict[str, Method] = {}
MAPS: dict[str, Method] = {}


def cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """CAM (Zhou et al. 2016): ReLU(sum_k w_k A_k), w the classifier's weights after global average pooling.

    There G_k = w_k / (h w) everywhere, so w_k = sum_ij G_k. Raises InputError if G_k varies in space, as with another head.
    """
    _check(activation, gradient)
    if not constant_in_space(gradient):
        raise InputError("CAM needs global average pooling and one linear layer after it: use gradcam, or head='gap'")
    return weighted(gradient.sum(dim=(2, 3)), activation)


METHODS["cam"] = cam


def _of_terms(kind: dict[str, Method], name: str) -> Callable[[Method], Method]:
    """Makes a term the method `name` of this kind, WEIGHTS or MAPS."""

    def method_of(term: Method) -> Method:
        @wraps(term)
        def made(activation: Tensor, gradient: Tensor) -> Tensor:
            _check(activation, gradient)
            total = term(activation, gradient).sum(dim=(2, 3) if kind is WEIGHTS else 1)
            return weighted(total, activation) if kind is WEIGHTS else total.relu()

        kind[name], METHODS[name] = term, made
        return made

    return method_of


@_of_terms(WEIGHTS, "gradcam")
def gradcam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM, Eqs. 2 and 3 (Selvaraju et al. 2017): ReLU(sum_k mean_ij(G_k) A_k)."""
    return gradient / gradient[0, 0].numel()


@_of_terms(WEIGHTS, "gradcam++")
def gradcam_plus_plus(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM++ (Chattopadhyay et al. 2018): channel weights sum_ij alpha_ij ReLU(G_ij).

    alpha_ij = G_ij^2 / (2 G_ij^2 + S G_ij^3) with S = sum_ab A_ab. Only G > 0 counts, and alpha is then 1 / (2 + S G), the same
    value without cubes of small numbers. This is the authors' variant, and pytorch-grad-cam's without its added 1e-6: S times
    the cube at (i, j), not sum_ab A_ab G_ab^3. We leave out the derivation's exponential score, which only scales a whole map.
    """
    positive = gradient.clamp(min=0)
    denominator = 2 + activation.sum(dim=(2, 3), keepdim=True) * positive
    return positive / torch.where(denominator != 0, denominator, 1)


@_of_terms(WEIGHTS, "xgradcam")
def xgradcam(activation: Tensor, gradient: Tensor) -> Tensor:
    """XGrad-CAM (Fu et al. 2020): ReLU(sum_k w_k A_k), w_k = sum_ij(G_k A_k) / sum_ij A_k, or 0 if a channel sums to 0."""
    total = activation.sum(dim=(2, 3), keepdim=True)
    return gradient * activation / torch.where(total != 0, total, torch.inf)


@_of_terms(MAPS, "hirescam")
def hirescam(activation: Tensor, gradient: Tensor) -> Tensor:
    """HiResCAM (Draelos and Carin 2020): ReLU(sum_k G_k * A_k)."""
    return gradient * activation


@_of_terms(MAPS, "layercam")
def layercam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Layer-CAM, Eqs. 4 and 5 (Jiang et al. 2021): ReLU(sum_k ReLU(G_k) * A_k). Eq. 5 does not print the sum."""
    return gradient.clamp(min=0) * activation


@_of_terms(MAPS, "sim")
def sim(activation: Tensor, gradient: Tensor) -> Tensor:
    """Region-CAM's semantic information map (Cai and Abhayaratne 2025, arXiv 2510.25134): sum_k ReLU(G_k).

    Region-CAM's second half, which spreads the map along the features, is not part of this function.
    """
    return gradient.clamp(min=0)


def fullgrad(bias: Tensor, gradient: Tensor, per_channel: bool = False) -> Tensor:
    """One term of FullGrad, Eqs. 6 and 7 (Srinivas and Fleuret 2019): sum_k normalize(|G_k b_k|).

    bias is (1, K, 1, 1), or the image itself (P, 3, H, W) for the input term. Minimum and maximum are over the layer, as in the
    reference implementation. With per_channel they are over each channel, as in pytorch-grad-cam: the literal reading of
    Eq. 7. A constant product gives zeros.
    """
    _check(bias, gradient, alike=False)
    product = (gradient * bias).abs_()
    over = (2, 3) if per_channel else (1, 2, 3)
    low, high = product.amin(dim=over, keepdim=True), product.amax(dim=over, keepdim=True)
    span = torch.where(high > low, high - low, torch.inf)
    # In place, since a product of shallow layers is too large for the caches. A graph needs the product as it is.
    return ((product - low) / span if product.requires_grad else product.sub_(low).div_(span)).sum(dim=1)


METHODS["fullgrad"] = fullgrad


def constant_in_space(gradient: Tensor) -> bool:
    """Whether every channel of G (P, K, h, w) is constant, as below global average pooling."""
    low, high = gradient.amin(dim=(2, 3)), gradient.amax(dim=(2, 3))
    return bool((high - low <= 1e-5 * gradient.abs().amax(dim=(1, 2, 3))[:, None]).all())


def weighted(weights: Tensor, activation: Tensor) -> Tensor:
    """ReLU of the channels' weighted sum: (P, h, w) of weights (P, K) and A."""
    return torch.einsum("pk,pkhw->phw", weights, activation).relu()


def _check(activation: Tensor, gradient: Tensor, alike: bool = True) -> None:
    for tensor in (activation, gradient):
        if not isinstance(tensor, Tensor) or tensor.ndim != 4 or not tensor.is_floating_point() or not tensor.numel():
            raise InputError(f"a method is given {describe(tensor)}: expected floats (P, K, h, w)")
    one_a_channel = not alike and activation.shape == (1, gradient.shape[1], 1, 1)
    if activation.shape != gradient.shape and not one_a_channel:
        raise InputError(f"a method is given {describe(activation)} and {describe(gradient)}: expected those of one layer")

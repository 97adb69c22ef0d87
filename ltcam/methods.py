"""One short pure function a method: the map of one layer from its activation and the gradient there.

Shapes throughout: activation A and gradient G (P, K, h, w), for P (image, class) pairs; the map (P, h, w), non-negative, at
the layer's own size and in its own scale. Truncation (`ltcam.tricks.truncate`) acts on G before; nothing here knows of it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Method = Callable[[Tensor, Tensor], Tensor]


def gradcam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM, Eqs. 2 and 3 (Selvaraju et al. 2017): ReLU(sum_k mean_ij(G_k) A_k)."""
    return _weighted(gradient.mean(dim=(2, 3)), activation)


def gradcam_plus_plus(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM++ (Chattopadhyay et al. 2018): channel weights sum_ij alpha_ij ReLU(G_ij).

    alpha_ij = G_ij^2 / (2 G_ij^2 + S G_ij^3) with S = sum_ab A_ab. Only G > 0 counts, where that is 1 / (2 + S G): the same
    value without cubes of small numbers. An exponential score, which the derivation assumes, would scale a whole map.
    """
    positive = gradient.clamp(min=0)
    total = activation.sum(dim=(2, 3), keepdim=True)
    denominator = 2 + total * positive
    alpha = torch.where(denominator != 0, denominator, 1).reciprocal()
    return _weighted((alpha * positive).sum(dim=(2, 3)), activation)


def layercam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Layer-CAM, Eqs. 4 and 5 (Jiang et al. 2021): ReLU(sum_k ReLU(G_k) * A_k); Eq. 5 leaves the sum unsaid."""
    return torch.einsum("pkhw,pkhw->phw", gradient.clamp(min=0), activation).relu()


def fullgrad(bias: Tensor, gradient: Tensor) -> Tensor:
    """One term of FullGrad, Eqs. 6 and 7 (Srinivas and Fleuret 2019): sum_k normalize(|G_k b_k|).

    bias (1, K, 1, 1), or for the input term the image itself (P, 3, H, W). Minimum and maximum are taken over the layer, as in
    the reference implementation, not over each channel; a term that is constant gives zeros.
    """
    product = (gradient * bias).abs()
    low, high = product.amin(dim=(1, 2, 3)), product.amax(dim=(1, 2, 3))
    scale = torch.where(high > low, high - low, torch.inf)
    return (product.sum(dim=1) - product.shape[1] * low[:, None, None]).clamp(min=0) / scale[:, None, None]


METHODS: dict[str, Method] = {
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "layercam": layercam,
    "fullgrad": fullgrad,
}


def method(name: str) -> Method:
    """The function of a method's name. Raises ValueError for one that is not in METHODS."""
    if name not in METHODS:
        raise ValueError(f"method {name!r} is unknown: expected one of {', '.join(METHODS)}")
    return METHODS[name]


def _weighted(weights: Tensor, activation: Tensor) -> Tensor:
    """ReLU of the channels' weighted sum; weights (P, K)."""
    return torch.einsum("pk,pkhw->phw", weights, activation).relu()

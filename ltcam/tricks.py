"""The paper's two plug-ins: truncation of the gradient (Eq. 9) and layerization of the maps (Eq. 8)."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Scope = Literal["layer", "channel"]


def truncate(gradient: Tensor, delta: float | None, per: Scope = "layer") -> Tensor:
    """Keep the gradients at or above the delta-th percentile of the positive ones, zero the rest (Eq. 9).

    gradient (P, K, h, w); delta None (no truncation) or in [0, 100), 0 keeping just the positive values; the percentile is
    over a pair's whole layer ("layer", Sec. 2.1's "feature map") or each of its channels ("channel"). Of the n positive values
    in ascending order s, those >= s[ceil((n - 1) delta / 100)] stay: what numpy.percentile's threshold keeps. Where nothing
    is positive everything is zeroed. Raises ValueError for another delta or scope.
    """
    check(delta, per)
    if delta is None:
        return gradient
    if delta == 0:
        return gradient.clamp(min=0)
    rows = gradient.flatten(1 if per == "layer" else 2)
    ordered = torch.where(rows > 0, rows, torch.inf).sort(dim=-1).values
    positive = (rows > 0).sum(dim=-1, keepdim=True)
    share = Fraction(str(delta)).limit_denominator(10**6) / 100  # whole numbers: 0.07 * 100 is not 7 in floating point
    rank = -(-(positive - 1).clamp(min=0) * share.numerator // share.denominator)
    threshold = ordered.gather(-1, rank)
    return torch.where(rows >= threshold, rows, 0).view_as(gradient)


def layerize(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The sum of the layers' maps (P, h_l, w_l), each bilinearly resized to `size` (H, W): (P, H, W), Eq. 8.

    align_corners=False. Maps of one size are summed before they are resized, which is linear. Raises ValueError for no maps.
    """
    if not maps:
        raise ValueError("no maps to fuse: expected at least one layer")
    by_size: dict[torch.Size, Tensor] = {}
    for m in maps:
        by_size[m.shape] = by_size[m.shape] + m if m.shape in by_size else m
    resized = [interpolate(m[:, None], size, mode="bilinear", align_corners=False)[:, 0] for m in by_size.values()]
    return torch.stack(resized).sum(dim=0) if len(resized) > 1 else resized[0]


def check(delta: float | None, per: str) -> None:
    """Raises ValueError for a delta or a scope that truncation does not know."""
    if delta is not None and not 0 <= delta < 100:
        raise ValueError(f"delta={delta} is no percentile to truncate at: expected None, or a number in [0, 100)")
    if per not in ("layer", "channel"):
        raise ValueError(f"per={per!r} is unknown: expected 'layer' or 'channel'")

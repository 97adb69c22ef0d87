"""The paper's two plug-ins: truncation of the gradient (Eq. 9) and layerization of the maps (Eq. 8)."""

from collections.abc import Sequence
from fractions import Fraction
from functools import reduce
from math import inf
from numbers import Integral, Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ltcam.engine.targets import describe
from ltcam.errors import InputError

Scope = Literal["layer", "channel"]
Compare = Literal["ge", "gt"]
By = Literal["percentile", "fraction of the maximum"]
Fuse = Literal["sum", "max", "mean", "prod"]
Normalize = Literal["none", "max", "minmax", "tanh"]

BUCKETS = 2**15  # of the upper 16 bits, the sign's left out
LONG = 2 * BUCKETS  # values from which a row is worth a table of its counts
CACHED = 2**18  # values counted at a time, for the caches


def truncate(
    gradient: Tensor, delta: float | None, per: Scope = "layer", compare: Compare = "ge", by: By = "percentile"
) -> Tensor:  # fmt: skip
    """Keep the gradients at or above the delta-th percentile of the positive ones, zero the rest (Eq. 9).

    gradient (P, K, h, w); delta None (no truncation) or in [0, 100). A delta of 0 keeps all positive values. The percentile is
    over a pair's whole layer ("layer", Sec. 2.1's "feature map") or over each channel ("channel"). s are the n positive values
    in ascending order. Values >= s[ceil((n - 1) delta / 100)] stay, the same as with numpy.percentile's threshold. Without a
    positive value everything is zeroed. compare "gt" is the > of Eqs. 10 and 11. It drops the threshold itself: the smallest
    positive value at 0, and everything in a constant map.

    by "fraction of the maximum" is another reading of Eq. 9: the threshold is delta / 100 of the largest value of the layer or
    channel. It drops far more, since most gradients are small beside the largest one.
    """
    check(delta, per, compare)
    one_of("by", by, By)
    if gradient.ndim != 4 or not gradient.numel() or gradient.dtype not in (torch.float32, torch.float64):
        raise InputError(f"the gradient is {describe(gradient)}: expected float32 or float64 (P, K, h, w)")
    if delta is None:
        return gradient
    if delta == 0 and compare == "ge":
        return gradient.clamp(min=0)
    rows = gradient.flatten(1 if per == "layer" else 2)
    threshold = limits(rows, [delta], by)
    return torch.where(rows >= threshold if compare == "ge" else rows > threshold, rows, 0).view_as(gradient)


def limits(rows: Tensor, deltas: Sequence[float], by: By = "percentile") -> Tensor:
    """The thresholds of Eq. 9 in either reading: (..., n) -> (..., len(deltas)), infinite where nothing is positive."""
    if by == "percentile":
        return thresholds(rows, deltas)
    most = rows.amax(dim=-1, keepdim=True)
    return torch.where(most > 0, most * rows.new_tensor(deltas) / 100, torch.inf)


def thresholds(rows: Tensor, deltas: Sequence[float]) -> Tensor:
    """The delta-th percentiles of each row's positive values, as `truncate` reads them: (..., n) -> (..., len(deltas)).

    rows float32 or float64, deltas in [0, 100). Infinity where nothing is positive. They equal those of a full sort to the bit,
    in a quarter of its time. The bits of positive floats, read as whole numbers, have the order of the floats. The upper 16
    bits of a long row are counted. Only values that share them with a percentile are sorted, a few in a hundred.
    """
    # As whole numbers; of negative floats, also of -0.0, which has the sign too, 0.
    bits = rows.view({4: torch.int32, 8: torch.int64}[rows.element_size()]).clamp(min=0)
    positive = torch.count_nonzero(bits, dim=-1)[..., None]
    # Whole numbers: 0.07 * 100 is not 7 in floating point.
    shares = [Fraction(str(delta)).limit_denominator(10**6) / 100 for delta in deltas]
    ranks = torch.cat([-(-(positive - 1) * s.numerator // s.denominator) for s in shares], dim=-1)
    ranks = (rows.shape[-1] - positive + ranks).clamp(max=rows.shape[-1] - 1)
    if rows.shape[-1] < LONG:
        found = bits.sort(dim=-1).values.gather(-1, ranks)
    else:
        found = torch.stack([*map(_ranked, bits.flatten(0, -2), ranks.flatten(0, -2))]).view(ranks.shape)
    return torch.where(positive > 0, found.view(rows.dtype), torch.inf)


def _ranked(row: Tensor, ranks: Tensor) -> Tensor:
    """The values of the given ranks, from 0, in a row of whole numbers that are not negative."""
    shift, parts = 8 * row.element_size() - 16, torch.split(row, CACHED)
    counts = torch.stack([torch.bincount(part >> shift, minlength=BUCKETS) for part in parts]).sum(dim=0)
    buckets = torch.searchsorted(counts.cumsum(0), ranks, right=True)
    holds = torch.bincount(buckets, minlength=BUCKETS) > 0
    left_out = torch.where(holds, 0, counts).cumsum(0)  # of smaller values, by bucket
    near = torch.cat([part[holds.index_select(0, part >> shift)] for part in parts])
    return near.sort().values[ranks - left_out[buckets]]


def layerize(
    maps: Sequence[Tensor], size: tuple[int, int], fuse: Fuse = "sum", normalize: Normalize = "none",
    align_corners: bool = False,
) -> Tensor:  # fmt: skip
    """The layers' maps (P, h_l, w_l), bilinearly resized to `size` (H, W) and fused: (P, H, W). Eq. 8 is the plain sum.

    fuse is "sum", "mean", the element-wise "max", or "prod", the geometric mean of the maps, each over its maximum. normalize
    scales each map first, as in `normalized`; align_corners as in torch's interpolate. Maps of one size are added before they
    are resized, because resizing is linear. Two published ways: method "hirescam" with normalize="max" and fuse="max" is
    Zoom-CAM (Shi et al. 2020, arXiv 2010.08644). "prod" orders pixels as RefineCAM's product of the same maps does (Domeniconi
    et al. 2026, arXiv 2605.14641).
    """
    one_of("fuse", fuse, Fuse)
    one_of("normalize", normalize, Normalize)
    if not isinstance(maps, Sequence) or not maps:
        raise InputError("no maps to fuse: expected a sequence of maps, one or more")
    if wrong := [m for m in maps if m.ndim != 3 or not m.is_floating_point() or m.shape[:1] != maps[0].shape[:1]]:
        raise InputError(f"a map is {describe(wrong[0])}: expected floats (P, h, w), with the same P in every layer")
    if not isinstance(size, Sequence) or len(size) != 2 or not all(is_whole(n, 2**31 - 1) for n in size):
        raise InputError(f"size={size!r}: expected (H, W), whole numbers of pixels above 0")
    maps = normalized(maps, normalize)
    if fuse == "prod":  # the maps' scales do not matter, but float32 cannot hold a product of small gradients
        return reduce(torch.mul, (_root(_resize(m, size, align_corners), len(maps)) for m in normalized(maps, "max")))
    if fuse == "max":
        return reduce(torch.maximum, (_resize(m, size, align_corners) for m in maps))
    by_size: dict[torch.Size, Tensor] = {}
    for m in maps:
        by_size[m.shape] = by_size[m.shape] + m if m.shape in by_size else m
    total = reduce(torch.add, (_resize(m, size, align_corners) for m in by_size.values()))
    return total / len(maps) if fuse == "mean" else total


def normalized(maps: Sequence[Tensor], how: Normalize) -> list[Tensor]:
    """Each layer's non-negative map (P, h, w), scaled to [0, 1]: "max" (divided by its maximum), "minmax", or "tanh".

    "tanh" is tanh(2 M / max M), as in Layer-CAM's paper (its code only min-maxes each stage), for maps of at least four times
    the height of the smallest one given: S1 to S3 of S1-S5, S3 of S3-S5, none of one stage. The others are divided by their
    maximum. A map without a positive value stays zero.
    """
    if how == "none":
        return list(maps)
    tiny = torch.finfo(torch.float32).tiny
    if how == "minmax":
        maps = [m - m.amin(dim=(1, 2), keepdim=True) for m in maps]
    scaled = [m / m.amax(dim=(1, 2), keepdim=True).clamp(min=tiny) for m in maps]
    shallow = 4 * min(m.shape[1] for m in maps) if how == "tanh" else torch.inf
    return [torch.tanh(2 * m) if m.shape[1] >= shallow else m for m in scaled]


def _resize(maps: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    return interpolate(maps[:, None], size, mode="bilinear", align_corners=align_corners)[:, 0]


def _root(maps: Tensor, degree: int) -> Tensor:
    """The root of non-negative values. Where it is 0 its gradient is 0 too, not infinite."""
    positive = maps > 0
    return torch.where(positive, torch.where(positive, maps, 1).pow(1 / degree), 0)


def check(delta: float | None, per: str = "layer", compare: str = "ge") -> None:
    """Raises InputError for an unknown delta, scope or comparison."""
    if delta is not None and not (is_number(delta) and 0 <= delta < 100):
        raise InputError(f"delta={delta!r} is no percentile to truncate at: expected None, or a number in [0, 100)")
    one_of("per", per, Scope)
    one_of("compare", compare, Compare)


def one_of(name: str, value: str, choices: Any) -> None:
    """Raises InputError for a value that a Literal does not have."""
    if value not in get_args(choices):
        raise InputError(f"{name}={value!r} is unknown: expected {' or '.join(map(repr, get_args(choices)))}")


def is_number(value: Any) -> bool:
    """Whether a value is a real number. numpy's are, True is not."""
    return not isinstance(value, bool) and isinstance(value, Real)


def whole(name: str, value: int, most: float = inf) -> int:
    """`value`, an int. Raises InputError if it is not a whole number from 1 to `most`."""
    if not is_whole(value, most):
        raise InputError(f"{name}={value!r}: expected a whole number, " + ("at least 1" if most == inf else f"1 to {most}"))
    return int(value)


def is_whole(value: Any, most: float = inf) -> bool:
    """Whether a value is a whole number from 1 to `most`. numpy's are, True is not."""
    return not isinstance(value, bool) and isinstance(value, Integral) and 1 <= int(value) <= most

"""From heatmaps to masks: Otsu's threshold (Sec. 3.1) for a stack of maps at once. Tests compare it with scikit-image."""

import torch
from torch import Tensor

from ltcam.engine.targets import describe
from ltcam.errors import InputError

BINS = 256
FLOAT32 = torch.finfo(torch.float32)
CHUNK = {"cpu": 2**18, "cuda": 2**26}  # pixels at a time


def otsu_masks(heatmaps: Tensor) -> Tensor:
    """The pixels of non-negative heatmaps (M, H, W) above Otsu's threshold (256 bins of each map's range): (M, H, W) bool.

    A constant map has none. Small differences, such as resizing a constant leaves, count as constant.
    """
    if heatmaps.ndim != 3 or not heatmaps.is_floating_point() or not heatmaps.numel():
        raise InputError(f"heatmaps are {describe(heatmaps)}: expected floats (M, H, W)")
    step = max(1, CHUNK.get(heatmaps.device.type, CHUNK["cuda"]) // heatmaps[0].numel())
    return torch.cat([_over_otsu(part) for part in torch.split(heatmaps, step)])


def above(heatmaps: Tensor, fraction: float) -> Tensor:
    """The pixels of non-negative heatmaps (M, H, W) above `fraction` of their map's maximum: (M, H, W) bool."""
    return heatmaps > fraction * heatmaps.amax(dim=(1, 2), keepdim=True)


def _over_otsu(heatmaps: Tensor) -> Tensor:
    values = heatmaps.flatten(1).double()  # float32 cannot tell 256 bins apart in a nearly constant map
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    constant = high - low <= 8 * FLOAT32.eps * high
    # Outside float32's range, the bins' width or the variance of the parts overflows or vanishes even in float64.
    if not ((low >= 0) & (high <= FLOAT32.max) & (constant | (high - low >= 2.0**-149))).all():
        raise InputError(
            "heatmaps hold NaN, infinity, negative values or values outside float32's range: expected those of ltcam.explain"
        )
    edges = low + (high - low) / BINS * torch.arange(BINS + 1, device=values.device)
    edges[:, -1:] = high
    counts = _histogram(values, edges, constant)
    threshold = _threshold(counts, (edges[:, :-1] + edges[:, 1:]) / 2)
    return ((values > threshold) & ~constant).view_as(heatmaps)


def _histogram(values: Tensor, edges: Tensor, constant: Tensor) -> Tensor:
    """How many of `values` (M, n) are in each bin, (M, 256), exactly as numpy counts. The last bin includes both edges."""
    low, high = edges[:, :1], edges[:, -1:]
    place = (values - low) * (BINS / torch.where(constant, torch.inf, high - low))
    bins = place.long()
    # Rounding may put a value at an edge into the wrong bin.
    row, column = torch.nonzero((place - place.round()).abs() < 1e-9, as_tuple=True)
    nearest = place[row, column].round().long()
    bins[row, column] = nearest - (values[row, column] < edges[row, nearest]).long()
    bins = bins.clamp_(max=BINS - 1) + BINS * torch.arange(len(values), device=values.device)[:, None]
    return torch.bincount(bins.flatten(), minlength=BINS * len(values)).view(-1, BINS)


def _threshold(counts: Tensor, centers: Tensor) -> Tensor:
    """The bin center that splits each histogram (M, 256) with the largest variance between the two parts: (M, 1)."""
    counts = counts.float()  # as scikit-image computes, so that equal histograms give equal thresholds
    below, above = counts.cumsum(1), counts.flip(1).cumsum(1).flip(1)
    mass = counts * centers
    mean_below, mean_above = mass.cumsum(1) / below, mass.flip(1).cumsum(1).flip(1) / above
    variance = below[:, :-1] * above[:, 1:] * (mean_below[:, :-1] - mean_above[:, 1:]) ** 2
    return centers.gather(1, variance.argmax(dim=1, keepdim=True))

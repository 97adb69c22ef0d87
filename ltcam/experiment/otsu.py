"""From heatmaps to masks and pixel counts: Otsu's threshold (Sec. 3.1) on a stack of maps at once. scikit-image is the oracle.

Otsu's threshold is the center of a bin. So each pixel gets the number of its half bin, from 0 to 511: the histogram, the mask
and the counts are all read from these numbers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ltcam.data.base import VOID
from ltcam.engine.targets import describe
from ltcam.errors import InputError

BINS = 256
OTHER, CLASS = 1, 2  # in what `regions` gives
FLOAT32 = torch.finfo(torch.float32)
CHUNK = {"cpu": 2**18, "cuda": 2**26}  # pixels at a time
# Rounding moves the place of a pixel among 512 half bins by less than this.
MARGIN = {torch.float32: 2e-4, torch.float64: 2e-9}


def otsu_masks(heatmaps: Tensor) -> Tensor:
    """The pixels of non-negative heatmaps (M, H, W) above Otsu's threshold (256 bins of each map's range): (M, H, W) bool.

    A constant map gives an empty mask. Differences that come from rounding in a resize do not count as a range. Raises
    InputError for other tensors, and for values that float32 cannot hold.
    """
    if heatmaps.ndim != 3 or not heatmaps.is_floating_point() or not heatmaps.numel():
        raise InputError(f"heatmaps are {describe(heatmaps)}: expected floats (M, H, W)")
    return torch.cat([_over_otsu(part) for part in _split(heatmaps)])


def otsu_counts(heatmaps: Tensor, regions: Tensor) -> Tensor:
    """(tp, fp, fn) in pixels of `otsu_masks`, without making them: (M, P, 3) long.

    heatmaps (M, P, H, W): M maps of each of P pairs; regions (P, H, W) int32: as `regions` gives them.
    """
    places = 2 * BINS * regions.flatten(1)
    return torch.cat([_counted(part, places) for part in _split(heatmaps)])


def above(heatmaps: Tensor, fraction: float) -> Tensor:
    """The pixels of non-negative heatmaps (..., H, W) above `fraction` of their map's maximum: bool of the same shape."""
    return heatmaps > fraction * heatmaps.amax(dim=(-2, -1), keepdim=True)


def count(predicted: Tensor, region: Tensor) -> Tensor:
    """(tp, fp, fn) in pixels of predicted masks (..., H, W): (..., 3); region (H, W) or (P, H, W) from `regions`."""
    if predicted.dtype != torch.bool or region.ndim < 2 or predicted.shape[-region.ndim :] != region.shape:
        raise InputError(f"a mask {tuple(region.shape)} predicted as {describe(predicted)}: expected bool, of equal size")
    tp, fp = ((predicted & (region == value)).flatten(-2).sum(dim=-1) for value in (CLASS, OTHER))
    return torch.stack([tp, fp, (region == CLASS).flatten(-2).sum(dim=-1) - tp], dim=-1)


def argmax_counts(maps: Tensor, classes: Tensor, mask: Tensor, t: Sequence[float]) -> Tensor:
    """(tp, fp, fn) in pixels where each pixel gets one label, at every background value t: (T, labels, 3) long.

    A pixel gets the class of the largest of the maps (n, H, W) if that is above t, else background, as in IRN's evaluation.
    Label 0 is background, c + 1 is class c. classes: (n,) from 0; mask: (H, W) as in `Sample`; t: ascending, in [0, 1].
    """
    known = mask != VOID
    truth = mask[known].long()
    largest, place = torch.cat([maps.new_zeros(1, *mask.shape), maps])[:, known].max(dim=0)
    claim = torch.cat([classes.new_zeros(1), classes + 1])[place]
    labels = 1 + int(torch.cat([truth, classes + 1, classes.new_zeros(1)]).max())
    below = torch.searchsorted(torch.tensor(t, dtype=torch.float64).to(largest), largest)  # how many t a pixel is above
    steps = len(t) + 1

    def above_t(label: Tensor, of: Tensor) -> Tensor:
        """(labels, T): how many pixels of each label are above each t."""
        found = torch.bincount((label * steps + below)[of], minlength=labels * steps).view(labels, steps)
        return found.flip(1).cumsum(1).flip(1)[:, 1:]

    every, total = torch.ones_like(truth, dtype=torch.bool), torch.bincount(truth, minlength=labels)[:, None]
    claimed, right = above_t(claim, every), above_t(claim, claim == truth)
    claimed[0] = len(truth) - claimed[1:].sum(dim=0)
    right[0] = total[0] - above_t(truth, every)[0]
    return torch.stack([right, claimed - right, total - right], dim=-1).transpose(0, 1)


def regions(mask: Tensor, c: int) -> Tensor:
    """What each pixel of a mask (H, W) is for class c: (H, W) int32. 0 is void, `OTHER` or `CLASS`."""
    if c + 1 == VOID:
        raise InputError(f"class {c} has the mask value {VOID}, which is void: expected another class")
    return (mask != VOID).int() + (mask == c + 1).int()


def _split(heatmaps: Tensor) -> tuple[Tensor, ...]:
    """As many maps at a time as the caches hold."""
    return torch.split(heatmaps, max(1, CHUNK.get(heatmaps.device.type, CHUNK["cuda"]) // heatmaps[0].numel()))


def _over_otsu(heatmaps: Tensor) -> Tensor:
    halves, edges = _halves(heatmaps.flatten(1))
    return (halves > _threshold(_histogram(halves, 2 * BINS), edges)).view_as(heatmaps)


def _counted(heatmaps: Tensor, places: Tensor) -> Tensor:
    """`otsu_counts` of as many maps as the caches hold; places (P, H W): 512 times the region."""
    maps, pairs = heatmaps.shape[:2]
    halves, edges = _halves(heatmaps.flatten(0, 1).flatten(1))
    joint = (halves.view(maps, pairs, -1) + places).flatten(0, 1)
    counts = _histogram(joint, 3 * 2 * BINS).view(-1, 3, 2 * BINS)
    over = torch.arange(2 * BINS, device=counts.device) > _threshold(counts.sum(dim=1), edges)
    claimed = (counts * over[:, None]).sum(dim=2)
    tp, fp = claimed[:, 2], claimed[:, 1]
    return torch.stack([tp, fp, counts[:, 2].sum(dim=1) - tp], dim=1).view(maps, pairs, 3)


def _halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of maps (M, n) the half bin of each pixel, (M, n) int32 in [0, 512), and the edges of their bins, (M, 257) float64.

    A bin holds its lower edge, the last one both, as numpy counts. Its upper half begins above its center.
    """
    least = values.amin(dim=1, keepdim=True)
    low, high = least.double(), values.amax(dim=1, keepdim=True).double()
    span = high - low
    constant = span <= 8 * FLOAT32.eps * high
    # Outside of float32's range the bins' width, or the variance of their parts, is no number in float64 either.
    if not ((low >= 0) & (high <= FLOAT32.max) & (constant | (span >= 2.0**-149))).all():
        raise InputError("heatmaps hold NaN, negative values or values outside float32: expected those of ltcam.explain")
    edges = low + span / BINS * torch.arange(BINS + 1, device=values.device)
    edges[:, -1:] = high
    if values.dtype != torch.float32 or (~constant & (span < 2.0**-100)).any():  # where float32 has no such scale
        values = values.double()
    place = (values - least).mul_((2 * BINS / torch.where(constant, torch.inf, span)).to(values))
    halves = place.int()
    nearest = place.round().clamp_(min=1)  # what is near 0 is in half bin 0
    row, column = torch.nonzero(place.sub_(nearest).abs_() < MARGIN[values.dtype], as_tuple=True)
    if len(row):
        halves[row, column] = _beside(nearest[row, column].long(), values[row, column].double(), edges[row])
    return halves, edges


def _beside(boundary: Tensor, values: Tensor, edges: Tensor) -> Tensor:
    """The half bins of values that lie within rounding of the lower end of half bin `boundary`; edges (n, 257)."""
    left = edges.gather(1, (boundary // 2)[:, None])[:, 0]
    right = edges.gather(1, (boundary // 2 + 1).clamp(max=BINS)[:, None])[:, 0]
    under = torch.where(boundary % 2 == 0, values < left, values <= (left + right) / 2)
    return (boundary - under.long()).clamp(max=2 * BINS - 1).int()


def _histogram(numbers: Tensor, kinds: int) -> Tensor:
    """How often each number below `kinds` is in each row (M, n): (M, kinds)."""
    own = kinds * torch.arange(len(numbers), dtype=numbers.dtype, device=numbers.device)
    return torch.bincount((numbers + own[:, None]).flatten(), minlength=kinds * len(numbers)).view(-1, kinds)


def _threshold(counts: Tensor, edges: Tensor) -> Tensor:
    """Otsu's threshold of each histogram (M, 512), as the number of the half bin that it ends: (M, 1)."""
    # In float32 as scikit-image computes, so that equal histograms give equal thresholds.
    counts = counts.view(-1, BINS, 2).sum(dim=2).float()
    centers = (edges[:, :-1] + edges[:, 1:]) / 2
    below, above = counts.cumsum(1), counts.flip(1).cumsum(1).flip(1)
    mass = counts * centers
    mean_below, mean_above = mass.cumsum(1) / below, mass.flip(1).cumsum(1).flip(1) / above
    variance = below[:, :-1] * above[:, 1:] * (mean_below[:, :-1] - mean_above[:, 1:]) ** 2
    return 2 * variance.argmax(dim=1, keepdim=True)

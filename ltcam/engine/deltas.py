"""Every percentile of Eq. 9, and every delta of every method, from one count of the gradients.

The bits of positive floats, read as whole numbers, have the order of the floats. The upper 16 bits of all values are counted.
Only values that share them with a percentile are sorted: a few in a hundred. The percentiles equal those of a full sort to the
bit, in a quarter of its time.

The thresholds of all deltas cut the gradients of a layer into bins. Each method is a sum over G (see `methods`), so it is
summed once in each bin, and what a delta keeps are the bins from the largest down to its own.
"""

from collections.abc import Collection, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from ltcam.engine.methods import MAPS, WEIGHTS

BUCKETS = 2**15  # of the upper 16 bits, the sign's left out
LONG = 2 * BUCKETS  # values from which a row is worth a table of its counts
CACHED = 2**18  # values counted at a time, for the caches
CHUNK = {"cpu": 2**20, "cuda": 2**26}  # values cut at a time: few enough for the caches, or to leave memory alone


def thresholds(rows: Tensor, deltas: Sequence[float]) -> Tensor:
    """The delta-th percentiles of each row's positive values, as `truncate` reads them: (..., n) -> (..., len(deltas)).

    rows float32 or float64, deltas in [0, 100). Infinity where nothing is positive.
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


def places(rows: Tensor, limits: Tensor) -> Tensor:
    """How many of its row's limits each value is not below: rows (..., n), limits (..., d) ascending -> (..., n) long."""
    found = torch.zeros_like(rows, dtype=torch.int16)
    for limit in limits.unbind(-1):
        found += rows >= limit[..., None]
    return found.long()


def at_each(
    methods: Collection[str], value: Tensor, gradient: Tensor, deltas: Sequence[float], by_layer: bool
) -> dict[str, Tensor]:
    """The maps (P, D, h, w) float32 of each of `methods` at each of the `deltas`, ascending, from A (P, K, h, w) and G.

    For "fullgrad" the value is the bias (P, K, 1, 1). by_layer  whether percentiles are over the layer, not each channel
    """
    limits = thresholds(gradient.flatten(1 if by_layer else 2), deltas)
    pairs, channels, *place = gradient.shape
    shape = {m: (channels, len(deltas) + 1) if m in WEIGHTS else (len(deltas) + 1, *place) for m in methods}
    sums = {m: gradient.new_zeros(pairs, *shape[m]) for m in methods}
    step = chunk(gradient[:, 0])
    for part in (slice(start, start + step) for start in range(0, channels, step)):
        some = gradient[:, part]
        rows = some.flatten(1 if by_layer else 2)
        index = places(rows, limits if by_layer else limits[:, part]).view_as(some)  # ties are in one bin
        for m, total in sums.items():
            if m in WEIGHTS:
                empty = some.new_zeros(*some.shape[:3], len(deltas) + 1)
                total[:, part] += empty.scatter_add_(3, index, WEIGHTS[m](value[:, part], some)).sum(dim=2)
            else:
                terms = MAPS[m](value[:, part], some) if m in MAPS else some * value[:, part].abs()
                total.scatter_add_(1, index, terms)
    maps = {}
    for m, total in sums.items():
        bins = total.movedim(-1, 1) if m in WEIGHTS else total
        kept = bins.flip(1).cumsum(dim=1).flip(1)[:, 1:]  # at or above each threshold, summed from the largest down
        if m in WEIGHTS:
            maps[m] = torch.einsum("pdk,pkhw->pdhw", kept, value).relu().float()
        else:
            maps[m] = (kept.relu() if m in MAPS else _scaled(kept, value[0].abs().flatten(), gradient, limits)).float()
    return maps


def chunk(values: Tensor) -> int:
    """How many tensors of the size of `values` are cut at a time."""
    return max(1, CHUNK.get(values.device.type, CHUNK["cuda"]) // values.numel())


def _scaled(sums: Tensor, size: Tensor, gradient: Tensor, limits: Tensor) -> Tensor:
    """FullGrad's normalization of Eq. 7; size (K,): |b|. What is kept is positive, so that in a channel the largest and the
    least |G b| are those of G."""
    limits = limits.view(len(sums), -1, sums.shape[1]).movedim(-1, 1)  # (P, D, 1 or K)
    least, most = gradient.amin(dim=(2, 3))[:, None], gradient.amax(dim=(2, 3))[:, None]
    high = torch.where(most >= limits, most * size, 0).amax(dim=2)
    low = torch.where((least >= limits).all(dim=2), (least * size).amin(dim=2), 0)  # what is dropped would be a zero
    span = torch.where(high > low, high - low, torch.inf)
    return (sums - gradient.shape[1] * low[..., None, None]) / span[..., None, None]


def _ranked(row: Tensor, ranks: Tensor) -> Tensor:
    """The values of the given ranks, from 0, in a row of whole numbers that are not negative."""
    shift, parts = 8 * row.element_size() - 16, torch.split(row, CACHED)
    counts = torch.stack([torch.bincount(part >> shift, minlength=BUCKETS) for part in parts]).sum(dim=0)
    buckets = torch.searchsorted(counts.cumsum(0), ranks, right=True)
    holds = torch.bincount(buckets, minlength=BUCKETS) > 0
    left_out = torch.where(holds, 0, counts).cumsum(0)  # of smaller values, by bucket
    near = torch.cat([part[holds.index_select(0, part >> shift)] for part in parts])
    return near.sort().values[ranks - left_out[buckets]]

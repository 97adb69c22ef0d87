"""The percentiles of Eq. 9 by counting, not by sorting.

The bits of positive floats, read as whole numbers, have the order of the floats. The upper 16 bits of all values are counted.
Only values that share their upper bits with a percentile are sorted: a few in a hundred. The percentiles equal those of a full
sort to the bit. Short rows are sorted whole.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

BUCKETS = 2**15  # of the upper 16 bits, the sign's left out
LONG = 2 * BUCKETS  # values from which a row is worth a table of its counts
CHUNK = 2**18  # values at a time, for the caches


def thresholds(rows: Tensor, deltas: Sequence[float]) -> Tensor:
    """The delta-th percentiles of each row's positive values, as `truncate` reads them: (..., n) -> (..., len(deltas)).

    rows float32 or float64, deltas in [0, 100). Infinity where nothing is positive.
    """
    bits = _bits(rows)
    positive = torch.count_nonzero(bits, dim=-1)[..., None]
    # Whole numbers: 0.07 * 100 is not 7 in floating point.
    shares = [Fraction(str(delta)).limit_denominator(10**6) / 100 for delta in deltas]
    ranks = torch.cat([-(-(positive - 1) * s.numerator // s.denominator) for s in shares], dim=-1)
    ranks = (rows.shape[-1] - positive + ranks).clamp(max=rows.shape[-1] - 1)
    select = _selected if rows.shape[-1] >= LONG else _sorted
    return torch.where(positive > 0, select(bits, ranks).view(rows.dtype), torch.inf)


def places(rows: Tensor, limits: Tensor) -> Tensor:
    """How many of its row's limits each value is not below: rows (..., n), limits (..., d) ascending -> (..., n) long."""
    if rows.shape[-1] < LONG:
        found = torch.zeros_like(rows, dtype=torch.uint8)
        for limit in limits.unbind(-1):
            found += rows >= limit[..., None]
        return found.long()
    return torch.stack([*map(_placed, rows.flatten(0, -2), limits.flatten(0, -2))]).view_as(rows)


def _placed(row: Tensor, limits: Tensor) -> Tensor:
    """`places` of one row. The upper bits tell it, but of values that share them with a limit."""
    tops = _top(_bits(limits))
    of_bucket = torch.bincount(tops, minlength=BUCKETS).cumsum(0)
    of_bucket[tops.long()] = -1
    found = of_bucket.index_select(0, _top(_bits(row)))
    near = torch.nonzero(found < 0).flatten()
    found[near] = torch.searchsorted(limits, row[near], right=True)
    return found


def _selected(bits: Tensor, ranks: Tensor) -> Tensor:
    """The values of the given ranks, from 0, in each row of whole numbers that are not negative."""
    return torch.stack([*map(_select, bits.flatten(0, -2), ranks.flatten(0, -2))]).view(ranks.shape)


def _select(row: Tensor, ranks: Tensor) -> Tensor:
    parts = torch.split(row, CHUNK)
    counts = torch.stack([torch.bincount(_top(part), minlength=BUCKETS) for part in parts]).sum(dim=0)
    buckets = torch.searchsorted(counts.cumsum(0), ranks, right=True)
    holds = torch.bincount(buckets, minlength=BUCKETS) > 0
    left_out = torch.where(holds, 0, counts).cumsum(0)  # of smaller values, by bucket
    near = torch.cat([part[holds.index_select(0, _top(part))] for part in parts])
    return near.sort().values[ranks - left_out[buckets]]


def _sorted(bits: Tensor, ranks: Tensor) -> Tensor:
    """As `_selected`, by sorting whole rows."""
    return bits.sort(dim=-1).values.gather(-1, ranks)


def _bits(rows: Tensor) -> Tensor:
    """The bits of floats as whole numbers; of negative floats, also of -0.0, which has the sign too, 0."""
    return rows.view({4: torch.int32, 8: torch.int64}[rows.element_size()]).clamp(min=0)


def _top(bits: Tensor) -> Tensor:
    return bits >> (8 * bits.element_size() - 16)

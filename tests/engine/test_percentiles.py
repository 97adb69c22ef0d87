"""The percentiles of Eq. 9 by counting: numpy is the oracle, and a plain sort, to the bit."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from ltcam.engine import percentiles
from ltcam.engine.percentiles import BUCKETS, CHUNK, LONG, places, thresholds

DELTAS = [0.0, 0.07, 20.0, 50.0, 55.5, 90.0, 99.99]


def by_sorting(row, deltas):
    s = row[row > 0].sort().values
    ranks = [-(-(len(s) - 1) * Fraction(str(d)) // 100) for d in deltas]
    return torch.stack([s[r] for r in ranks]) if len(s) else torch.full((len(deltas),), torch.inf, dtype=row.dtype)


def rows(dtype, length):
    """Rows of every kind that is hard: ties, subnormal, huge, one positive value, all equal, none positive, neighbours."""
    torch.manual_seed(length)
    normal, info = torch.randn(length, dtype=dtype), torch.finfo(dtype)
    one = -torch.rand(length, dtype=dtype)
    one[length // 3] = 2.0
    neighbours = torch.ones(length, dtype=dtype)
    neighbours[::2] = torch.nextafter(neighbours[::2], neighbours[::2] * 2)
    return torch.stack([
        normal, normal**7, (normal * 3).round(), normal.relu(), normal * info.tiny, normal.abs() * info.tiny * info.eps * 8,
        normal.sign() * info.max, one, torch.full_like(normal, 0.3), -normal.abs(), torch.zeros_like(normal), neighbours,
        torch.logspace(-30, 30, length, dtype=dtype), -normal * 1e-20, torch.where(normal > 2, normal, 0),
    ])  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 2, 7, 1000, 2 * BUCKETS - 1, 2 * BUCKETS, CHUNK + 1])
def test_thresholds_and_places_are_those_of_a_sort(dtype, length):
    values = rows(dtype, length)
    found = thresholds(values, DELTAS)
    assert torch.equal(found, torch.stack([by_sorting(row, DELTAS) for row in values]))
    expected = sum((values >= limit[:, None]).long() for limit in found.unbind(1))
    assert torch.equal(places(values, found), expected)


@pytest.mark.parametrize(("shape", "counts"), [((2, 1, LONG), True), ((1, LONG, 2), False), ((1, 2, LONG - 1), False)])
def test_only_long_rows_are_counted_and_short_ones_are_sorted(shape, counts, monkeypatch):
    asked = []
    for name in ("_select", "_placed"):
        real = getattr(percentiles, name)
        monkeypatch.setattr(percentiles, name, lambda *a, real=real, name=name: asked.append(name) or real(*a))
    values = torch.rand(shape)
    places(values, thresholds(values, [50.0]))
    assert asked == (["_select"] * 2 + ["_placed"] * 2) * counts


def test_ten_thousand_rows_as_numpy_has_them():
    """numpy's threshold lies between two values; what is at or above it are those at or above ours."""
    rng, compared, eighths = np.random.default_rng(0), 0, [0.0, 12.5, 25.0, 50.0, 75.0]  # which numpy can tell exactly
    for length in rng.integers(1, 400, 40):
        some = (rng.standard_normal((250, length)) ** rng.choice([1, 3, 7])).astype(np.float32)
        some[:125] = np.round(some[:125] * 4)  # ties
        values = torch.from_numpy(some)
        found = thresholds(values, eighths)
        for row, limits in zip(some, found.numpy(), strict=True):
            positive = row[row > 0]
            if len(positive):
                theirs = np.percentile(positive.astype(np.float64), eighths, method="higher")
                np.testing.assert_array_equal(limits, theirs.astype(np.float32))
            else:
                assert np.isinf(limits).all()
            compared += 1
    assert compared == 10_000


@pytest.mark.parametrize("scope", [(3, 4, 70000), (2, 3, 100)])
def test_rows_of_any_rank(scope):
    torch.manual_seed(0)
    values = torch.randn(scope)
    found = thresholds(values, DELTAS)
    assert found.shape == (*scope[:2], len(DELTAS))
    assert torch.equal(found[1, 2], by_sorting(values[1, 2], DELTAS))
    assert torch.equal(places(values, found)[1, 2], places(values[1, 2][None], found[1, 2][None])[0])

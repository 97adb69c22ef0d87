"""Percentiles by counting: numpy is the oracle, and a plain sort, to the bit. Maps of all deltas at once: `explain` is."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from ltcam import Config, trace
from ltcam.engine import tricks
from ltcam.engine.cam import at_each, layer_maps, maps_of, places
from ltcam.engine.methods import fullgrad
from ltcam.engine.tricks import BUCKETS, CACHED, LONG, thresholds, truncate
from ltcam.experiment.vgg16 import vgg16

DELTAS = (None, 0.0, 20.0, 55.5, 90.0)
PERCENTILES = [0.0, 0.07, 20.0, 50.0, 55.5, 90.0, 99.99]


def traced(dtype=torch.float32, head="fc"):
    torch.manual_seed(0)
    model = vgg16(3, head, weights=None, hidden=16, width=8).to(dtype)
    images = torch.randn(3, 3, 64, 96, dtype=dtype)
    return trace(model, images, [[0, 2], [1], [0, 1, 2]], fullgrad=True)


@pytest.fixture(scope="module")
def both():
    return {dtype: traced(dtype) for dtype in (torch.float32, torch.float64)}


def close(ours, expected):
    assert ours.keys() == expected.keys()
    for name, m in expected.items():
        assert ours[name].shape == m.shape and ours[name].dtype == torch.float32
        scale = m.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)
        torch.testing.assert_close(ours[name] / scale, m / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_delta_method_and_scope_is_what_explain_makes_one_by_one(both, dtype):
    t = both[dtype]
    methods = ("gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "fullgrad")
    layers = ("all", "S5", "S3-S5")
    wanted = [Config(*rest) for rest in itertools.product(methods, layers, DELTAS, ("layer", "channel"))]
    wanted += [Config("fullgrad", at, 20.0, per_channel=True) for at in layers]
    wanted += [Config("gradcam", at, 20.0, compare="gt") for at in layers]
    wanted += [Config("gradcam", at, 20.0, by="all values", fraction=0.3) for at in layers]
    found = maps_of(t, wanted)
    assert list(found) == wanted
    for config, maps in found.items():
        expected = layer_maps(t, config)
        close(maps, expected)
        assert list(maps) == list(expected)


def test_fullgrad_keeps_its_minimum_where_nothing_is_dropped():
    """All gradients positive: delta 0 drops none, and the least |G b| of the layer goes to 0, as without truncation."""
    torch.manual_seed(0)
    gradient, bias = torch.rand(2, 3, 5, 4) + 0.1, torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1)
    found = at_each(["fullgrad"], bias, gradient, [0.0, 50.0], by_layer=True)["fullgrad"]
    for delta, ours in zip((0.0, 50.0), found.unbind(1), strict=True):
        expected = fullgrad(bias, truncate(gradient, delta))
        assert (expected.amin() > 0) == (delta == 0)
        torch.testing.assert_close(ours, expected)


def test_a_bias_that_varies_in_space_or_by_image():
    torch.manual_seed(0)
    first, last = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(2, 4)], [nn.Conv2d(4, 5, 3), nn.ReLU()]
    model, images = nn.Sequential(*first, *last, nn.Flatten(), nn.Linear(125, 3)), torch.randn(3, 3, 16, 16)
    traced = trace(model.double(), images.double(), [[0, 1], [2], [1]], ["2", "5"], fullgrad=True)
    assert any(t.value.shape[2:] != (1, 1) for t in traced.terms())
    configs = [Config("fullgrad", *rest) for rest in itertools.product(("all", "5"), (0.0, 50.0), ("layer", "channel"))]
    for config, maps in maps_of(traced, configs).items():
        close(maps, layer_maps(traced, config))


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
@pytest.mark.parametrize("length", [1, 2, 7, 1000, 2 * BUCKETS - 1, 2 * BUCKETS, CACHED + 1])
def test_thresholds_and_places_are_those_of_a_sort(dtype, length):
    values = rows(dtype, length)
    found = thresholds(values, PERCENTILES)
    assert torch.equal(found, torch.stack([by_sorting(row, PERCENTILES) for row in values]))
    expected = sum((values >= limit[:, None]).long() for limit in found.unbind(1))
    assert torch.equal(places(values, found), expected)


@pytest.mark.parametrize(("shape", "counted"), [((2, 1, LONG), 2), ((1, LONG, 2), 0), ((1, 2, LONG - 1), 0)])
def test_only_long_rows_are_counted_and_short_ones_are_sorted(shape, counted, monkeypatch):
    asked = []
    real = tricks._ranked
    monkeypatch.setattr(tricks, "_ranked", lambda *a: asked.append(a) or real(*a))
    thresholds(torch.rand(shape), [50.0])
    assert len(asked) == counted


def test_more_deltas_than_a_byte_counts():
    values = torch.rand(1, 500) + 0.1
    assert places(values, thresholds(values, [d / 4 for d in range(400)])).max() == 400


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
    found = thresholds(values, PERCENTILES)
    assert found.shape == (*scope[:2], len(PERCENTILES))
    assert torch.equal(found[1, 2], by_sorting(values[1, 2], PERCENTILES))
    assert torch.equal(places(values, found)[1, 2], places(values[1, 2][None], found[1, 2][None])[0])

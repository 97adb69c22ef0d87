import itertools

import pytest
import torch
from torch import nn

from ltcam import trace
from ltcam.engine.bins import _cut, maps_of
from ltcam.engine.cam import Options, layer_maps
from ltcam.engine.methods import fullgrad
from ltcam.engine.tricks import truncate
from ltcam.experiment.vgg16 import vgg16

DELTAS = (None, 0.0, 20.0, 55.5, 90.0)


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
    options = [Options(m, d, per) for m, d, per in itertools.product(methods, DELTAS, ("layer", "channel"))]
    options += [Options("fullgrad", 20.0, per_channel=True), Options("gradcam", 20.0, compare="gt")]
    wanted = list(itertools.product(options, (None, "S5", "S3-S5")))
    found = maps_of(t, wanted)
    assert list(found) == wanted
    for (o, layers), maps in found.items():
        close(maps, layer_maps(t, o, layers))
        assert list(maps) == list(layer_maps(t, o, layers))


def test_fullgrad_keeps_its_minimum_where_nothing_is_dropped():
    """All gradients positive: delta 0 drops none, and the least |G b| of the layer goes to 0, as without truncation."""
    torch.manual_seed(0)
    gradient, bias = torch.rand(2, 3, 5, 4) + 0.1, torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1)
    options = [Options("fullgrad", delta) for delta in (0.0, 50.0)]
    for o, ours in zip(options, _cut(bias, gradient, options), strict=True):
        expected = fullgrad(bias, truncate(gradient, o.delta))
        assert (expected.amin() > 0) == (o.delta == 0)
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_a_bias_that_varies_in_space_or_by_image(per):
    torch.manual_seed(0)
    gradient, bias = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    options = [Options("fullgrad", delta, per) for delta in (0.0, 50.0)]
    for o, ours in zip(options, _cut(bias, gradient, options), strict=True):
        torch.testing.assert_close(ours, fullgrad(bias, truncate(gradient, o.delta, per)))
    first, last = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(2, 4)], [nn.Conv2d(4, 5, 3), nn.ReLU()]
    model, images = nn.Sequential(*first, *last, nn.Flatten(), nn.Linear(125, 3)), torch.randn(3, 3, 16, 16)
    traced = trace(model.double(), images.double(), [[0, 1], [2], [1]], ["2", "5"], fullgrad=True)
    assert any(t.value.shape[2:] != (1, 1) for t in traced.terms())
    wanted = [(o, layers) for o in options for layers in (None, "5")]
    for (o, layers), maps in maps_of(traced, wanted).items():
        close(maps, layer_maps(traced, o, layers))

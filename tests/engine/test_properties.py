"""What must hold for any activation and gradient, and for any network of the stated kind."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ltcam import METHODS, Config, explain, layerize, trace, truncate
from ltcam.engine.cam import layer_maps
from ltcam.engine.methods import layercam
from tests.engine.test_trace import Biased

seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(1, 6)
deltas = st.floats(0, 99.9)
scopes = st.sampled_from(["layer", "channel"])
LINEAR = ["cam", "gradcam", "hirescam", "xgradcam", "layercam"]  # in the gradient
quick = settings(deadline=None, max_examples=60, derandomize=True)


def pair(seed, pairs, channels, height, width, spatial=True):
    generator = torch.Generator().manual_seed(seed)
    activation = torch.randn(pairs, channels, height, width, generator=generator, dtype=torch.float64)
    gradient = torch.randn(pairs, channels, *((height, width) if spatial else (1, 1)), generator=generator, dtype=torch.float64)
    return activation, gradient.expand(pairs, channels, height, width)


@quick
@given(
    seeds,
    sizes,
    sizes,
    sizes,
    sizes,
    st.floats(0.01, 100),
    st.sampled_from(["cam", "gradcam", "hirescam", "xgradcam", "layercam"]),
)
def test_scaling_the_logit_scales_the_map(seed, pairs, channels, height, width, factor, name):
    activation, gradient = pair(seed, pairs, channels, height, width, spatial=name != "cam")
    once, scaled = METHODS[name](activation, gradient), METHODS[name](activation, factor * gradient)
    assert torch.allclose(scaled, factor * once, rtol=1e-9, atol=1e-9)


@quick
@given(seeds, sizes, sizes, sizes, sizes, st.sampled_from(list(METHODS)))
def test_the_order_of_channels_and_of_pairs_changes_nothing(seed, pairs, channels, height, width, name):
    activation, gradient = pair(seed, pairs, channels, height, width, spatial=name != "cam")
    generator = torch.Generator().manual_seed(seed)
    of_channels, of_pairs = (torch.randperm(n, generator=generator) for n in (channels, pairs))
    plain = METHODS[name](activation, gradient)
    assert torch.allclose(METHODS[name](activation[:, of_channels], gradient[:, of_channels]), plain, rtol=1e-9, atol=1e-12)
    assert torch.allclose(METHODS[name](activation[of_pairs], gradient[of_pairs]), plain[of_pairs], rtol=1e-9, atol=1e-12)
    assert (plain >= 0).all() and plain.isfinite().all()


@quick
@given(seeds, sizes, sizes, sizes, sizes, deltas, deltas, scopes)
def test_raising_delta_never_increases_layercam_where_the_activation_is_not_negative(seed, p, k, h, w, one, other, per):
    activation, gradient = pair(seed, p, k, h, w)
    low, high = (layercam(activation.relu(), truncate(gradient, delta, per)) for delta in sorted((one, other)))
    assert (high <= low + 1e-12).all()


@quick
@given(
    seeds, sizes, sizes, sizes, sizes, st.floats(0, 99.9), st.sampled_from(["layer", "channel"]), st.sampled_from(["ge", "gt"])
)
def test_truncation_keeps_positive_values_from_the_largest_down(seed, p, k, h, w, delta, per, compare):
    _, gradient = pair(seed, p, k, h, w)
    kept = truncate(gradient, delta, per, compare)
    assert ((kept == 0) | (kept == gradient)).all() and (kept >= 0).all()
    rows, originals = (x.flatten(1 if per == "layer" else 2).flatten(0, -2) for x in (kept, gradient))
    for row, original in zip(rows, originals, strict=True):
        dropped = original[(row == 0) & (original > 0)]
        assert not len(dropped) or not row.any() or dropped.max() < row[row > 0].min()
        assert compare == "gt" or bool(row.any()) == bool((original > 0).any())


@quick
@given(seeds, st.lists(sizes, min_size=1, max_size=4), st.sampled_from(["none", "max", "minmax"]))
def test_max_fusion_is_at_least_every_resized_map(seed, heights, normalize):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.rand(2, h, h + 1, generator=generator) for h in heights]
    together = layerize(maps, (7, 9), "max", normalize)
    assert all((together >= layerize([m], (7, 9), normalize=normalize)).all() for m in maps)
    total, mean = (layerize(maps, (7, 9), fuse, normalize) for fuse in ("sum", "mean"))
    assert torch.allclose(total, len(maps) * mean, rtol=1e-5) and (total >= together - 1e-5).all()


@settings(deadline=None, max_examples=20, derandomize=True)
@given(seeds)
def test_fullgrad_is_complete(seed):
    """input.grad + sum(bias.grad) = logit: convolution, batch-norm and linear biases, in-place ReLUs, eval mode, float64."""
    torch.manual_seed(seed)
    model = Biased().double()
    for buffer in (b for b in model.buffers() if b.is_floating_point()):
        buffer.uniform_(0.5, 1.5)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    traced = trace(model, torch.randn(2, 3, 24, 24, dtype=torch.float64), [0, 1], ["body.0"], fullgrad=True)
    image, gradient = traced.inputs
    total = (image * gradient).sum(dim=(1, 2, 3))
    for term in traced.biases:
        total += torch.einsum("pk...,k->p", term.gradient, term.bias)
    assert torch.allclose(total, traced.logits[[0, 1], [0, 1]], rtol=1e-4, atol=1e-9)
    assert [(t.name, t.stage) for t in traced.biases] == [
        ("body.0", "body.0"), ("body.1", ""), ("body.5", ""), ("body.7", ""), ("head.1", ""), ("head.3", ""),
    ]  # fmt: skip


@settings(deadline=None, max_examples=8, derandomize=True)
@given(st.permutations(range(4)))
def test_the_order_of_the_batch_changes_nothing(order):
    torch.manual_seed(3)
    model, images = Biased().eval(), torch.randn(4, 3, 24, 24)
    targets = [[0, 1], [1], [0], [0, 1]]
    traced, shuffled = (trace(model, images[o], [targets[i] for i in o], ["body.0", "body.8"]) for o in (list(range(4)), order))
    for name, delta in itertools.product(("gradcam", "layercam"), (None, 20)):
        plain, found = explain(traced, name, delta=delta), explain(shuffled, name, delta=delta)
        where = {(order.index(i), c): p for p, (i, c) in enumerate(traced.pairs.tolist())}
        for p, place in enumerate(shuffled.pairs.tolist()):
            assert torch.allclose(found[p], plain[where[tuple(place)]], atol=1e-6)


class OneConvolution(nn.Module):
    """captum's test model of that name: one convolution of ones, biases -50 and -75, and a linear layer of 1 and -1."""

    def __init__(self, inplace):
        super().__init__()
        self.conv, self.relu, self.linear = nn.Conv2d(1, 2, 3), nn.ReLU(inplace), nn.Linear(8, 4)
        self.last = nn.ReLU(inplace)
        with torch.no_grad():
            self.conv.weight.fill_(1)
            self.conv.bias.copy_(torch.tensor([-50.0, -75.0]))
            self.linear.weight.copy_(torch.tensor([1.0] * 5 + [-1.0] * 3).expand(4, 8))
            self.linear.bias.zero_()

    def forward(self, x):
        return self.last(self.linear(self.relu(self.conv(x)).flatten(1)))


@pytest.mark.parametrize("inplace", [False, True])
def test_captums_published_numbers_for_gradcam(inplace):
    traced = trace(OneConvolution(inplace), torch.arange(16.0).view(1, 1, 4, 4), 0, ["conv", "relu"])
    maps = layer_maps(traced, Config("gradcam", "all"))
    assert maps["conv"].tolist() == [[[11.25, 13.5], [20.25, 22.5]]]
    assert maps["relu"].tolist() == [[[0, 4], [28, 32.5]]]

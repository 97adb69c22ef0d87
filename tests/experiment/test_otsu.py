"""scikit-image is the oracle of Otsu's threshold."""

import math
import re

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu

from ltcam.engine.tricks import layerize
from ltcam.errors import InputError
from ltcam.experiment import otsu
from ltcam.experiment.otsu import above, count, otsu_counts, otsu_masks, regions


def otsu_mask(heatmap):
    return otsu_masks(torch.as_tensor(heatmap)[None])[0].numpy()


def maps(kind, count, rng):
    """(count, H, W) float32 maps of one kind."""
    shape = (count, *rng.integers(8, 60, 2))
    return {
        "uniform": lambda: rng.random(shape),
        "heavy-tailed": lambda: rng.pareto(0.7, shape),
        "sparse": lambda: rng.random(shape) * (rng.random(shape) < 0.05),
        "two-valued": lambda: rng.random((count, 1, 1)) + rng.integers(0, 2, shape) * rng.random((count, 1, 1)),
        "whole numbers": lambda: rng.integers(0, 257, shape),
        "few values": lambda: rng.integers(0, 7, shape) / 7,
        "tiny": lambda: rng.random(shape) * 1e-20,
        "narrow": lambda: 1 + rng.random(shape) * 1e-4,
        "smooth": lambda: np.cumsum(np.cumsum(rng.random(shape), 1), 2),
        "constant": lambda: np.broadcast_to(rng.random((count, 1, 1)), shape),
    }[kind]().astype(np.float32)


KINDS = (
    "uniform",
    "heavy-tailed",
    "sparse",
    "two-valued",
    "whole numbers",
    "few values",
    "tiny",
    "narrow",
    "smooth",
    "constant",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_maps_of_each_kind_are_cut_where_scikit_image_cuts(kind):
    rng = np.random.default_rng(0)
    for _ in range(10):
        stack = maps(kind, 10, rng)
        ours = otsu_masks(torch.from_numpy(stack)).numpy()
        for mask, heatmap in zip(ours, stack.astype(np.float64), strict=True):
            np.testing.assert_array_equal(mask, heatmap > threshold_otsu(heatmap))
            assert mask.any() == (np.ptp(heatmap) > 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_are_those_of_the_masks(kind, dtype, monkeypatch):
    """Two pairs of an image with every region, three maps of each, of which the caches hold two."""
    rng = np.random.default_rng(1)
    stack = torch.from_numpy(maps(kind, 6, rng)).to(dtype)
    heatmaps = stack.view(3, 2, *stack.shape[1:])
    mask = torch.from_numpy(rng.choice([0, 1, 2, 255], stack.shape[1:]).astype(np.uint8))
    region = torch.stack([regions(mask, c) for c in (0, 1)])
    assert set(region.unique().tolist()) == {0, 1, 2}
    expected = count(otsu_masks(stack).view_as(heatmaps), region)
    assert torch.equal(otsu_counts(heatmaps, region), expected)
    assert torch.equal(otsu_counts(heatmaps[:1], region), expected[:1])
    monkeypatch.setitem(otsu.CHUNK, "cpu", 4 * mask.numel() + 1)
    assert torch.equal(otsu_counts(heatmaps, region), expected)


def test_by_hand():
    heatmap = torch.tensor([[0.0, 0.09, 0.09], [0.9, 1.0, 0.8]])
    assert otsu_masks(heatmap[None]).tolist() == [[[False] * 3, [True] * 3]]


def test_a_constant_up_to_rounding_is_empty():
    heatmap = torch.full((1, 9, 9), 0.3)
    heatmap[0, 4, 4] += 3e-8
    assert heatmap.unique().numel() == 2 and not otsu_masks(heatmap).any() and not otsu_masks(torch.zeros(2, 3, 3)).any()


def test_large_stacks_are_cut_in_parts(monkeypatch):
    heatmaps = torch.rand(7, 20, 20)
    whole, over_otsu, parts = otsu_masks(heatmaps), otsu._over_otsu, []
    monkeypatch.setattr(otsu, "_over_otsu", lambda part: parts.append(len(part)) or over_otsu(part))
    monkeypatch.setitem(otsu.CHUNK, "cpu", 801)
    assert torch.equal(otsu_masks(heatmaps), whole) and parts == [2, 2, 2, 1]
    monkeypatch.setitem(otsu.CHUNK, "cpu", 1)  # a map is never cut
    assert torch.equal(otsu_masks(heatmaps), whole) and parts[4:] == [1] * 7


def test_a_pixel_at_the_threshold_is_background():
    heatmap = np.array([[0.0] * 8, [256.0] * 8, [0.5] + [0.0] * 7])
    assert threshold_otsu(heatmap) == 0.5
    assert otsu_mask(heatmap).sum() == 8


def test_otsu_separates_two_values():
    heatmap = np.zeros((10, 10), np.float32)
    heatmap[2:5, 3:7] = 1e-9
    assert np.array_equal(otsu_mask(heatmap), heatmap > 0)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.00001), (0.0, 1e-45)])
def test_otsu_separates_values_that_float32_has_no_256_bins_between(low, high):
    heatmap = np.full((4, 4), low, np.float32)
    heatmap[1:3, 1:3] = high
    assert np.array_equal(otsu_mask(heatmap), heatmap > np.float32(low))


def test_what_resizing_leaves_of_a_constant_is_constant():
    resized = layerize([torch.full((1, 1, 1), 0.3), torch.full((1, 3, 3), 0.1)], (45, 60))[0].numpy()
    assert np.ptp(resized) > 0 and not otsu_mask(resized).any()


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_a_constant_map_is_empty(value):
    assert not otsu_mask(np.full((5, 5), value, np.float32)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_on_and_beside_the_edges_of_bins_are_counted_as_numpy_counts(dtype):
    for low, high in torch.rand(50, 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(1):
        low, high = low.to(dtype), high.to(dtype)
        on = (low.double() + (high.double() - low.double()) * (torch.arange(513) / 512)).to(dtype)
        values = torch.cat([on, on.nextafter(on - 1), on.nextafter(on + 1)]).clamp(low, high)
        halves, _ = otsu._halves(values[None])
        counts, edges = np.histogram(values.double(), 256)
        np.testing.assert_array_equal(np.bincount(halves[0] // 2, minlength=256), counts)
        centers = (edges[:-1] + edges[1:]) / 2
        np.testing.assert_array_equal(halves[0] % 2, values.double().numpy() > centers[halves[0] // 2])


def test_a_fraction_of_the_maximum_is_background_itself():
    heatmaps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]], [[8.0, 4.0], [3.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    expected = torch.tensor([[[0, 0], [0, 1]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]]).bool()
    assert torch.equal(above(heatmaps, 0.5), expected)


@pytest.mark.parametrize(
    "heatmaps", [torch.zeros(2, 2), torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(0, 2, 2), torch.zeros(1, 1, 2, 2)]
)
def test_what_is_no_stack_of_maps_is_refused(heatmaps):
    shape = re.escape(str(tuple(heatmaps.shape)))
    with pytest.raises(InputError, match=rf"^heatmaps are a {heatmaps.dtype} tensor {shape}: expected floats \(M, H, W\)$"):
        otsu_masks(heatmaps)


LARGEST, LEAST = torch.finfo(torch.float32).max, 2.0**-149


@pytest.mark.parametrize(
    "pixels", [[-1e-9, 1.0], [-2.0, -1.0], [0.0, math.inf], [0.0, math.nan], [0.0, LARGEST * (1 + 1e-9)], [0.0, LEAST / 2],
               [1e-40, 1e-40 + LEAST / 2]],
)  # fmt: skip
def test_values_that_float32_cannot_hold_apart_are_refused(pixels):
    """Beside a map that is well."""
    said = "heatmaps hold NaN, negative values or values outside float32: expected those of ltcam.explain"
    with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
        otsu_masks(torch.tensor([[[0.0, 1.0]], [pixels]], dtype=torch.float64))


@pytest.mark.parametrize("pixels", [[0.0, LARGEST], [0.0, LEAST], [1e-40, 1e-40 + 1.5 * LEAST]])
def test_values_that_float32_just_holds_are_cut(pixels):
    assert otsu_masks(torch.tensor([[pixels]], dtype=torch.float64)).tolist() == [[[False, True]]]


def test_what_rounding_leaves_is_eight_steps():
    step = torch.finfo(torch.float32).eps
    heatmaps = torch.tensor([[[1 - 7.5 * step, 1.0]], [[1 - 8.5 * step, 1.0]]], dtype=torch.float64)
    assert otsu_masks(heatmaps).tolist() == [[[False, False]], [[False, True]]]


@pytest.mark.parametrize(
    ("predicted", "mask", "said"),
    [
        ((1, 2, 2), (2, 3), r"a mask \(2, 3\) predicted as a torch.bool tensor \(1, 2, 2\)"),
        ((1, 2, 2), (2,), r"a mask \(2,\) predicted as a torch.bool tensor \(1, 2, 2\)"),
        ((1, 2, 2), (2, 2), r"a mask \(2, 2\) predicted as a torch.float32 tensor \(1, 2, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused(predicted, mask, said):
    masks = torch.zeros(predicted, dtype=torch.float32 if "float" in said else torch.bool)
    with pytest.raises(InputError, match=f"^{said}: expected bool, of equal size$"):
        count(masks, regions(torch.zeros(mask, dtype=torch.uint8), 0))


def test_the_class_that_is_void_is_refused():
    with pytest.raises(InputError, match=r"^class 254 has the mask value 255, which is void: expected another class$"):
        regions(torch.zeros(2, 2), 254)
    assert count(torch.ones(1, 2, 2, dtype=torch.bool), regions(torch.full((2, 2), 254), 253)).tolist() == [[4, 0, 0]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_is_cpu():
    heatmaps = torch.rand(20, 60, 50) ** 3
    assert torch.equal(otsu_masks(heatmaps.cuda()).cpu(), otsu_masks(heatmaps))

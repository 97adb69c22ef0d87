import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from ltcam import layerize, truncate
from ltcam.engine.tricks import check, normalized, whole
from ltcam.errors import InputError

GRADIENT = torch.tensor([[[[-5.0, 1.0], [2.0, 3.0]], [[4.0, 0.0], [-1.0, 10.0]]]])  # positive: 1 2 3 4 10


def test_gt_drops_the_threshold_too():
    # 1 2 3 4 10: at 0 the smallest positive value, at 50 the 3, over a channel of one value everything
    kept = [truncate(GRADIENT, delta, compare="gt").flatten().tolist() for delta in (0, 50)]
    assert kept == [[0, 0, 2, 3, 4, 0, 0, 10], [0, 0, 0, 0, 4, 0, 0, 10]]
    assert truncate(torch.full((1, 1, 2, 2), 3.0), 0, "channel", "gt").eq(0).all()


def test_normalized_by_hand():
    deep, shallow = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[2.0, 8.0], [4.0, 4.0], [2.0, 2.0], [2.0, 2.0]]])
    assert [m.tolist() for m in normalized([deep, shallow], "none")] == [deep.tolist(), shallow.tolist()]
    assert torch.allclose(normalized([deep, shallow], "max")[0], torch.tensor([[[1 / 3, 1.0]]]))
    assert normalized([deep, shallow], "minmax")[1][0, :2].tolist() == [[0, 1], [pytest.approx(1 / 3), pytest.approx(1 / 3)]]
    scaled = normalized([deep, shallow, shallow[:, :3]], "tanh")
    assert torch.allclose(scaled[0], deep / 3)
    assert torch.allclose(scaled[1], torch.tanh(2 * shallow / 8)) and torch.allclose(scaled[2], shallow[:, :3] / 8)
    assert normalized([torch.zeros(2, 1, 2), 1e-30 * torch.ones(2, 1, 2)], "max")[0].eq(0).all()
    assert normalized([1e-30 * torch.ones(2, 1, 2)], "max")[0].eq(1).all()


@pytest.mark.parametrize("how", ["max", "minmax", "tanh"])
def test_a_pair_is_normalized_by_its_own_values(how):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, size, 3, generator=generator) * torch.tensor([1.0, 9.0]).view(2, 1, 1) + 1 for size in (2, 7, 8)]
    together = normalized(maps, how)
    for pair in range(2):
        for ours, alone in zip(together, normalized([m[pair : pair + 1] for m in maps], how), strict=True):
            assert torch.equal(ours[pair], alone[0])
    # eight rows are four times two, and shallow
    assert [m.amax().item() for m in together] == pytest.approx([1, 1, math.tanh(2) if how == "tanh" else 1])


@pytest.mark.parametrize(("fuse", "expected"), [("sum", [5, 5, 3]), ("mean", [2.5, 2.5, 1.5]), ("max", [4, 3, 2])])
def test_fusion_by_hand(fuse, expected):
    maps = [torch.tensor([[[1.0, 3.0, 2.0]]]), torch.tensor([[[4.0, 2.0, 1.0]]])]
    assert layerize(maps, (1, 3), fuse).flatten().tolist() == expected


def test_prod_by_hand():
    # over their maxima: 0.04, 1, 0.16 and 1, 0, 0.25; the roots of 0.04, 0 and 0.04
    maps = [torch.tensor([[[1.0, 25.0, 4.0]]]), torch.tensor([[[4.0, 0.0, 1.0]]])]
    torch.testing.assert_close(layerize(maps, (1, 3), "prod"), torch.tensor([[[0.2, 0.0, 0.2]]]))
    scaled = [1e-25 * maps[0], 1e-20 * maps[1]]  # whose product float32 does not hold
    torch.testing.assert_close(layerize(scaled, (1, 3), "prod"), layerize(maps, (1, 3), "prod"))
    assert layerize([maps[0], torch.zeros(1, 1, 3)], (1, 3), "prod").eq(0).all()
    torch.testing.assert_close(layerize(maps[:1], (1, 3), "prod"), maps[0] / 25)


def test_prod_acts_on_maps_of_two_sizes_and_scales_after_normalize():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, s, s, generator=generator) for s in (2, 8)]
    for how in ("none", "minmax", "tanh"):
        resized = [layerize([m], (9, 7)) for m in normalized(normalized(maps, how), "max")]
        torch.testing.assert_close(layerize(maps, (9, 7), "prod", how), (resized[0] * resized[1]).sqrt())


@pytest.mark.parametrize(
    ("fuse", "expected"),
    [("sum", [5, 11 / 3, 7 / 3, 1]), ("max", [4, 8 / 3, 4 / 3, 1]), ("prod", [1, (2 / 3) ** 0.5, (1 / 3) ** 0.5, 0])],
)
def test_align_corners_spreads_the_values_from_edge_to_edge(fuse, expected):
    maps = [torch.tensor([[[4.0, 0.0]]]), torch.tensor([[[1.0]]])]
    torch.testing.assert_close(layerize(maps, (1, 4), fuse, align_corners=True), torch.tensor([[expected]]))


def test_the_gradient_of_prod_is_finite_where_a_map_is_zero():
    maps = [torch.tensor([[[1.0, 0.0, 4.0]]], requires_grad=True), torch.tensor([[[3.0, 4.0, 0.0]]], requires_grad=True)]
    layerize(maps, (1, 3), "prod").sum().backward()
    assert all(m.grad.isfinite().all() and m.grad.any() for m in maps)


def test_none_leaves_the_gradient_alone():
    assert truncate(GRADIENT, None) is GRADIENT


@pytest.mark.parametrize(
    ("delta", "kept"),
    [(0, [1, 2, 3, 4, 10]), (1, [2, 3, 4, 10]), (25, [2, 3, 4, 10]), (50, [3, 4, 10]), (51, [4, 10]), (99, [10])],
)
def test_by_hand_over_the_layer(delta, kept):
    values = truncate(GRADIENT, delta)
    assert sorted(values[values != 0].tolist()) == kept
    assert torch.equal(values, torch.where(values != 0, GRADIENT, 0))


def test_by_hand_over_each_channel():
    # channel 1: 1 2 3, so s[ceil(2 * 0.5)] = 2; channel 2: 4 10, so s[ceil(1 * 0.5)] = 10
    assert truncate(GRADIENT, 50, per="channel").tolist() == [[[[0, 0], [2, 3]], [[0, 0], [0, 10]]]]


@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("delta", [0, 7, 12.5, 20, 33.3, 50, 90, 99.9])
def test_against_numpy_percentile(delta, per):
    gradient = torch.randn(3, 4, 7, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    result = truncate(gradient, delta, per)
    for p in range(3):
        for rows in [gradient[p]] if per == "layer" else gradient[p]:
            rows_kept = result[p] if per == "layer" else result[p][(gradient[p] == rows).all(dim=(1, 2)).nonzero().item()]
            threshold = np.percentile(rows[rows > 0].numpy(), delta)
            assert torch.equal(rows_kept, torch.where((rows > 0) & (rows >= threshold), rows, 0))


@pytest.mark.parametrize("delta", [100 / 3, 14.285714285714286, float(np.linspace(0, 90, 28)[11])])
def test_a_whole_stage_and_a_delta_without_end(delta):
    gradient = torch.randn(1, 64, 112, 112, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    threshold = np.percentile(gradient[gradient > 0].numpy(), delta)
    kept, expected = truncate(gradient, delta).count_nonzero(), (gradient >= threshold).sum()
    assert abs(int(kept) - int(expected)) <= 1


def test_ties_at_the_threshold_stay():
    gradient = torch.tensor([1.0, 2.0, 2.0, 2.0, 3.0]).view(1, 1, 1, 5)
    assert truncate(gradient, 50).flatten().tolist() == [0, 2, 2, 2, 3]


def test_the_rank_is_exact_where_floating_point_is_not():
    gradient = torch.arange(1, 1002, dtype=torch.float64).view(1, 1, 1, -1)  # (n - 1) * 14.3 / 100 = 143, in floats a bit more
    assert truncate(gradient, 14.3).count_nonzero() == 1001 - 143
    gradient = torch.arange(1, 1000002, dtype=torch.float64).view(1, 1, 1, -1)
    assert truncate(gradient, 12.3451).count_nonzero() == 1000001 - 123451  # of every digit


@pytest.mark.parametrize("delta", [0, 20, 90])
def test_nothing_positive_gives_zeros(delta):
    mixed = torch.stack([-torch.ones(2, 3, 3), torch.ones(2, 3, 3)])
    result = truncate(mixed, delta)
    assert result[0].eq(0).all() and torch.equal(result[1], mixed[1])


@pytest.mark.parametrize("delta", [-1, 100, 150, float("nan")])
def test_delta_outside_is_refused(delta):
    with pytest.raises(ValueError, match=r"delta=.*expected None, or a number in \[0, 100\)"):
        truncate(GRADIENT, delta)


def test_unknown_scope_is_refused():
    with pytest.raises(ValueError, match="per='image' is unknown: expected 'layer' or 'channel'"):
        truncate(GRADIENT, 0, per="image")


def test_layerize_is_the_sum_of_resized_maps():
    maps = [torch.rand(2, s, s, generator=torch.Generator().manual_seed(s)) for s in (4, 7, 4)]
    expected = sum(interpolate(m[:, None], (11, 13), mode="bilinear", align_corners=False)[:, 0] for m in maps)
    assert torch.allclose(layerize(maps, (11, 13)), expected, atol=1e-6)


def test_layerize_by_hand():
    # 2 -> 4 pixels, align_corners=False: samples at -0.25, 0.25, 0.75, 1.25, clamped to the outer pixels' centres
    assert layerize([torch.tensor([[[0.0, 4.0]]])], (1, 4)).tolist() == [[[0, 1, 3, 4]]]


def test_layerize_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no maps to fuse"):
        layerize([], (4, 4))


def refuses(call, said):
    with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
        call()


@pytest.mark.parametrize(
    ("gradient", "is_a"),
    [
        (torch.zeros(2, 2, 2), "a torch.float32 tensor (2, 2, 2)"),
        (torch.zeros(0, 2, 2, 2), "a torch.float32 tensor (0, 2, 2, 2)"),
        (torch.zeros(1, 2, 2, 2, dtype=torch.bfloat16), "a torch.bfloat16 tensor (1, 2, 2, 2)"),
    ],
)
def test_what_is_no_gradient_is_refused(gradient, is_a):
    refuses(lambda: truncate(gradient, None), f"the gradient is {is_a}: expected float32 or float64 (P, K, h, w)")


@pytest.mark.parametrize("delta", ["20", True, -1e-9, 100.0])
def test_what_is_no_percentile_is_refused(delta):
    said = f"delta={delta!r} is no percentile to truncate at: expected None, or a number in [0, 100)"
    refuses(lambda: check(delta), said)
    check(None), check(0), check(99.999), check(Fraction(1, 3)), check(np.float32(7))


def test_choices_that_do_not_exist_are_refused():
    maps = [torch.ones(1, 2, 2)]
    refuses(lambda: check(20, "pair"), "per='pair' is unknown: expected 'layer' or 'channel'")
    refuses(lambda: truncate(GRADIENT, 20, compare="lt"), "compare='lt' is unknown: expected 'ge' or 'gt'")
    refuses(lambda: layerize(maps, (2, 2), "min"), "fuse='min' is unknown: expected 'sum' or 'max' or 'mean' or 'prod'")
    expected = "normalize='sum' is unknown: expected 'none' or 'max' or 'minmax' or 'tanh'"
    refuses(lambda: layerize(maps, (2, 2), normalize="sum"), expected)


@pytest.mark.parametrize(
    ("wrong", "is_a"),
    [
        (torch.zeros(1, 1, 2, 2), "a torch.float32 tensor (1, 1, 2, 2)"),
        (torch.zeros(1, 2, 2, dtype=torch.long), "a torch.int64 tensor (1, 2, 2)"),
        (torch.zeros(2, 2, 2), "a torch.float32 tensor (2, 2, 2)"),
    ],
)
def test_maps_that_do_not_fit_are_refused(wrong, is_a):
    expected = f"a map is {is_a}: expected floats (P, h, w), with the same P in every layer"
    refuses(lambda: layerize([torch.ones(1, 2, 2), wrong], (2, 2)), expected)


@pytest.mark.parametrize("maps", [[], torch.ones(1, 1, 2, 2)])
def test_maps_that_are_no_sequence_are_refused(maps):
    refuses(lambda: layerize(maps, (2, 2)), "no maps to fuse: expected a sequence of maps, one or more")


@pytest.mark.parametrize("size", [(4,), (4, 4, 4), 4, (0, 4), (4, -1), (4, 2.0), (2**31, 1), (True, 4)])
def test_what_is_no_size_is_refused(size):
    expected = f"size={size!r}: expected (H, W), whole numbers of pixels above 0"
    refuses(lambda: layerize([torch.ones(1, 2, 2)], size), expected)
    assert layerize([torch.ones(1, 2, 2)], (1, 1)).tolist() == [[[1]]]


def test_whole_numbers():
    for value in (0, 2.0, True, "1"):
        refuses(lambda value=value: whole("epochs", value), f"epochs={value!r}: expected a whole number, at least 1")
    refuses(lambda: whole("class", 8, 7), "class=8: expected a whole number, 1 to 7")
    whole("epochs", 1), whole("class", 7, 7)

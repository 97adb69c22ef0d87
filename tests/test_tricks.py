import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from ltcam import layerize, truncate
from ltcam.tricks import normalized

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


@pytest.mark.parametrize(("fuse", "expected"), [("sum", [5, 5, 3]), ("mean", [2.5, 2.5, 1.5]), ("max", [4, 3, 2])])
def test_fusion_by_hand(fuse, expected):
    maps = [torch.tensor([[[1.0, 3.0, 2.0]]]), torch.tensor([[[4.0, 2.0, 1.0]]])]
    assert layerize(maps, (1, 3), fuse).flatten().tolist() == expected


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

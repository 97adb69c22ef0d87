"""Two signs and two stages by hand; on a real trace, the definitions."""

import math

import pandas as pd
import pytest
import torch
from torch import Tensor

from ltcam import trace
from ltcam.engine.cam import Options, layer_maps
from ltcam.engine.traces import Trace
from ltcam.paper import anatomy


def traced(activations: list[Tensor], gradients: list[Tensor]) -> Trace:
    names = [f"layer{i}" for i in range(len(activations))]
    stages = {f"S{i}": name for i, name in enumerate(names, 1)}
    kept = dict(zip(names, activations, strict=True)), dict(zip(names, gradients, strict=True))
    return Trace(torch.tensor([[0, 0]]), torch.zeros(1, 1), names, stages, (4, 4), _activations=kept[0], _gradients=kept[1])


A = torch.tensor([[[[4.0, 0.0], [0.0, 4.0]], [[0.0, 8.0], [0.0, 0.0]]]])  # (1, 2, 2, 2)
G = torch.tensor([[[[1.0, 1.0], [0.0, 2.0]], [[-1.0, -1.0], [-1.0, 1.0]]]])
# mean positive gradients 1 and 0.25: map [[4, 2], [0, 4]]; mean negative ones 0 and 0.75: map [[0, 6], [0, 0]]


def test_the_signs_by_hand():
    covered = torch.zeros(4, 4)
    covered[:2, :2] = 1  # the object is the upper left quarter
    ((pair, stage, positive, negative, weight),) = anatomy.signs(traced([A], [G]), [covered])
    assert (pair, stage) == (0, "S1")
    assert positive == pytest.approx(4 / 10 / 0.25) and negative == 0 and weight == pytest.approx(6 / 10)


def test_void_is_neither_object_nor_image():
    covered = torch.zeros(4, 4)
    covered[:2, :2], covered[2:] = 1, torch.nan  # of the upper half the object is the left one
    ((*_, positive, negative, _),) = anatomy.signs(traced([A], [G]), [covered])
    assert positive == pytest.approx(4 / 6 / 0.5) and negative == 0


def test_a_mask_finer_than_the_map_is_averaged():
    covered = torch.zeros(4, 4)
    covered[:2, 1:3] = 1  # half of each upper cell
    ((*_, positive, negative, _),) = anatomy.signs(traced([A], [G]), [covered])
    assert positive == pytest.approx((2 + 1) / 10 / 0.25) and negative == pytest.approx(0.5 / 0.25)


def test_an_empty_map_has_no_place():
    ((*_, positive, negative, _),) = anatomy.signs(traced([A], [G.abs()]), [torch.ones(4, 4)])
    assert positive == pytest.approx(1) and math.isnan(negative)


def test_the_overlap_is_of_the_deepest_stage():
    rows = [("a", "S4", 1.0, 9.0), ("a", "S5", 4.0, 2.0), ("b", "S5", 0.0, 2.0), ("c", "S5", 3.0, math.nan)]
    signs = pd.DataFrame(rows, columns=["name", "stage", "positive", "negative"]).assign(**{"class": 0})
    found = anatomy.overlap(signs)
    assert found["name"].tolist() == ["a", "b", "c"] and found["overlap"].tolist() == pytest.approx(
        [0.5, math.nan, math.nan], nan_ok=True
    )


def test_the_stages_by_hand():
    twice = torch.full((1, 1, 1, 1), 3.0), torch.ones(1, 1, 1, 1)
    found = list(anatomy.stages(traced([A, twice[0]], [G, twice[1]]), (None, 0.0, 90.0)))
    # weights 1 and -0.5 without truncation: [[4, 0], [0, 4]]; at 90 the largest gradient alone, weight 0.5: [[2, 0], [0, 2]]
    expected = [
        [0, "S1", None, 100 * 2 / 5, 25, 100 * 7 / 8], [0, "S2", None, 60, 100, 100],
        [0, "S1", 0.0, 100 * 2.5 / 5.5, 50, 50], [0, "S2", 0.0, 100 * 3 / 5.5, 100, 100],
        [0, "S1", 90.0, 25, 25, 12.5], [0, "S2", 90.0, 75, 100, 100],
    ]  # fmt: skip
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[:3] == theirs[:3] and ours[3:] == pytest.approx(theirs[3:])


def test_the_energies_are_those_of_the_maps_that_are_fused(tiny, images):
    traced = trace(tiny, images, [0, 1, 2])
    for delta in (None, 20.0):
        maps = layer_maps(traced, Options("gradcam", delta))
        means = torch.stack([m.mean(dim=(1, 2)) for m in maps.values()])
        expected = (100 * means / means.sum(dim=0)).T.flatten().tolist()
        found = sorted(anatomy.stages(traced, [delta]), key=lambda row: (row[0], row[1]))
        assert [row[3] for row in found] == pytest.approx(expected, nan_ok=True)

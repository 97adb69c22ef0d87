"""Two signs and two stages by hand; on a real trace, the definitions; the one pass: its pairs, that it is kept and goes on."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from ltcam import trace, truncate
from ltcam.engine.cam import layer_maps
from ltcam.engine.config import Config
from ltcam.engine.trace import Trace
from ltcam.paper import gradients
from ltcam.paper.registry import RESULTS, make
from tests.interrupts import at_call


def traced(activations: list[Tensor], gradients: list[Tensor]) -> Trace:
    names = [f"layer{i}" for i in range(len(activations))]
    stages = {f"S{i}": name for i, name in enumerate(names, 1)}
    kept = dict(zip(names, zip(activations, gradients, strict=True), strict=True))
    return Trace(torch.tensor([[0, 0]]), torch.zeros(1, 1), names, stages, (4, 4), _kept=kept)


A = torch.tensor([[[[4.0, 0.0], [0.0, 4.0]], [[0.0, 8.0], [0.0, 0.0]]]])  # (1, 2, 2, 2)
G = torch.tensor([[[[1.0, 1.0], [0.0, 2.0]], [[-1.0, -1.0], [-1.0, 1.0]]]])
# mean positive gradients 1 and 0.25: map [[4, 2], [0, 4]]; mean negative ones 0 and 0.75: map [[0, 6], [0, 0]]


def covered(*places, void=()):
    found = torch.zeros(4, 4, dtype=torch.uint8)
    for place in places:
        found[place] = 1
    for place in void:
        found[place] = 255
    return found


LEFT, RIGHT, BELOW = (slice(2), slice(2)), (slice(2), slice(1, 3)), (slice(2, 4), slice(4))


@pytest.mark.parametrize(
    ("mask", "positive", "negative"),
    [
        (covered(LEFT), 4 / 10 / 0.25, 0),
        (covered(LEFT, void=[BELOW]), 4 / 6 / 0.5, 0),  # of the upper half the object is the left one
        (covered(RIGHT), (2 + 1) / 10 / 0.25, 0.5 / 0.25),  # half of each upper cell of the map
    ],
)
def test_the_signs_by_hand(mask, positive, negative):
    ((pair, stage, *found, weight),) = gradients.where(traced([A], [G]), [mask])
    assert (pair, stage) == (0, "S1") and found == pytest.approx([positive, negative]) and weight == pytest.approx(6 / 10)


def test_an_empty_map_has_no_place():
    ((*_, positive, negative, _),) = gradients.where(traced([A], [G.abs()]), [covered((slice(4), slice(4)))])
    assert positive == pytest.approx(1) and math.isnan(negative)


def test_the_overlap_is_of_the_deepest_stage():
    rows = [("a", "S4", 1.0, 9.0), ("a", "S5", 4.0, 2.0), ("b", "S5", 0.0, 2.0), ("c", "S5", 3.0, math.nan)]
    signs = pd.DataFrame(rows, columns=["name", "stage", "positive", "negative"]).assign(**{"class": 0})
    found = gradients.overlap(signs)
    assert found["name"].tolist() == ["a", "b", "c"]
    assert found["overlap"].tolist() == pytest.approx([0.5, math.nan, math.nan], nan_ok=True)


def test_the_stages_by_hand():
    twice = torch.full((1, 1, 1, 1), 3.0), torch.ones(1, 1, 1, 1)
    found = list(gradients.weights(traced([A, twice[0]], [G, twice[1]]), (None, 0.0, 90.0)))
    # weights 1 and -0.5 without truncation: [[4, 0], [0, 4]]; at 90 the largest gradient alone, weight 0.5: [[2, 0], [0, 2]]
    expected = [
        [0, "S1", None, 100 * 2 / 5, 25, 100 * 7 / 8], [0, "S2", None, 60, 100, 100],
        [0, "S1", 0.0, 100 * 2.5 / 5.5, 50, 50], [0, "S2", 0.0, 100 * 3 / 5.5, 100, 100],
        [0, "S1", 90.0, 25, 25, 12.5], [0, "S2", 90.0, 75, 100, 100],
    ]  # fmt: skip
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[:3] == theirs[:3] and ours[3:] == pytest.approx(theirs[3:])


def test_the_energies_are_those_of_the_maps_that_are_fused(tiny, images):
    whole = trace(tiny, images, [0, 1, 2])
    for delta in (None, 20.0):
        maps = layer_maps(whole, Config("gradcam", "all", delta))
        means = torch.stack([m.mean(dim=(1, 2)) for m in maps.values()])
        expected = (100 * means / means.sum(dim=0)).T.flatten().tolist()
        found = sorted(gradients.weights(whole, [delta]), key=lambda row: (row[0], row[1]))
        assert [row[3] for row in found] == pytest.approx(expected, nan_ok=True)


def test_the_share_that_eq9_drops(tiny, images):
    whole = trace(tiny, images, [0, 1, 2])
    shares = pd.DataFrame(gradients.losses(whole, (0.0, 50.0)), columns=["pair", "stage", "delta", "share"])
    assert len(shares) == 3 * 5 * 2 and (shares.loc[shares["delta"] == 0, "share"].dropna() == 0).all()
    gradient = whole.gradient(whole.stages["S4"])[1].double().clamp(min=0)
    positive = np.sort(gradient[gradient > 0].numpy())
    expected = 100 * positive[: -(-(len(positive) - 1) // 2)].sum() / positive.sum()
    (found,) = shares.query("pair == 1 and stage == 'S4' and delta == 50")["share"]
    assert found == pytest.approx(expected, rel=1e-6)
    assert len(truncate(gradient[None], 50).nonzero()) == len(positive) + (len(positive) - 1) // -2


def pairs(data, images=None):
    return {(data.entries[i].name, c) for i in data.scored[:images] for c in data.labels[i].nonzero().flatten().tolist()}


def test_the_pairs_are_the_scored_ones(study):
    expected = pairs(study.test)
    for name, times in {"signs": 5, "stages": 5 * len(gradients.DELTAS)}.items():
        table = make(name, study)
        assert set(zip(table["name"], table["class"], strict=True)) == expected and len(table) == times * len(expected)
    assert make("signs", study)["name"].is_monotonic_increasing and make("stages", study)["delta"].isna()[0]
    dropped = make("dropped", study)
    assert dropped["share"].between(0, 100).all() and len(dropped) == 5 * len(gradients.SHARES)
    study.settings["images"] = 2
    few = RESULTS["signs"].make(study)
    assert set(zip(few["name"], few["class"], strict=True)) == pairs(study.test, 2)


def test_an_interrupted_pass_goes_on_after_its_last_batch_and_is_kept(study, monkeypatch):
    expected, batch = {name: make(name, study) for name in ("signs", "stages", "dropped")}, gradients._batch
    study.store.db.execute("DELETE FROM notes")
    study.protocol = type(study.protocol)(2)
    calls, second = at_call(2, batch)
    monkeypatch.setattr(gradients, "_batch", second)
    with pytest.raises(KeyboardInterrupt):
        gradients.signs(study)
    again, every = at_call(99, batch)
    monkeypatch.setattr(gradients, "_batch", every)
    for name in expected:
        pd.testing.assert_frame_equal(RESULTS[name].make(study), expected[name], rtol=1e-3, check_dtype=False)
    assert len(calls) == 2 and len(again) == -(-len(study.test.scored) // 2) - 1  # one pass serves three tables
    monkeypatch.setattr(gradients, "VERSION", 2)
    gradients.signs(study)
    assert len(again) == 2 * len(study.test.scored) // 2 - 1 + len(study.test.scored) % 2

"""Other readings of Eq. 9: which gradients each keeps, by hand, and what is measured of them."""

import numpy as np
import pandas as pd
import pytest
import torch

import ltcam
from ltcam import data as datasets
from ltcam.experiment import metrics
from ltcam.experiment.checkpoints import load_checkpoint
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.training import train
from ltcam.paper import eq9
from tests import lookalikes
from tests.experiment.test_training import TINY

G = torch.tensor([[[[-4.0, 1.0], [2.0, 0.0]], [[3.0, -1.0], [8.0, -2.0]]]])  # positive: 1, 2, 3, 8
A = torch.tensor([[[[1.0, 9.0], [1.0, 1.0]], [[1.0, 1.0], [0.5, 1.0]]]])  # times G: 9, 2, 3, 4
KEPT = {  # at delta 50, by hand
    "positive values (Eq. 9)": {3, 8},  # from s[2] = 3 on
    "all values": {1, 2, 3, 8},  # -4 -2 -1 0 1 2 3 8: from s[4] = 1 on
    "absolute values": {2, 3, 8},  # 0 1 1 2 2 3 4 8: from 2 on
    "positive channel weights": {3, 8},  # weights 0.75 and 2.75
    "positive activation times gradient": {1, 8},  # 2 3 4 9: from 4 on
    "fraction of the maximum": {8},  # from 4 on
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("eq9")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTCAM_DATA", str(lookalikes.voc(root / "data")))
        yield load_checkpoint(train(Recipe("voc2012", test="val", **TINY), root / "run"))


@pytest.mark.parametrize("name", eq9.READINGS)
def test_what_is_kept_by_hand(name):
    kept = eq9.READINGS[name]
    assert set(G[kept(A, G, 50.0)].tolist()) == KEPT[name]
    both = kept(torch.cat([A, A]), torch.cat([G, -G]), 50.0)
    assert torch.equal(both[:1], kept(A, G, 50.0)) and torch.equal(both[1:], kept(A, -G, 50.0))  # pair by pair


def test_none_positive_keeps_nothing_positive():
    for name, kept in eq9.READINGS.items():
        assert name == "all values" or not kept(A, -G.abs(), 20.0).any()


def test_eq9_itself_is_that_of_the_library(trained):
    image = datasets.preprocess(trained.load("val")[0].image, trained.size)[None]
    traced = ltcam.trace(trained.model, image, [[0, 1]])
    for layer, found in zip(traced.layers, eq9.maps(traced, eq9.READINGS["positive values (Eq. 9)"]), strict=True):
        truncated = ltcam.truncate(traced.gradient(layer), 20)
        torch.testing.assert_close(found, ltcam.METHODS["gradcam"](traced.activation(layer), truncated))
    shares = pd.DataFrame(eq9.dropped(traced, (0.0, 50.0)), columns=["pair", "stage", "delta", "share"])
    assert len(shares) == 2 * 5 * 2 and (shares.loc[shares["delta"] == 0, "share"] == 0).all()
    gradient = traced.gradient(traced.stages["S4"])[1].double().clamp(min=0)
    positive = np.sort(gradient[gradient > 0].numpy())
    expected = 100 * positive[: -(-(len(positive) - 1) // 2)].sum() / positive.sum()
    (found,) = shares.query("pair == 1 and stage == 'S4' and delta == 50")["share"]
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_table_has_the_score_of_each_reading_and_its_difference_from_delta_0():
    rng = np.random.default_rng(0)
    keys = [(f"i{n}", f"i{n}", c, reading) for n in range(9) for c in (0, 1) for reading in (eq9.NONE, *eq9.READINGS)]
    rows = [(*key, *counts) for key, counts in zip(keys, rng.integers(1, 99, (len(keys), 3)).tolist(), strict=True)]
    counts = pd.DataFrame(rows, columns=["name", "group", "class", "reading", "tp", "fp", "fn"])
    table = eq9.table(counts, "mIoU").set_index("reading")
    assert list(table.index) == [eq9.NONE, *eq9.READINGS] and table["change"].iloc[0] == 0
    for reading, own in counts.groupby("reading"):
        expected = metrics.scores(own.assign(**eq9.FUSED._asdict()))["mIoU"][0]
        assert table.loc[reading, "value"] == pytest.approx(expected)
        assert table.loc[reading, "change"] == pytest.approx(expected - table.loc[eq9.NONE, "value"])

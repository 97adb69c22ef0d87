"""Images without a defect, by hand: of four images one has a defect, one has it outside of its mask, two have none."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from ltcam.experiment.protocol import Protocol
from ltcam.experiment.scores import Counts
from ltcam.paper import clean, shares
from ltcam.paper.tables import SEVEN

IMAGES = ["defective", "empty", "clean", "large"]
PIXELS = [100, 100, 100, 200]
OTSU = [[10, 10, 10], [0, 30, 0], [0, 10, 0], [0, 50, 0]]  # tp, fp, fn of every method
SHARE = [[10, 0, 10], [0, 30, 0], [0, 0, 0], [0, 50, 0]]
LOGITS = [2.0, 0.5, -1.0, 1.0]


METHODS = tuple(SEVEN.values())


def counts(rows, configs=METHODS):
    pairs = pd.DataFrame({"training": "seed0", "fold": "", "name": IMAGES, "group": IMAGES, "class": 0})
    return Counts(pairs, tuple(configs), np.repeat(np.array(rows)[:, None], len(configs), axis=1))


class Study(SimpleNamespace):
    """One whose counts and logits are made by hand."""

    __hash__ = object.__hash__

    def counts(self, configs, protocol, cut="otsu", t=None):
        assert protocol.labels == "all"
        return counts(OTSU) if cut == "otsu" else counts([[n - 5, 0, 5] for n in PIXELS], configs)

    def measured(self, name, ways, protocol):
        return 0


@pytest.fixture(params=["sigmoid", "softmax"])
def table(request, monkeypatch):
    logits = pd.DataFrame({0: LOGITS}, pd.Index(IMAGES, name="name"))
    if request.param == "softmax":  # the same difference
        logits = pd.DataFrame({0: 0.25, 1: 0.25 - logits[0]})
    trainings = pd.DataFrame({"name": ["seed0"], "seed": ["seed0"]})
    study = Study(
        names=["seed0"], seeds=["seed0"], trainings=trainings, loss=request.param, protocol=Protocol(),
        dataset=SimpleNamespace(empty=("empty",)), store=SimpleNamespace(logits=lambda number: logits),
    )  # fmt: skip
    monkeypatch.setattr(shares, "counts", lambda study, configs, protocol: counts(SHARE))
    return clean.clean(study)


def test_the_classifier_by_hand(table):
    """Of the four pairs of a defective and a clean image, "empty" and "large" are the wrong way round."""
    first = table.iloc[0]
    assert (first["row"], first["AUROC"], first["masks"]) == ("classifier", 75, 50)
    assert first["AUROC_low"] <= 75 <= first["AUROC_high"] and table["AUROC"].notna().sum() == 1


def test_masks_by_hand(table):
    assert len(table) == 1 + 7 * 2 * 2 and set(table["row"][1:]) == {*SEVEN}
    expected = {  # of the two clean images; on the defective one; tp / (tp + fp + fn) of these three
        ("otsu", False): [100, (10 + 25) / 2, 17.5, 23.5, 20, 100 * 10 / (10 + 10 + 10 + 10 + 50)],
        ("otsu", True): [50, 25 / 2, 12.5, 22.5, 20, 100 * 10 / (10 + 10 + 10 + 50)],
        ("share", False): [50, 25 / 2, 12.5, 22.5, 10, 100 * 10 / (10 + 10 + 50)],
        ("share", True): [50, 25 / 2, 12.5, 22.5, 10, 100 * 10 / (10 + 10 + 50)],
    }
    for (cut, gated), values in expected.items():
        own = table[(table["cut"] == cut) & (table["gated"] == gated) & (table["row"] != "classifier")]
        for name, value in zip(("masks", "area", "median", "tenth", "defective", "IoU"), values, strict=True):
            assert own[name].to_numpy() == pytest.approx(value), (cut, gated, name)
        assert (own["area_low"] <= own["area"]).all() and (own["area"] <= own["area_high"]).all()


def test_a_defect_that_the_classifier_misses_has_no_gated_mask(monkeypatch):
    monkeypatch.setitem(globals(), "LOGITS", [-2.0, 0.5, -1.0, -1.0])
    logits = pd.DataFrame({0: LOGITS}, pd.Index(IMAGES, name="name"))
    study = Study(
        names=["seed0"], seeds=["seed0"], trainings=pd.DataFrame({"name": ["seed0"], "seed": ["seed0"]}), loss="sigmoid",
        protocol=Protocol(), dataset=SimpleNamespace(empty=()), store=SimpleNamespace(logits=lambda number: logits),
    )  # fmt: skip
    monkeypatch.setattr(shares, "counts", lambda study, configs, protocol: counts(SHARE))
    found = clean.clean(study).set_index(["cut", "gated", "row"]).loc[("otsu", True)]
    assert (found["IoU"] == 0).all() and (found["defective"] == 0).all()


def test_auroc_is_that_of_a_peer_on_weighted_pairs():
    rng = np.random.default_rng(0)
    score, present = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.3  # with ties
    weights = rng.integers(0, 4, (20, 40)).astype(float)
    found = clean.auroc(score, present, weights)
    expected = [100 * roc_auc_score(present, score, sample_weight=w) for w in weights]
    assert found == pytest.approx(expected) and found.std() > 1

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ltcam.data.base import VOID
from ltcam.experiment.scores import Counts
from ltcam.paper import breakdown
from ltcam.paper.ablations import ROWS, TRICKS
from ltcam.paper.areas import areas
from ltcam.paper.breakdown import BY_CLASS, FIXED, SHOWN
from ltcam.paper.registry import make
from tests.paper import made

pytestmark = pytest.mark.usefixtures("few")


@pytest.fixture
def grouped(monkeypatch):
    """The table of pairs i0, i1, ... of 100-pixel objects: Grad-CAM finds `tp` pixels, the n-th row of `ROWS` n pixels more."""

    def table(areas, tp, **about):
        one = made.counts(dict.fromkeys(ROWS.values(), 0), len(areas))
        found = np.array([[t + n for n in range(len(ROWS))] for t in tp])
        counts = Counts(one.pairs, one.configs, np.stack([found, 0 * found, 100 - found], axis=2))
        pairs = one.pairs[["name", "class"]].assign(**{"kind": "cat", "area": areas, "classes": 1, **about})
        monkeypatch.setattr(breakdown, "make", lambda name, study: pairs)
        return made.study(counts)

    return table


def test_groups_by_hand(grouped):
    study = grouped([1.0, 2, 3, 4, 50], [10, 20, 30, 40, 50], kind=["a", "b", "a", "b", "b"], classes=[1, 2, 3, 4, 1])
    table = breakdown.breakdown(study).set_index(["by", "group", "row"])
    plain = table.xs("Grad-CAM", level="row")
    assert plain.loc["kind", "value"].to_dict() == pytest.approx({"a": 20, "b": 110 / 3})
    assert plain.loc["kind", "area"].to_dict() == {"a": 2, "b": 4} and plain.loc["kind", "images"].to_dict() == {"a": 2, "b": 3}
    assert plain.loc["area", "value"].tolist() == pytest.approx([10, 20, 30, 40, 50])
    assert plain.loc["classes", "value"].to_dict() == pytest.approx({"1": 30, "2": 20, "3 or more": 35})
    for gain, (made_by, before) in TRICKS.items():
        more = [*ROWS].index(made_by) - [*ROWS].index(before)
        rows = table.xs(gain, level="row")
        assert (rows[["value", "ci_low", "ci_high"]] - more).abs().max(axis=None) < 1e-9
        assert (rows["verdict"] == ("better" if more > 0 else "worse")).all()


def test_fifths_of_an_overlap_are_in_its_own_order_and_unknown_ones_in_none(grouped):
    study = grouped([5.0, 4, 3, 2, 1, 9], [10, 20, 30, 40, 50, 80], overlap=[0.1, 0.2, 0.3, 0.4, 0.5, math.nan])
    table = breakdown.breakdown(study)
    plain = table[table["row"] == "Grad-CAM"].set_index("by")
    assert plain.loc["overlap", "group"].tolist() == [f"{v:g} to {v:g}" for v in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert plain.loc["overlap", "value"].tolist() == pytest.approx([10, 20, 30, 40, 50])
    assert "classes" not in set(table["by"])  # what all images share is no group


def test_each_pair_has_its_gains_whatever_the_order(grouped):
    study = grouped([3.0, 1.0, 2.0], [10, 20, 30])
    kept = study.counts(ROWS.values())
    study.counts = lambda *_, **__: kept.where(np.array([2, 0, 1]))
    assert breakdown.each(study)["both"].tolist() == pytest.approx([3, 3, 3])


def pairs(gain, **columns):
    """Gains on pairs: `gain` for the first of `SHOWN`, its negative for the second, and some order for the third."""
    columns = {"group": columns["name"], **columns}
    named = dict(zip(SHOWN, (gain, -np.asarray(gain), np.any(gain) * np.sin(range(len(gain)))), strict=True))
    return pd.DataFrame(columns).assign(**named)


def test_correlations_are_scipys_over_images():
    """Of 40 images with two pairs each; what is the same for all goes with nothing."""
    rng = np.random.default_rng(0)
    area = rng.random(80)
    overlap = np.where(np.arange(80) < 4, math.nan, rng.random(80))
    each = pairs(area + 0.3 * rng.random(80), name=[f"i{n // 2}" for n in range(80)], kind="cat", area=area, classes=2,
                 overlap=overlap)  # fmt: skip
    each[SHOWN[1]] = -each["area"]
    found = breakdown.correlated(each, 50).set_index(["gain", "amount"])
    assert {*found.index.get_level_values("amount")} == {"area", "overlap", FIXED} and set(found["images"]) == {38}
    known = each.dropna()
    gain, others, areas = (stats.rankdata(known[name]) for name in (SHOWN[0], "overlap", "area"))
    left = [ranks - np.polyval(np.polyfit(areas, ranks, 1), areas) for ranks in (gain, others)]  # what the area does not tell
    assert found.loc[(SHOWN[0], FIXED), "value"] == pytest.approx(np.corrcoef(*left)[0, 1])
    assert np.isnan(found.loc[(SHOWN[1], FIXED), "value"])
    for (name, amount), row in found.drop(index=FIXED, level="amount").iterrows():
        assert row["value"] == pytest.approx(stats.spearmanr(known[name], known[amount]).statistic)
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
    assert found.loc[(SHOWN[1], "area"), ["value", "ci_low", "ci_high"]].tolist() == pytest.approx([-1, -1, -1])
    assert found["verdict"].unstack().loc[SHOWN, "area"].tolist() == ["rises", "falls", "open"]
    assert found.loc[(SHOWN[0], "overlap"), "verdict"] == "open"


def test_the_interval_of_a_correlation_is_that_of_groups():
    """Ten tiles of eight images that are all alike: as if there were ten. Other draws, by plain numpy."""
    rng = np.random.default_rng(0)
    tile, area = np.repeat(np.arange(10), 8), rng.random(10)
    gain = area + 0.5 * rng.random(10)
    name = [f"i{n}" for n in range(80)]
    each = pairs(gain[tile], name=name, group=tile.astype(str), kind="cat", area=area[tile], classes=1)
    found = breakdown.correlated(each, 1000).set_index(["gain", "amount"]).loc[(SHOWN[0], "area")]
    picks = np.random.default_rng(5).integers(10, size=(4000, 10))
    expected = np.percentile([stats.spearmanr(gain[p], area[p]).statistic for p in picks], [2.5, 97.5])
    assert found[["ci_low", "ci_high"]].tolist() == pytest.approx(expected, abs=0.05) and found["images"] == 80


def test_class_by_class_a_mean_gain_goes_with_a_median_overlap():
    """Ten classes of four pairs. What pairs do within a class does not matter, and nine classes have no such row."""
    rng = np.random.default_rng(0)
    level, kinds = np.repeat(rng.permutation(10), 4), [f"c{n // 4:02}" for n in range(40)]
    each = pairs(
        level + np.tile([0.4, -0.3, -0.2, 0.1], 10), name=[f"i{n}" for n in range(40)], kind=kinds, area=rng.random(40),
        classes=1, overlap=level + np.tile([0, 0.1, 0.2, 90.0], 10),  # the mean would be lost to the last
    )  # fmt: skip
    found = breakdown.correlated(each, 20).set_index(["gain", "amount"]).loc[SHOWN[0]]
    assert found.loc[BY_CLASS, "value"] == pytest.approx(1) and found.loc["overlap", "value"] < 0.9
    assert found.loc[BY_CLASS, "ci_low"] < found.loc[BY_CLASS, "ci_high"] <= 1  # an image may be drawn twice
    fewer = breakdown.correlated(each[each["kind"] != "c09"], 5)
    assert BY_CLASS not in set(fewer["amount"])


@pytest.mark.parametrize("overlap", [[math.nan, math.nan], [0.1, math.nan], [0.1, 0.2]])
def test_too_few_pairs_correlate_with_nothing(overlap):
    each = pairs([0.0, 0.0], name=["a", "b"], kind="cat", area=[1.0, 2.0], classes=1, overlap=overlap)
    found = breakdown.correlated(each, 5)
    assert found["value"].isna().all() and set(found["verdict"]) == {"open"}


def test_pairs_hold_all_that_was_counted(study):
    """Their areas are those of the pixels that were counted, among those that are not void, and there is one definition."""
    table, counts = make("pairs", study), study.counts(ROWS.values(), seeds=1)
    assert {*table["kind"]} <= {*study.test.classes} and len(table) == len(counts.pairs)
    pixels = {study.test.entries[i].name: (study.test.mask(i) != VOID).sum() for i in study.test.scored}
    assert any((study.test.mask(i) == VOID).any() for i in study.test.scored)
    assert table["area"].to_numpy() == pytest.approx(areas(study.test)["area"].to_numpy(), rel=1e-12)
    there = counts.pairs.assign(object=counts.values[:, 0, 0] + counts.values[:, 0, 2]).merge(table, on=["name", "class"])
    assert there["area"].to_numpy() == pytest.approx(100 * there["object"] / there["name"].map(pixels), rel=1e-9)
    grouped = make("breakdown", study)
    for _, rows in grouped[grouped["row"] == "Grad-CAM"].groupby("by"):
        assert rows["images"].sum() >= table["name"].nunique()

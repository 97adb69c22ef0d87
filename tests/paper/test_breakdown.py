import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ltcam import data as datasets
from ltcam.experiment import metrics
from ltcam.experiment.configs import Config
from ltcam.experiment.evaluation import evaluate
from ltcam.paper import breakdown
from tests.experiment.test_evaluation import checkpoint, defects, folder, run  # noqa: F401 - fixtures

A, B = Config("gradcam"), Config("gradcam", "S5", 0.0)


def made(areas, tp, kinds=None, classes=None):
    """Pairs i0, i1, ... of 100-pixel objects, of which A finds `tp` pixels and B ten more, without a false one."""
    names = [f"i{n}" for n in range(len(areas))]
    pairs = pd.DataFrame({
        "name": names, "class": 0, "kind": kinds or ["cat"] * len(areas), "area": areas, "classes": classes or [1] * len(areas)
    })  # fmt: skip
    rows = [(n, 0, *c, t + more, 0, 100 - t - more) for n, t in zip(names, tp, strict=True) for c, more in ((A, 0), (B, 10))]
    return pd.DataFrame(rows, columns=["name", "class", *metrics.CONFIG, "tp", "fp", "fn"]), pairs


def test_groups_by_hand():
    counts, pairs = made([1.0, 2, 3, 4, 50], [10, 20, 30, 40, 50], ["a", "b", "a", "b", "b"], [1, 2, 3, 4, 1])
    table = breakdown.table(counts, pairs, {"plain": A}, {"gain": (B, A)}, number=20).set_index(["by", "group", "row"])
    plain = table.xs("plain", level="row")
    assert plain.loc["kind", "value"].to_dict() == pytest.approx({"a": 20, "b": 110 / 3})
    assert plain.loc["kind", "area"].to_dict() == {"a": 2, "b": 4} and plain.loc["kind", "images"].to_dict() == {"a": 2, "b": 3}
    assert plain.loc["area", "value"].tolist() == pytest.approx([10, 20, 30, 40, 50])
    assert plain.loc["classes", "value"].to_dict() == pytest.approx({"1": 30, "2": 20, "3 or more": 35})
    gain = table.xs("gain", level="row")
    assert (gain[["value", "ci_low", "ci_high"]] - 10).abs().max(axis=None) < 1e-9 and (gain["verdict"] == "better").all()


def test_fifths_of_an_overlap_are_in_its_own_order_and_unknown_ones_in_none():
    counts, pairs = made([5.0, 4, 3, 2, 1, 9], [10, 20, 30, 40, 50, 99])
    pairs["overlap"] = [0.1, 0.2, 0.3, 0.4, 0.5, math.nan]
    table = breakdown.table(counts, pairs, {"plain": A}, {}, number=5).set_index("by")
    assert table.loc["overlap", "group"].tolist() == [f"{v:g} to {v:g}" for v in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert table.loc["overlap", "value"].tolist() == pytest.approx([10, 20, 30, 40, 50])


def test_correlations_are_scipys_over_images():
    """Of 40 images with two pairs each; what is the same for all goes with nothing."""
    rng = np.random.default_rng(0)
    each = pd.DataFrame({"name": [f"i{n // 2}" for n in range(80)], "kind": "cat", "area": rng.random(80), "classes": 2})
    each["gain"], each["loss"] = each["area"] + 0.3 * rng.random(80), -each["area"]
    each["overlap"] = np.where(np.arange(80) < 4, math.nan, rng.random(80))
    found = breakdown.correlations(each, ["gain", "loss"], number=50).set_index(["gain", "amount"])
    amounts = {"area", "overlap", breakdown.FIXED}
    assert set(found.index.get_level_values("amount")) == amounts and set(found["images"]) == {38}
    known = each.dropna()
    gain, overlap, area = (stats.rankdata(known[name]) for name in ("gain", "overlap", "area"))
    left = [ranks - np.polyval(np.polyfit(area, ranks, 1), area) for ranks in (gain, overlap)]  # what the area does not tell
    assert found.loc[("gain", breakdown.FIXED), "value"] == pytest.approx(np.corrcoef(*left)[0, 1])
    assert np.isnan(found.loc[("loss", breakdown.FIXED), "value"])
    for (gain, amount), row in found.drop(index=breakdown.FIXED, level="amount").iterrows():
        assert row["value"] == pytest.approx(stats.spearmanr(known[gain], known[amount]).statistic)
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
    assert found.loc[("loss", "area"), ["value", "ci_low", "ci_high"]].tolist() == pytest.approx([-1, -1, -1])
    assert found["verdict"].unstack().loc[:, "area"].to_dict() == {"gain": "rises", "loss": "falls"}
    assert found.loc[("gain", "overlap"), "verdict"] == "tie"


def test_class_by_class_a_mean_gain_goes_with_a_median_overlap():
    """Ten classes of four pairs. What pairs do within a class does not matter, and nine classes have no such row."""
    rng = np.random.default_rng(0)
    kinds = [f"c{n // 4:02}" for n in range(40)]
    each = pd.DataFrame({"name": [f"i{n}" for n in range(40)], "kind": kinds, "area": rng.random(40), "classes": 1})
    level = np.repeat(rng.permutation(10), 4)
    each["overlap"] = level + np.tile([0, 0.1, 0.2, 90.0], 10)  # the mean would be lost to the last
    each["gain"] = level + np.tile([0.4, -0.3, -0.2, 0.1], 10)
    found = breakdown.correlations(each, ["gain"], number=20).set_index("amount")
    assert found.loc[breakdown.BY_CLASS, "value"] == pytest.approx(1) and found.loc["overlap", "value"] < 0.9
    assert (
        found.loc[breakdown.BY_CLASS, "ci_low"] < found.loc[breakdown.BY_CLASS, "ci_high"] <= 1
    )  # an image may be drawn twice
    fewer = breakdown.correlations(each[each["kind"] != "c09"], ["gain"], number=5)
    assert breakdown.BY_CLASS not in set(fewer["amount"])


@pytest.mark.parametrize("overlap", [[math.nan, math.nan], [0.1, math.nan], [0.1, 0.2]])
def test_too_few_pairs_correlate_with_nothing(overlap):
    each = pd.DataFrame({"name": ["a", "b"], "kind": "cat", "area": [1.0, 2.0], "classes": 1, "overlap": overlap, "gain": 0.0})
    found = breakdown.correlations(each, ["gain"], number=5)
    assert found["value"].isna().all() and set(found["verdict"]) == {"tie"}


def test_what_all_images_share_is_no_group():
    counts, pairs = made([1.0, 2, 3, 4, 5], [10] * 5)
    assert "classes" not in set(breakdown.table(counts, pairs, {"plain": A}, {}, number=5)["by"])


def test_each_pair_by_hand():
    counts, pairs = made([3.0, 1.0], [10, 20])
    shuffled = counts.sample(frac=1, random_state=0)
    assert breakdown.each(shuffled, pairs, {"gain": (B, A)})["gain"].tolist() == pytest.approx([10, 10])


@pytest.mark.parametrize(("role", "part", "kinds"), [("run", "val", {"cat", "dog"}), ("defects", "test", {"Break"})])
def test_groups_of_a_data_set_hold_all_that_was_counted(role, part, kinds, request, tmp_path):
    trained = request.getfixturevalue(role)
    data = datasets.load(trained.recipe.data, part)
    counts, pairs = evaluate(trained, part, [A, B], tmp_path), breakdown.pairs(data)
    assert kinds <= set(pairs["kind"])
    table = breakdown.table(counts, pairs, {"plain": A}, {"gain": (B, A)}, number=5)
    own = counts
    pixels = {data.entries[i].name: data.sizes[i][0] * data.sizes[i][1] for i in data.scored}
    merged = own.merge(pairs, on=["name", "class"])
    assert len(merged) == len(own) == 2 * len(pairs)
    assert merged["area"].to_numpy() == pytest.approx(100 * (merged["tp"] + merged["fn"]) / merged["name"].map(pixels))
    for _, rows in table[table["row"] == "plain"].groupby("by"):
        assert rows["images"].sum() >= pairs["name"].nunique()

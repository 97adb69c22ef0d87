"""The numbers decide the words: each sentence on tables where it goes one way, and on others where it goes the other."""

import pandas as pd
import pytest

from ltcam.paper import beyond, sentences
from ltcam.paper import tables as paper


def stages(*miou):
    return {"table1": pd.DataFrame({"row": [*paper.TABLES[1]], "mIoU": miou})}


def scores(number, **miou):
    rows = [*paper.TABLES[number]]
    table = pd.DataFrame(
        {"row": rows, **dict.fromkeys(["mIoU", "mPrecision", "mRecall", "mF1", "IoU", "Precision", "Recall", "F1"], 10.0)}
    )
    for row, value in miou.items():
        table.loc[table["row"] == rows[int(row[1:])], ["mIoU", "IoU"]] = value
    return {f"table{number}": table}


def test_layers():
    said = sentences.layers(stages(1, 2, 3, 4, 20, 11, 10))
    assert said.startswith("S5 scores 20.00, the best other stage 4.00, all five fused 10.00 (paper: 25.31, 14.03, 21.57).")
    assert "Fusing beats every shallower stage and does not beat S5 alone." in said
    assert "Fusing does not beat every shallower stage and beats S5 alone." in sentences.layers(stages(1, 2, 3, 40, 5, 11, 10))


@pytest.mark.parametrize(
    ("gain", "word"), [(2.0, "helps"), (-2.0, "hurts"), (0.49, "hardly changes"), (-0.49, "hardly changes")]
)
def test_truncation(gain, word):
    said = sentences.truncation(scores(2, r2=10 + gain))
    assert said.startswith(f"Truncation alone (δ=0) {word} Grad-CAM at S5: {gain:+.2f} points of mIoU (paper +0.92).")
    assert said.endswith("It hardly changes FullGrad: +0.00 points (paper -0.09).")


def test_comparison_names_the_best_of_both():
    said = sentences.comparison(scores(3, r1=30, r6=12.5), [3])
    assert said == (
        "Table 3: Grad-CAM has the best mIoU (paper: Layer-CAM(l=5, δ=0)). LTGrad-CAM with δ=20 scores 12.50 (paper 28.34), "
        "Grad-CAM 30.00 (25.31), Layer-CAM l=5 10.00 (30.83)."
    )


def test_level_counts_what_lies_inside():
    table = pd.DataFrame({
        "table": [1, 3, 3, 3], "metric": ["mIoU", "mIoU", "mIoU", "Recall"], "difference": [9.0, -0.5, 2.25, 4.0],
        "inside": [True, True, False, None],
    })  # fmt: skip
    assert sentences.level({"comparison": table}, 3) == (
        "Of 3 numbers that have an interval here, the paper's lies inside it for 2. Our differences from Table 3, in points: "
        "mIoU -0.50 to +2.25, Recall +4.00 to +4.00."
    )


@pytest.mark.parametrize(("far", "word"), [(3.0, "so it is likely"), (3.01, "stays unexplained")])
def test_a_reading_is_likely_if_every_row_is_near(far, word):
    printed = paper.published(3)["mIoU"]
    rows = [{"factor": "head", "level": "gap", "farthest": 9.0, **printed + 1}]
    rows.append({"factor": "mean", "level": "over objects", "farthest": far, **printed + 2} | {"FullGrad": 28.0})
    said = sentences.readings({"readings": pd.DataFrame(rows)}, 3)
    assert "2 readings were tried. The nearest to Table 3 is mean = over objects: it differs by at most " + f"{far:.2f}" in said
    assert word in said and "Grad-CAM++ 21.32 with head = gap (paper 20.32)" in said
    assert "FullGrad 28.00 with mean = over objects (paper 28.20)" in said


def test_failures_count_the_poor_pairs_and_who_does_better_there():
    lt = {(0, 1): 4.9, (1, 1): 5.0, (2, 0): 0.0}
    said = sentences.failures({}, {"a": {(0, 1): 5.0, (1, 1): 9.0, (2, 0): 0.0}, "b": dict.fromkeys(lt, 6.0), "c": lt})
    assert "below 5% IoU on 2 of 3 pairs. On 1 of these Grad-CAM does better, on 2 Layer-CAM l=5." in said


def test_sweep():
    deltas, methods = [None, *range(0, 100, 10)], ["gradcam", "layercam", "fullgrad"]
    rows = [
        (part, method, delta, 50.0 if delta is None else 60 - abs(delta - 30) if method == "gradcam" else 40.0)
        for part in ("test", "train") for method in methods for delta in deltas
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["part", "method", "delta", "IoU"])
    said = sentences.sweep({"sweep": table, "delta_choice": sentences.over_delta.chosen(table, "IoU")}, "IoU")
    assert said.startswith("1 of 3 curves rise, then fall on the test part, 1 on the training part. In the paper all do.")
    assert "LTGrad-CAM: the training part chooses δ=30, 60.00 on the test part. It is +10.00 points from no truncation" in said
    assert said.endswith("So the choice costs at most 0.00 points, and beats no truncation with 1 of 3 methods.")


def test_claims_are_counted_and_listed():
    judged = pd.DataFrame(
        [("a", "holds", "holds"), ("b", "tie", "holds"), ("c", "not measured", "holds"), ("d", "holds", "no numbers")],
        columns=["claim", "verdict", "paper"],
    )
    assert sentences.claims({"claims": judged}) == (
        "3 of the paper's 4 claims are measured here.\n\n- **2 hold:** a; d.\n- **1 tie:** b.\n- **0 do not hold:** none.\n\n"
        "For 1 claims the verdict is the one that the paper's own numbers give."
    )


def test_training_shows_the_spread_of_several():
    assert "is 0.500. The weights" in sentences.training(pd.Series([0.5]), 4, "x")
    assert "is 0.600 (0.500 to 0.700 in 2 trainings). The weights" in sentences.training(pd.Series([0.5, 0.7]), 4, "x")


def test_plug_in():
    said = sentences.plug_in(pd.DataFrame({"last layer": {"ViT": 10.0, "ResNet": 5.0}, "LT": {"ViT": 8.5, "ResNet": 7.0}}))
    assert "by -1.5 points (ViT), +2.0 points (ResNet)." in said


def test_areas():
    cells = pd.DataFrame({"median": {"X": 1.0}, "cell": {"X": 2.0}, "smaller": {"X": 90.0}, "IoU": {"X": 33.3}})
    said = sentences.areas(cells, {"dog": 9.0, "cat": 0.5})
    assert "On X a class covers 1% of an image at the median. A cell of S5 covers 2%. 90% of the pairs" in said
    assert "The classes shown range from cat (0.5%) to dog (9%)." in said and "range" not in sentences.areas(
        cells, {"dog": 9.0}
    )


def ladder(margin, low, high, verdict):
    rows = [
        ("otsu", "step", "Grad-CAM at S5", "one view", 30.0, 29.0, 31.0, None, None, None, None),
        ("otsu", "step", "stages: S3-S5", "one view", 35.0, 34.0, 36.0, 5.0, 4.0, 6.0, "holds"),
        ("otsu", "row", "Grad-CAM", "one view", 30.0, 29.0, 31.0, 5.0, 4.0, 6.0, "holds"),
        ("otsu", "row", "Layer-CAM(l=5, δ=0)", "one view", 35.0 - margin, 0, 50, margin, low, high, verdict),
    ]
    names = ["cut", "kind", "name", "views", "value", "ci_low", "ci_high", "change", "change_low", "change_high", "verdict"]
    return pd.DataFrame(rows, columns=names)


@pytest.mark.parametrize(
    ("margin", "low", "high", "verdict", "words"),
    [(2, 1, 3, "holds", "above"), (-2, -3, -1, "does not hold", "below"), (1, -1, 3, "tie", "in a tie with")],
)
def test_beyond_names_the_strongest_row(margin, low, high, verdict, words):
    said = sentences.beyond({"best": ladder(margin, low, high, verdict)})
    assert said == (
        f"By otsu, the steps lead from 30.00 to 35.00. That is {words} our best row of Table 3 (one view), Layer-CAM(l=5, "
        f"δ=0) with {35 - margin:.2f}: {margin:+.2f} points ({low:+.2f} to {high:+.2f})."
    )


def test_beyond_is_listed_step_by_step():
    assert beyond.listed(ladder(2, 1, 3, "holds")) == [
        ["otsu", "Grad-CAM at S5", "30.00 (29.00 to 31.00)", "", ""],
        ["otsu", "stages: S3-S5", "35.00 (34.00 to 36.00)", "+5.00 (+4.00 to +6.00)", "holds"],
        ["otsu", "best, against Layer-CAM(l=5, δ=0), one view", "33.00 (0.00 to 50.00)", "+2.00 (+1.00 to +3.00)", "holds"],
    ]


def test_eq9_names_the_reading_that_changes_most():
    shares = pd.DataFrame({"stage": ["S1", "S5", "S5"], "delta": [20.0, 20.0, 40.0], "share": [0.5, 1.25, 7.0]})
    table = pd.DataFrame({"reading": ["δ = 0", "positive", "all", "largest"], "change": [0.0, 0.04, -3.0, 2.0]})
    assert sentences.eq9({"dropped": shares, "eq9": table}) == (
        "At the median pair, the gradients that δ=20 drops carry 0.5% to 1.2% of a stage's positive gradient. So δ=20 instead "
        "of δ=0 changes the score by +0.04 points (paper: +1.47 on VOC 2012, +2.36 on KSDD2). Of the 3 readings, 'all' changes "
        "it most: by -3.00 points."
    )

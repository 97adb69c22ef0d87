"""Scores against scikit-learn and intervals against scipy, and both by hand."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import bootstrap
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from ltcam import Refine
from ltcam.engine.config import Config
from ltcam.errors import InputError, MissingError
from ltcam.experiment import otsu, scores
from ltcam.experiment.scores import Counts, interval, judge, resampled, survive
from ltcam.files import ROOT

A, B = Config("gradcam"), Config("layercam", "S1-S5", 0.0)


def table(rows, groups=None):
    """Counts of rows (name, class, tp, fp, fn), or of several configurations (name, class, (tp, fp, fn), ...)."""
    pairs = pd.DataFrame([row[:2] for row in rows], columns=["name", "class"])
    pairs = pairs.assign(training="", fold="", group=groups or pairs["name"])
    values = np.array([row[2:] for row in rows]).reshape(len(rows), -1, 3)
    return Counts(pairs, (A, B)[: values.shape[1]], values)


def named(counts, training, fold=""):
    return Counts(counts.pairs.assign(training=training, fold=fold), counts.configs, counts.values)


def scored(counts):
    """The scores of the first configuration."""
    return scores.scores(counts).iloc[0]


PAIRS = table([("a", 0, 50, 50, 0), ("b", 0, 0, 0, 100), ("a", 1, 10, 30, 10)])


@pytest.fixture(scope="module")
def many():
    numbers = np.random.default_rng(0).integers(1, 100, (60, 3))
    return table([(f"i{i}", i % 3, n, np.add(n, [5, 0, 3])) for i, n in enumerate(numbers)])


def test_scores_by_hand():
    row = scored(PAIRS)
    # class 0: tp 50, fp 50, fn 100; class 1: tp 10, fp 30, fn 10
    assert row["mIoU"] == pytest.approx((50 / 200 + 10 / 50) / 2 * 100)
    assert row["mPrecision"] == pytest.approx((50 / 100 + 10 / 40) / 2 * 100)
    assert row["mRecall"] == pytest.approx((50 / 150 + 10 / 20) / 2 * 100)
    assert row["mF1"] == pytest.approx((100 / 250 + 20 / 60) / 2 * 100)
    assert row["IoU"] == pytest.approx(60 / 250 * 100) and row["F1"] == pytest.approx(120 / 310 * 100)
    assert row["Precision"] == pytest.approx(60 / 140 * 100) and row["Recall"] == pytest.approx(60 / 170 * 100)
    p, r = row["Precision"] / 100, row["Recall"] / 100  # the identities of Table 4
    assert row["F1"] / 100 == pytest.approx(2 * p * r / (p + r)) and row["IoU"] == pytest.approx(
        row["F1"] / (2 - row["F1"] / 100)
    )
    assert PAIRS.iou()[:, 0].tolist() == [50, 0, 20] and list(row.index) == [*scores.ALWAYS, *scores.SCORES]
    empty = table([("a", 0, 0, 0, 9), ("b", 1, 0, 0, 0)])
    assert scored(table([("a", 0, 1, 0, 0)]))[scores.SCORES].tolist() == [100] * 8  # one pixel, found
    assert scored(empty)[scores.SCORES].tolist() == [0] * 8 and empty.iou().tolist() == [[0], [0]]


def test_counts_against_scikit_learn():
    rng = np.random.default_rng(0)
    mask = rng.choice([0, 1, 2, 255], (40, 50)).astype(np.uint8)
    predicted = rng.random((40, 50)) > 0.6
    counts = otsu.count(torch.from_numpy(np.stack([~predicted, predicted])), otsu.regions(torch.from_numpy(mask), 1))
    row = scored(table([("x", 1, *counts[1].tolist())]))
    truth, guess = mask[mask != 255] == 2, predicted[mask != 255]
    for name, score in (("IoU", jaccard_score), ("Precision", precision_score), ("Recall", recall_score), ("F1", f1_score)):
        assert row[name] == pytest.approx(100 * score(truth, guess))


def test_trainings_are_averaged_and_their_spread_is_that_of_n_less_1():
    worse = table([("a", 0, 25, 50, 25), ("b", 0, 0, 0, 100), ("a", 1, 0, 30, 20)])  # class 0: 25 of 200, class 1: 0 of 50
    row = scored(Counts.join([named(PAIRS, "seed0"), named(worse, "seed1")]))
    assert row["mIoU"] == pytest.approx(14.375) and row["mIoU_std"] == pytest.approx(16.25 / 2**0.5)
    assert row["IoU"] == pytest.approx((24 + 10) / 2) and row["IoU_std"] == pytest.approx(14 / 2**0.5)  # 60 and 25 of 250


def test_folds_of_a_training_part_are_scored_alone_and_held_out_ones_pooled():
    first, second = table([("a", 0, 10, 0, 10)]), table([("b", 0, 0, 0, 60)])
    held_out = Counts.join([named(first, "seed0"), named(second, "seed0")])
    assert scored(held_out)["IoU"] == pytest.approx(100 * 10 / 80) and len(held_out.trainings()["seed0"]) == 1
    trained_on = Counts.join([named(first, "seed0", "fold0"), named(second, "seed0", "fold1")])
    assert scored(trained_on)["IoU"] == pytest.approx((50 + 0) / 2)
    assert scores.draws(trained_on, "IoU", number=3)[A][0].tolist() == pytest.approx([25])


def test_configurations_stay_apart_and_in_order(many):
    both = scores.scores(many)
    assert scores.configurations(both) == [A, B] and both["IoU"][0] < both["IoU"][1]
    assert scores.scores(many.pick([B, A, B])).equals(both.iloc[::-1].reset_index(drop=True))
    with pytest.raises(MissingError, match=r"^hirescam:S5 was not counted: run ltcam reproduce first$"):
        many.pick([Config("hirescam")])


def test_a_table_has_no_column_of_later_options_that_no_row_uses():
    assert list(scores.columns([A, B])) == scores.ALWAYS
    refined, aligned = Config("layercam", refine=Refine("S3-S5", 8)), Config("fullgrad", "all", align_corners=True)
    assert list(scores.columns([A, refined])) == [*scores.ALWAYS, "refine"]
    configs = [A, refined, aligned, Config("gradcam", "S1-S5", 20.0, fraction=0.3, fuse="max", normalize="tanh")]
    assert list(scores.columns(configs)) == [*scores.ALWAYS, *scores.LATER]
    assert scores.configurations(scores.columns(configs)) == configs


@pytest.mark.parametrize("metric", ["mIoU", "IoU", "mF1", "F1"])
def test_the_first_draw_is_the_score(many, metric):
    found = scores.draws(many, metric, number=10)
    assert [values[0].item() for values in found.values()] == pytest.approx(scores.scores(many)[metric].tolist())
    assert [*found] == [A, B] and all(values.shape == (11, 1) for values in found.values())


def test_the_mean_over_objects_by_hand():
    """IoU 1/2, 1 and 0, and a class that is claimed and not there, which is no object."""
    counts = table([("a", 0, 5, 5, 0), ("a", 1, 9, 0, 0), ("b", 0, 0, 0, 4), ("b", 1, 0, 7, 0)])
    found = scores.draws(counts, "iIoU", number=50)[A][:, 0]
    assert found[0] == pytest.approx(50) and set(found.round(6)) == {0, 50, 75}  # of b twice, of both, of a twice
    assert scores.draws(counts, "iF1", number=1)[A][0, 0] == pytest.approx(100 * (2 / 3 + 1) / 3)


def test_a_span_is_over_images_and_trainings():
    values = np.stack([np.arange(101.0), 200 + np.arange(101.0)], axis=1)  # the first row is the score of all images
    assert scores.span(values) == pytest.approx((1 + 0.025 * 99, 201 + 0.975 * 99))


def test_the_interval_is_scipys(many):
    """Pooled IoU is a ratio of sums over images, which scipy resamples in the same way."""
    tp, both = many.values[:, 0, 0], many.values[:, 0].sum(axis=1)
    ratio = lambda a, b, axis: 100 * a.sum(axis) / b.sum(axis)  # noqa: E731
    theirs = bootstrap((tp, both), ratio, paired=True, method="percentile", n_resamples=20000, rng=1).confidence_interval
    found = scores.draws(many, "IoU", number=20000)[A]
    assert interval(found)[1:] == pytest.approx((theirs.low, theirs.high), abs=0.15)
    assert scores.ends(found, "IoU") == dict(zip(("IoU", "ci_low", "ci_high"), interval(found), strict=True))


def test_configurations_are_compared_on_the_same_draws(many):
    """One is a point better on every image: alone their intervals overlap, their difference is sure."""
    sizes = np.random.default_rng(1).integers(10, 90, 40)
    counts = table([(f"i{i}", 0, (n, 100 - n, 0), (n + 1, 99 - n, 0)) for i, n in enumerate(sizes)])
    found = scores.draws(counts, "IoU")
    assert interval(found[A])[2] > interval(found[B])[1] and interval(found[B] - found[A]) == pytest.approx((1, 1, 1))
    assert judge([found[B] - found[A]])[0] == "holds" and judge([found[A] - found[B]])[0] == "fails"
    half = scores.draws(many, "IoU")[A]
    assert judge([half - half[0]])[0] == "open"


def test_a_class_that_no_drawn_image_has_is_left_out():
    counts = table([("a", 0, 10, 0, 0), ("b", 1, 0, 10, 10)])
    assert set(scores.draws(counts, "mIoU", number=50)[A].ravel().tolist()) == {100.0, 50.0, 0.0}


def test_a_group_is_drawn_as_one():
    """Two images of one tile that is found and two of one that is missed: a draw has one, the other, or both."""
    rows = [(name, 0, tp, 0, 10 - tp) for name, tp in (("a", 10), ("b", 10), ("c", 0), ("d", 0))]
    apart, together = (scores.draws(table(rows, groups), "IoU", number=200)[A] for groups in (None, ["x", "x", "y", "y"]))
    assert set(together.ravel().tolist()) == {0.0, 50.0, 100.0} and {25.0, 75.0} <= set(apart.ravel().tolist())


def test_trainings_are_scored_on_the_same_draws_and_averaged(many):
    better = Counts(many.pairs, many.configs, np.add(many.values, [7, 0, 0]))
    found = scores.draws(Counts.join([named(many, "seed0"), named(better, "seed1")]), "IoU", number=50)[A]
    assert found.shape == (51, 2) and found[:, :1].tolist() == scores.draws(many, "IoU", number=50)[A].tolist()
    assert (found[:, 1] > found[:, 0]).all()
    mean = found.mean(axis=1)
    assert interval(found) == pytest.approx((mean[0], *np.percentile(mean[1:], [2.5, 97.5])))


def test_the_trainings_that_agree_stand_beside_the_verdict_and_decide_nothing():
    torn = np.full((101, 2), [3.0, -1.0])  # the mean is surely above zero
    assert interval(torn) == (1, 1, 1) and judge([torn])[0] == "holds" and judge([-torn])[0] == "fails"
    assert scores.agreement(torn) == "1 of 2" and scores.agreement(torn[:, :1]) == "one training"


def spread(value, half=1.0):
    """101 draws from `value` - half to `value` + half: the interval is 0.95 half either way."""
    return value + half * np.array([0, *np.linspace(-1, 1, 101)])


@pytest.mark.parametrize(
    ("margins", "word", "decides", "p"),
    [
        ([spread(2), spread(1.5), spread(9)], "holds", 1, 1 / 102),
        ([spread(2), spread(0.96)], "holds", 1, 4 / 102),  # -0.04, -0.02 and 0: the interval ends at 0.01
        ([spread(9), spread(0.2, 0.1)], "holds, negligible", 1, 1 / 102),
        ([spread(9), spread(-2), spread(-3), spread(9)], "fails", 2, 1 / 102),
        ([spread(-0.2, 0.1)], "fails, negligible", 0, 1 / 102),
        ([spread(9), spread(-0.2, 0.1)], "fails, negligible", 1, 1 / 102),
        ([spread(-0.2, 0.1), spread(-2)], "fails", 1, 1 / 102),
        ([spread(-0.96)], "fails", 0, 4 / 102),
        ([spread(-0.96), spread(9)], "open", 0, 1),  # alone it fails; of two, the interval is wider
        ([spread(0, 0.4), spread(0.05, 0.4)], "equal", 0, 1 / 102),
        ([spread(0.1, 0.41)], "equal", 0, 3 / 102),  # 0.51 and 0.502 are not near, and the interval ends at 0.49,
        ([spread(0, 0.4), spread(0.1, 0.45)], "open", 0, 1),
        ([spread(0), spread(-0.01)], "open", 1, 1),
        ([np.full(102, np.nan)], "open", 0, 1),
    ],
)  # fmt: skip
def test_verdicts_by_hand(margins, word, decides, p):
    assert judge(margins) == (word, decides, pytest.approx(p))


def test_without_a_near_nothing_is_equal_or_negligible():
    assert judge([spread(0.2, 0.1)], near=0)[0] == "holds" and judge([spread(0, 0.1)], near=0)[0] == "open"


def simulated(truths, trials=1000, groups=200):
    """The margins of as many experiments, whose pairs have one row in common. truths: in standard errors."""
    rng, weights = np.random.default_rng(7), resampled(pd.Series(map(str, range(groups)))) / groups
    for _ in range(trials):
        noise = rng.normal(size=(groups, 1)) + rng.normal(size=(groups, len(truths)))
        yield list((weights @ (noise + np.multiply(truths, (2 / groups) ** 0.5))).T)


@pytest.mark.parametrize("pairs", [3, 4, 5])
def test_equal_rows_seldom_fail(pairs):
    """Where all differences are zero. The bootstrap of the smallest, which is biased downward, would say so far too often."""
    found = [(judge(margins)[0], judge([np.min(margins, axis=0)])[0]) for margins in simulated([0.0] * pairs)]
    ours, of_the_smallest = np.char.startswith(np.array(found), "fails").mean(axis=0)
    assert ours <= 0.04 and of_the_smallest > 0.1


@pytest.mark.parametrize("others", [2, 4])
def test_a_claim_with_one_pair_at_zero_seldom_holds(others):
    """The others are far above."""
    found = [judge(margins)[0].startswith("holds") for margins in simulated([0.0] + [9.0] * others)]
    assert 0.01 <= np.mean(found) <= 0.04


def test_a_pair_that_decides_is_judged_so_alone():
    for margins in simulated([-1.0, 0.5, 2.0], trials=200):
        word, decides, _ = judge(margins, near=0)
        alone = judge([margins[decides]], near=0)[0]
        assert alone == word or word == "open"  # the draws of several pairs have to say more


def test_holms_procedure_by_hand():
    """0.025 over 4, 3, 2, 1: 0.012 is above 0.025 / 3, so 0.0124, which is below 0.025 / 2, is not kept either."""
    assert survive(np.array([0.0124, 0.006, np.nan, 0.012, 0.5])).tolist() == [False, True, False, False, False]
    assert survive(np.array([0.0124, 0.006, 0.008, 0.02])).all() and not survive(np.array([0.0251])).any()
    assert survive(np.array([np.nan])).tolist() == [False] and not len(survive(np.array([])))


COMMITTED = [  # -1: without truncation
    ("paper/voc2012", "Truncation alone (S5, δ=0) helps Grad-CAM", ("S5", 0), ("S5", -1)),
    ("paper/voc2012", "Fusing all stages costs against S5 alone", ("S5", -1), ("S1-S5", -1)),
    ("real/ksdd", "Truncation alone (S5, δ=0) helps Grad-CAM", ("S5", 0), ("S5", -1)),
]


@cache
def committed(seed):
    """Grad-CAM, cut as the paper's tables have it."""
    table = pd.concat(map(pd.read_csv, [*seed.glob("counts.csv.gz"), *seed.glob("fold?/counts.csv.gz")]))
    plain = (table["method"] == "gradcam") & (table["fuse"] == "sum") & (table["normalize"] == "none")
    return table[plain & (table["per"] == "layer") & (table["compare"] == "ge") & table["fraction"].isna()]


@pytest.mark.parametrize(("study", "claim", "left", "right"), COMMITTED)
def test_a_published_interval_is_that_of_other_code(study, claim, left, right):
    """From the committed counts, with other draws of their groups. With one class, the class mean is that of pooled pixels."""
    folder, margins = ROOT / "results" / study, []
    for seed in sorted(folder.glob("seed*")):
        table, scored = committed(seed), []
        for layers, delta in (left, right):
            own = table[(table["layers"] == layers) & (table["delta"].fillna(-1) == delta)]
            wide = own.pivot_table(index="group", columns="class", values=["tp", "fp", "fn"], aggfunc="sum", fill_value=0)
            drawn = np.random.default_rng(99).integers(len(wide), size=(4000, len(wide)))
            often = np.stack([np.bincount(draw, minlength=len(wide)) for draw in drawn])
            tp, fp, fn = (often @ wide[name].to_numpy() for name in ("tp", "fp", "fn"))
            scored.append(100 * (tp / (tp + fp + fn)).mean(axis=1))
        margins.append(scored[0] - scored[1])
    published = pd.read_csv(folder / "claims.csv").set_index("claim").loc[claim]
    assert np.percentile(np.mean(margins, axis=0), [2.5, 97.5]) == pytest.approx(published[["ci_low", "ci_high"]], abs=0.1)


def test_a_metric_without_an_interval(many):
    with pytest.raises(InputError, match="metric='Recall' has no interval: expected one of"):
        scores.draws(many, "Recall")


def test_labels_are_a_query():
    """One image with classes 0 and 1, one with class 0 that is taken for class 2, one of which nothing is named."""
    counts = table([("a", 0, 4, 1, 2), ("a", 1, 3, 0, 1), ("b", 0, 5, 2, 0), ("b", 2, 0, 7, 0), ("c", 0, 1, 1, 8)])
    logits = pd.DataFrame([[1.0, 0.5, -1, -9], [-2, -3, 4, -9], [-1, -2, -3, 5]], index=[*"abc"])

    def read(labels):
        own = counts.explained(logits, labels, "softmax")
        return {
            (name, c): row
            for (name, c), (row,) in zip(own.pairs[["name", "class"]].to_numpy(), own.values.tolist(), strict=True)
        }

    there = {("a", 0): [4, 1, 2], ("a", 1): [3, 0, 1], ("b", 0): [5, 2, 0], ("c", 0): [1, 1, 8]}
    wrong = {("b", 0): [0, 0, 5], ("b", 2): [0, 7, 0], ("c", 0): [0, 0, 9]}
    assert read("true") == there and read("every") == there | {("b", 2): [0, 7, 0]}
    assert read("top") == there | wrong | {("a", 1): [0, 0, 4]}
    assert read("predicted") == there | wrong  # exp(-0.5) is more than half


@pytest.mark.parametrize("kept", ["", "ab"])
def test_an_image_without_logits_is_named(kept):
    """As when the file of logits is gone or cut off: no other image's logits speak for it."""
    counts = table([("a", 0, 4, 1, 2), ("b", 0, 5, 2, 0), ("c", 0, 1, 1, 8)])
    logits = pd.DataFrame(np.zeros((len(kept), 2)), index=[*kept])
    assert len(counts.explained(logits, "true", "sigmoid").pairs) == 3
    with pytest.raises(MissingError, match=f"^{'abc'[len(kept)]} has no logits: restore logits"):
        counts.explained(logits, "top", "sigmoid")

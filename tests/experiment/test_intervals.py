"""Bootstrap intervals against scipy's, and by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from ltcam.experiment import intervals, metrics
from ltcam.experiment.configs import Config

A, B = Config("gradcam"), Config("layercam", "S1-S5", 0.0)


def table(rows):
    return pd.DataFrame(
        [(name, c, *config, tp, fp, fn) for name, c, config, tp, fp, fn in rows],
        columns=["name", "class", *metrics.CONFIG, "tp", "fp", "fn"],
    )


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    numbers = rng.integers(1, 100, (60, 3))
    rows = [(f"i{i}", i % 3, A, *n) for i, n in enumerate(numbers.tolist())]
    return table(rows + [(name, c, B, tp + 5, fp, fn + 3) for name, c, _, tp, fp, fn in rows])


@pytest.mark.parametrize("metric", ["mIoU", "IoU", "mF1", "F1"])
def test_the_first_value_is_the_score(counts, metric):
    found = intervals.draws(counts, metric, number=10)
    expected = metrics.scores(counts)[metric].tolist()
    assert [values[0].item() for values in found.values()] == pytest.approx(expected)
    assert [*found] == [A, B] and all(values.shape == (11, 1) for values in found.values())


def test_the_mean_over_objects_by_hand():
    """IoU 1/2, 1 and 0, and a class that is claimed and not there, which is no object."""
    counts = table([("a", 0, A, 5, 5, 0), ("a", 1, A, 9, 0, 0), ("b", 0, A, 0, 0, 4), ("b", 1, A, 0, 7, 0)])
    found = intervals.draws(counts, "iIoU", number=50)[A][:, 0]
    assert found[0] == pytest.approx(50) and set(found.round(6)) == {0, 50, 75}  # of b twice, of both, of a twice
    assert intervals.draws(counts, "iF1", number=1)[A][0, 0] == pytest.approx(100 * (2 / 3 + 1) / 3)


def test_a_span_is_over_images_and_trainings():
    values = np.stack([np.arange(101.0), 200 + np.arange(101.0)], axis=1)  # the first row is the score of all images
    assert intervals.span(values) == pytest.approx((1 + 0.025 * 99, 201 + 0.975 * 99))


def test_the_interval_is_scipys(counts):
    """Pooled IoU is a ratio of sums over images, which scipy resamples in the same way."""
    ours = counts[counts["method"] == "gradcam"]
    tp, both = ours["tp"].to_numpy(), ours[["tp", "fp", "fn"]].sum(axis=1).to_numpy()
    ratio = lambda a, b, axis: 100 * a.sum(axis) / b.sum(axis)  # noqa: E731
    theirs = bootstrap((tp, both), ratio, paired=True, method="percentile", n_resamples=20000, rng=1).confidence_interval
    _, low, high = intervals.interval(intervals.draws(counts, "IoU", number=20000)[A])
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.15)


def test_configurations_are_compared_on_the_same_draws():
    """One is a point better on every image: alone their intervals overlap, their difference is sure."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(10, 90, 40).tolist()
    counts = table([(f"i{i}", 0, A, n, 100 - n, 0) for i, n in enumerate(sizes)] + [
        (f"i{i}", 0, B, n + 1, 99 - n, 0) for i, n in enumerate(sizes)])  # fmt: skip
    found = intervals.draws(counts, "IoU")
    assert intervals.interval(found[A])[2] > intervals.interval(found[B])[1]
    assert intervals.interval(found[B] - found[A]) == pytest.approx((1, 1, 1))
    assert intervals.verdict(found[B] - found[A]) == "holds" and intervals.verdict(found[A] - found[B]) == "does not hold"


def test_what_spans_zero_is_a_tie(counts):
    half = intervals.draws(counts, "IoU")[A]
    assert intervals.verdict(half - half[0]) == "tie"


def test_a_class_that_no_drawn_image_has_is_left_out():
    counts = table([("a", 0, A, 10, 0, 0), ("b", 1, A, 0, 10, 10)])
    assert set(intervals.draws(counts, "mIoU", number=50)[A].ravel().tolist()) == {100.0, 50.0, 0.0}


def test_a_group_is_drawn_as_one():
    """Two images of one tile that is found and two of one that is missed: a draw has one, the other, or both."""
    counts = table([(name, 0, A, tp, 0, 10 - tp) for name, tp in (("a", 10), ("b", 10), ("c", 0), ("d", 0))])
    apart = intervals.draws(counts, "IoU", number=200)[A]
    together = intervals.draws(counts.assign(group=["x", "x", "y", "y"]), "IoU", number=200)[A]
    assert set(together.ravel().tolist()) == {0.0, 50.0, 100.0} and {25.0, 75.0} <= set(apart.ravel().tolist())
    same = intervals.draws(counts.assign(group=counts["name"]), "IoU", number=200)[A]
    assert same.tolist() == apart.tolist()


def test_trainings_are_scored_on_the_same_draws_and_averaged(counts):
    better = counts.assign(tp=counts["tp"] + 7, training="seed1")
    both = pd.concat([counts.assign(training="seed0"), better], ignore_index=True)
    found, alone = intervals.draws(both, "IoU", number=50), intervals.draws(counts, "IoU", number=50)
    assert found[A].shape == (51, 2) and found[A][:, 0].tolist() == alone[A][:, 0].tolist()
    assert (found[A][:, 1] > found[A][:, 0]).all()
    mean = found[A].mean(axis=1)
    assert intervals.interval(found[A]) == pytest.approx((mean[0], *np.percentile(mean[1:], [2.5, 97.5])))


def test_folds_of_a_training_part_are_averaged(counts):
    names = counts["name"].unique()
    halves = [counts[counts["name"].isin(some)] for some in (names[:40], names[20:])]
    table = pd.concat([half.assign(training="seed0", fold=f"fold{f}") for f, half in enumerate(halves)], ignore_index=True)
    expected = np.mean([metrics.scores(half)["IoU"] for half in halves], axis=0)
    found = intervals.draws(table, "IoU", number=5)
    assert [values[0].item() for values in found.values()] == pytest.approx(expected.tolist())


def test_a_verdict_needs_every_training():
    margins = np.full((101, 3), [3.0, 2.0, 1.0])
    assert intervals.verdict(margins) == "holds" and intervals.verdict(-margins) == "does not hold"
    assert intervals.agreement(margins) == "3 of 3"
    torn = np.full((101, 2), [3.0, -1.0])  # the mean is surely above zero
    assert intervals.interval(torn) == (1, 1, 1) and intervals.verdict(torn) == intervals.verdict(-torn) == "tie"
    assert intervals.agreement(torn) == "1 of 2"


def test_what_cannot_be_compared(counts):
    with pytest.raises(ValueError, match="metric='Recall' has no interval"):
        intervals.draws(counts, "Recall")
    with pytest.raises(ValueError, match=r"layercam.*was not scored on all 60 images"):
        intervals.draws(counts.drop(index=counts.index[-1]), "IoU")

"""Bootstrap intervals against scipy's, and by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from ltcam import intervals, metrics
from ltcam.evaluation import Config

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
    assert [values[0] for values in found.values()] == pytest.approx(expected)
    assert [*found] == [A, B] and all(len(values) == 11 for values in found.values())


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
    assert set(intervals.draws(counts, "mIoU", number=50)[A].tolist()) == {100.0, 50.0, 0.0}


def test_headline_classes(counts):
    assert intervals.draws(counts, "mIoU", (1,), 5)[B][0] == pytest.approx(metrics.scores(counts, (1,))["mIoU"][1])


def test_what_cannot_be_compared(counts):
    with pytest.raises(ValueError, match="metric='Recall' has no interval"):
        intervals.draws(counts, "Recall")
    with pytest.raises(ValueError, match=r"layercam.*was not scored on all 60 images"):
        intervals.draws(counts.drop(index=counts.index[-1]), "IoU")

"""A hand-made sweep: what is chosen on the training part, what it costs on the test part, and how alike the curves are."""

import numpy as np
import pandas as pd
import pytest

from ltcam import data as datasets
from ltcam.experiment import metrics
from ltcam.experiment.configs import Protocol
from ltcam.experiment.evaluation import evaluate
from ltcam.paper import sweep
from ltcam.paper.run import Run
from tests.experiment.test_evaluation import checkpoint, folder, run, study  # noqa: F401 - fixtures

CURVES = {  # method: (train, test) at delta 0, 20, 60, 90
    "gradcam": ([10, 14, 13, 5], [20, 30, 26, 8]),  # the same order: the choice carries over
    "layercam": ([10, 14, 14, 5], [40, 26, 27, 28]),  # two best ones on the training part; falls and rises on the test part
    "fullgrad": ([9, 9, 9, 9], [20, 21, 22, 22]),  # flat on the training part; two best ones on the test part
}
NONE = {"gradcam": 99.0, "layercam": 1.0, "fullgrad": 2.0}  # a score that would be chosen if it were a candidate


@pytest.fixture
def table():
    rows = [
        {"part": part, "method": method, "layers": layers, "delta": delta, "mIoU": score, "IoU": 100 - score}
        for method, layers in sweep.METHODS.items()
        for part, scores in zip(("train", "test"), CURVES[method], strict=True)
        for delta, score in zip((90.0, 20.0, 60.0, 0.0, None), [scores[i] for i in (3, 1, 2, 0)] + [NONE[method]], strict=True)
    ]
    return pd.DataFrame(rows)


def test_the_configurations_are_three_methods_over_ten_deltas_and_none():
    assert len(sweep.CONFIGS) == len(set(sweep.CONFIGS)) == 33
    assert {(c.method, c.layers, c.per) for c in sweep.CONFIGS} == {
        ("gradcam", "S1-S5", "layer"), ("layercam", "S1-S5", "layer"), ("fullgrad", "all", "layer")
    }  # fmt: skip
    assert [c.delta for c in sweep.CONFIGS[:11]] == [None, 0, 10, 20, 30, 40, 50, 60, 70, 80, 90]


def test_the_choice_of_the_training_part_and_its_regret(table):
    chosen = sweep.chosen(table, "mIoU").set_index("method")
    assert list(chosen.index) == ["gradcam", "layercam", "fullgrad"]
    assert chosen["delta"].tolist() == [20, 20, 0]  # of equals the smallest
    assert chosen["test"].tolist() == [30, 26, 20]
    assert chosen["none"].tolist() == [99, 1, 2]
    assert chosen["best_delta"].tolist() == [20, 0, 60] and chosen["best"].tolist() == [30, 40, 22]
    assert chosen["regret"].tolist() == [0, 14, 2]


def test_rank_correlation_by_hand(table):
    rank = sweep.chosen(table, "mIoU").set_index("method")["rank_correlation"]
    assert rank["gradcam"] == pytest.approx(1)
    # Layer-CAM: train ranks 2, 3.5, 3.5, 1, test ranks 4, 1, 2, 3: covariance -3.5 / sqrt(4.5 * 5)
    assert rank["layercam"] == pytest.approx(-3.5 / np.sqrt(22.5))
    assert np.isnan(rank["fullgrad"])


def test_another_metric_is_another_choice(table):
    assert sweep.chosen(table, "IoU")["delta"].tolist() == [90, 90, 0]  # 100 - mIoU


def test_curves_ascend_in_delta_and_leave_out_no_truncation(table):
    curves = sweep.curves(table, "mIoU")
    assert list(curves) == ["gradcam", "layercam", "fullgrad"] and curves["gradcam"].index.tolist() == [0, 20, 60, 90]
    assert curves["gradcam"]["test"].tolist() == [20, 30, 26, 8] and curves["fullgrad"]["train"].tolist() == [9] * 4


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([1, 3, 2], "rises, then falls"),
        ([1, 3, 3, 2], "rises, then falls"),
        ([3, 1, 2], "is highest at δ=0"),
        ([1, 2, 3], "is highest at δ=20"),
        ([1, 3, 3], "is highest at δ=20"),  # never falls
        ([3, 3, 1], "is highest at δ=0"),  # never rises
        ([2, 2, 2], "is flat"),
    ],
)
def test_rising_then_falling_is_a_maximum_strictly_inside(curve, expected):
    assert sweep.shape(pd.Series(curve, index=[10.0 * i for i in range(len(curve))])) == expected


def test_defects_are_pooled_and_photographs_averaged():
    assert [sweep.headline(name) for name in ("demo", "voc2012", "magnetic_tile", "ksdd2")] == ["IoU", "mIoU", "IoU", "IoU"]


def test_both_parts_are_scored_and_kept_apart(study, run, monkeypatch):  # noqa: F811
    monkeypatch.setattr(sweep, "CONFIGS", sweep.CONFIGS[:3] + sweep.CONFIGS[-1:])
    series = Run(study.profile, study.data, batch_size=4)
    table = series.sweep()
    assert list(table) == ["part", *metrics.ALWAYS, *metrics.SCORES]
    assert table["part"].tolist() == ["test"] * 4 + ["train"] * 4
    for role, part, place in (("test", "val", study.out), ("train", "train", study.out / "train")):
        assert len(pd.read_csv(place / "counts.csv.gz")["name"].unique()) == {"val": 6, "train": 8}[part]
        expected = metrics.scores(evaluate(run, part, sweep.CONFIGS, place, Protocol(4)))
        ours = table[table["part"] == role].drop(columns="part").reset_index(drop=True)
        pd.testing.assert_frame_equal(ours, expected)
    fewer = series.sweep(first=5)  # of the training part alone
    pd.testing.assert_frame_equal(fewer[fewer["part"] == "test"], table[table["part"] == "test"])
    names = pd.read_csv(study.out / "train" / "counts.csv.gz")["name"].unique()
    assert sorted(names) == [entry.name for entry in datasets.load("voc2012", "train/5").entries]

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from ltcam.errors import InputError
from ltcam.experiment import metrics
from ltcam.experiment.configs import Config

PAIRS = [("a", 0, 50, 50, 0), ("b", 0, 0, 0, 100), ("a", 1, 10, 30, 10)]
COUNTS = pd.DataFrame(
    [(name, c, *Config("gradcam"), tp, fp, fn) for name, c, tp, fp, fn in PAIRS],
    columns=["name", "class", *metrics.CONFIG, "tp", "fp", "fn"],
)


def test_scores_by_hand():
    row = metrics.scores(COUNTS).iloc[0]
    # class 0: tp 50, fp 50, fn 100; class 1: tp 10, fp 30, fn 10
    assert row["mIoU"] == pytest.approx((50 / 200 + 10 / 50) / 2 * 100)
    assert row["mPrecision"] == pytest.approx((50 / 100 + 10 / 40) / 2 * 100)
    assert row["mRecall"] == pytest.approx((50 / 150 + 10 / 20) / 2 * 100)
    assert row["mF1"] == pytest.approx((100 / 250 + 20 / 60) / 2 * 100)
    assert row["IoU"] == pytest.approx(60 / 250 * 100) and row["F1"] == pytest.approx(120 / 310 * 100)
    assert row["Precision"] == pytest.approx(60 / 140 * 100) and row["Recall"] == pytest.approx(60 / 170 * 100)


def test_pooled_scores_satisfy_the_identities_of_table_4():
    row = metrics.scores(COUNTS)[["IoU", "Precision", "Recall", "F1"]].iloc[0] / 100
    p, r = row["Precision"], row["Recall"]
    assert row["F1"] == pytest.approx(2 * p * r / (p + r)) and row["IoU"] == pytest.approx(row["F1"] / (2 - row["F1"]))


def test_trainings_are_averaged_and_their_spread_is_that_of_n_less_1():
    worse = COUNTS.assign(tp=[25, 0, 0], fn=[25, 100, 20])  # class 0: 25 of 200, class 1: 0 of 50
    both = pd.concat([COUNTS.assign(training="seed0"), worse.assign(training="seed1")], ignore_index=True)
    each = metrics.by_training(both).set_index("training")["mIoU"]
    assert each.to_dict() == pytest.approx({"seed0": 22.5, "seed1": 6.25})
    row = metrics.scores(both).iloc[0]
    assert row["mIoU"] == pytest.approx(14.375) and row["mIoU_std"] == pytest.approx(16.25 / 2**0.5)
    assert row["IoU"] == pytest.approx((24 + 10) / 2) and row["IoU_std"] == pytest.approx(14 / 2**0.5)  # 60 and 25 of 250
    assert list(metrics.scores(COUNTS)) == [*metrics.CONFIG, *metrics.SCORES]  # of one training no spread


def test_folds_of_a_training_part_are_scored_alone_and_held_out_ones_pooled():
    first, second = COUNTS.assign(training="seed0", fold="fold0"), COUNTS.assign(training="seed0", fold="fold1", tp=0)
    table = pd.concat([first, second], ignore_index=True)
    assert metrics.scores(table)["IoU"].tolist() == pytest.approx([(24 + 0) / 2])
    assert metrics.scores(table.drop(columns="fold"))["IoU"].tolist() == pytest.approx([100 * 60 / (250 + 190)])


@pytest.mark.parametrize(
    ("predicted", "mask", "said"),
    [
        ((1, 2, 2), (2, 3), r"a mask \(2, 3\) predicted as a torch.bool tensor \(1, 2, 2\)"),
        ((1, 2, 2), (2,), r"a mask \(2,\) predicted as a torch.bool tensor \(1, 2, 2\)"),
        ((1, 2, 2), (2, 2), r"a mask \(2, 2\) predicted as a torch.float32 tensor \(1, 2, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused(predicted, mask, said):
    masks = torch.zeros(predicted, dtype=torch.float32 if "float" in said else torch.bool)
    with pytest.raises(InputError, match=f"^{said}: expected bool, and equal heights and widths$"):
        metrics.count(masks, metrics.regions(torch.zeros(mask, dtype=torch.uint8), 0))


def test_the_class_that_is_void_is_refused():
    with pytest.raises(InputError, match=r"^class 254 is void in a mask: expected another class than 254$"):
        metrics.regions(torch.zeros(2, 2), 254)
    counts = metrics.count(torch.ones(1, 2, 2, dtype=torch.bool), metrics.regions(torch.full((2, 2), 254), 253))
    assert counts.tolist() == [[4, 0, 0]]


def test_configurations_come_in_the_order_of_their_rows():
    ordered = [20.0, 0.0, 60.0]
    table = pd.concat([COUNTS.assign(delta=delta) for delta in ordered])
    assert metrics.scores(table)["delta"].tolist() == ordered
    assert metrics.by_class(table.iloc[::-1]).reset_index()["delta"].drop_duplicates().tolist() == ordered[::-1]


def test_configurations_stay_apart_and_in_order():
    other = COUNTS.assign(delta=20.0, tp=0)
    table = metrics.scores(pd.concat([other, COUNTS]))
    assert table["delta"].iloc[0] == 20 and pd.isna(table["delta"].iloc[1])
    assert table["IoU"].iloc[0] == 0 < table["IoU"].iloc[1]


def test_nothing_predicted_and_nothing_right_is_zero():
    row = metrics.scores(COUNTS.assign(tp=0, fp=0)).iloc[0]
    assert row[["mIoU", "mPrecision", "mRecall", "mF1"]].tolist() == [0, 0, 0, 0]


def test_by_class_counts_images():
    table = metrics.by_class(COUNTS).reset_index()
    assert table[["class", "images"]].to_numpy().tolist() == [[0, 2], [1, 1]]


def test_counts_against_scikit_learn():
    rng = np.random.default_rng(0)
    mask = rng.choice([0, 1, 2, 255], (40, 50)).astype(np.uint8)
    predicted = rng.random((40, 50)) > 0.6
    counts = metrics.count(torch.from_numpy(np.stack([~predicted, predicted])), metrics.regions(torch.from_numpy(mask), 1))
    tp, fp, fn = counts[1].tolist()
    table = metrics.scores(pd.DataFrame([("x", 1, *Config("m"), tp, fp, fn)], columns=COUNTS.columns)).iloc[0]
    truth, guess = mask[mask != 255] == 2, predicted[mask != 255]
    for name, score in (("IoU", jaccard_score), ("Precision", precision_score), ("Recall", recall_score), ("F1", f1_score)):
        assert table[name] == pytest.approx(100 * score(truth, guess))


def test_a_configuration_is_what_rows_are_told_apart_by():
    assert list(Config._fields) == metrics.CONFIG


def test_a_compact_table_has_no_column_of_later_options_that_no_row_uses():
    table = pd.DataFrame({"method": ["m", "m"], "refine": [None, "S3"], "align_corners": [None, None]})
    assert list(metrics.compact(table)) == ["method", "refine"]
    assert list(metrics.compact(table[["method"]])) == ["method"]

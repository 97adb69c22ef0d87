"""Scores from pixel counts, foreground only.

`counts` is a table with one row per (image, class) pair and configuration. Its columns are name, class, those of the
configuration, and tp, fp, fn in pixels. Every score is computed from it, in percent. With a column `training`, each training
is scored alone and `scores` is their mean. With a column `fold` too, a training's score is the mean over its folds.

Class means (mIoU, mPrecision, mRecall, mF1) sum the counts of a class over its images and average over classes. Pooled scores
(IoU, Precision, Recall, F1: "micro") sum over everything. Precision is 0 if nothing is predicted, recall is 0 if nothing is
there. Void pixels are not counted. False positives of a class count only in images that have it.
"""

import pandas as pd
import torch
from torch import Tensor

from ltcam.data.base import VOID
from ltcam.engine.targets import describe
from ltcam.errors import InputError

SCORES = ["mIoU", "mPrecision", "mRecall", "mF1", "IoU", "Precision", "Recall", "F1"]
OTHER, CLASS = 1, 2
ALWAYS = ["method", "layers", "delta", "per", "compare", "fuse", "normalize", "fraction"]
LATER = ["refine", "align_corners"]  # a table has these columns only if a row has a value
CONFIG = [*ALWAYS, *LATER]


def of_config(table: pd.DataFrame) -> list[str]:
    """The columns of the configuration: `CONFIG`, but only those of `LATER` that the table has."""
    return [*ALWAYS, *(name for name in LATER if name in table)]


def compact(table: pd.DataFrame) -> pd.DataFrame:
    """The table without the empty columns of `LATER`. So a table that does not need them is as it always was."""
    return table.drop(columns=[name for name in LATER if name in table and table[name].isna().all()])


def count(predicted: Tensor, region: Tensor) -> Tensor:
    """(tp, fp, fn) in pixels of predicted masks (..., H, W): (..., 3); region (H, W) or (P, H, W) from `regions`."""
    if predicted.dtype != torch.bool or region.ndim < 2 or predicted.shape[-region.ndim :] != region.shape:
        raise InputError(
            f"a mask {tuple(region.shape)} predicted as {describe(predicted)}: expected bool, and equal heights and widths"
        )
    tp, fp = ((predicted & (region == value)).flatten(-2).sum(dim=-1) for value in (CLASS, OTHER))
    return torch.stack([tp, fp, (region == CLASS).flatten(-2).sum(dim=-1) - tp], dim=-1)


def regions(mask: Tensor, c: int) -> Tensor:
    """What each pixel of a mask (H, W) is for class c: (H, W) int32. 0 is void, `OTHER` or `CLASS`."""
    if c + 1 == VOID:
        raise InputError(f"class {c} is void in a mask: expected another class than {VOID - 1}")
    return (mask != VOID).int() + (mask == c + 1).int()


def scores(counts: pd.DataFrame) -> pd.DataFrame:
    """Class means and pooled scores, one row per configuration, in order of appearance.

    For several trainings this is their mean. Columns that end in `_std` have the standard deviation (with n - 1).
    """
    trainings = by_training(counts)
    groups = trainings.groupby(of_config(counts), sort=False, dropna=False)[SCORES]
    found: pd.DataFrame = groups.mean()
    if trainings["training"].nunique() > 1:
        found = found.join(groups.std().add_suffix("_std"))
    return found.reset_index()


def by_training(counts: pd.DataFrame) -> pd.DataFrame:
    """`scores` of every single training, with its name in the column `training`."""
    found = {
        name: pd.concat(map(_scores, folds)).groupby(of_config(counts), sort=False, dropna=False).mean()
        for name, folds in split(counts)
    }
    return pd.concat(found, names=["training"]).reset_index()


def split(counts: pd.DataFrame) -> list[tuple[str, list[pd.DataFrame]]]:
    """(training, counts of each of its folds) for every training in `counts`, in order of appearance."""
    if "training" not in counts or counts.empty:
        return [("", [counts])]
    trainings = [(str(name), rows) for name, rows in counts.groupby("training", sort=False)]
    return [(name, [t for _, t in rows.groupby("fold", sort=False)] if "fold" in rows else [rows]) for name, rows in trainings]


def _scores(counts: pd.DataFrame) -> pd.DataFrame:
    config = of_config(counts)
    groups = by_class(counts).groupby(config, sort=False, dropna=False)
    mean = groups[["IoU", "Precision", "Recall", "F1"]].mean().add_prefix("m")
    return mean.join(_rates(counts.groupby(config, sort=False, dropna=False)[["tp", "fp", "fn"]].sum()))


def by_class(counts: pd.DataFrame) -> pd.DataFrame:
    """IoU, Precision, Recall, F1 of each class and configuration, and the number of images scored (`images`)."""
    groups = counts.groupby([*of_config(counts), "class"], sort=False, dropna=False)
    return _rates(groups[["tp", "fp", "fn"]].sum()).assign(images=groups.size())


def _rates(sums: pd.DataFrame) -> pd.DataFrame:
    tp, fp, fn = (sums[name].astype(float) for name in ("tp", "fp", "fn"))
    rates = {
        "IoU": tp / (tp + fp + fn),
        "Precision": tp / (tp + fp),
        "Recall": tp / (tp + fn),
        "F1": 2 * tp / (2 * tp + fp + fn),
    }
    return pd.DataFrame(rates).fillna(0.0) * 100

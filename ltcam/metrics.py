"""Scores from pixel counts, foreground only.

`counts` is a table with one row an (image, class) pair and configuration: columns name, class, those of the configuration,
and tp, fp, fn in pixels. Every score is a function of it, in percent.

Class means (mIoU, mPrecision, mRecall, mF1) sum the counts of a class over its images and average over classes; pooled scores
(IoU, Precision, Recall, F1: "micro") sum over everything. Nothing predicted gives precision 0, nothing there recall 0. Void
pixels are in no count; false positives of a class are counted in the images that have it.
"""

import pandas as pd
import torch
from torch import Tensor

from ltcam.errors import InputError
from ltcam.targets import describe

CONFIG = ["method", "layers", "delta", "per", "compare", "fuse", "normalize", "fraction"]


def count(predicted: Tensor, mask: Tensor, c: int, void: int = 255) -> Tensor:
    """(tp, fp, fn) in pixels of predicted masks (M, H, W) of class c: (M, 3) long, on their device.

    mask (H, W), c + 1 where class c is. Raises InputError for shapes, a type or a class that do not fit.
    """
    if predicted.dtype != torch.bool or predicted.shape[1:] != mask.shape or c + 1 == void:
        raise InputError(
            f"class {c} of a mask {tuple(mask.shape)} predicted as {describe(predicted)}: expected bool (M, H, W), "
            f"the mask (H, W), and a class other than void's, {void - 1}"
        )
    truth = mask == c + 1
    tp = (predicted & truth).flatten(1).sum(dim=1)
    claimed = (predicted & (mask != void)).flatten(1).sum(dim=1)
    return torch.stack([tp, claimed - tp, truth.sum() - tp], dim=1)


def scores(counts: pd.DataFrame, classes: tuple[int, ...] | None = None) -> pd.DataFrame:
    """Class means and pooled scores of each configuration, one row each, in the order they appear.

    classes: those averaged over and pooled; None: all that occur.
    """
    kept = counts if classes is None else counts[counts["class"].isin(classes)]
    mean = by_class(kept).groupby(CONFIG, sort=False, dropna=False)[["IoU", "Precision", "Recall", "F1"]].mean().add_prefix("m")
    pooled = _rates(kept.groupby(CONFIG, sort=False, dropna=False)[["tp", "fp", "fn"]].sum())
    return mean.join(pooled).reset_index()


def by_class(counts: pd.DataFrame) -> pd.DataFrame:
    """IoU, Precision, Recall, F1 of each class and configuration, and in how many images (`images`) it was scored."""
    groups = counts.groupby([*CONFIG, "class"], sort=False, dropna=False)
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

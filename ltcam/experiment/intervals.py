"""How certain a score is: a bootstrap over groups of images, from the kept counts.

A draw takes as many groups as were scored, with replacement. A group is an image on VOC, a tile or a commutator elsewhere.
Every configuration of every training is scored on the same draws, so two of them are compared image by image. The interval is
that of the mean over trainings. Three trainings are too few to resample. So they are shown one by one, and a verdict needs the
same sign in each.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltcam.errors import InputError
from ltcam.experiment.configs import Config, configurations
from ltcam.experiment.metrics import split

DRAWS = 1000
LEVEL = 95  # percent
VERDICTS = {"holds": "better", "does not hold": "worse", "tie": "tie"}  # for a margin that is a change

METRICS = ("IoU", "F1", "mIoU", "mF1", "iIoU", "iF1")

Draws = Mapping[Config, NDArray[np.float64]]  # (1 + DRAWS, trainings): the score of all images, then of each draw


def draws(counts: pd.DataFrame, metric: str, number: int = DRAWS) -> Draws:
    """`metric` in percent of every configuration in `counts`: on all images, then on `number` draws of their groups.

    metric: "IoU" or "F1" of all pixels; with an m before it ("mIoU"), the mean over classes; with an i ("iIoU"), the mean over
    the objects, each of an image and class. counts as in `metrics`; a column `group` says which images are drawn together. A
    class that no image of a draw has is left out of that draw's mean.
    """
    if metric not in METRICS:
        raise InputError(f"metric={metric!r} has no interval: expected one of {METRICS}")
    groups = counts.get("group", counts["name"]).groupby(counts["name"], sort=False).first()
    order = groups.unique()
    drawn = np.random.default_rng(0).multinomial(len(order), np.full(len(order), 1 / len(order)), number)
    drawn = np.vstack([np.ones(len(order), dtype=drawn.dtype), drawn]).astype(float)
    weights = pd.DataFrame(drawn[:, pd.Index(order).get_indexer(groups)], columns=groups.index)
    trainings = []
    for _, folds in split(counts):
        scored = [_rates(fold, metric, weights) for fold in folds]
        trainings.append({config: np.mean([fold[config] for fold in scored], axis=0) for config in scored[0]})
    everywhere = [config for config in trainings[0] if all(config in training for training in trainings)]
    return {config: np.stack([training[config] for training in trainings], axis=1) for config in everywhere}


def interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """The mean over trainings on all images, and the ends of its interval. values: an entry of `draws`, or made of several."""
    mean = _trainings(values).mean(axis=1)
    low, high = np.percentile(mean[1:], [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(mean[0]), float(low), float(high)


def ends(values: NDArray[np.float64], first: str = "value", low: str = "ci_low", high: str = "ci_high") -> dict[str, float]:
    """`interval` under the names of columns."""
    return dict(zip((first, low, high), interval(values), strict=True))


def span(values: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of an interval over images and trainings: the least and the largest end of the trainings' own intervals."""
    found = np.percentile(_trainings(values)[1:], [(100 - LEVEL) / 2, (100 + LEVEL) / 2], axis=0)
    return float(found[0].min()), float(found[1].max())


def verdict(values: NDArray[np.float64]) -> str:
    """The verdict on a margin. It "holds" if its interval and its value in every training are above zero. It "does not hold" if
    all are below. Otherwise it is a "tie"."""
    (_, low, high), each = interval(values), _trainings(values)[0]
    return "holds" if low > 0 and (each > 0).all() else "does not hold" if high < 0 and (each < 0).all() else "tie"


def agreement(values: NDArray[np.float64]) -> str:
    """The number of trainings in which a margin is above zero, e.g. "2 of 3"."""
    each = _trainings(values)[0]
    return f"{(each > 0).sum()} of {len(each)}"


def _trainings(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.reshape(len(values), -1)


def _rates(counts: pd.DataFrame, metric: str, weights: pd.DataFrame) -> dict[Config, NDArray[np.float64]]:
    """The scores (1 + DRAWS,) of each configuration in one training. weights (1 + DRAWS, images): images in a draw."""
    twice, names, found = 2 if metric.endswith("F1") else 1, counts["name"].unique(), {}
    drawn = weights[names].to_numpy()
    for config, rows in counts.groupby(pd.Series(configurations(counts), counts.index), sort=False):
        table = rows.pivot(index="name", columns="class", values=["tp", "fp", "fn"]).reindex(names)
        if table.isna().all(axis=1).any():
            raise InputError(f"{config} was not scored on all {len(names)} images: expected counts of one evaluation")
        tp, fp, fn = (table[part].fillna(0).to_numpy(float) for part in ("tp", "fp", "fn"))  # (images, classes)
        if not metric.startswith("i"):
            tp, fp, fn = (drawn @ part for part in (tp, fp, fn))
        if metric in ("IoU", "F1"):
            tp, fp, fn = (part.sum(axis=1, keepdims=True) for part in (tp, fp, fn))
        there = tp + fn > 0
        rates = np.divide(100 * twice * tp, twice * tp + fp + fn, out=np.zeros_like(tp), where=there).sum(axis=1)
        number = there.sum(axis=1)
        if metric.startswith("i"):
            rates, number = drawn @ rates, drawn @ number
        found[config] = rates / number.clip(min=1)
    return found


def median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of `values`, one per image, as an entry of `draws`: of all values, then of each draw. NaN is left out."""
    kept = values[~np.isnan(values)]
    drawn = kept[np.random.default_rng(0).integers(len(kept), size=(DRAWS, len(kept)))]
    return np.concatenate([[np.median(kept)], np.median(drawn, axis=1)])

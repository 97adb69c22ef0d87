"""Scores from pixel counts, foreground only, and how certain they are.

Class means (mIoU, mPrecision, mRecall, mF1) sum the counts of a class over its images and average over classes. Pooled scores
(IoU, Precision, Recall, F1: "micro") sum over everything. All are in percent. Precision is 0 if nothing is predicted, recall is
0 if nothing is there. Void pixels are not counted. False positives of a class count only in images that have it.

An interval is a bootstrap over groups of images: an image on VOC, a tile or a commutator elsewhere. A draw takes as many groups
as were scored, with replacement. All configurations of all trainings are scored on the same draws. The interval is that of the
mean over trainings, which are too few to resample. `judge` says what verdict the intervals give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ltcam.engine.config import Config, refine_of, refine_text
from ltcam.errors import InputError, MissingError
from ltcam.experiment.protocol import Labels, Loss, explained

RATES = ["IoU", "Precision", "Recall", "F1"]
SCORES = [*(f"m{rate}" for rate in RATES), *RATES]
METRICS = ("IoU", "F1", "mIoU", "mF1", "iIoU", "iF1")
ALWAYS = ["method", "layers", "delta", "per", "compare", "fuse", "normalize", "fraction"]
LATER = ["refine", "align_corners"]  # a table has these columns only if a row has a value
DRAWS = 1000
ENDS = (2.5, 97.5)  # percentiles
TAIL = ENDS[0] / 100  # the share of draws beyond each
NEAR = 0.5  # points: a difference that lies closer to zero is negligible

Floats = NDArray[np.float64]
Draws = Mapping[Config, Floats]  # (1 + DRAWS, trainings): the score of all images, then of each draw


@dataclass(frozen=True)
class Counts:
    """Pixels of (image, class) pairs: true and false positives, false negatives, for each way to make a mask.

    pairs    a frame with the columns training, fold, name (of the image), group, class
    configs  the ways; values (pairs, configs, 3) int64: tp, fp, fn

    The folds of a training are scored one by one and averaged. Held-out parts of folds are pooled: there fold is "".
    """

    pairs: pd.DataFrame
    configs: tuple[Config, ...]
    values: NDArray[np.int64]

    @classmethod
    def join(cls, parts: Sequence[Counts]) -> Self:
        """The pairs of all `parts`, which have the same configurations, one below the other."""
        pairs = pd.concat([part.pairs for part in parts], ignore_index=True)
        return cls(pairs, parts[0].configs, np.concatenate([part.values for part in parts]))

    def pick(self, configs: Iterable[Config]) -> Self:
        """The counts of `configs`, each once. Raises MissingError for one that was not counted."""
        wanted = tuple(dict.fromkeys(configs))
        for config in wanted:
            if config not in self.configs:
                raise MissingError(f"{config} was not counted: run ltcam reproduce first")
        return type(self)(self.pairs, wanted, self.values[:, [self.configs.index(config) for config in wanted]])

    def where(self, chosen: NDArray[Any]) -> Self:
        """The counts of some pairs; chosen: (pairs,) bool, or their numbers in another order."""
        pairs = self.pairs.iloc[np.arange(len(self.pairs))[chosen]].reset_index(drop=True)
        return type(self)(pairs, self.configs, self.values[chosen])

    def explained(self, logits: pd.DataFrame, labels: Labels, loss: Loss) -> Self:
        """The counts if a map claimed only the classes that `labels` names; of other classes that are there all is missed.

        logits: a row for each image by its name, a column for each output, as `Store.logits` gives them.
        Raises MissingError if an image has none.
        """
        if labels == "every":
            return self
        area = (self.values[..., 0] + self.values[..., 2]).max(axis=1, initial=0)
        claims, names = area > 0, pd.Index(self.pairs["name"])
        if labels != "true":
            if len(without := names.difference(logits.index)):
                raise MissingError(f"{without[0]} has no logits: restore logits.*.csv.gz beside the counts")
            named = explained(torch.tensor(logits.loc[names].to_numpy()), labels, loss)
            claims = named.numpy()[np.arange(len(names)), self.pairs["class"]]
        missed = np.zeros_like(self.values)
        missed[..., 2] = area[:, None]
        values = np.where(claims[:, None, None], self.values, missed)
        return type(self)(self.pairs, self.configs, values).where(claims | (area > 0))

    def iou(self) -> Floats:
        """(pairs, configs) in percent; 0 where nothing is true or claimed."""
        return _rates(self.values)[..., 0]

    def trainings(self) -> dict[str, list[Self]]:
        """Each training, as the counts of its folds."""
        found: dict[str, list[Self]] = {}
        for _, own in self.pairs.groupby(["training", "fold"], sort=False):
            found.setdefault(own["training"].iloc[0], []).append(self.where(own.index.to_numpy()))
        return found


def columns(configs: Iterable[Config]) -> pd.DataFrame:
    """The fields of each configuration as a table shows them: `ALWAYS`, and of `LATER` those that some row uses."""
    table = pd.DataFrame([row(config) for config in configs], columns=[*ALWAYS, *LATER])
    return table.astype({"delta": float, "fraction": float}).drop(columns=[name for name in LATER if table[name].isna().all()])


def row(config: Config) -> dict[str, Any]:
    """The columns of one configuration."""
    refine = refine_text(config.refine) if config.refine else None
    own = {name: getattr(config, name) for name in ALWAYS}
    return own | {"refine": refine, "align_corners": config.align_corners or None}


def configurations(table: pd.DataFrame) -> list[Config]:
    """The configuration of each row of a table that has the columns of `columns`."""
    fields = table[[name for name in (*ALWAYS, *LATER) if name in table]].to_dict("records")
    known = [{str(name): value for name, value in own.items() if not pd.isna(value)} for own in fields]
    return [Config(**own | ({"refine": refine_of(own["refine"])} if "refine" in own else {})) for own in known]


def scores(counts: Counts) -> pd.DataFrame:
    """Class means and pooled scores, one row per configuration: its columns, then `SCORES`, the mean over trainings.

    Of several trainings, columns that end in `_std` have the standard deviation (with n - 1).
    """
    each = np.stack([np.mean([_scored(fold) for fold in folds], axis=0) for folds in counts.trainings().values()])
    table = columns(counts.configs).join(pd.DataFrame(each.mean(axis=0), columns=SCORES))
    if len(each) > 1:
        table = table.join(pd.DataFrame(each.std(axis=0, ddof=1), columns=SCORES).add_suffix("_std"))
    return table


def _scored(counts: Counts) -> Floats:
    """(configs, 8): `SCORES` of one fold."""
    sums = _dense(counts).sum(axis=0)
    return np.concatenate([_rates(sums).mean(axis=0), _rates(sums.sum(axis=0))], axis=1)


def _dense(counts: Counts) -> NDArray[np.int64]:
    """(images, classes, configs, 3): images in the order of the pairs, classes sorted, 0 where a pair was not counted."""
    image, names = pd.factorize(counts.pairs["name"])
    label, labels = pd.factorize(counts.pairs["class"], sort=True)
    dense = np.zeros((len(names), len(labels), *counts.values.shape[1:]), dtype=np.int64)
    dense[image, label] = counts.values
    return dense


def _rates(counts: NDArray[Any]) -> Floats:
    """(..., 3) -> (..., 4): `RATES` in percent; 0 where there is nothing to divide by."""
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    wholes = np.stack([tp + fp + fn, tp + fp, tp + fn, 2 * tp + fp + fn], axis=-1)
    return np.asarray(100 * np.stack([tp, tp, tp, 2 * tp], axis=-1) / wholes.clip(min=1))


def draws(counts: Counts, metric: str, number: int = DRAWS) -> Draws:
    """`metric` in percent of every configuration: on all images, then on `number` draws of their groups.

    metric: "IoU" or "F1" of all pixels; with an m before it ("mIoU"), the mean over classes; with an i ("iIoU"), the mean over
    the objects, each of an image and class. A class that no image of a draw has is left out of that draw's mean.
    """
    if metric not in METRICS:
        raise InputError(f"metric={metric!r} has no interval: expected one of {METRICS}")
    groups = counts.pairs.groupby("name", sort=False)["group"].first()
    weights = pd.DataFrame(resampled(groups, number).astype(float), columns=groups.index)
    trainings = [np.mean([_drawn(f, metric, weights) for f in folds], axis=0) for folds in counts.trainings().values()]
    return dict(zip(counts.configs, np.moveaxis(np.stack(trainings), 2, 0).swapaxes(1, 2), strict=True))


def resampled(groups: pd.Series[str], number: int = DRAWS) -> NDArray[np.int64]:
    """(1 + number, rows): how often all rows have each row, which is once, and then each draw of their groups."""
    codes, order = pd.factorize(groups)
    drawn = np.random.default_rng(0).multinomial(len(order), np.full(len(order), 1 / max(len(order), 1)), number)
    return np.vstack([np.ones(len(order), dtype=drawn.dtype), drawn])[:, codes]


def _drawn(counts: Counts, metric: str, weights: pd.DataFrame) -> Floats:
    """(1 + DRAWS, configs): the scores of one fold. weights (1 + DRAWS, images): how often a draw has an image."""
    dense, drawn, rate = _dense(counts), weights[counts.pairs["name"].unique()].to_numpy(), RATES.index(metric.lstrip("mi"))
    if metric.startswith("i"):
        there = dense[..., 0] + dense[..., 2] > 0
        objects = (_rates(dense)[..., rate] * there).sum(axis=1)
        return np.asarray((drawn @ objects) / (drawn @ there.sum(axis=1)).clip(min=1))
    if metric in RATES:
        dense = dense.sum(axis=1, keepdims=True)
    sums = (drawn @ dense.reshape(len(dense), -1)).reshape(len(drawn), *dense.shape[1:])
    there = sums[..., 0] + sums[..., 2] > 0
    return np.asarray((_rates(sums)[..., rate] * there).sum(axis=1) / there.sum(axis=1).clip(min=1))


def interval(values: Floats) -> tuple[float, float, float]:
    """The mean over trainings on all images, and the ends of its interval. values: an entry of `draws`, or made of several."""
    mean = _trainings(values).mean(axis=1)
    low, high = np.percentile(mean[1:], ENDS)
    return float(mean[0]), float(low), float(high)


def ends(values: Floats, first: str = "value", low: str = "ci_low", high: str = "ci_high") -> dict[str, float]:
    """`interval` under the names of columns."""
    return dict(zip((first, low, high), interval(values), strict=True))


def span(values: Floats) -> tuple[float, float]:
    """The ends of an interval over images and trainings: the least and the largest end of the trainings' own intervals."""
    low, high = np.percentile(_trainings(values)[1:], ENDS, axis=0)
    return float(low.min()), float(high.max())


def judge(margins: Sequence[Floats], near: float = NEAR) -> tuple[str, int, float]:
    """The verdict that all margins, entries of `draws` or made of them, are above zero; the number of that which decides; a p.

    "holds" if every interval lies above zero; "fails" if some interval, widened for the number of margins (Holm), lies below;
    "equal" if every interval lies within `near` points of zero; else "open". The margin whose interval reaches lowest decides,
    of those that fail if some do; ", negligible" follows if it lies within `near`. p: (1 + draws against it) / (1 + draws).
    """
    drawn = np.stack([_trainings(margin).mean(axis=1)[1:] for margin in margins])
    low, high = np.percentile(drawn, ENDS, axis=1)
    failing = np.percentile(drawn, 100 - 100 * TAIL / len(drawn), axis=1) < 0
    within, decides = (-near < low) & (high < near), int(np.where(failing | ~failing.any(), low, np.inf).argmin())
    word, against = "open", drawn.shape[1]
    if (low > 0).all():
        word, against = "holds", (drawn <= 0).sum(axis=1).max()
    elif failing.any():
        word, against = "fails", (drawn >= 0).sum(axis=1).min() * len(drawn)
    elif within.all():
        word, against = "equal", (abs(drawn) >= near).sum(axis=1).max()
    suffix = ", negligible" if word in ("holds", "fails") and within[decides] else ""
    return word + suffix, decides, float((1 + against) / (1 + drawn.shape[1]))


def survive(p: Floats) -> NDArray[np.bool_]:
    """Which verdicts Holm's procedure keeps, by the p of each (NaN: there is none). One is wrong with a chance of `TAIL`."""
    order, left = np.argsort(p), np.arange(np.isfinite(p).sum(), 0, -1)
    number = np.logical_and.accumulate(p[order][: len(left)] <= TAIL / left).sum()
    return np.isin(np.arange(len(p)), order[:number])


def agreement(values: Floats) -> str:
    """The number of trainings in which a margin is above zero, e.g. "2 of 3". One training agrees with itself alone."""
    each = _trainings(values)[0]
    return f"{(each > 0).sum()} of {len(each)}" if len(each) > 1 else "one training"


def _trainings(values: Floats) -> Floats:
    return values.reshape(len(values), -1)

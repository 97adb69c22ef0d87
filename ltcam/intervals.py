"""How sure a score is: bootstrap over images, from the counts that are kept anyway.

A draw takes as many images as were scored, with replacement, and every configuration is scored on the same draws, so that two
of them are compared image by image. The interval is of the images alone: another training is another number (see the seeds).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltcam.errors import InputError
from ltcam.evaluation import Config, configurations

DRAWS = 1000
LEVEL = 95  # percent
VERDICTS = {"holds": "better", "does not hold": "worse", "tie": "tie"}  # of a margin that is a change

Draws = Mapping[Config, NDArray[np.float64]]  # (1 + DRAWS,): the score of all images, then of each draw


def draws(counts: pd.DataFrame, metric: str, classes: Sequence[int] | None = None, number: int = DRAWS, seed: int = 0) -> Draws:
    """`metric` in percent of every configuration in `counts`: on all images, then on `number` draws of them.

    metric  "IoU" or "F1" of all pixels, or with an m before it ("mIoU") their mean over classes

    counts and classes as in `ltcam.metrics.scores`; a class that is in none of a draw's images is left out of its mean. Raises
    InputError for another metric, and for configurations that were not scored on the same images.
    """
    if metric.removeprefix("m") not in ("IoU", "F1"):
        raise InputError(f"metric={metric!r} has no interval: expected IoU or F1, or mIoU or mF1")
    twice = 2 if metric.endswith("F1") else 1
    kept = counts if classes is None else counts[counts["class"].isin(classes)]
    names = kept["name"].unique()
    weights = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), number)
    weights = np.vstack([np.ones(len(names), dtype=weights.dtype), weights]).astype(float)
    found = {}
    for config, rows in kept.groupby(pd.Series(configurations(kept), kept.index), sort=False):
        table = rows.pivot(index="name", columns="class", values=["tp", "fp", "fn"]).reindex(names)
        if table.isna().all(axis=1).any():
            raise InputError(f"{config} was not scored on all {len(names)} images: expected counts of one evaluation")
        tp, fp, fn = (weights @ table[part].fillna(0).to_numpy() for part in ("tp", "fp", "fn"))
        if metric.startswith("m"):
            there = tp + fn > 0
            rates = np.divide(twice * tp, twice * tp + fp + fn, out=np.zeros_like(tp), where=there)
            found[config] = 100 * rates.sum(axis=1) / there.sum(axis=1)
        else:
            found[config] = 100 * twice * tp.sum(axis=1) / (twice * tp + fp + fn).sum(axis=1)
    return found


def interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """The value on all images and the ends of its interval, of an entry of `draws` or of what is computed from several."""
    low, high = np.percentile(values[1:], [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(values[0]), float(low), float(high)


def verdict(values: NDArray[np.float64]) -> str:
    """Of a margin: it "holds" where its interval is above zero, "does not hold" where it is below, else it is a "tie"."""
    _, low, high = interval(values)
    return "holds" if low > 0 else "does not hold" if high < 0 else "tie"


def median(values: NDArray[np.float64], number: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """An entry of `draws` for the median of `values`, one an image, NaN left out: of all of them, then of each draw."""
    kept = np.asarray(values, dtype=float)
    kept = kept[~np.isnan(kept)]
    drawn = kept[np.random.default_rng(seed).integers(len(kept), size=(number, len(kept)))]
    return np.concatenate([[np.median(kept)], np.median(drawn, axis=1)])

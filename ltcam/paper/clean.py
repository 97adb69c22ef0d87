"""Images without a defect: what the classifier says of them, and what each method's mask covers there. In one view.

A pair is an image and a class; it is clean where the class is absent. Each map explains the class all the same. A gated mask is
empty unless the classifier finds the class: a logit above 0 with a sigmoid, the largest one with a softmax.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltcam.experiment.protocol import Way
from ltcam.experiment.scores import Counts, Floats, draws, ends, resampled
from ltcam.experiment.study import Study
from ltcam.paper import shares
from ltcam.paper.registry import Need, result
from ltcam.paper.tables import BOTH, SEVEN

AREA = Way(SEVEN["Grad-CAM"], "argmax", 0.5)  # the only counts of background, so that they tell the size of each image


def needs(study: Study) -> list[Need]:
    seven = [*SEVEN.values()]
    own = lambda name: shares.own(study, name, seven)  # noqa: E731
    return [Need(seven, protocol=replace(study.protocol, labels="all"), own=own, ways=[AREA])]


def surety(study: Study) -> pd.DataFrame:
    """By how much the logit of every pair is above the gate: training, name, class, surety."""
    found, (need,) = [], needs(study)
    for name, seed in study.trainings[["name", "seed"]].itertuples(index=False):
        exact = study.store.logits(study.measured(name, [*map(Way, SEVEN.values())], protocol=need.protocol))
        logits = exact.map("{:.6g}".format).astype(float)  # as exports have them: ties stay ties
        if study.loss == "softmax":
            logits = pd.DataFrame({c: own - logits.drop(columns=c).max(axis=1) for c, own in logits.items()})
        table = logits.reset_index().melt("name", var_name="class", value_name="surety")
        found.append(table.astype({"class": int}).assign(training=seed))
    return pd.concat(found)


def auroc(score: Floats, present: NDArray[np.bool_], weights: Floats) -> Floats:
    """(draws,) in percent: how often a pair with the class scores above one without it, where a tie is half. score, present:
    (pairs,); weights (draws, pairs): how often a draw has each pair."""
    above, below, mine, others = score[present][:, None], score[~present], weights[:, present], weights[:, ~present]
    won = (mine @ ((above > below) + (above == below) / 2) * others).sum(axis=1)
    return np.asarray(100 * won / (mine.sum(axis=1) * others.sum(axis=1)).clip(min=1))


@result("Images without a defect", needs, losses=BOTH, tables=(4,), setting="second_cut")
def clean(study: Study) -> pd.DataFrame:
    """Row "classifier": its AUROC over all pairs, and in `masks` the clean pairs in which it finds the class. Then each method,
    by cut and gate, in percent:

    masks      the clean pairs with any mask. If not gated, this says no more than that a map is not zero everywhere
    area       the mean share of the image that the mask of a clean pair covers, 0 without one; its median, and what a tenth
               exceeds (tenth)
    defective  the median share where the class is present
    IoU        pooled over all pairs, clean ones too

    Images whose masks do not show their defects count for the AUROC alone.
    """
    (need,), seven, t = needs(study), [*SEVEN.values()], {name: {AREA.config: AREA.t} for name in study.names}
    by_cut = {"otsu": study.counts(seven, protocol=need.protocol), "share": shares.counts(study, seven, protocol=need.protocol)}
    whole = study.counts([AREA.config], protocol=need.protocol, cut=AREA.cut, t=t)
    sizes = whole.pairs.assign(pixels=whole.values[:, 0, ::2].sum(axis=1)).groupby(["training", "name"])["pixels"].sum()
    pairs = by_cut["otsu"].pairs.merge(surety(study), how="left").join(sizes, on=["training", "name"])
    sure, empty = pairs["surety"].to_numpy(), pairs["name"].isin(study.dataset.empty).to_numpy()
    shown = by_cut["otsu"].values[:, 0, ::2].sum(axis=1) > 0
    absent, each = ~(shown | empty), (len(study.seeds), -1)
    weights = resampled(pairs["group"].iloc[: len(pairs) // each[0]]).astype(float)

    def mean(values: NDArray[Any]) -> Floats:
        """(draws, trainings) in percent, over clean pairs."""
        drawn = weights * absent.reshape(each)[0]
        return np.asarray(100 * drawn @ values.reshape(each).T / drawn.sum(axis=1, keepdims=True).clip(min=1))

    ranked = [auroc(s, ~a, weights) for s, a in zip(sure.reshape(each), absent.reshape(each), strict=True)]
    alarms = {"row": "classifier", "cut": "", "gated": True, "masks": mean(sure > 0)[0].mean()}
    rows = [alarms | ends(np.stack(ranked, axis=1), "AUROC", "AUROC_low", "AUROC_high")]
    for (cut, found), gated in product(by_cut.items(), (False, True)):
        missed = found.values[..., ::2].sum(axis=-1, keepdims=True) * [0, 0, 1]
        values = np.where((sure > 0)[:, None, None] | (not gated), found.values, missed)
        iou = draws(Counts(found.pairs, found.configs, values).where(~empty), "IoU")
        covered = values[..., :2].sum(axis=-1) / pairs[["pixels"]].to_numpy()
        for row, config, own in zip(SEVEN, seven, covered.T, strict=True):
            about: dict[str, Any] = {"row": row, "cut": cut, "gated": gated, "masks": mean(own > 0)[0].mean()}
            about |= ends(mean(own), "area", "area_low", "area_high")
            quantiles = [*np.quantile(own[absent], (0.5, 0.9)), np.median(own[shown])]
            about |= {n: 100 * q for n, q in zip(("median", "tenth", "defective"), quantiles, strict=True)}
            rows.append(about | ends(iou[config], "IoU", "IoU_low", "IoU_high"))
    return pd.DataFrame(rows)

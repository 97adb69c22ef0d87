"""Why truncation and fusion do what they do: what the two signs of a gradient carry, and what each stage adds to the sum.

Before its ReLU (Eq. 3), Grad-CAM's map is a difference of two maps: that of the channels' positive gradients, which delta = 0
keeps, and that of the negative ones. Subtracting the negative map helps where it lies beside the object and hurts where it lies
on it. `signs` uses the masks to measure where it lies. `stages` measures what each stage's map weighs in Eq. 8, and how much of
it is left as delta rises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ltcam.engine.cam import wide
from ltcam.engine.methods import gradcam
from ltcam.engine.traces import Trace
from ltcam.engine.tricks import truncate

DELTAS: tuple[float | None, ...] = (None, 0.0, 20.0, 60.0, 90.0)


def signs(traced: Trace, objects: Sequence[Tensor]) -> Iterator[list[Any]]:
    """(pair, stage, positive, negative, weight): where the maps of the two signs lie, and what the negative one weighs.

    objects: for each pair the area of its object, (H, W) float, NaN where void. positive, negative: the share of the map on the
    object, divided by the object's share of the image; 1 is chance. weight: the sum of the negative map divided by that of the
    positive map. An empty map gives NaN.
    """
    for stage, layer in traced.stages.items():
        activation, gradient = wide(traced.activation(layer)), wide(traced.gradient(layer))
        maps = [gradcam(activation, (sign * gradient).clamp(min=0)).double() for sign in (1, -1)]
        size = (maps[0].shape[1], maps[0].shape[2])
        for pair, covered in enumerate(objects):
            valid = adaptive_avg_pool2d((~covered.isnan()).double()[None], size)[0]
            on = adaptive_avg_pool2d(covered.nan_to_num().double()[None], size)[0]
            area = on.sum() / valid.sum()
            lifts = [((m[pair] * on).sum() / (m[pair] * valid).sum() / area).item() for m in maps]
            yield [pair, stage, *lifts, (maps[1][pair].sum() / maps[0][pair].sum()).item()]


def overlap(signs: pd.DataFrame) -> pd.DataFrame:
    """How much of the negative map lies on the object at the deepest stage, divided by the same for the positive map.

    At 1 both lie on it alike; below 1 the negative map lies more beside it. Columns name, class, overlap. The overlap is NaN if
    a map is empty or the positive one lies wholly beside the object. signs: from `ltcam.paper.gradients`.
    """
    deepest = signs[signs["stage"] == signs["stage"].max()]
    ratio = deepest["negative"] / deepest["positive"].where(deepest["positive"] > 0)
    return pd.DataFrame({"name": deepest["name"], "class": deepest["class"], "overlap": ratio})


def stages(traced: Trace, deltas: Sequence[float | None] = DELTAS) -> Iterator[list[Any]]:
    """(pair, stage, delta, energy, half, kept), the last three in percent, for Grad-CAM's maps as Eq. 8 sums them.

    energy: the mean of the stage's map divided by the sum of all stages' means; half: the smallest share of the map's pixels
    that holds half of it; kept: the share of the gradients that is not zero. An empty map gives NaN.
    """
    for delta in deltas:
        kept = {stage: truncate(wide(traced.gradient(layer)), delta) for stage, layer in traced.stages.items()}
        maps = {s: gradcam(wide(traced.activation(traced.stages[s])), g).flatten(1).double() for s, g in kept.items()}
        total = torch.stack([m.mean(dim=1) for m in maps.values()]).sum(dim=0)
        for stage, m in maps.items():
            shares = m.sort(dim=1, descending=True).values.cumsum(dim=1) / m.sum(dim=1, keepdim=True)
            half = torch.where(shares[:, -1].isnan(), torch.nan, (shares < 0.5).sum(dim=1) + 1) / m.shape[1]
            left = (kept[stage] != 0).flatten(1).double().mean(dim=1)
            for pair, row in enumerate((100 * torch.stack([m.mean(dim=1) / total, half, left], dim=1)).tolist()):
                yield [pair, stage, delta, *row]

"""What the gradients of held-out images carry: why truncation and fusion do what they do. One pass serves three tables.

Before its ReLU (Eq. 3), Grad-CAM's map is that of the channels' positive gradients, which delta = 0 keeps, minus that of the
negative ones. Subtracting the negative map helps where it lies beside the object and hurts where it lies on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import BatchSampler
from tqdm import tqdm

from ltcam import data as datasets
from ltcam.data import Segmentation
from ltcam.data.base import VOID
from ltcam.engine.methods import gradcam
from ltcam.engine.shapes import wide
from ltcam.engine.trace import Trace, trace
from ltcam.engine.tricks import truncate
from ltcam.experiment.counting import identity
from ltcam.experiment.study import Study
from ltcam.experiment.trained import Trained
from ltcam.paper.registry import result

DELTAS: tuple[float | None, ...] = (None, 0.0, 20.0, 60.0, 90.0)
SHARES = (10.0, 20.0, 40.0, 60.0, 80.0, 90.0)
VERSION = 1  # of what is measured here: raise it when a number of a test changes


@result("Where positive and negative gradients lie", packed=True, measured=True)
def signs(study: Study) -> pd.DataFrame:
    """The rows of `where` for every scored pair."""
    return _looked_into(study, "signs", ["stage"], ["positive", "negative", "weight"])


@result("What each stage adds to the sum, and how much δ leaves", packed=True, measured=True)
def stages(study: Study) -> pd.DataFrame:
    """The rows of `weights` for every scored pair."""
    return _looked_into(study, "stages", ["stage", "delta"], ["energy", "half", "kept"])


@result("How much of the positive gradient δ drops", golden=("stage", "delta", "share"), measured=True)
def dropped(study: Study) -> pd.DataFrame:
    """The median over all scored pairs of the share in `losses`, by stage and delta."""
    table = _looked_into(study, "dropped", ["stage", "delta"], ["share"])
    return table.groupby(["stage", "delta"], as_index=False).agg({"share": "median"}).assign(data=study.title)


def _looked_into(study: Study, name: str, keys: list[str], values: list[str]) -> pd.DataFrame:
    """A table of the pass over the first seed's held-out parts, sorted by `keys`. It goes on after the last kept batch."""
    rows: list[list[Any]] = []
    for trained in study.folds():
        data = trained.load(trained.recipe.test)
        scored = sorted(data.scored[: study.settings["images"]], key=lambda i: int(data.labels[i].sum()))
        key = identity(trained, data, study.protocol) | {"gradients": VERSION, "images": study.settings["images"]}
        kept, batches = study.store.notes(key), BatchSampler(scored, study.protocol.batch_size, False)
        for number, batch in enumerate(tqdm(batches, data.title, disable=None, leave=False)):
            if number not in kept:
                kept[number] = _batch(trained, data, batch)
                study.store.note(key, number, kept[number])
            rows += kept[number][name]
    keys = ["name", "class", *keys]
    table = pd.DataFrame(rows, columns=[*keys, *values])
    return table.sort_values(keys, kind="stable", ignore_index=True, na_position="first").assign(data=study.title)


def _batch(trained: Trained, data: Segmentation, batch: Sequence[int]) -> dict[str, list[list[Any]]]:
    """The rows of each table for some images of `data`."""
    inputs = torch.stack([datasets.preprocess(data.image(i), trained.size) for i in batch])
    traced = trace(trained.model, inputs.to(next(trained.model.parameters())), data.labels[batch])
    masks = [torch.from_numpy(data.mask(i)).to(traced.logits.device) for i in batch]
    found = {"signs": where(traced, masks), "stages": weights(traced), "dropped": losses(traced)}
    named = [[data.entries[batch[image]].name, c] for image, c in traced.pairs.tolist()]
    return {table: [[*named[pair], *values] for pair, *values in rows] for table, rows in found.items()}


def where(traced: Trace, masks: Sequence[Tensor]) -> Iterator[list[Any]]:
    """(pair, stage, positive, negative, weight): where the maps of the two signs lie, and what the negative one weighs.

    masks: of the images, (H, W) uint8 as in `Sample`. positive, negative: the share of the map on the object, divided by the
    object's share of the image; 1 is chance. weight: the sum of the negative map divided by that of the positive map. Void
    pixels are not counted. An empty map gives NaN.
    """
    for stage, layer in traced.stages.items():
        activation, gradient = wide(traced.activation(layer)), wide(traced.gradient(layer))
        both = torch.stack([gradcam(activation, (sign * gradient).clamp(min=0)).double() for sign in (1, -1)], dim=1)
        for pair, (maps, (image, c)) in enumerate(zip(both, traced.pairs.tolist(), strict=True)):
            parts, size = (masks[image] != VOID, masks[image] == c + 1), (maps.shape[1], maps.shape[2])
            valid, on = (adaptive_avg_pool2d(part.double()[None], size) for part in parts)
            area = on.sum() / valid.sum()
            lifts = [((m * on).sum() / (m * valid).sum() / area).item() for m in maps]
            yield [pair, stage, *lifts, (maps[1].sum() / maps[0].sum()).item()]


def weights(traced: Trace, deltas: Sequence[float | None] = DELTAS) -> Iterator[list[Any]]:
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


def losses(traced: Trace, deltas: Sequence[float] = SHARES) -> Iterator[list[Any]]:
    """(pair, stage, delta, share): the percentage of the sum of positive gradients that Eq. 9 drops. NaN if there are none."""
    for stage, layer in traced.stages.items():
        whole, *left = (truncate(wide(traced.gradient(layer)), d).double().sum(dim=(1, 2, 3)) for d in (0, *deltas))
        for delta, own in zip(deltas, left, strict=True):
            yield from ([pair, stage, delta, share] for pair, share in enumerate((100 * (1 - own / whole)).tolist()))


def overlap(signs: pd.DataFrame) -> pd.DataFrame:
    """The negative map's share on the object at the deepest stage, divided by the positive map's: name, class, overlap.

    Below 1 the negative map lies more beside the object. NaN if a map is empty or the positive one lies wholly beside it.
    """
    deepest: pd.DataFrame = signs[signs["stage"] == signs["stage"].max()]
    ratio = deepest["negative"] / deepest["positive"].where(deepest["positive"] > 0)
    return deepest[["name", "class"]].assign(overlap=ratio)

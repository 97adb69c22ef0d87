"""How much of an image the classes of a data set cover."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ltcam import data as datasets
from ltcam.data import Segmentation
from ltcam.data.base import VOID
from ltcam.experiment.study import Study
from ltcam.paper.registry import result


def parts(study: Study) -> dict[str, Segmentation]:
    """The training part and the held-out part of the first training, by name."""
    recipe = next(iter(study.planned.values())).recipe
    return {part: datasets.load(study.data, part) for part in (recipe.train, recipe.test)}


def areas(data: Segmentation) -> pd.DataFrame:
    """One row per scored image and class in its label: name, class, kind, area in percent of the pixels that are not void."""
    rows = []
    for i in data.scored:
        pixels, entry = np.bincount(data.mask(i).ravel(), minlength=VOID + 1), data.entries[i]
        shares = pixels / max(pixels[:VOID].sum(), 1)
        rows += [
            (entry.name, data.classes[c], entry.kind, 100 * shares[c + 1]) for c in data.labels[i].nonzero().flatten().tolist()
        ]
    return pd.DataFrame(rows, columns=["name", "class", "kind", "area"])


def by_class(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of `areas` for each class, or for each kind if there are kinds."""
    return {str(c): own for c, own in table.groupby(table["kind"].where(table["kind"] != "", table["class"]))}


def summary(data: Segmentation) -> pd.DataFrame:
    """One row per class (or kind) and one for all: class, images that have it, 10%, median, 90% of `areas` in percent."""
    groups = {**by_class(table := areas(data)), "all": table}
    rows = [(c, t["name"].nunique(), *t["area"].quantile([0.1, 0.5, 0.9])) for c, t in groups.items()]
    return pd.DataFrame(rows, columns=["class", "images", "10%", "median", "90%"])


@result("How much of an image a class covers", tolerance=0.01, measured=True)
def data(study: Study) -> pd.DataFrame:
    """The `summary` of each part, one below the other, with a column `part`."""
    return pd.concat([summary(own).assign(part=part) for part, own in parts(study).items()], ignore_index=True)


def classes(parts: Mapping[str, Segmentation]) -> pd.DataFrame:
    """The number of images, of those without a class, and of those with each class that occurs; one column per part."""
    first = next(iter(parts.values()))
    counts = {part: [len(d), int((~d.labels.any(1)).sum()), *d.labels.sum(0).int().tolist()] for part, d in parts.items()}
    table = pd.DataFrame(counts, index=["images", "without a class", *first.classes])
    return table[table.any(axis=1)].rename_axis(first.title)

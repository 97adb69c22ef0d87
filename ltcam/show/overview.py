"""A data set at a glance: how much of an image its classes cover, and typical samples."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from ltcam import files
from ltcam.data.base import VOID, Segmentation
from ltcam.errors import InputError
from ltcam.experiment import provenance
from ltcam.show import plotting

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler


def areas(data: Segmentation) -> pd.DataFrame:
    """One row per scored image and class in its label: name, class, kind, area in percent of the non-void pixels."""
    rows = []
    for i in data.scored:
        pixels, entry = np.bincount(data.mask(i).ravel(), minlength=VOID + 1), data.entries[i]
        shares = 100 * pixels / max(pixels[:VOID].sum(), 1)
        rows += [(entry.name, data.classes[c], entry.kind, shares[c + 1]) for c in data.labels[i].nonzero().flatten().tolist()]
    return pd.DataFrame(rows, columns=["name", "class", "kind", "area"])


def by_class(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of `areas` for each class, or for each kind if there are kinds."""
    return {str(c): t for c, t in table.groupby(table["kind"].where(table["kind"] != "", table["class"]))}


def summary(data: Segmentation) -> pd.DataFrame:
    """One row per class (or kind) and one for all: class, images that have it, 10%, median, 90% of `areas` in percent."""
    groups = {**by_class(table := areas(data)), "all": table}
    rows = [(c, t["name"].nunique(), *t["area"].quantile([0.1, 0.5, 0.9])) for c, t in groups.items()]
    return pd.DataFrame(rows, columns=["class", "images", "10%", "median", "90%"])


def classes(parts: Mapping[str, Segmentation]) -> pd.DataFrame:
    """The number of images, of those without a class, and of those with each class that occurs; one column per part."""
    counts = {part: [len(d), int((~d.labels.any(dim=1)).sum()), *_images(d)] for part, d in parts.items()}
    first = next(iter(parts.values()))
    table = pd.DataFrame(counts, index=["images", "without a class", *first.classes])
    return table[table.any(axis=1)].rename_axis(first.title)


def summaries(parts: Mapping[str, Segmentation]) -> pd.DataFrame:
    """The `summary` of each part, one below the other, with a column `part`."""
    return pd.concat([summary(data).assign(part=part) for part, data in parts.items()], ignore_index=True)


def keep(table: pd.DataFrame, parts: Mapping[str, Segmentation], profile: str, data: str) -> None:
    """Save `summaries` as data.csv among the results, with the fingerprint of each part."""
    about = {part: {"images": len(d), "fingerprint": d.fingerprint} for part, d in parts.items()}
    title = list(parts.values())[-1].title
    provenance.save(table, files.results(profile, data) / "data.csv", time.time(), data=title, parts=about)


def found(text: str) -> Markdown:
    """A paragraph of `ltcam.paper.sentences`, for display."""
    return Markdown(text)  # type: ignore[no-untyped-call]


def side_by_side(table: pd.DataFrame) -> Styler:
    """`summaries` for display: one row per class, "all" last, and the columns of the parts side by side."""
    wide = table.astype({"images": "Int64"}).pivot(index="class", columns="part").swaplevel(axis=1)
    wide = wide[list(dict.fromkeys(table["part"]))].sort_index(key=lambda c: c == "all", kind="stable")
    return wide.style.format(precision=2, na_rep="")


def against_cells(sets: Mapping[str, Segmentation]) -> pd.DataFrame:
    """`against_cell`, one row per data set."""
    return pd.DataFrame({title: against_cell(data) for title, data in sets.items()}).T


def against_cell(data: Segmentation) -> dict[str, float]:
    """In percent: median of `areas`, area of a cell of VGG16's S5, share of smaller areas, IoU of the median plus a cell."""
    area, cell = areas(data)["area"], 100 / ((data.size[0] // 32) * (data.size[1] // 32))
    median = area.median()
    return {"median": median, "cell": cell, "smaller": 100 * (area < cell).mean(), "IoU": 100 * median / (median + cell)}


def samples_figure(data: Segmentation, count: int = 8) -> Figure:
    """`count` images, one per column: plain, and with the mask of one class outlined. Titles: its name (or kind) and area.

    The classes take turns, and samples are spread evenly over the areas of each. Raises InputError if there is nothing to show.
    """
    table = areas(data).sample(frac=1, random_state=0).drop_duplicates("name")
    groups = [t.sort_values(["area", "name"]) for t in by_class(table).values()]
    if not groups or count < 1:
        raise InputError(f"{count} samples of {data.title}, part {data.part}: expected at least one, of an image with a class")
    groups = random.Random(0).sample(groups, len(groups))
    turns = -(-count // len(groups))
    chosen = pd.DataFrame([t.iloc[int((k + 0.5) / turns * len(t))] for k in range(turns) for t in groups][:count])
    samples = [data[[entry.name for entry in data.entries].index(name)] for name in chosen["name"]]
    masks = [s.mask == data.classes.index(c) + 1 for s, c in zip(samples, chosen["class"], strict=True)]
    titles = [f"{kind or c}\n{area:.2f}%" for _, c, kind, area in chosen.itertuples(index=False)]
    return plotting.strip([s.image for s in samples], titles, masks)


def areas_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """The distribution of the areas in each {title: areas}, one row each, on a log scale. Areas of 0 are not drawn."""
    rows = {f"{title} ({len(t)})": t.loc[t["area"] > 0, "area"].to_numpy() for title, t in tables.items()}
    return plotting.distributions(rows, "area of a class, % of the image")


def _images(data: Segmentation) -> list[int]:
    return [int(n) for n in data.labels.sum(dim=0)]

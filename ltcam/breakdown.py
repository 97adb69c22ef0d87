"""Where a score comes from: by class or defect type, by the object's share of the image, by how many classes an image has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltcam.datasets import Segmentation
from ltcam.evaluation import Config, configurations
from ltcam.intervals import DRAWS, VERDICTS, draws, interval, verdict

QUANTILES = 5
Gain = tuple[Config, Config]  # with and without


def pairs(data: Segmentation) -> pd.DataFrame:
    """Every scored (image, class) pair of headline classes with what it can be grouped by: one row each.

    Columns name, class (its number), kind (the class's name, or the defect's type), area (percent of the image that it covers,
    void not counted), classes (how many the image has).
    """
    rows = []
    for i in data.scored:
        mask, entry = data.mask(i), data.entries[i]
        present = [int(c) for c in data.labels[i].nonzero().flatten()]
        for c in present:
            if c in (data.headline or present):
                area = 100 * float((mask == c + 1).mean())
                rows.append([entry.name, c, entry.kind or data.classes[c], area, len(present)])
    return pd.DataFrame(rows, columns=["name", "class", "kind", "area", "classes"])


def groups(pairs: pd.DataFrame) -> dict[str, pd.Series[str]]:
    """{what it is grouped by: the group of each pair}: kind, area (fifths, named by their range in percent), classes."""
    found = {"kind": pairs["kind"]}
    fifths = pairs["area"].groupby(pd.qcut(pairs["area"].rank(method="first"), QUANTILES, labels=False))
    ends = zip(fifths.transform("min"), fifths.transform("max"), strict=True)
    found["area"] = pd.Series([f"{low:.2g} to {high:.2g}%" for low, high in ends], pairs.index)
    if pairs["classes"].nunique() > 1:
        found["classes"] = pairs["classes"].map(lambda n: f"{n}" if n < 3 else "3 or more")
    return found


def table(
    counts: pd.DataFrame, pairs: pd.DataFrame, configs: Mapping[str, Config], gains: Mapping[str, Gain], number: int = DRAWS
) -> pd.DataFrame:
    """Pooled IoU of every configuration and the points every gain is worth, group by group, with intervals over images.

    Columns by, group, images, area (the median of the group's pairs, in percent), row, value, ci_low, ci_high, and of gains
    verdict ("better", "worse", "tie"). Kinds and areas are in order of their median area.
    """
    wanted = {*configs.values(), *(config for gain in gains.values() for config in gain)}
    counts = counts[[config in wanted for config in configurations(counts)]]
    rows = []
    for by, labels in groups(pairs).items():
        order = pairs["area"].groupby(labels).median().sort_values().index if by != "classes" else sorted(labels.unique())
        for group in order:
            chosen = pairs[labels == group]
            scores = draws(counts.merge(chosen[["name", "class"]]), "IoU", number=number)
            about = {"by": by, "group": group, "images": chosen["name"].nunique(), "area": chosen["area"].median()}
            for name, config in configs.items():
                rows.append(about | {"row": name} | _ends(scores[config]))
            for name, (with_it, without) in gains.items():
                margin = scores[with_it] - scores[without]
                rows.append(about | {"row": name} | _ends(margin) | {"verdict": VERDICTS[verdict(margin)]})
    return pd.DataFrame(rows)


def each(counts: pd.DataFrame, pairs: pd.DataFrame, gains: Mapping[str, Gain]) -> pd.DataFrame:
    """What every gain is worth on every single pair, in points of its IoU: `pairs` with a column a gain."""
    rows = counts.set_index(["name", "class"]).loc[pd.MultiIndex.from_frame(pairs[["name", "class"]])]
    iou = 100 * rows["tp"] / (rows["tp"] + rows["fp"] + rows["fn"]).clip(lower=1)
    config = pd.Series(configurations(rows), rows.index)
    return pairs.assign(**{name: (iou[config == a] - iou[config == b]).to_numpy() for name, (a, b) in gains.items()})


def _ends(values: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(("value", "ci_low", "ci_high"), interval(values), strict=True))

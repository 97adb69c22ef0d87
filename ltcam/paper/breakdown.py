"""Where a score comes from: by class or defect type, by the object's share of the image, by the number of classes in an image,
and by how far negative gradients lie on the object (`ltcam.paper.gradients.overlap`)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ltcam.experiment.scores import DRAWS, draws, ends, resampled
from ltcam.experiment.study import Study
from ltcam.paper.ablations import ROWS, TRICKS, needs
from ltcam.paper.areas import areas
from ltcam.paper.gradients import overlap
from ltcam.paper.registry import make, result
from ltcam.paper.tables import margin

AMOUNTS = {"area": "{:.2g} to {:.2g}%", "overlap": "{:.2g} to {:.2g}"}  # grouped into fifths, which are named by their range
FIXED = "overlap, area fixed"
SHOWN = ["truncation at S5", "fusion of S1 to S5", "both"]  # gains that figures and correlations are of
BY_CLASS, CLASSES = "overlap, class by class", 10  # only if there are so many classes
VALUE = ("value", "ci_low", "ci_high")
PAIR = ["name", "class"]


@result("How much of an image each object covers", needs, packed=True, measured=True)
def pairs(study: Study) -> pd.DataFrame:
    """One row per scored (image, class) pair of the first seed: name, class (its number), kind (the class's name or the type of
    defect), area (as in `areas`), classes (how many the image has), overlap."""
    tables = []
    for data in (trained.load(trained.recipe.test) for trained in study.folds()):
        table = areas(data)
        kinds, numbers = table["kind"].where(table["kind"] != "", table["class"]), table["class"].map(data.classes.index)
        tables.append(table.assign(kind=kinds, classes=table.groupby("name")["name"].transform("size"), **{"class": numbers}))
    return pd.concat(tables, ignore_index=True).merge(overlap(make("signs", study)), how="left").assign(data=study.title)


def fifths(amounts: pd.Series[float], named: str) -> pd.Series[str]:
    """The fifth that each amount is in, named by its ends as `named` formats them. NaN is in none."""
    known = amounts.dropna()
    parts = known.groupby(pd.qcut(known.rank(method="first"), 5, labels=False))
    return parts.transform(lambda part: named.format(part.min(), part.max())).reindex(amounts.index)


@result("Scores by class or defect type, object size, number of classes, and overlap of the signs", needs)
def breakdown(study: Study) -> pd.DataFrame:
    """The pooled IoU of every row of `ablations` and the points of every gain, group by group, with intervals over images.

    Columns by, group, images, area (the median of the group's pairs, in percent), row, value, ci_low, ci_high, and for gains
    verdict ("better", "worse", "equal", "open" by `judge`). Kinds are ordered by median area, fifths from low to high.
    """
    counts, amounts, rows = study.counts(ROWS.values(), seeds=study.settings["ablated"]), make("pairs", study), []
    of_pair = pd.MultiIndex.from_frame(counts.pairs[PAIR])
    labels_of = {"kind": amounts["kind"]}
    labels_of |= {amount: fifths(amounts[amount], named) for amount, named in AMOUNTS.items() if amount in amounts}
    if amounts["classes"].nunique() > 1:
        labels_of["classes"] = amounts["classes"].map(lambda n: f"{n}" if n < 3 else "3 or more")
    for by, labels in labels_of.items():
        order = amounts["area" if by == "kind" else by].groupby(labels).median().sort_values().index
        for group, chosen in ((group, amounts[labels == group]) for group in order):
            scores = draws(counts.where(of_pair.isin(pd.MultiIndex.from_frame(chosen[PAIR]))), "IoU")
            own = {name: scores[config] for name, config in ROWS.items()}
            said = {name: ends(values) for name, values in own.items()}
            said |= {trick: margin(own[made] - own[before], VALUE) for trick, (made, before) in TRICKS.items()}
            about = {"by": by, "group": group, "images": chosen["name"].nunique(), "area": chosen["area"].median()}
            rows += [{**about, "row": name, **values} for name, values in said.items()]
    return pd.DataFrame(rows).assign(data=study.title, metric="IoU")


def each(study: Study) -> pd.DataFrame:
    """`pairs` with the image's group and a column for each gain: its value on the pair, in points, averaged over trainings."""
    counts, amounts = study.counts(ROWS.values(), seeds=study.settings["ablated"]), make("pairs", study)
    iou = pd.DataFrame(counts.iou(), pd.MultiIndex.from_frame(counts.pairs[PAIR]), list(ROWS))
    means = iou.groupby(level=PAIR).mean().loc[pd.MultiIndex.from_frame(amounts[PAIR])].reset_index(drop=True)
    group = amounts["name"].map(counts.pairs.groupby("name")["group"].first())
    return amounts.assign(group=group, **{trick: means[made] - means[before] for trick, (made, before) in TRICKS.items()})


@result("What the gains correlate with", needs)
def correlations(study: Study) -> pd.DataFrame:
    """Spearman's rank correlation of the gains on single pairs with every amount that varies.

    Columns gain, amount ("area", "overlap", "classes"; "overlap, area fixed" is the partial correlation, "overlap, class by
    class" that of a class's mean gain with its median overlap), images, value in [-1, 1], ci_low, ci_high (the bootstrap of
    scores, over groups of images), and verdict: the gain "rises" or "falls" with the amount, or it is "open".
    """
    return correlated(each(study)).assign(data=study.title, metric="IoU")


def correlated(each: pd.DataFrame, number: int = DRAWS) -> pd.DataFrame:
    """The table of `correlations` from the function `each`."""
    amounts = [name for name in (*AMOUNTS, "classes") if name in each and each[name].nunique() > 1]
    known = each.dropna(subset=amounts).reset_index(drop=True)
    picks = [np.repeat(np.arange(len(known)), often) for often in resampled(known["group"], number)]
    ranked = pd.concat([known.loc[pick, [*SHOWN, *amounts]].rank().corr() for pick in picks], keys=range(len(picks)))
    wide = "overlap" in amounts and known["kind"].nunique() >= CLASSES
    by_class = pd.DataFrame([_by_class(known.loc[pick]) for pick in picks] if wide else [])
    found, about = [], {"images": known["name"].nunique()}
    for gain in SHOWN:
        values = ranked.xs(gain, level=1)[amounts]
        if {"area", "overlap"} <= {*amounts}:  # the partial correlation; NaN where the area tells all of either
            area, other = values["area"], ranked.xs("area", level=1)["overlap"]
            left = pd.Series(np.sqrt((1 - area**2).clip(lower=0) * (1 - other**2).clip(lower=0)))
            values = values.assign(**{FIXED: (values["overlap"] - area * other) / left.where(left > 1e-9)})
        values = values.assign(**{BY_CLASS: by_class[gain].to_numpy()}) if wide else values
        for amount, own in values.items():
            found.append({"gain": gain, "amount": amount, **about, **margin(own.to_numpy(), VALUE, ("rises", "falls"), near=0)})
    return pd.DataFrame(found)


def _by_class(pairs: pd.DataFrame) -> pd.Series[float]:
    """The rank correlation over classes of each gain's mean with the median overlap."""
    found = pairs.groupby("kind").agg(dict.fromkeys(SHOWN, "mean") | {"overlap": "median"})
    return found[[*SHOWN]].corrwith(found["overlap"], method="spearman")

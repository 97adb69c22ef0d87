"""Where a score comes from: by class or defect type, by the object's share of the image, by the number of classes in an image,
and by how far negative gradients lie on the object (`ltcam.paper.gradients.overlap`)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ltcam.experiment.scores import DRAWS, VERDICTS, Floats, draws, ends, verdict
from ltcam.experiment.study import Study
from ltcam.paper.ablations import GAINS, ROWS, labelled, needs
from ltcam.paper.gradients import overlap
from ltcam.paper.registry import make, result

QUANTILES = 5
AMOUNTS = {"area": "{:.2g} to {:.2g}%", "overlap": "{:.2g} to {:.2g}"}  # grouped into fifths, which are named by their range
FIXED = "overlap, area fixed"
SHOWN = ["truncation at S5", "fusion of S1 to S5", "both"]  # gains that figures and correlations are of
BY_CLASS, CLASSES = "overlap, class by class", 10  # only if there are so many classes


@result("How much of an image each object covers", needs, packed=True, measured=True)
def pairs(study: Study) -> pd.DataFrame:
    """One row per scored (image, class) pair of the first seed: name, class (its number), kind (the class's name or the type of
    defect), area (the percentage of the image that it covers), classes (how many the image has), overlap."""
    rows = []
    for trained in study.folds():
        data = trained.load(trained.recipe.test)
        for i in data.scored:
            mask, entry, present = data.mask(i), data.entries[i], data.labels[i].nonzero().flatten().tolist()
            for c in present:
                area = 100 * float((mask == c + 1).mean())
                rows.append([entry.name, c, entry.kind or data.classes[c], area, len(present)])
    table = pd.DataFrame(rows, columns=["name", "class", "kind", "area", "classes"])
    return table.merge(overlap(make("signs", study)), how="left").assign(data=study.title)


def groups(pairs: pd.DataFrame) -> dict[str, pd.Series[str]]:
    """{grouping: the group of each pair}, for the groupings kind, fifths of each of `AMOUNTS` in `pairs`, and classes."""
    found = {"kind": pairs["kind"]}
    found |= {amount: fifths(pairs[amount], named) for amount, named in AMOUNTS.items() if amount in pairs}
    if pairs["classes"].nunique() > 1:
        found["classes"] = pairs["classes"].map(lambda n: f"{n}" if n < 3 else "3 or more")
    return found


def fifths(amounts: pd.Series[float], named: str) -> pd.Series[str]:
    """The fifth that each amount is in, named by its ends as `named` formats them. NaN is in none."""
    known = amounts.dropna()
    parts = known.groupby(pd.qcut(known.rank(method="first"), QUANTILES, labels=False))
    spans = zip(parts.transform("min"), parts.transform("max"), strict=True)
    return pd.Series([named.format(low, high) for low, high in spans], known.index, dtype=str).reindex(amounts.index)


@result("Scores by class or defect type, object size, number of classes, and overlap of the signs", needs)
def breakdown(study: Study) -> pd.DataFrame:
    """The pooled IoU of every row of `ablations` and the points of every gain, group by group, with intervals over images.

    Columns by, group, images, area (the median of the group's pairs, in percent), row, value, ci_low, ci_high, and for gains
    verdict ("better", "worse", "tie"). Kinds are ordered by median area, fifths from low to high.
    """
    counts, amounts, rows = study.counts(ROWS.values(), seeds=study.settings["ablated"]), make("pairs", study), []
    of_pair = pd.MultiIndex.from_frame(counts.pairs[["name", "class"]])
    for by, labels in groups(amounts).items():
        order = amounts["area" if by == "kind" else by].groupby(labels).median().sort_values().index
        for group in order:
            chosen = amounts[labels == group]
            scores = draws(counts.where(of_pair.isin(pd.MultiIndex.from_frame(chosen[["name", "class"]]))), "IoU")
            about = {"by": by, "group": group, "images": chosen["name"].nunique(), "area": chosen["area"].median()}
            for name, config in ROWS.items():
                rows.append(about | {"row": name} | ends(scores[config]))
            for name, (with_it, without) in GAINS.items():
                margin = scores[with_it] - scores[without]
                rows.append(about | {"row": name} | ends(margin) | {"verdict": VERDICTS[verdict(margin)]})
    return labelled(study, pd.DataFrame(rows), "IoU")


def each(study: Study) -> pd.DataFrame:
    """`pairs` with a column for each gain: its value on the pair, in points of IoU, averaged over trainings."""
    counts, amounts = study.counts(ROWS.values(), seeds=study.settings["ablated"]), make("pairs", study)
    iou = pd.DataFrame(counts.iou(), pd.MultiIndex.from_frame(counts.pairs[["name", "class"]]), list(ROWS))
    means = iou.groupby(level=[0, 1]).mean().loc[pd.MultiIndex.from_frame(amounts[["name", "class"]])]
    named = {config: name for name, config in ROWS.items()}
    gains = {name: (means[named[a]] - means[named[b]]).to_numpy() for name, (a, b) in GAINS.items()}
    return amounts.assign(**gains)


@result("What the gains correlate with", needs)
def correlations(study: Study) -> pd.DataFrame:
    """Spearman's rank correlation of the gains on single pairs with every amount that varies.

    Columns gain, amount ("area", "overlap", "classes"; "overlap, area fixed" is the partial correlation, "overlap, class by
    class" that of a class's mean gain with its median overlap), images, value in [-1, 1], ci_low, ci_high (bootstrap over
    images), and verdict: the gain "rises" or "falls" with the amount, or "tie".
    """
    return labelled(study, correlated(each(study)), "IoU")


def correlated(each: pd.DataFrame, number: int = DRAWS) -> pd.DataFrame:
    """The table of `correlations` from the function `each`."""
    amounts = [name for name in (*AMOUNTS, "classes") if name in each and each[name].nunique() > 1]
    known = each.dropna(subset=amounts).reset_index(drop=True)
    rows = [np.asarray(index) for index in known.groupby("name", sort=False).groups.values()]
    drawn = np.random.default_rng(0).integers(max(len(rows), 1), size=(number, len(rows)))
    picks = [np.arange(len(known)), *(np.concatenate([[], *(rows[i] for i in draw)]).astype(int) for draw in drawn)]
    both = np.array([known.loc[pick, [*SHOWN, *amounts]].rank().corr().to_numpy() for pick in picks])  # Spearman's
    wide = "overlap" in amounts and known["kind"].nunique() >= CLASSES
    by_class = [_by_class(known.loc[pick]) for pick in picks] if wide else []
    found = []
    for g, gain in enumerate(SHOWN):
        values = {amount: both[:, g, a] for a, amount in enumerate(amounts, len(SHOWN))}
        if {"area", "overlap"} <= values.keys():
            of_amounts = both[:, len(SHOWN) + amounts.index("area"), len(SHOWN) + amounts.index("overlap")]
            values[FIXED] = _partial(values["overlap"], values["area"], of_amounts)
        values |= {BY_CLASS: np.array([draw[gain] for draw in by_class])} if wide else {}
        for amount, value in values.items():
            said = {"holds": "rises", "does not hold": "falls", "tie": "tie"}[verdict(value)]
            found.append({"gain": gain, "amount": amount, "images": len(rows)} | ends(value) | {"verdict": said})
    return pd.DataFrame(found)


def _by_class(pairs: pd.DataFrame) -> pd.Series[float]:
    """The rank correlation over classes of each gain's mean with the median overlap."""
    found = pairs.groupby("kind").agg(dict.fromkeys(SHOWN, "mean") | {"overlap": "median"})
    return found[[*SHOWN]].corrwith(found["overlap"], method="spearman")


def _partial(xy: Floats, xz: Floats, yz: Floats) -> Floats:
    """The correlation of x and y with z held fixed, from the three correlations. NaN where z tells all of x or y."""
    left = np.sqrt((1 - xz**2).clip(min=0) * (1 - yz**2).clip(min=0))
    return np.asarray(np.divide(xy - xz * yz, left, out=np.full_like(xy, np.nan), where=left > 1e-9))


def shown(grouped: pd.DataFrame, rows: list[str]) -> pd.DataFrame:
    """The values of some rows of `breakdown`, side by side: one row per group, in its order."""
    chosen = grouped[grouped["row"].isin(rows)]
    wide = chosen.pivot(index=["by", "group"], columns="row", values="value")
    return wide.loc[list(dict.fromkeys(zip(chosen["by"], chosen["group"], strict=True)))]

"""Where a score comes from: by class or defect type, by the object's share of the image, by the number of classes in an image,
and by how far negative gradients lie on the object (`ltcam.paper.anatomy.overlap`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltcam.data import Segmentation
from ltcam.experiment.configs import Config, configurations
from ltcam.experiment.intervals import DRAWS, VERDICTS, draws, ends, verdict

QUANTILES = 5
AMOUNTS = {"area": "{:.2g} to {:.2g}%", "overlap": "{:.2g} to {:.2g}"}  # grouped into fifths, which are named by their range
FIXED = "overlap, area fixed"
SHOWN = ["truncation at S5", "fusion of S1 to S5", "both"]  # gains that figures and correlations are of
BY_CLASS, CLASSES = "overlap, class by class", 10  # only if there are so many classes
Gain = tuple[Config, Config]  # with and without


def pairs(data: Segmentation) -> pd.DataFrame:
    """One row per scored (image, class) pair: name, class (its number), kind (the class's name or the type of defect), area
    (the percentage of the image that it covers), classes (how many the image has)."""
    rows = []
    for i in data.scored:
        mask, entry, present = data.mask(i), data.entries[i], data.labels[i].nonzero().flatten().tolist()
        for c in present:
            area = 100 * float((mask == c + 1).mean())
            rows.append([entry.name, c, entry.kind or data.classes[c], area, len(present)])
    return pd.DataFrame(rows, columns=["name", "class", "kind", "area", "classes"])


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
    ends = zip(parts.transform("min"), parts.transform("max"), strict=True)
    return pd.Series([named.format(low, high) for low, high in ends], known.index, dtype=str).reindex(amounts.index)


def table(
    counts: pd.DataFrame, pairs: pd.DataFrame, configs: Mapping[str, Config], gains: Mapping[str, Gain], number: int = DRAWS
) -> pd.DataFrame:
    """The pooled IoU of every configuration and the points of every gain, group by group, with intervals over images.

    Columns by, group, images, area (the median of the group's pairs, in percent), row, value, ci_low, ci_high, and for gains
    verdict ("better", "worse", "tie"). Kinds are ordered by median area, fifths from low to high.
    """
    wanted = {*configs.values(), *(config for gain in gains.values() for config in gain)}
    counts = counts[[config in wanted for config in configurations(counts)]]
    rows = []
    for by, labels in groups(pairs).items():
        order = pairs["area" if by == "kind" else by].groupby(labels).median().sort_values().index
        for group in order:
            chosen = pairs[labels == group]
            scores = draws(counts.merge(chosen[["name", "class"]]), "IoU", number=number)
            about = {"by": by, "group": group, "images": chosen["name"].nunique(), "area": chosen["area"].median()}
            for name, config in configs.items():
                rows.append(about | {"row": name} | ends(scores[config]))
            for name, (with_it, without) in gains.items():
                margin = scores[with_it] - scores[without]
                rows.append(about | {"row": name} | ends(margin) | {"verdict": VERDICTS[verdict(margin)]})
    return pd.DataFrame(rows)


def each(counts: pd.DataFrame, pairs: pd.DataFrame, gains: Mapping[str, Gain]) -> pd.DataFrame:
    """`pairs` with a column for each gain: its value on the pair, in points of IoU, averaged over trainings."""
    iou = 100 * counts["tp"] / (counts["tp"] + counts["fp"] + counts["fn"]).clip(lower=1)
    where, config = pd.MultiIndex.from_frame(pairs[["name", "class"]]), pd.Series(configurations(counts), counts.index)
    means = {
        wanted: iou[config == wanted].groupby([counts["name"], counts["class"]]).mean().loc[where].to_numpy()
        for wanted in {config for gain in gains.values() for config in gain}
    }
    return pairs.assign(**{name: means[a] - means[b] for name, (a, b) in gains.items()})


def correlations(each: pd.DataFrame, gains: Sequence[str], number: int = DRAWS) -> pd.DataFrame:
    """Spearman's rank correlation of the gains on single pairs with every amount that varies.

    each: from the function `each`. Columns gain, amount ("area", "overlap", "classes"; "overlap, area fixed" is the partial
    correlation, "overlap, class by class" that of a class's mean gain with its median overlap), images, value in [-1, 1],
    ci_low, ci_high (bootstrap over images), and verdict: the gain "rises" or "falls" with the amount, or "tie".
    """
    amounts = [name for name in (*AMOUNTS, "classes") if name in each and each[name].nunique() > 1]
    known = each.dropna(subset=amounts).reset_index(drop=True)
    rows = [np.asarray(index) for index in known.groupby("name", sort=False).groups.values()]
    drawn = np.random.default_rng(0).integers(max(len(rows), 1), size=(number, len(rows)))
    picks = [np.arange(len(known)), *(np.concatenate([[], *(rows[i] for i in draw)]).astype(int) for draw in drawn)]
    both = np.array([known.loc[pick, [*gains, *amounts]].corr(method="spearman").to_numpy() for pick in picks])
    wide = "overlap" in amounts and known["kind"].nunique() >= CLASSES
    by_class = [_by_class(known.loc[pick], gains) for pick in picks] if wide else []
    found = []
    for g, gain in enumerate(gains):
        values = {amount: both[:, g, a] for a, amount in enumerate(amounts, len(gains))}
        if {"area", "overlap"} <= values.keys():
            of_amounts = both[:, len(gains) + amounts.index("area"), len(gains) + amounts.index("overlap")]
            values[FIXED] = _partial(values["overlap"], values["area"], of_amounts)
        values |= {BY_CLASS: np.array([draw[gain] for draw in by_class])} if wide else {}
        for amount, value in values.items():
            said = {"holds": "rises", "does not hold": "falls", "tie": "tie"}[verdict(value)]
            found.append({"gain": gain, "amount": amount, "images": len(rows)} | ends(value) | {"verdict": said})
    return pd.DataFrame(found)


def _by_class(pairs: pd.DataFrame, gains: Sequence[str]) -> pd.Series[float]:
    """The rank correlation over classes of each gain's mean with the median overlap."""
    found = pairs.groupby("kind").agg(dict.fromkeys(gains, "mean") | {"overlap": "median"})
    return found[[*gains]].corrwith(found["overlap"], method="spearman")


def _partial(xy: NDArray[np.float64], xz: NDArray[np.float64], yz: NDArray[np.float64]) -> NDArray[np.float64]:
    """The correlation of x and y with z held fixed, from the three correlations. NaN where z tells all of x or y."""
    left = np.sqrt((1 - xz**2).clip(min=0) * (1 - yz**2).clip(min=0))
    partial: NDArray[np.float64] = np.divide(xy - xz * yz, left, out=np.full_like(xy, np.nan), where=left > 1e-9)
    return partial


def shown(grouped: pd.DataFrame, rows: Sequence[str]) -> pd.DataFrame:
    """The values of some rows of `table`, side by side: one row per group, in the order of `grouped`."""
    chosen = grouped[grouped["row"].isin(rows)]
    wide = chosen.pivot(index=["by", "group"], columns="row", values="value")
    return wide.loc[list(dict.fromkeys(zip(chosen["by"], chosen["group"], strict=True)))]

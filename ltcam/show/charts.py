"""Charts of tables: what a change is worth, where and why, and scores over delta. Scores are in percent, changes in points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

COLORS = {"better": "tab:blue", "holds": "tab:blue", "worse": "tab:orange", "fails": "tab:orange"}  # equal and open are gray
HUES = "blue: holds or better; orange: fails or worse; gray: open or equal"  # apart for color-blind eyes too
LABELS = {"area": "object, % of the image", "overlap": "negative map on the object\nover positive map on it"}
CUTS = {"otsu": "Otsu's threshold", "argmax": "largest class or background"}
METHODS = ["tab:blue", "tab:orange", "tab:green"]  # the paper's in Figs. 4 and 5
DELTA = "δ (percentile of the positive gradients)"
READINGS = {"percentile": DELTA, "fraction of the maximum": "δ (percent of the largest gradient)"}
PARTS = {"energy": "share of the sum (%)", "half": "pixels that hold half of a map (%)", "kept": "gradients left (%)"}
BESIDE: dict[str, Any] = {"fontsize": 8, "loc": "upper left", "bbox_to_anchor": (1, 1)}  # a legend that hides no curve
WORDS: Mapping[str, str] = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
own_style = plt.style.context("default")  # a decorator: a user's matplotlibrc is for his own figures


@own_style
def lines(wide: pd.DataFrame, x: str, y: str, title: str = "", marker: str = "o") -> Figure:
    """A line for each column over the index, whose values are marked unless `marker` is empty."""
    figure, (axes,) = _panels([title], (6.4, 3.2))
    color = sns.color_palette("viridis_r", wide.shape[1])
    ticks = [*wide.index] if marker else None
    wide.plot(ax=axes, color=color, marker=marker, markersize=4, xlabel=x, ylabel=y, xticks=ticks, legend=False)
    if wide.shape[1] > 1:
        axes.legend(**BESIDE)
    return figure


@own_style
def swept(table: pd.DataFrame, part: str, names: Mapping[str, str], y: str, title: str) -> Figure:
    """A panel for each reading of δ: the score of each method with its interval, and dashed that without truncation.

    table: `ltcam.paper.tables.deltas`. The y axis is that of all its parts. names: of the methods, in the order of `METHODS`.
    """
    own, readings = table[table["part"] == part], sorted(table["by"].unique(), reverse=True)
    figure, axes = _panels([""] * len(readings), (2.4 + 4 * len(readings), 3.2), title)
    for panel, by in zip(axes, readings, strict=True):
        rows = own[(own["by"] == by) | ~(own["delta"] > 0)]  # those without truncation and at 0 are of both
        for (method, name), color in zip(names.items(), METHODS, strict=True):
            mine = rows[rows["method"] == method]
            curve, plain = mine.dropna(subset="delta").sort_values("delta"), mine.loc[mine["delta"].isna(), "value"].item()
            panel.plot(curve["delta"], curve["value"], "o-", color=color, markersize=4, label=name)
            panel.fill_between(curve["delta"], curve["ci_low"], curve["ci_high"], color=color, alpha=0.15, linewidth=0)
            panel.axhline(plain, color=color, linestyle="--", linewidth=1)
        panel.set_xlabel(READINGS[by])
    axes[0].set(ylabel=y, ylim=(table["ci_low"].min() - 0.5, table["ci_high"].max() + 0.5))
    axes[-1].legend(**BESIDE)
    return figure


@own_style
def forest(panels: Mapping[str, pd.DataFrame], columns: Sequence[str], x: str, title: str) -> Figure:
    """A panel for each table: in each row of it a dot with its interval, in the hue of its verdict. columns: of the tables, the
    value and its ends; beside them they have `label` and `verdict`."""
    labels, (value, low, high) = pd.concat([rows["label"] for rows in panels.values()]).unique(), columns
    size = 0.07 * max(map(len, labels)) + 2.4 * len(panels), 0.9 + 0.25 * len(labels)
    figure, axes = _panels([*panels], size, title)
    for panel, rows in zip(axes, panels.values(), strict=True):
        colors = rows["verdict"].str.split(",").str[0].map(COLORS).fillna("tab:gray")
        panel.hlines(rows["label"], rows[low], rows[high], colors, linewidth=2)
        panel.scatter(rows[value], rows["label"], s=25, c=colors)
        panel.grid(axis="x", alpha=0.3)
        if value != "value":  # but a difference
            panel.axvline(0, color="black", linewidth=0.8)
    axes[0].invert_yaxis()
    figure.supxlabel(f"{x}\n{HUES}", fontsize=9)
    return figure


def changes(table: pd.DataFrame, rows: Sequence[str], title: str) -> Figure:
    """What each change is worth, with its interval, a panel for each of `rows`. table: ablations.csv."""
    table = table[table["change"].notna() & (table["factor"] != "trick")]
    table = table.assign(label=(table["factor"] + " = " + table["level"]).map(words))
    panels = {row: table[table["row"] == row] for row in rows}
    return forest(panels, ("change", "change_low", "change_high"), "points from the defaults (95% interval)", title)


def claims(tables: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """The margin of every claim that was measured, with its interval and verdict: a panel for each of `tables`, claims.csv of a
    setting. Between -1 and 1 the axis is linear, beyond it is logarithmic."""
    known = {name: table[table["margin"].notna()] for name, table in tables.items()}
    panels = {name: own.assign(label=own["claim"].str.split(", a bound").str[0]) for name, own in known.items()}
    figure = forest(panels, ("margin", "ci_low", "ci_high"), "margin in points, or in rank correlation (95% interval)", title)
    for panel, rows in zip(figure.axes, panels.values(), strict=True):
        panel.set_xscale("symlog", linthresh=1)
        panel.set(xticks=[-10, -1, 0, 1, 10], xlim=(min(-2, rows["ci_low"].min() * 1.5), max(2, rows["ci_high"].max() * 1.5)))
        panel.xaxis.set_major_formatter("{x:g}")
        for label, verdict in rows[["label", "verdict"]].to_numpy():
            panel.annotate(verdict, (1.02, label), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    return figure


def words(named: str) -> str:
    """What a reader sees for a name in a table."""
    for code, said in WORDS.items():
        named = named.replace(code, said)
    return named


@own_style
def cross(table: pd.DataFrame, title: str) -> Figure:
    """The score over delta, with a row for each percentile scope and scale. table: cross.csv."""
    plain = table[table["delta"].isna()].set_index("normalize")["value"]  # for any scope
    wide = table.dropna(subset="delta").set_index(["per", "normalize", "delta"])["value"].unstack(sort=False)
    wide = wide.rename(columns="{:g}".format)
    wide.insert(0, "no truncation", plain[wide.index.get_level_values("normalize")].to_numpy())
    figure, (axes,) = _panels([title], (4 + 0.62 * wide.shape[1], 0.9 + 0.33 * len(wide)))
    sns.heatmap(wide, annot=True, fmt=".1f", cmap="viridis", cbar=False, annot_kws={"fontsize": 8}, ax=axes)
    axes.set(xlabel="δ", ylabel="")
    axes.set_yticklabels([words(f"per = {per}, normalize = {scale}") for per, scale in wide.index], rotation=0)
    return figure


@own_style
def gains(each: pd.DataFrame, grouped: pd.DataFrame, names: Sequence[str], title: str, by: str) -> Figure:
    """Points gained over an amount in `LABELS`: a dot for each pair, and a mean with its interval for each fifth of them.

    each: the amount, its fifth (`group`) and a column for each of `names`, a row for each pair; grouped: breakdown.csv.
    """
    figure, axes = _panels(names, (3.3 * len(names), 3), title)
    for panel, name in zip(axes, names, strict=True):
        panel.plot(each[by], each[name], ".", markersize=2.5, alpha=0.35)
        line = grouped[(grouped["by"] == by) & (grouped["row"] == name)]
        middles = line["group"].map(each.groupby("group")[by].median())
        reach = line[["ci_low", "ci_high"]].sub(line["value"], axis=0).abs().to_numpy().T
        panel.errorbar(middles, line["value"], reach, color="black", marker="o", markersize=4, capsize=3)
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set(xscale="log", xlabel=LABELS[by])
        panel.xaxis.set(**plain())
    axes[0].set_ylabel("points of IoU gained")
    return figure


@own_style
def signs(table: pd.DataFrame, title: str) -> Figure:
    """Where the maps of positive and of negative gradients lie, stage by stage. table: signs.csv.gz."""
    groups, signs = table.groupby("stage"), {"positive": "lightcoral", "negative": "lightblue"}
    rows = {f"{stage}, {sign}": own[sign].dropna() for stage, own in groups for sign in signs}
    figure = boxes(rows, "share on the object over the object's area", title, [*signs.values()])
    figure.axes[0].axvline(1, color="black", linewidth=0.8)
    return figure


@own_style
def stages(table: pd.DataFrame, title: str) -> Figure:
    """Each stage's weight in the sum, the share of its pixels that holds half of its map, and the gradients that are left."""
    delta = table["delta"].map("{:g}".format).replace("nan", "none")
    means = table.groupby([delta, "stage"], sort=False)[[*PARTS]].mean().unstack()
    figure, axes = _panels([*PARTS.values()], (10.5, 3.1), title, sharey=False)
    for panel, part in zip(axes, PARTS, strict=True):
        stacked, color = part == "energy", sns.color_palette("viridis_r", means[part].shape[1])
        means[part].plot(
            kind="bar" if stacked else "line", stacked=stacked, color=color, legend=False, rot=0, xlabel="δ", ax=panel
        )
        panel.set_xticks(range(len(means)), means.index)
        panel.set_ylim(0, None)
    axes[-1].legend(*axes[0].get_legend_handles_labels(), **BESIDE)
    return figure


def steps(table: pd.DataFrame, title: str) -> Figure:
    """A panel for each cut, and its score with the interval for each step. table: best.csv."""
    chosen = table[table["kind"] == "step"].assign(label=lambda own: own["name"].map(words))
    panels = {said: chosen[chosen["cut"] == cut] for cut, said in CUTS.items()}
    return forest(panels, ("value", "ci_low", "ci_high"), "score (%) with its 95% interval; hue: beside the step above", title)


@own_style
def boxes(rows: Mapping[str, Any], label: str, title: str = "", colors: Sequence[str] = ()) -> Figure:
    """A box of quartiles for each title, on a log scale, with whiskers at 10% and 90%. Without `colors` each value is a dot."""
    figure, (axes,) = _panels([title], (7, 0.9 + 0.32 * len(rows)))
    for y, row in enumerate(() if colors else rows.values(), 1):
        heights = y + np.random.default_rng(y).uniform(-0.25, 0.25, len(row))
        axes.plot(row, heights, ".", markersize=2.5, color="tab:blue", alpha=0.5)
    how: dict[str, Any] = {"whis": (10, 90), "showfliers": False, "medianprops": {"color": "black", "linewidth": 1.8}}
    how |= {"orientation": "horizontal", "tick_labels": [*rows], "widths": 0.6, "patch_artist": True}
    drawn = axes.boxplot([*rows.values()], **how)
    for box, color in zip(drawn["boxes"], cycle(colors or ["none"]), strict=False):
        box.set_facecolor(color)
    axes.set(xscale="log", xlabel=label)
    axes.xaxis.set(**plain())
    axes.invert_yaxis()
    return figure


def _panels(titles: Sequence[str], size: tuple[float, float], title: str = "", sharey: bool = True) -> tuple[Figure, Any]:
    """A figure with a panel for each of `titles`, side by side; size: (width, height) in inches."""
    figure, (axes,) = plt.subplots(1, len(titles), figsize=size, sharey=sharey, squeeze=False, layout="constrained")
    for panel, name in zip(axes, titles, strict=True):
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=10)
    return figure, axes


def plain() -> dict[str, Any]:
    """Of a logarithmic axis with plain numbers."""
    return {"major_locator": LogLocator(subs=(1, 3)), "major_formatter": "{x:g}", "minor_formatter": ""}

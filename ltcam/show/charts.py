"""Charts of tables: what a change is worth, where and why, and scores over delta. Scores are in percent, changes in points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

COLORS = {"better": "tab:green", "worse": "tab:red", "tie": "tab:gray"}
LABELS = {"area": "object, % of the image", "overlap": "negative map on the object\nover positive map on it"}
CUTS = {"otsu": "Otsu's threshold", "argmax": "largest class or background"}
PARTS = {"energy": "energy in the sum (%)", "half": "pixels that hold half of a map (%)", "kept": "gradients left (%)"}
BESIDE: dict[str, Any] = {"fontsize": 8, "loc": "upper left", "bbox_to_anchor": (1, 1)}  # a legend that hides no curve
BOXES: dict[str, Any] = {"whis": (10, 90), "showfliers": False, "medianprops": {"color": "black", "linewidth": 1.8}}


def panels(titles: Sequence[str], size: tuple[float, float], title: str, sharey: bool = True) -> tuple[Figure, Sequence[Any]]:
    """A figure with a panel for each of `titles`, side by side; size: (width, height) in inches."""
    figure, axes = plt.subplots(1, len(titles), figsize=size, sharey=sharey, squeeze=False, layout="constrained")
    for panel, name in zip(axes[0], titles, strict=True):
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=10)
    return figure, axes[0]


def lines(
    wide: pd.DataFrame, x: str, y: str, title: str = "", colors: Mapping[str, Any] | None = None,
    dashed: pd.Series[float] | None = None, marker: str = "o",
) -> Figure:  # fmt: skip
    """A line for each column over the index. dashed: what a column has without any truncation, drawn across in its color."""
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    chosen = colors or dict(zip(map(str, wide), sns.color_palette("viridis_r", wide.shape[1]), strict=True))
    wide.plot(marker=marker, markersize=4, color=chosen, xlabel=x, ylabel=y, legend=False, ax=axes)
    for name, value in ({} if dashed is None else dashed).items():
        axes.axhline(value, color=chosen[str(name)], linestyle="--", linewidth=1)
    if dashed is not None:
        axes.plot([], [], color="grey", linestyle="--", linewidth=1, label="no truncation")
    if marker:
        axes.set_xticks(wide.index)
    axes.set_title(title, fontsize=10)
    if wide.shape[1] > 1 or dashed is not None:
        axes.legend(**BESIDE)
    return figure


def changes(table: pd.DataFrame, rows: Sequence[str], title: str) -> Figure:
    """A forest plot: what each change is worth, with its interval, a panel for each of `rows`. table: ablations.csv."""
    table = table[table["change"].notna() & (table["factor"] != "trick")]
    table = table.assign(change_of=table["factor"] + " = " + table["level"], color=table["verdict"].map(COLORS))
    labels = list(dict.fromkeys(table["change_of"]))
    figure, axes = panels(rows, (2.3 + 2.1 * len(rows), 1 + 0.25 * len(labels)), title)
    for panel, row in zip(axes, rows, strict=True):
        chosen = table[table["row"] == row]
        heights = chosen["change_of"].map(labels.index)
        panel.hlines(heights, chosen["change_low"], chosen["change_high"], chosen["color"], linewidth=2)
        panel.scatter(chosen["change"], heights, s=25, c=chosen["color"])
        panel.axvline(0, color="black", linewidth=0.8)
        panel.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()
    figure.supxlabel("points from the defaults (95% interval)", fontsize=9)
    return figure


def cross(table: pd.DataFrame, title: str) -> Figure:
    """The score over delta, with a row for each percentile scope and scale. table: cross.csv."""
    scales = table["normalize"].unique()
    made = table["per"] + ", " + table["normalize"]
    wide = table.assign(made=made).dropna(subset="delta").pivot(index="made", columns="delta", values="value")
    wide = wide.loc[[f"{per}, {scale}" for per in ("layer", "channel") for scale in scales]].rename(columns="{:g}".format)
    wide.insert(0, "no truncation", [*table.loc[table["delta"].isna(), "value"]] * 2)
    figure, (axes,) = panels([title], (1.8 + 0.62 * len(wide.columns), 0.9 + 0.33 * len(wide)), "")
    sns.heatmap(wide, annot=True, fmt=".1f", cmap="viridis", cbar=False, annot_kws={"fontsize": 8}, ax=axes)
    axes.set(xlabel="δ", ylabel="percentile over, scale of each map")
    axes.tick_params(rotation=0)
    return figure


def gains(each: pd.DataFrame, grouped: pd.DataFrame, names: Sequence[str], title: str, by: str) -> Figure:
    """Points gained over an amount in `LABELS`: a dot for each pair, and a mean with its interval for each fifth of them.

    each: the amount, its fifth (`group`) and a column for each of `names`, a row for each pair; grouped: breakdown.csv.
    """
    figure, axes = panels(names, (3.3 * len(names), 3), title)
    middles = each.groupby("group")[by].median()
    for panel, name in zip(axes, names, strict=True):
        panel.plot(each[by], each[name], ".", markersize=2.5, color="tab:blue", alpha=0.35)
        line = grouped[(grouped["by"] == by) & (grouped["row"] == name)]
        panel.errorbar(
            line["group"].map(middles), line["value"], _ends(line), color="black", marker="o", markersize=4, capsize=3
        )
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set(xscale="log", xlabel=LABELS[by])
        _plain(panel.xaxis)
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("points of IoU gained")
    return figure


def signs(table: pd.DataFrame, title: str) -> Figure:
    """Where the maps of positive and of negative gradients lie, stage by stage: medians and quartiles over the pairs."""
    stages = sorted(table["stage"].unique())
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for offset, sign, color in ((-0.19, "positive", "tab:red"), (0.19, "negative", "tab:blue")):
        lifts = [table.loc[table["stage"] == stage, sign].dropna() for stage in stages]
        how: dict[str, Any] = BOXES | {"boxprops": {"facecolor": color, "alpha": 0.6}, "label": f"{sign} gradients"}
        axes.boxplot(lifts, positions=np.arange(len(stages)) + offset, widths=0.34, patch_artist=True, **how)
    axes.set_xticks(range(len(stages)), stages)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(ylabel="share on the object\nover the object's area", yscale="log")
    axes.set_title(title, fontsize=10)
    _plain(axes.yaxis)
    axes.legend(**BESIDE)
    return figure


def stages(table: pd.DataFrame, title: str) -> Figure:
    """Each stage's weight in the sum, the share of its pixels that holds half of its map, and the gradients that are left."""
    named = table.assign(delta=table["delta"].map(lambda delta: "none" if pd.isna(delta) else f"{delta:g}"))
    means = named.groupby(["delta", "stage"], sort=False)[[*PARTS]].mean()
    figure, axes = panels([*PARTS.values()], (10.5, 3.1), title, sharey=False)
    for panel, column in zip(axes, PARTS, strict=True):
        wide = means[column].unstack()
        how: dict[str, Any] = (
            {"kind": "bar", "stacked": True, "width": 0.8} if column == "energy" else {"marker": "o", "markersize": 4}
        )
        wide.plot(color=sns.color_palette("viridis_r", wide.shape[1]), legend=False, rot=0, xlabel="δ", ax=panel, **how)
        panel.set_xticks(range(len(wide)), wide.index)
        panel.set_ylim(0, None)
    axes[-1].legend(*axes[0].get_legend_handles_labels(), **BESIDE)
    return figure


def steps(table: pd.DataFrame, title: str) -> Figure:
    """A panel for each cut and a bar with its interval for each step. table: best.csv."""
    chosen = table[table["kind"] == "step"]
    height = 1 + 0.32 * int(chosen.groupby("cut").size().max())
    figure, axes = panels([*CUTS.values()], (9.6, height), title, sharey=False)
    for panel, cut in zip(axes, CUTS, strict=True):
        rows = chosen[chosen["cut"] == cut]
        panel.barh(rows["name"], rows["value"], xerr=_ends(rows), color="tab:blue", alpha=0.7, height=0.6)
        for y, (value, high) in enumerate(zip(rows["value"], rows["ci_high"], strict=True)):
            panel.text(high, y, f" {value:.1f}", va="center", fontsize=8)
        panel.margins(x=0.12)
        panel.invert_yaxis()
    figure.supxlabel("IoU (%) with its 95% interval", fontsize=9)
    return figure


def distributions(rows: Mapping[str, NDArray[np.float64]], label: str) -> Figure:
    """A row for each title, on a log scale: points, and a box of the quartiles with whiskers at 10% and 90%."""
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.32 * len(rows)), layout="constrained")
    rng = np.random.default_rng(0)
    for y, row in enumerate(rows.values()):
        axes.plot(row, y + rng.uniform(-0.25, 0.25, len(row)), ".", markersize=2.5, color="tab:blue", alpha=0.5)
    axes.boxplot([*rows.values()], positions=range(len(rows)), orientation="horizontal", widths=0.6, **BOXES)
    axes.set(xscale="log", xlabel=label)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter("{x:g}")
    return figure


def _ends(rows: pd.DataFrame) -> NDArray[np.float64]:
    """How far the interval of each value reaches below and above it: (2, rows)."""
    ends: NDArray[np.float64] = np.abs(rows[["ci_low", "ci_high"]].to_numpy().T - rows["value"].to_numpy())
    return ends


def _plain(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis: 1, 2 and 5 if there is room for them, else only 1."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())

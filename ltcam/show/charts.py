"""The figures of the ablations: what a change is worth, where, and why."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ltcam.paper import breakdown
from ltcam.paper.breakdown import fifths

COLORS = {"better": "tab:green", "worse": "tab:red", "tie": "tab:gray"}
LABELS = {"area": "object, % of the image", "overlap": "negative map on the object\nover positive map on it"}


def changes(table: pd.DataFrame, rows: Sequence[str], title: str) -> Figure:
    """What each change is worth in points, with its interval: a panel for each of `rows` in `ltcam.paper.ablations.table`."""
    table = table[table["change"].notna() & (table["factor"] != "trick")]
    table = table.assign(change_of=table["factor"] + " = " + table["level"])
    labels = list(dict.fromkeys(table["change_of"]))
    figure, axes = plt.subplots(
        1, len(rows), figsize=(2.3 + 2.1 * len(rows), 1 + 0.25 * len(labels)), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, row in zip(axes[0], rows, strict=True):
        chosen = table[table["row"] == row].set_index("change_of").reindex(labels)
        for y, (change, low, high, verdict) in enumerate(chosen[["change", "change_low", "change_high", "verdict"]].to_numpy()):
            if not pd.isna(change):
                panel.plot([low, high], [y, y], color=COLORS[verdict], linewidth=2)
                panel.plot(change, y, "o", color=COLORS[verdict], markersize=5)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_title(row, fontsize=9)
        panel.grid(axis="x", alpha=0.3)
        panel.tick_params(labelsize=8)
    axes[0, 0].set_yticks(range(len(labels)), labels, fontsize=8)
    axes[0, 0].invert_yaxis()
    figure.supxlabel("points from the defaults (95% interval)", fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def cross(table: pd.DataFrame, title: str) -> Figure:
    """The score (percent) over delta, with a row for each percentile scope and scale, from `ltcam.paper.ablations.crossed`."""
    scales = table["normalize"].unique()
    made = table["per"] + ", " + table["normalize"]
    wide = table.assign(made=made).dropna(subset="delta").pivot(index="made", columns="delta", values="value")
    wide = wide.loc[[f"{per}, {scale}" for per in ("layer", "channel") for scale in scales]].rename(columns="{:g}".format)
    wide.insert(0, "no truncation", [*table.loc[table["delta"].isna(), "value"]] * 2)
    figure, axes = plt.subplots(figsize=(1.8 + 0.62 * len(wide.columns), 0.9 + 0.33 * len(wide)), layout="constrained")
    sns.heatmap(wide, annot=True, fmt=".1f", cmap="viridis", cbar=False, annot_kws={"fontsize": 8}, ax=axes)
    axes.set(xlabel="δ", ylabel="percentile over, scale of each map", title=title)
    axes.tick_params(labelsize=8, rotation=0)
    axes.title.set_fontsize(10)
    return figure


def gains(each: pd.DataFrame, by_group: pd.DataFrame, names: Sequence[str], title: str, by: str = "area") -> Figure:
    """Points gained over an amount in `LABELS`: a dot for each pair, and a mean with its interval for each fifth of them.

    each and by_group: from `ltcam.paper.breakdown`.
    """
    figure, axes = plt.subplots(1, len(names), figsize=(3.3 * len(names), 3), sharey=True, squeeze=False, layout="constrained")
    lines, middles = by_group[by_group["by"] == by], each[by].groupby(fifths(each[by], breakdown.AMOUNTS[by])).median()
    for panel, name in zip(axes[0], names, strict=True):
        panel.plot(each[by], each[name], ".", markersize=2.5, color="tab:blue", alpha=0.35)
        line = lines[lines["row"] == name]
        ends = np.abs(line[["ci_low", "ci_high"]].to_numpy().T - line["value"].to_numpy())
        middle = line["group"].map(middles)
        panel.errorbar(middle, line["value"], ends, color="black", marker="o", markersize=4, linewidth=1.4, capsize=3)
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set(xscale="log", xlabel=LABELS[by])
        panel.set_title(name, fontsize=9)
        _plain(panel.xaxis)
        panel.grid(alpha=0.3)
    axes[0, 0].set_ylabel("points of IoU gained")
    figure.suptitle(title, fontsize=10)
    return figure


def signs(table: pd.DataFrame, title: str) -> Figure:
    """Where the maps of positive and of negative gradients lie, stage by stage: medians and quartiles over the pairs."""
    stages = sorted(table["stage"].unique())
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for offset, (sign, color) in ((-0.19, ("positive", "tab:red")), (0.19, ("negative", "tab:blue"))):
        lifts = [table.loc[table["stage"] == stage, sign].dropna() for stage in stages]
        axes.boxplot(
            lifts, positions=np.arange(len(stages)) + offset, widths=0.34, whis=(10, 90), showfliers=False, patch_artist=True,
            boxprops={"facecolor": color, "alpha": 0.6}, medianprops={"color": "black"}, label=f"{sign} gradients",
        )  # fmt: skip
    axes.set_xticks(range(len(stages)), stages)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(ylabel="share on the object\nover the object's area", title=title, yscale="log")
    _plain(axes.yaxis)
    axes.title.set_fontsize(10)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def stages(table: pd.DataFrame, title: str) -> Figure:
    """Each stage's weight in the sum, the share of its pixels that holds half of its map, and the gradients that are left."""
    named = table.assign(delta=table["delta"].map(lambda delta: "none" if pd.isna(delta) else f"{delta:g}"))
    order = list(dict.fromkeys(named["delta"]))
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.1), layout="constrained")
    means = named.groupby(["delta", "stage"])[["energy", "half", "kept"]].mean()
    colors = sns.color_palette("viridis_r", named["stage"].nunique())
    titles = {"energy": "energy in the sum (%)", "half": "pixels that hold half of a map (%)", "kept": "gradients left (%)"}
    for panel, (column, label) in zip(axes, titles.items(), strict=True):
        wide = means[column].unstack().loc[order]
        if column == "energy":
            wide.plot.bar(stacked=True, color=colors, width=0.8, legend=False, ax=panel)
            panel.tick_params(axis="x", rotation=0)
        else:
            wide.plot(marker="o", markersize=4, color=colors, legend=False, ax=panel)
            panel.set_xticks(range(len(order)), order)
        panel.set(xlabel="δ", ylim=(0, None))
        panel.set_title(label, fontsize=9)
    axes[-1].legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(title, fontsize=10)
    return figure


def dropped(table: pd.DataFrame, title: str) -> Figure:
    """The share of the positive gradient that Eq. 9 drops, over delta, a line for each stage: medians over the pairs."""
    figure, axes = plt.subplots(figsize=(5.4, 3), layout="constrained")
    wide = table.pivot(index="delta", columns="stage", values="share")
    wide.plot(marker="o", markersize=4, color=sns.color_palette("viridis_r", wide.shape[1]), ax=axes)
    axes.plot([0, 100], [0, 100], color="gray", linewidth=0.8, linestyle="--")
    axes.set(xlabel="δ (percentile of the positive gradients)", ylabel="dropped (% of their sum)", title=title)
    axes.title.set_fontsize(10)
    axes.legend(fontsize=8)
    return figure


def _plain(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis: 1, 2 and 5 if there is room for them, else only 1."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def losses(table: pd.DataFrame) -> Figure:
    """The training loss over the epochs, one line per training. table: train.csv of each, with a column `name`."""
    figure, axes = plt.subplots(figsize=(5, 2.8), layout="constrained")
    for name, rows in table.groupby("name"):
        axes.plot(rows["epoch"], rows["loss"], marker="o", label=name)
    axes.set(xlabel="epoch", ylabel="loss")
    if table["name"].nunique() > 1:
        axes.legend()
    return figure

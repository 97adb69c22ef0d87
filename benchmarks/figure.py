"""The peers' times as a figure, from the committed tables: `python -m benchmarks.figure`."""

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ltcam.experiment import provenance
from ltcam.show import heatmaps

RESULTS = Path(__file__).parent / "results"
COLORS = {"ltcam": "tab:red", "torch-cam": "tab:blue", "pytorch-grad-cam": "tab:green", "captum": "tab:purple"}


def figure(table: pd.DataFrame, about: dict[str, Any]) -> Figure:
    """A panel a task, a row a library: the median of its time over ltcam's, the range of single turns, and the floor's dashed.

    table: as `benchmarks.peers.ratios` gives it; about: its provenance.
    """
    tasks = dict(list(table.groupby("task", sort=False)))
    rows = [len(part) - 1 for part in tasks.values()]
    made, panels = plt.subplots(
        len(tasks), figsize=(7.2, 0.9 + 0.27 * sum(rows) + 0.42 * len(tasks)), sharex=True, squeeze=False, layout="constrained",
        gridspec_kw={"height_ratios": [0.4 + n for n in rows]},
    )  # fmt: skip
    for axes, (task, part) in zip(panels[:, 0], tasks.items(), strict=True):
        _panel(axes, part.set_index("library"))
        axes.set_title(str(task)[3:], loc="left", fontsize=9)
    axes = panels[-1, 0]
    axes.set(xscale="log", xlim=(table["over ltcam, min"].min() / 1.25, table["over ltcam, max"].max() * 1.8))
    axes.set_xlabel("time over ltcam's: median, and from least to most of single turns; dashed: bare forward and backward")
    axes.xaxis.label.set_size(8)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    threads = "" if "cpu" not in about["device"] else f", {about['threads']} threads"
    made.suptitle(f"VGG16, {about['size']} x {about['size']}, {about['device']}{threads}", fontsize=9)
    return made


def _panel(axes: Axes, part: pd.DataFrame) -> None:
    floor, part = part["over ltcam"]["floor"], part.drop(index="floor")
    axes.axvline(floor, color="grey", linestyle="--", linewidth=1)
    for y, (library, row) in enumerate(part.iterrows()):
        middle, low, high = (row[f"over ltcam{end}"] for end in ("", ", min", ", max"))
        axes.errorbar(
            middle, y, xerr=[[middle - low], [high - middle]], fmt="o", markersize=5, capsize=3, color=COLORS[str(library)]
        )
        axes.annotate(f"{middle:.2g}", (high, y), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(part)), list(part.index), fontsize=8)
    axes.set_ylim(len(part) - 0.4, -0.6)
    axes.tick_params("x", labelsize=8)
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def draw(path: Path) -> None:
    """The figure of the table at `path` (a CSV that `provenance.json` beside it has an entry of), as PNG and PDF beside it."""
    made = figure(pd.read_csv(path), provenance.read(path.parent)[path.name])
    heatmaps.save(made, path.with_suffix(""))
    plt.close(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    for path in sorted(parser.parse_args().out.glob("peers_*.csv")):
        if not path.stem.endswith("_times"):
            draw(path)


if __name__ == "__main__":
    main()

"""The figures of notebook 09: what each step beyond the paper adds, and what it does to a heatmap."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from ltcam.data import Segmentation
from ltcam.experiment.checkpoints import Trained
from ltcam.experiment.seed_scores import heatmaps
from ltcam.paper.beyond import Way, fitted
from ltcam.show.plotting import grid

CUTS = {"otsu": "Otsu's threshold", "argmax": "largest class or background"}


def steps(table: pd.DataFrame, title: str) -> Figure:
    """A panel for each cut and a bar with its interval for each step. table: from `ltcam.paper.beyond.table`."""
    chosen = table[table["kind"] == "step"]
    height = 1 + 0.32 * int(chosen.groupby("cut").size().max())
    figure, axes = plt.subplots(1, len(CUTS), figsize=(9.6, height), squeeze=False, layout="constrained")
    for panel, (cut, named) in zip(axes[0], CUTS.items(), strict=True):
        rows = chosen[chosen["cut"] == cut]
        ends = np.abs(rows[["ci_low", "ci_high"]].to_numpy().T - rows["value"].to_numpy())
        panel.barh(rows["name"], rows["value"], xerr=ends, color="tab:blue", alpha=0.7, height=0.6)
        for y, (value, high) in enumerate(zip(rows["value"], rows["ci_high"], strict=True)):
            panel.text(high, y, f" {value:.1f}", va="center", fontsize=8)
        panel.margins(x=0.12)
        panel.invert_yaxis()
        panel.set_title(named, fontsize=9)
        panel.tick_params(labelsize=8)
    figure.supxlabel("IoU (%) with its 95% interval", fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def curves(found: Mapping[str, "pd.Series[float]"], title: str) -> Figure:
    """mIoU with background (percent) over the threshold t, a line for each name."""
    figure, axes = plt.subplots(figsize=(5.4, 3), layout="constrained")
    for name, curve in found.items():
        axes.plot(curve.index, curve, label=name)
        axes.plot(curve.index[int(curve.argmax())], curve.max(), "o", markersize=4, color=axes.lines[-1].get_color())
    axes.set(xlabel="t, the value of background", ylabel="mIoU (%)", title=title)
    axes.title.set_fontsize(10)
    axes.legend(fontsize=8)
    return figure


def pictures(trained: Trained, data: Segmentation, chosen: Sequence[tuple[int, int]], ways: Mapping[str, Way]) -> Figure:
    """A row for each (image index, class), and a column for the heatmap after each step."""
    index = {data.entries[i].name: i for i, _ in chosen}
    columns = dict[str, list[Tensor]]()
    for name, (config, views) in ways.items():
        maps = {
            (index[sample.name], c): heat.cpu()
            for sample, _, heats, keys in heatmaps(trained, data, [config], fitted(views, trained.size), [*index.values()])
            for c, heat in zip(keys.tolist(), heats, strict=True)
        }
        columns[name.replace(": ", ":\n").replace(", ", ",\n")] = [maps[pair] for pair in chosen]
    rows = [data.entries[i].kind or data.classes[c] for i, c in chosen]
    samples = [data[i] for i, _ in chosen]
    masks = [sample.mask == c + 1 for sample, (_, c) in zip(samples, chosen, strict=True)]
    return grid([sample.image for sample in samples], columns, rows, masks)

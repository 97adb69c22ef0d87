"""The paper's figures: heatmaps over images, with a row for each image and a column for each way to make them."""

import random
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import zip_longest
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ltcam import data as datasets
from ltcam.data import Segmentation
from ltcam.engine.cam import explain
from ltcam.engine.tracing import trace
from ltcam.engine.tricks import truncate
from ltcam.experiment.checkpoints import Trained
from ltcam.experiment.configs import FLOATS, Config
from ltcam.files import AnyPath, atomic
from ltcam.paper.pictures import coarse

THUMBNAIL = 160  # pixels of the longer side: figures show photographs small
PDF = 500_000  # bytes; photographs make it larger
SWEPT = {  # the paper's colors in Figs. 4 and 5
    "gradcam": ("Grad-CAM", "tab:blue"),
    "fullgrad": ("FullGrad", "tab:orange"),
    "layercam": ("Layer-CAM", "tab:green"),
}


def examples(data: Segmentation, count: int = 5, seed: int = 0) -> list[tuple[int, int]]:
    """(image index, class) of `count` random images, taken in turn from each class (or each defect type).

    They come from the half of a class's images in which it covers most, so that there is something to see.
    """
    areas: dict[tuple[int, str], list[tuple[float, int]]] = {}
    for i in data.scored:
        mask = data.mask(i)
        for c in data.labels[i].nonzero().flatten().tolist():
            areas.setdefault((c, data.entries[i].kind), []).append((float((mask == c + 1).mean()), i))
    rng, queues = random.Random(seed), []
    for (c, _), found in rng.sample(sorted(areas.items()), len(areas)):
        largest = sorted(found, reverse=True)[: (len(found) + 1) // 2]
        queues.append([(i, c) for _, i in rng.sample(largest, len(largest))])
    return [pair for turn in zip_longest(*queues) for pair in turn if pair][:count]


def worst(counts: pd.DataFrame, data: Segmentation, config: Config, count: int = 4) -> dict[tuple[int, int], float]:
    """{(image index, class): IoU in percent} of the `count` pairs of `data` that `config` segments worst, worst first.

    counts: from `evaluate`; of several trainings the first. A pair without a true pixel is left out, since there its mask fails
    and not the method.
    """
    index = {entry.name: i for i, entry in enumerate(data.entries)}
    counts = counts[counts["training"] == counts["training"].iloc[0]] if "training" in counts else counts
    rows = counts.merge(pd.DataFrame([config]).astype(FLOATS))
    rows = rows[rows["name"].isin(index) & (rows["tp"] + rows["fn"] > 0)]
    rows = rows.assign(IoU=100 * rows["tp"] / (rows["tp"] + rows["fp"] + rows["fn"]))
    lowest = rows.sort_values(["IoU", "name", "class"]).head(count)
    return {(index[name], c): iou for name, c, iou in lowest[["name", "class", "IoU"]].itertuples(index=False)}


def heatmap_figure(
    trained: Trained,
    data: Segmentation,
    chosen: Mapping[tuple[int, int], float] | Sequence[tuple[int, int]],
    configs: dict[str, Config],
    truth: bool = False,
) -> Figure:
    """A grid: the image (with its mask outlined if `truth`), then the heatmap of each configuration over it.

    chosen: (image index, class) for each row; a mapping adds the IoU to show. A heatmap is shown from 0 to its own maximum.
    """
    samples = [data[i] for i, _ in chosen]
    images = torch.stack([datasets.preprocess(s.image, trained.size) for s in samples]).to(next(trained.model.parameters()))
    full = any(c.method == "fullgrad" for c in configs.values())
    traced = trace(trained.model, images, [c for _, c in chosen], fullgrad=full)
    columns = {title: explain(traced, c.method, c.selection, c.delta, per=c.per).cpu().unbind() for title, c in configs.items()}
    rows = [data.entries[i].kind or data.classes[c] for i, c in chosen]
    if isinstance(chosen, Mapping):
        rows = [f"{row}\nIoU {iou:.1f}%" for row, iou in zip(rows, chosen.values(), strict=True)]
    masks = [s.mask == c + 1 for s, (_, c) in zip(samples, chosen, strict=True)] if truth else None
    return grid([s.image for s in samples], columns, rows, masks)


def grid(
    images: Sequence[Tensor],
    columns: Mapping[str, Sequence[Tensor]],
    rows: Sequence[str],
    masks: Sequence[Tensor] | None = None,
) -> Figure:
    """A row for each image (3, H, W) uint8, with the outline of its mask (H, W) if given, and a column for each title."""
    thumbnails = [_thumbnail(image) for image in images]
    heights = [min(t.shape[0] / t.shape[1], 1.5) for t in thumbnails]
    figure, axes = plt.subplots(
        len(images), 1 + len(columns), figsize=(1.35 * (1 + len(columns)), 1.35 * sum(heights) + 0.15 * len(images) + 0.4),
        gridspec_kw={"height_ratios": heights}, squeeze=False, layout="constrained",
    )  # fmt: skip
    for column, (title, maps) in enumerate({"image": [None] * len(images), **columns}.items()):
        axes[0, column].set_title(title.replace("(", "\n("), fontsize=8)
        for row, heatmap in enumerate(maps):
            _panel(axes[row, column], thumbnails[row], heatmap)
    for row, label in enumerate(rows):
        axes[row, 0].set_ylabel(label, fontsize=8)
        if masks is not None:
            _outline(axes[row, 0], masks[row], thumbnails[row].shape[:2])
    return figure


def strip(images: Sequence[Tensor], titles: Sequence[str], masks: Sequence[Tensor]) -> Figure:
    """A column for each image (3, H, W) uint8, at one height: plain, and below with its mask (H, W) bool outlined."""
    thumbnails = [_thumbnail(image) for image in images]
    widths = [max(t.shape[1] / t.shape[0], 0.5) for t in thumbnails]  # a narrower one has no room for a title
    height = min(2.4, 11 / sum(widths))
    figure, axes = plt.subplots(
        2, len(images), figsize=(height * sum(widths), 2 * height + 0.5),
        gridspec_kw={"width_ratios": widths}, squeeze=False, layout="constrained",
    )  # fmt: skip
    for (top, bottom), thumbnail, title, mask in zip(axes.T, thumbnails, titles, masks, strict=True):
        top.set_title(title, fontsize=7)
        _panel(top, thumbnail, None)
        _panel(bottom, thumbnail, None)
        _outline(bottom, mask, thumbnail.shape[:2])
    return figure


def overlay_figure(image: Tensor, maps: dict[str, Tensor], title: str = "") -> Figure:
    """The image (3, H, W) uint8, then each heatmap (H, W) over it, from 0 to its own maximum."""
    pixels = image.permute(1, 2, 0).numpy()
    figure, axes = plt.subplots(
        1, 1 + len(maps), figsize=(3.2 * (1 + len(maps)), 3.2 * pixels.shape[0] / pixels.shape[1] + 0.4),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for panel, (name, heatmap) in zip(axes[0], {title: None, **maps}.items(), strict=True):
        panel.set_title(name, fontsize=9)
        _panel(panel, pixels, heatmap)
    return figure


def distributions(rows: Mapping[str, NDArray[np.float64]], label: str) -> Figure:
    """A row for each title, on a log scale: points, and a box of the quartiles with whiskers at 10% and 90%."""
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.32 * len(rows)), layout="constrained")
    rng = np.random.default_rng(0)
    for y, row in enumerate(rows.values()):
        axes.plot(row, y + rng.uniform(-0.25, 0.25, len(row)), ".", markersize=2.5, color="tab:blue", alpha=0.5)
    axes.boxplot(
        list(rows.values()), positions=range(len(rows)), orientation="horizontal", widths=0.6, whis=(10, 90), showfliers=False,
        medianprops={"color": "black", "linewidth": 1.8}, manage_ticks=False,
    )  # fmt: skip
    axes.set(xscale="log", xlabel=label)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter("{x:g}")
    return figure


def gradients(image: Tensor, mask: Tensor, rows: Mapping[str, Tensor], deltas: Sequence[float | None]) -> Figure:
    """Eq. 9 on one (image, class): the truncated gradient summed over channels, a row for each layer, a column for each delta.

    image (3, H, W) uint8, mask (H, W) bool, rows {title: gradient (K, h, w)}. The colors of a panel are symmetric around 0, up
    to its own largest absolute value. Its title has the share of the layer's gradients that is left.
    """
    thumbnail = _thumbnail(image)
    height, width = thumbnail.shape[:2]
    side = min(1.6, 2.6 * width / height)
    figure, axes = plt.subplots(
        len(rows), 1 + len(deltas), figsize=(side * (1 + len(deltas)), (side * height / width + 0.4) * len(rows)),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for number, (line, (label, gradient)) in enumerate(zip(axes, rows.items(), strict=True)):
        _panel(line[0], thumbnail, None)
        line[0].set_ylabel(label, fontsize=9)
        if number:
            _outline(line[0], mask, (height, width))
        for panel, delta in zip(line[1:], deltas, strict=True):
            kept = truncate(gradient[None], delta)[0].cpu()
            total = kept.sum(dim=0).numpy()
            limit = max(float(np.abs(total).max()), 1e-30)
            panel.imshow(total, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(0, width, height, 0))
            panel.set(xticks=[], yticks=[])
            name = "all" if delta is None else f"δ = {delta:g}"
            panel.set_title(f"{name}\n{float((kept != 0).float().mean()):.0%} kept", fontsize=8)
    return figure


def sweep_figure(table: pd.DataFrame, metric: str, label: str, title: str) -> Figure:
    """`metric` (percent) over delta, one line per method; dashed lines are without truncation. table: one part of a sweep."""
    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    for method, (name, color) in SWEPT.items():
        curve = table[table["method"] == method].set_index("delta")[metric].sort_index()
        axes.axhline(curve[curve.index.isna()].item(), color=color, linestyle="--", linewidth=1)
        truncated = curve[curve.index.notna()]
        axes.plot(truncated.index, truncated, marker="o", markersize=4, color=color, label=name)
    axes.plot([], [], color="grey", linestyle="--", linewidth=1, label="no truncation")
    axes.set(xlabel="δ (percentile of the positive gradients)", ylabel=label, title=title, xticks=truncated.index)
    axes.margins(x=0.02)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))  # beside the curves, which may go anywhere
    return figure


def save(figure: Figure, path: AnyPath) -> None:
    """`path` + .png (150 dpi, `coarse`), and .pdf if that is small (`PDF`). The same bytes on every run of one machine."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, since each drawing moves things a little
    drawn = BytesIO()
    figure.savefig(drawn, dpi=150)
    _write(coarse(drawn.getvalue(), dpi=(150, 150)), Path(f"{path}.png"))
    vector, target = BytesIO(), Path(f"{path}.pdf")
    figure.savefig(vector, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    if vector.tell() > PDF:
        target.unlink(missing_ok=True)
    else:
        _write(vector.getvalue(), target)


def _write(drawn: bytes, target: Path) -> None:
    with atomic(target) as temporary:
        temporary.write_bytes(drawn)


def _panel(axes: Axes, image: NDArray[np.uint8], heatmap: Tensor | None) -> None:
    axes.set(xticks=[], yticks=[])
    axes.imshow(image)
    if heatmap is not None:
        fitted = F.resize(heatmap[None], list(image.shape[:2]), antialias=True)[0].numpy()
        axes.imshow(fitted, cmap="jet", alpha=0.55, vmin=0, vmax=max(float(fitted.max()), 1e-30))


def _outline(axes: Axes, mask: Tensor, size: Sequence[int]) -> None:
    """Outline a mask (H, W) bool, at its own resolution so that thin things stay, over an image of (height, width) `size`."""
    if not mask.any():
        return
    y, x = ((np.arange(-1, n + 1) + 0.5) * m / n - 0.5 for n, m in zip(mask.shape, size, strict=True))
    limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
    axes.contour(x, y, np.pad(mask.numpy().astype(float), 1), [0.5], colors="yellow", linewidths=0.8)  # padded: closed at edges
    axes.set(**limits)


def _thumbnail(image: Tensor) -> NDArray[np.uint8]:
    size = [max(1, round(side * THUMBNAIL / max(image.shape[1:]))) for side in image.shape[1:]]
    return np.asarray(F.resize(image, size, antialias=True).permute(1, 2, 0))

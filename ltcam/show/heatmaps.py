"""Heatmaps over images: how they are made, drawn in rows and columns, and saved."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from itertools import zip_longest
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ltcam import Config
from ltcam.data import Sample, Segmentation, preprocess
from ltcam.engine.views import over_views
from ltcam.experiment.otsu import count, regions
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.trained import Trained
from ltcam.files import AnyPath, atomic
from ltcam.paper.pictures import coarse

THUMBNAIL = 160  # pixels of the longer side: figures show photographs small
PDF = 500_000  # bytes; photographs make it larger
Pair = tuple[int, int]  # (image index, class)


def examples(data: Segmentation, count: int = 5, seed: int = 0) -> list[Pair]:
    """`count` random pairs of an image and one of its classes, taken in turn from each class (or each defect type).

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


def inputs(trained: Trained, samples: Sequence[Sample], size: tuple[int, int] | None = None) -> Tensor:
    """The images as the model takes them, on its device: (N, 3, *size), by default of the size that it was trained at."""
    images = torch.stack([preprocess(sample.image, size or trained.size) for sample in samples])
    return images.to(next(trained.model.parameters()).device)


def maps(
    trained: Trained, sample: Sample, c: int, configs: Sequence[Config], protocol: Protocol | None = None
) -> dict[Config, Tensor]:
    """{configuration: (H, W)}: the heatmaps of class `c` at the mask's size, in the views of `protocol` (None: in one)."""
    protocol = protocol or Protocol()
    images = inputs(trained, [sample], protocol.size)
    found = over_views(trained.model, images, [c], configs, scales=protocol.scales, flip=protocol.flip)
    groups = found.heatmaps([0], (sample.mask.shape[0], sample.mask.shape[1]))
    return {config: heat[0].cpu() for group, heats in groups for config, heat in zip(group, heats, strict=True)}


def iou(predicted: Tensor, mask: Tensor, c: int) -> Tensor:
    """Percent, of predicted masks (..., H, W) bool with class c of a mask (H, W); void pixels do not count."""
    tp, fp, fn = count(predicted, regions(mask, c)).double().unbind(dim=-1)
    return 100 * tp / (tp + fp + fn)


def grid(
    images: Sequence[Tensor], rows: Sequence[Mapping[str, Tensor]], labels: Sequence[str],
    masks: Sequence[Tensor] | None = None, draw: Callable[..., None] | None = None, side: float = 1.35, pixels: int = THUMBNAIL,
) -> Figure:  # fmt: skip
    """A row for each image (3, H, W) uint8: the image, then its maps, each under its title unless that is as in the row above.

    masks   (H, W) bool, outlined on the image
    draw    a function of axes, image and map, which draws a panel; None: `panel`
    side    inches of a panel's width; pixels: of the images
    """
    small = [thumbnail(image, pixels) for image in images]
    heights = [min(t.shape[0] / t.shape[1], 1.5) for t in small]
    columns, ratios = 1 + len(rows[0]), {"height_ratios": heights}
    size = side * columns, side * sum(heights) + 0.15 * len(images) + 0.4
    figure, axes = plt.subplots(len(images), columns, figsize=size, gridspec_kw=ratios, squeeze=False, layout="constrained")
    above: list[str] = []
    for number, (line, image, row) in enumerate(zip(axes, small, rows, strict=True)):
        panel(line[0], image)
        line[0].set_ylabel(labels[number], fontsize=8)
        if masks is not None:
            outline(line[0], masks[number], image.shape[:2])
        for axis, heat in zip(line[1:], row.values(), strict=True):
            (draw or panel)(axis, image, heat)
        if (titles := ["image", *row]) != above:
            for axis, title in zip(line, titles, strict=True):
                axis.set_title(title.replace("(", "\n("), fontsize=8)
        above = titles
    return figure


def strip(images: Sequence[Tensor], titles: Sequence[str], masks: Sequence[Tensor]) -> Figure:
    """A column for each image (3, H, W) uint8, at one height: plain, and below with its mask (H, W) bool outlined."""
    small = [thumbnail(image) for image in images]
    widths = [max(t.shape[1] / t.shape[0], 0.5) for t in small]  # a narrower one has no room for a title
    height = min(2.4, 11 / sum(widths))
    size, ratios = (height * sum(widths), 2 * height + 0.5), {"width_ratios": widths}
    figure, axes = plt.subplots(2, len(images), figsize=size, gridspec_kw=ratios, squeeze=False, layout="constrained")
    for (top, bottom), image, title, mask in zip(axes.T, small, titles, masks, strict=True):
        top.set_title(title, fontsize=7)
        panel(top, image)
        panel(bottom, image)
        outline(bottom, mask, image.shape[:2])
    return figure


def panel(axes: Axes, image: NDArray[np.uint8], heat: Tensor | None = None) -> None:
    """An image (h, w, 3), and a heatmap of any size over it, from 0 to its own maximum."""
    axes.set(xticks=[], yticks=[])
    axes.imshow(image)
    if heat is not None:
        fitted = F.resize(heat[None], list(image.shape[:2]), antialias=True)[0].numpy()
        axes.imshow(fitted, cmap="jet", alpha=0.55, vmin=0, vmax=max(float(fitted.max()), 1e-30))


def signed(axes: Axes, image: NDArray[np.uint8], values: Tensor) -> None:
    """Values of both signs in the shape of the image: blue is below 0, red above, and white is 0."""
    limit = max(float(values.abs().max()), 1e-30)
    axes.imshow(values.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(0, image.shape[1], image.shape[0], 0))
    axes.set(xticks=[], yticks=[])


def outline(axes: Axes, mask: Tensor, size: Sequence[int]) -> None:
    """Outline a mask (H, W) bool, at its own resolution so that thin things stay, over an image of (height, width) `size`."""
    if not mask.any():
        return
    y, x = ((np.arange(-1, n + 1) + 0.5) * m / n - 0.5 for n, m in zip(mask.shape, size, strict=True))
    limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
    axes.contour(x, y, np.pad(mask.numpy().astype(float), 1), [0.5], colors="yellow", linewidths=0.8)  # padded: closed at edges
    axes.set(**limits)


def thumbnail(image: Tensor, pixels: int = THUMBNAIL) -> NDArray[np.uint8]:
    """An image (3, H, W) uint8 as (h, w, 3), with a longer side of `pixels`."""
    return np.asarray(F.resize(image, within(image.shape[1:], pixels), antialias=True).permute(1, 2, 0))


def within(size: Sequence[int], pixels: int) -> list[int]:
    """A size in the aspect of `size`, with a longer side of `pixels`."""
    return [max(1, round(side * pixels / max(size))) for side in size]


def save(figure: Figure, path: AnyPath) -> None:
    """`path` + .png (150 dpi, 32 steps a color), and .pdf if that is small. The same bytes on every run of one machine."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, since each drawing moves things a little
    drawn, vector = BytesIO(), BytesIO()
    figure.savefig(drawn, dpi=150)
    figure.savefig(vector, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    for suffix, content in ((".png", coarse(drawn.getvalue(), dpi=(150, 150))), (".pdf", vector.getvalue())):
        target = Path(f"{path}{suffix}")
        if suffix == ".pdf" and len(content) > PDF:
            target.unlink(missing_ok=True)
            continue
        with atomic(target) as temporary:
            temporary.write_bytes(content)

"""Heatmaps over images: how they are made, drawn in rows and columns, and saved."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import zip_longest
from typing import Any, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn.functional import max_pool2d
from torchvision.transforms.v2 import functional as F

from ltcam import Config
from ltcam.data import Sample, Segmentation, preprocess
from ltcam.experiment.counting import maps_of_batch, prepared
from ltcam.experiment.otsu import count, otsu_masks, regions
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.trained import Trained
from ltcam.files import AnyPath, atomic
from ltcam.paper.pictures import coarse
from ltcam.show.charts import own_style

THUMBNAIL = 160  # pixels of the longer side: figures show photographs small
SMALL, ZOOM = 0.2, 0.5  # of `window`
Pair = tuple[int, int]  # (image index, class)
Window = tuple[float, float, float, float]
Key = TypeVar("Key")


def examples(data: Segmentation, count: int = 5, seed: int = 0) -> list[Pair]:
    """`count` random pairs of an image and one of its classes, taken in turn from each class (or each defect type).

    They come from the half of a class's images in which it covers most, so that there is something to see.
    """
    areas: dict[tuple[int, str], list[tuple[float, int]]] = defaultdict(list)
    for i in data.scored:
        mask = data.mask(i)
        for c in data.labels[i].nonzero().flatten().tolist():
            areas[c, data.entries[i].kind].append((float((mask == c + 1).mean()), i))
    rng, queues = random.Random(seed), []
    for (c, _), found in rng.sample(sorted(areas.items()), len(areas)):
        largest = sorted(found, reverse=True)[: (len(found) + 1) // 2]
        queues.append([(i, c) for _, i in rng.sample(largest, len(largest))])
    return [pair for turn in zip_longest(*queues) for pair in turn if pair][:count]


def inputs(trained: Trained, samples: Sequence[Sample], size: tuple[int, int] | None = None) -> Tensor:
    """The images as the model takes them, on its device: (N, 3, *size), by default of the size that it was trained at."""
    images = torch.stack([preprocess(sample.image, size or trained.size) for sample in samples])
    return images.to(next(trained.model.parameters()).device)


def surest(trained: Trained, data: Segmentation) -> tuple[Sample, Tensor, int]:
    """Of five examples the one whose class the model is surest of: it, what the model takes of it (1, 3, h, w), the class."""
    pairs = examples(data)
    found, classes = [data[i] for i, _ in pairs], [c for _, c in pairs]
    images = inputs(trained, found)
    with torch.no_grad():
        best = int(trained.model(images)[range(len(pairs)), classes].argmax())
    return found[best], images[best, None], classes[best]


def maps(
    trained: Trained, sample: Sample, c: int, ways: Mapping[Key, Config], protocol: Protocol | None = None
) -> dict[Key, Tensor]:
    """The heatmap of class `c`, (H, W) as the mask is, for each of `ways`, in the views of `protocol` (None: in one)."""
    how, size = protocol or Protocol(), (sample.mask.shape[0], sample.mask.shape[1])
    samples, label = prepared(how, trained.size, [sample]), torch.arange(len(trained.classes))[None] == c
    found = maps_of_batch(trained, samples, label, [*dict.fromkeys(ways.values())], how).heatmaps([0], size)
    heats = {config: heat[0].cpu() for configs, stack in found for config, heat in zip(configs, stack, strict=True)}
    return {key: heats[config] for key, config in ways.items()}


def iou(predicted: Tensor, mask: Tensor, c: int) -> Tensor:
    """Percent, of predicted masks (..., H, W) bool with class c of a mask (H, W); void pixels do not count."""
    tp, fp, fn = count(predicted, regions(mask, c)).double().unbind(dim=-1)
    return 100 * tp / (tp + fp + fn).clamp(min=1)


@own_style
def grid(
    images: Sequence[Tensor], rows: Sequence[Mapping[str, Tensor]], labels: Sequence[str],
    masks: Sequence[Tensor] | None = None, signed: bool = False, side: float = 1.35, pixels: int = THUMBNAIL, cut: bool = False,
) -> Figure:  # fmt: skip
    """A row for each image (3, H, W) uint8: the image, then its maps, each under its title. If the one above has the same first
    line, it is not said again.

    rows    heatmaps of any size, from 0 to their own maximum; signed, or some below 0: blue is below 0, red above, white is 0
    cut     outline the mask of each map by Otsu's threshold in white
    masks   (H, W) bool, outlined on the image and on the predicted masks (bool) among its maps. What is small is shown again
            below each panel, enlarged, and outlined there by one pixel of the image
    side    inches of a panel's width; pixels: of the images
    """
    windows = [window(mask) for mask in masks] if masks else [None] * len(images)
    heights, below = [min(image.shape[1] / image.shape[2], 1.5) for image in images], ZOOM * sum(map(bool, windows))
    columns, height = 1 + len(rows[0]), side * (sum(heights) + below) + 0.3 * len(images) + 0.4
    figure = plt.figure(figsize=(side * columns + 0.4, height), layout="compressed")  # even gaps
    axes = figure.subplots(len(images), columns, squeeze=False, height_ratios=heights)
    for number, (line, row) in enumerate(zip(axes, rows, strict=True)):
        line[0].set_ylabel(labels[number], fontsize=8)
        before = ["image", *rows[number - 1]] if number else [""] * columns
        for panel, above, (title, heat) in zip(line, before, {"image": None, **row}.items(), strict=True):
            own = masks and (windows[number] or heat is None or heat.dtype == torch.bool)
            mask = masks[number] if masks and own else None
            _show(panel, images[number], mask, heat, signed, pixels, windows[number], cut)
            first, _, rest = title.partition("\n")
            panel.set_title(rest if first == above.partition("\n")[0] else title.replace("(", "\n("), fontsize=8)
    colors = ScalarMappable(Normalize(-int(signed), 1), "RdBu_r" if signed else "jet")  # of every map
    bar = figure.colorbar(colors, axes[0, -1].inset_axes((1.06, 0.08, 0.05, 0.84)), alpha=None if signed else 0.55)
    bar.set_ticks([-int(signed), 1], labels=["-max" if signed else "0", "max"], fontsize=7)
    return figure


@own_style
def strip(images: Sequence[Tensor], titles: Sequence[str], masks: Sequence[Tensor]) -> Figure:
    """A column for each image (3, H, W) uint8, at one height: plain, and below with its mask (H, W) bool outlined, which is
    enlarged if it is small."""
    widths = [max(image.shape[2] / image.shape[1], 0.65) for image in images]  # a narrower one has no room for a title
    height, below = min(2.4, 11 / sum(widths)), ZOOM * any(map(window, masks))
    figure = plt.figure(figsize=(height * sum(widths), (2 + below) * height + 0.5), layout="constrained")
    axes = figure.subplots(2, len(images), squeeze=False, width_ratios=widths)
    for (top, bottom), image, title, mask in zip(axes.T, images, titles, masks, strict=True):
        top.set_title(title, fontsize=7)
        _show(top, image)
        _show(bottom, image, mask, around=window(mask))
    return figure


def _show(
    axes: Axes, image: Tensor, mask: Tensor | None = None, heat: Tensor | None = None, signed: bool = False,
    pixels: int = THUMBNAIL, around: Window | None = None, cut: bool = False,
) -> None:  # fmt: skip
    """An image, a map over it, and the outline of a mask. around: a part of the image that is shown again below, enlarged, with
    the outline. cut: as in `grid`."""
    _, height, width = image.shape
    axes.set(xticks=[], yticks=[])
    small = F.resize(image, None, max_size=pixels, antialias=True)
    axes.imshow(small.permute(1, 2, 0).numpy(), extent=(0, width, height, 0))
    if heat is not None:
        jet: dict[str, Any] = {"cmap": "jet", "alpha": 0.55, "vmin": 0}
        signed |= bool((heat < 0).any())
        how = {"cmap": "RdBu_r", "norm": CenteredNorm()} if signed else jet
        axes.imshow(heat.detach().float().cpu().numpy(), extent=(0, width, height, 0), **how)
    if around:
        left, right, top, bottom = around
        wide = 0.95 * max(1, height / width / 1.5)  # of the image: its panel is as wide as others, whose image may be wider
        tall = ZOOM * wide * width / height
        inset = axes.inset_axes(((1 - wide) / 2, -tall - 0.03, wide, tall))
        _show(inset, image, None, heat, signed, max(height, width))
        inset.set(xlim=(left, right), ylim=(bottom, top))
        if mask is not None:  # one pixel around it
            ring = max_pool2d(mask[None].float(), 3, 1, 1)[0].bool() & ~mask
            inset.imshow(np.where(ring[..., None], (1, 1, 0, 1.0), 0), extent=(0, width, height, 0))
            axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="yellow", linewidth=0.8))
        mask = None
    if cut and heat is not None and heat.dtype != torch.bool and not signed:
        _outline(axes, otsu_masks(heat[None])[0], "white", width, height)
    if mask is not None:
        _outline(axes, mask, "yellow", width, height)


def _outline(axes: Axes, mask: Tensor, color: str, width: int, height: int) -> None:
    """Of a mask over an image of this size, at the mask's own resolution, so that thin things stay."""
    if mask.any():
        axes.autoscale(False)
        padded = (-0.5, width + 0.5, -0.5, height + 0.5)  # so that it is closed at the image's edges
        axes.contour(np.pad(mask.numpy(), 1), [0.5], extent=padded, colors=color, linewidths=0.8)


def window(mask: Tensor) -> Window | None:
    """(left, right, top, bottom) around the pixels of a mask (H, W) bool, if that is at most a `SMALL` part of the image. It is
    `ZOOM` times as high as wide."""
    if not mask.any():
        return None
    (top, left), (bottom, right) = mask.nonzero().amin(dim=0).tolist(), (mask.nonzero().amax(dim=0) + 1).tolist()
    width = min(1.2 * max(right - left, (bottom - top) / ZOOM), mask.shape[1])
    height = ZOOM * width
    if bottom - top > height or width * height > SMALL * mask.numel():
        return None
    x = min(max((left + right - width) / 2, 0), mask.shape[1] - width)
    y = min(max((top + bottom - height) / 2, 0), mask.shape[0] - height)
    return x, x + width, y, y + height


@own_style
def save(figure: Figure, path: AnyPath, new: bool = False) -> None:
    """`path` + .png (150 dpi, 32 steps a color), and .pdf if it has no photographs, which would make it large. The same bytes
    on every run of one machine. new: as in `ltcam.files.atomic`."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, since each drawing moves things a little
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=150, bbox_inches="tight", pad_inches=0.05)
    with atomic(f"{path}.png", new) as temporary:
        temporary.write_bytes(coarse(drawn.getvalue(), dpi=(150, 150)))
    if not any(axes.images for axes in figure.axes):
        with atomic(f"{path}.pdf", new) as temporary:
            figure.savefig(temporary, format="pdf", metadata=dict.fromkeys(["CreationDate", "Producer", "Creator"]))

"""The contents of the page with the sliders: heatmaps, Otsu masks and IoUs of a few images, made in advance."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from itertools import product
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ltcam import data as datasets
from ltcam.data import Segmentation
from ltcam.engine.bins import maps_of
from ltcam.engine.cam import Options, fused
from ltcam.engine.refine import Refine
from ltcam.engine.tracing import trace
from ltcam.experiment import metrics
from ltcam.experiment.checkpoints import Trained
from ltcam.experiment.segmentation import otsu_masks
from ltcam.paper import sweep
from ltcam.show import plotting

REFINED = "refined"
METHODS = {"gradcam": "Grad-CAM", "layercam": "Layer-CAM", REFINED: "Layer-CAM, refined"}
DELTAS = (None, *sweep.DELTAS)
FUSED = ("S5", "S4-S5", "S3-S5", "S2-S5", "S1-S5")
LAYERS = (*FUSED, "S4", "S3", "S2", "S1")
SIDE = 112  # pixels of a heatmap's longer side


def pictures(trained: Trained, data: Segmentation, count: int) -> list[dict[str, Any]]:
    """`count` images of `data`, each with one of its classes, as plain values for the page's script.

    data, name, class; image, truth: data URLs, the true mask is white; size: [width, height] of the views.
    views: {method: {layers: {"sprite": data URL, "iou": [percent, ...]}}} with one value and one frame for each of `DELTAS`. A
    sprite is grey, with its frames one below the other. The low 7 bits of a pixel are the heatmap, from 0 to its own maximum.
    The high bit is Otsu's mask. IoU compares the masks at their own resolution.
    """
    chosen = plotting.examples(data, count)
    samples = [data[i] for i, _ in chosen]
    images = torch.stack([datasets.preprocess(s.image, trained.size) for s in samples])
    traced = trace(trained.model, images.to(next(trained.model.parameters()).device), [c for _, c in chosen])
    maps = maps_of(traced, [(_options(*way), layers) for way in product(METHODS, DELTAS) for layers in LAYERS])
    shown = []
    for pair, (sample, (_, c)) in enumerate(zip(samples, chosen, strict=True)):
        size = (sample.mask.shape[0], sample.mask.shape[1])
        small = F.resize(sample.image, _fit(size, plotting.THUMBNAIL), antialias=True)
        views: dict[str, dict[str, Any]] = {method: {} for method in METHODS}
        for method, layers in product(METHODS, LAYERS):
            ways = [_options(method, delta) for delta in DELTAS]
            of_pair = [{name: m[pair : pair + 1] for name, m in maps[way, layers].items()} for way in ways]
            heats = [fused(own, way, size) for own, way in zip(of_pair, ways, strict=True)]
            views[method][layers] = _view(torch.cat(heats).cpu(), sample.mask, c)
        shown.append(
            {
                "data": data.title, "name": sample.name, "class": data.classes[c], "size": _fit(size, SIDE)[::-1],
                "image": _url(small.permute(1, 2, 0)), "truth": _url(_small((sample.mask == c + 1)[None])[0] * 255),
                "views": views,
            }
        )  # fmt: skip
    return shown


def _options(method: str, delta: float | None) -> Options:
    return Options("layercam", delta, refine=Refine()) if method == REFINED else Options(method, delta)


def _view(heatmaps: Tensor, mask: Tensor, c: int) -> dict[str, Any]:
    """The sprite of heatmaps (M, H, W), and their IoUs with class c of the mask (H, W)."""
    predicted = otsu_masks(heatmaps)
    tp, fp, fn = metrics.count(predicted, metrics.regions(mask, c)).T
    small = F.resize(heatmaps, _fit(heatmaps.shape[1:], SIDE), antialias=True)
    grey = (127 * small / small.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)).round().byte()
    iou = (100 * tp.double() / (tp + fp + fn)).round(decimals=2)
    return {"sprite": _url((grey | _small(predicted) << 7).flatten(0, 1)), "iou": iou.tolist()}


def _small(masks: Tensor) -> Tensor:
    """(M, h, w) uint8 of masks (M, H, W) bool."""
    small: Tensor = F.resize(masks.byte(), _fit(masks.shape[1:], SIDE), F.InterpolationMode.NEAREST)
    return small


def _fit(size: Sequence[int], side: int) -> list[int]:
    return [max(1, round(n * side / max(size))) for n in size]


def _url(pixels: Tensor) -> str:
    buffer = BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

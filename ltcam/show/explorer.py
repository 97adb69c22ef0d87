"""The page with the sliders: heatmaps, Otsu masks and IoUs of a few images, made in advance as figures/…/explorer.json."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ltcam import Config, Refine, files
from ltcam.data import Segmentation
from ltcam.experiment.otsu import otsu_masks
from ltcam.experiment.study import Study
from ltcam.experiment.trained import Trained
from ltcam.show import heatmaps

METHODS = {"Grad-CAM": Config(), "Layer-CAM": Config("layercam"), "Layer-CAM, refined": Config("layercam", refine=Refine())}
DELTAS = (None, *map(float, range(0, 100, 10)))
FUSED = ("S5", "S4-S5", "S3-S5", "S2-S5", "S1-S5")
LAYERS = (*FUSED, "S4", "S3", "S2", "S1")
SIDE = 80  # pixels of a heatmap's longer side
HOME = Path(__file__).parent
NONE = "<p>No picture is here yet. <code>make reproduce</code> and then <code>make book</code> make those of the demo.</p>"


def write(study: Study, count: int = 4) -> Path:
    """Write `pictures` of the study's held-out part to explorer.json, beside its figures."""
    path = study.figures / "explorer.json"
    files.write(path, json.dumps(pictures(study.trained, study.test, count)))
    return path


def page() -> str:
    """The page's HTML with all pictures in it; those of the demo are there if there are no others."""
    found = sorted(files.figures("").glob("*/*/explorer.json"))
    chosen = [path for path in found if path.parts[-3] != "demo"] or found
    if not chosen:
        return NONE
    shown = [picture for path in chosen for picture in json.loads(path.read_text())]
    constants = {"PICTURES": shown, "DELTAS": DELTAS, "METHODS": list(METHODS), "FUSED": FUSED}
    values = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in constants.items()).replace("</", r"<\/")
    return f"{(HOME / 'explore.html').read_text()}<script>\n{values}{(HOME / 'explore.js').read_text()}</script>"


def pictures(trained: Trained, data: Segmentation, count: int) -> list[dict[str, Any]]:
    """`count` images of `data`, each with one of its classes, as plain values for the page's script.

    data, name, class; image, truth: data URLs, the true mask is white; size: [width, height] of the views.
    views: {method: {layers: {"sprite": data URL, "cut": [...], "iou": [percent, ...]}}}, one of each for each of `DELTAS`.
    A sprite is grey, with its frames one below the other, from 0 to the maximum, 255. Otsu's mask is above the cut. IoU
    compares the masks at their own resolution.

    Of twice as many images, those whose IoU changes most over delta are taken, so that the sliders show something.
    """
    made = [_picture(trained, data, *pair) for pair in heatmaps.examples(data, 2 * count)]
    return sorted(made, key=_change, reverse=True)[:count]


def _change(picture: dict[str, Any]) -> float:
    """How far the IoU moves over delta where the page opens; 0 if a mask misses the object."""
    scores = picture["views"][next(iter(METHODS))][FUSED[-1]]["iou"]
    return max(scores) - min(scores) if min(scores) else 0.0


def _picture(trained: Trained, data: Segmentation, index: int, c: int) -> dict[str, Any]:
    sample, views = data[index], dict[str, dict[str, Any]]()
    ways = {
        (method, layers): [replace(config, layers=layers, delta=delta) for delta in DELTAS]
        for (method, config), layers in product(METHODS.items(), LAYERS)
    }
    heats = heatmaps.maps(trained, sample, c, [config for way in ways.values() for config in way])
    for (method, layers), way in ways.items():
        views.setdefault(method, {})[layers] = _view(torch.stack([heats[config] for config in way]), sample.mask, c)
    size = heatmaps.within(sample.mask.shape, SIDE)
    truth = F.resize((sample.mask == c + 1)[None].byte() * 255, size, F.InterpolationMode.NEAREST)[0]
    return {
        "data": data.title, "name": sample.name, "class": data.classes[c], "size": size[::-1], "views": views,
        "image": _url(heatmaps.thumbnail(sample.image, 240)), "truth": _url(truth.numpy()),
    }  # fmt: skip


def _view(heats: Tensor, mask: Tensor, c: int) -> dict[str, Any]:
    """The sprite of heatmaps (M, H, W), where Otsu cuts them, and their IoUs with class c of the mask (H, W)."""
    predicted, most = otsu_masks(heats), heats.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)
    cut = (heats / most).masked_fill(~predicted, 2).amin(dim=(1, 2)) * 255  # an empty mask is above no value
    small = F.resize(heats, heatmaps.within(heats.shape[1:], SIDE), antialias=True)
    grey = (255 * small / small.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)).round().byte()
    scores = heatmaps.iou(predicted, mask, c)
    rounded = [round(float(score), 2) for score in scores]
    return {"sprite": _url(grey.flatten(0, 1).numpy()), "cut": cut.round().int().tolist(), "iou": rounded}


def _url(pixels: NDArray[np.uint8]) -> str:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=50, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()

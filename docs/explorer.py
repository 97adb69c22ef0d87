"""The book's page with sliders: heatmaps, Otsu masks and IoUs of a few images, made in advance as figures/…/explorer.json.

`python docs/explorer.py PROFILE DATA` makes them if the study is trained here. `make book` does so for the demo.
"""

import base64
import json
import sys
from dataclasses import replace
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ltcam import Config, Refine, files
from ltcam.data import Segmentation
from ltcam.errors import one_line
from ltcam.experiment import provenance
from ltcam.experiment.otsu import otsu_masks
from ltcam.experiment.study import Study
from ltcam.experiment.trained import Trained
from ltcam.show import heatmaps

METHODS = {"Grad-CAM": Config(), "Layer-CAM": Config("layercam"), "Layer-CAM, refined": Config("layercam", refine=Refine())}
DELTAS = (None, *map(float, range(0, 100, 10)))
FUSED = ("S5", "S4-S5", "S3-S5", "S2-S5", "S1-S5")
LAYERS = (*FUSED, "S4", "S3", "S2", "S1")
SIDE = 80  # pixels of a heatmap's longer side
NONE = "<p>No picture is here yet. <code>make reproduce</code> and then <code>make book</code> make those of the demo.</p>"


def write(study: Study, count: int = 4) -> None:
    """Write `pictures` of the study's held-out part to explorer.json, beside its figures."""
    files.write(study.figures / "explorer.json", json.dumps(pictures(study.trained, study.test, count)))


def page() -> str:
    """The page's HTML with all pictures in it; those of the demo are there if there are no others."""
    found = sorted(files.figures("").glob("*/*/explorer.json"))
    chosen = [path for path in found if path.parts[-3] != "demo"] or found
    if not chosen:
        return NONE
    shown = [picture for path in chosen for picture in provenance.load(path)]
    constants = {"PICTURES": shown, "DELTAS": DELTAS, "METHODS": [*METHODS], "FUSED": FUSED}
    values = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in constants.items()).replace("</", r"<\/")
    html, script = (Path(__file__).with_name(f"explore.{kind}").read_text() for kind in ("html", "js"))
    return f"{html}<script>\n{values}{script}</script>"


def pictures(trained: Trained, data: Segmentation, count: int) -> list[dict[str, Any]]:
    """`count` images of `data`, each with one of its classes, as plain values for the page's script.

    data, name, class; image, truth: data URLs, the true mask is white; size: [width, height] of the views.
    views: {method: {layers: {"sprite": data URL, "cut": [...], "iou": [percent, ...]}}}, one of each for each of `DELTAS`.
    A sprite is grey, with its frames one below the other, from 0 to the maximum, 255. Otsu's mask is above the cut. IoU
    compares the masks at their own resolution.

    Of twice as many images, those whose IoU changes most over delta are taken, so that the sliders show something.
    """

    def moves(picture: dict[str, Any]) -> float:
        scores = picture["views"]["Grad-CAM"]["S1-S5"]["iou"]  # where the page opens
        return max(scores) - min(scores) if min(scores) else 0.0  # 0 if a mask misses the object

    made = [_picture(trained, data, *pair) for pair in heatmaps.examples(data, 2 * count)]
    return sorted(made, key=moves, reverse=True)[:count]


def _picture(trained: Trained, data: Segmentation, index: int, c: int) -> dict[str, Any]:
    sample, views = data[index], {method: dict[str, Any]() for method in METHODS}
    ways = {(m, s, delta): replace(METHODS[m], layers=s, delta=delta) for m, s, delta in product(METHODS, LAYERS, DELTAS)}
    found = heatmaps.maps(trained, sample, c, ways)
    for method, layers in product(METHODS, LAYERS):
        heats = torch.stack([found[method, layers, delta] for delta in DELTAS])
        masks = otsu_masks(heats)
        heats *= 255 / heats.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)
        views[method][layers] = {
            "sprite": _url(F.resize(heats, None, max_size=SIDE, antialias=True).flatten(0, 1)),
            "cut": heats.masked_fill(~masks, 510).amin(dim=(1, 2)).round().int().tolist(),  # an empty mask is above no value
            "iou": [round(iou, 2) for iou in heatmaps.iou(masks, sample.mask, c).tolist()],
        }
    truth = F.resize(255 * (sample.mask == c + 1).byte()[None], None, F.InterpolationMode.NEAREST, max_size=SIDE)[0]
    return {
        "data": data.title, "name": sample.name, "class": data.classes[c], "size": [truth.shape[1], truth.shape[0]],
        "image": _url(F.resize(sample.image, None, max_size=240, antialias=True)), "truth": _url(truth), "views": views,
    }  # fmt: skip


def _url(pixels: Tensor) -> str:
    """An image (3, H, W) or (H, W), from 0 to 255."""
    buffer = BytesIO()
    F.to_pil_image(pixels.round().byte()).save(buffer, "WEBP", quality=50, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    with one_line("docs/explorer.py"):
        study = Study(sys.argv[1], sys.argv[2])
        if all((study.runs / name / "checkpoint.pt").is_file() for name in study.planned):
            write(study)

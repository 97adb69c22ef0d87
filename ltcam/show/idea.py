"""The two tricks in one picture: image -> stages -> truncate -> sum -> mask, drawn from real maps."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ltcam import data as datasets
from ltcam.data.base import VOID, Sample
from ltcam.engine.cam import explain
from ltcam.engine.tracing import trace
from ltcam.experiment.checkpoints import Trained
from ltcam.experiment.segmentation import otsu_masks
from ltcam.show.plotting import _outline, _panel, _thumbnail


def idea_figure(trained: Trained, sample: Sample, target: int, delta: float = 20) -> Figure:
    """Grad-CAM of class `target` at each stage, the sum over stages (Eq. 8) and its Otsu mask.

    The upper row uses all gradients, the lower row those that truncation at `delta` keeps (Eq. 9). The true mask is outlined.
    """
    inputs = datasets.preprocess(sample.image, trained.size)[None].to(next(trained.model.parameters()).device)
    traced = trace(trained.model, inputs, target)
    rows: dict[str, float | None] = {"all gradients": None, f"truncated,\nEq. 9 (δ={delta:g})": delta}
    thumbnail, truth = _thumbnail(sample.image), sample.mask == target + 1
    height, width = thumbnail.shape[:2]
    figure, axes = plt.subplots(2, 8, figsize=(11, 2 * 1.3 * height / width + 0.9), layout="constrained")
    for line, (label, kept) in zip(axes, rows.items(), strict=True):
        each = {stage: explain(traced, "gradcam", stage, kept).cpu()[0] for stage in traced.stages}
        fused = explain(traced, "gradcam", None, kept, size=(truth.shape[0], truth.shape[1])).cpu()
        mask = otsu_masks(fused)[0]
        iou = (mask & truth).sum() / ((mask | truth) & (sample.mask != VOID)).sum()
        titles = ["image", *each, "Eq. 8: sum", f"Otsu's mask, IoU {100 * iou:.0f}%"]
        for panel, title, heatmap in zip(line, titles, [None, *each.values(), fused[0], mask.float()], strict=True):
            _panel(panel, thumbnail, heatmap)
            panel.set_title(title, fontsize=8)
        line[0].set_ylabel(label, fontsize=8)
        for panel in line[[0, -1]]:
            _outline(panel, truth, (height, width))
    return figure

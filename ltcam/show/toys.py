"""The models of notebook 07: three small networks of other kinds, trained for a minute on generated images."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.models import ConvNeXt, VisionTransformer, resnet50
from torchvision.models.convnext import CNBlockConfig

from ltcam import data as datasets
from ltcam import files
from ltcam.engine.traces import Trace
from ltcam.experiment import metrics, provenance, training
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.segmentation import otsu_masks
from ltcam.paper import golden
from ltcam.show import plotting

Maps = Mapping[str, Mapping[str, Tensor]]  # model -> way -> (P, H, W)


def models(classes: int, size: int) -> dict[str, nn.Module]:
    """A ResNet-50, a small ConvNeXt and a small vision transformer for square images of `size` pixels; random weights."""
    blocks = [CNBlockConfig(40, 80, 2), CNBlockConfig(80, 160, 2), CNBlockConfig(160, 320, 4), CNBlockConfig(320, None, 2)]
    return {
        "ResNet-50": resnet50(num_classes=classes),
        "ConvNeXt": ConvNeXt(blocks, layer_scale=1.0, num_classes=classes),
        "ViT": VisionTransformer(
            size, patch_size=8, num_layers=4, num_heads=4, hidden_dim=96, mlp_dim=192, num_classes=classes
        ),
    }


class Scene:
    """The images of data set `data` to score, as inputs of the models. schedule: fields of `Recipe`, its model ignored."""

    def __init__(self, data: str, schedule: Mapping[str, Any]) -> None:
        self.started, self.data, self.schedule = time.time(), data, dict(schedule)
        self.recipe = Recipe(data=data, **schedule)
        self.test = datasets.load(data, self.recipe.test)
        self.samples = [self.test[i] for i in self.test.scored]
        assert self.recipe.size
        self.images = torch.stack([datasets.preprocess(sample.image, self.recipe.size) for sample in self.samples])
        self.labels = torch.stack([sample.label for sample in self.samples])
        self.size = (self.samples[0].mask.shape[0], self.samples[0].mask.shape[1])
        self.figures: Path = files.figures("demo", data)

    def fit(self, networks: Mapping[str, nn.Module]) -> pd.DataFrame:
        """Train each network. Returns the average precision on the held-out part, one row per class."""
        scores = pd.DataFrame({name: training.fit(network, self.recipe) for name, network in networks.items()})
        return scores.set_axis(self.test.classes)

    def layers(self, traces: Mapping[str, Trace]) -> pd.DataFrame:
        """What was traced: one row per layer with the shape of its gradient, kept as plug_in.csv."""
        rows = [(name, layer, *t.gradient(layer).shape[1:]) for name, t in traces.items() for layer in t.layers]
        table = pd.DataFrame(rows, columns=["model", "layer", "channels", "height", "width"])
        provenance.save(table, files.results("demo", self.data) / "plug_in.csv", self.started, recipe=self.schedule)
        return table

    def check(self, table: pd.DataFrame) -> str:
        return golden.check(table, "plug_in", self.data)

    def figure(self, traces: Mapping[str, Trace], maps: Maps, precision: pd.DataFrame) -> Figure:
        """For each model the two images where its best class is largest, with a column for each way to make the maps."""
        best = {name: int(precision[name].to_numpy().argmax()) for name in traces}
        rows = [(name, pair) for name, t in traces.items() for pair in self._largest(t, best[name])]
        pictured = [(self.samples[i], c) for i, c in (traces[name].pairs[pair].tolist() for name, pair in rows)]
        return plotting.grid(
            [sample.image for sample, _ in pictured],
            {way: [maps[name][way][pair] for name, pair in rows] for way in next(iter(maps.values()))},
            [f"{name}\n{self.test.classes[c]}" for (name, _), (_, c) in zip(rows, pictured, strict=True)],
            [sample.mask == c + 1 for sample, c in pictured],
        )

    def scores(self, traces: Mapping[str, Trace], maps: Maps) -> pd.DataFrame:
        """Pooled IoU of Otsu's masks over all pairs, in percent: a row for each model, a column for each way to make maps."""
        found = {name: {way: self._iou(traces[name], m) for way, m in ways.items()} for name, ways in maps.items()}
        return pd.DataFrame(found).T

    def _largest(self, traced: Trace, target: int, count: int = 2) -> list[int]:
        areas = {
            pair: -int((self.samples[i].mask == target + 1).sum())
            for pair, (i, c) in enumerate(traced.pairs.tolist())
            if c == target
        }
        return sorted(areas, key=areas.__getitem__)[:count]

    def _iou(self, traced: Trace, heatmaps: Tensor) -> float:
        pairs = zip(otsu_masks(heatmaps), traced.pairs.tolist(), strict=True)
        counts = [metrics.count(mask, metrics.regions(self.samples[i].mask, c)) for mask, (i, c) in pairs]
        tp, fp, fn = torch.stack(counts).sum(dim=0).tolist()
        return float(100 * tp / (tp + fp + fn))

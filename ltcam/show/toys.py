"""The models of notebook 07: three small networks of other kinds, trained for seconds on generated images."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.models import ConvNeXt, DenseNet, VisionTransformer
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
    """A DenseNet, a ConvNeXt and a vision transformer for square images of `size` pixels; random weights.

    They are small, so that 10 epochs take seconds. The ConvNeXt normalises batches between its stages: with layer norm it needs
    many more epochs to see a small object in the mean over the image.
    """
    blocks = [CNBlockConfig(32, 64, 1), CNBlockConfig(64, 128, 1), CNBlockConfig(128, None, 1)]
    return {
        "DenseNet": DenseNet(growth_rate=12, block_config=(2, 2, 2, 2), num_init_features=24, num_classes=classes),
        "ConvNeXt": ConvNeXt(blocks, layer_scale=1.0, num_classes=classes, norm_layer=nn.BatchNorm2d),
        "ViT": VisionTransformer(
            size, patch_size=12, num_layers=4, num_heads=4, hidden_dim=96, mlp_dim=192, num_classes=classes
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
        rows = [(name, pair) for name, t in traces.items() for pair in self._largest(t, best(precision[name]))]
        pictured = [(self.samples[i], c) for i, c in (traces[name].pairs[pair].tolist() for name, pair in rows)]
        return plotting.grid(
            [sample.image for sample, _ in pictured],
            {way: [maps[name][way][pair] for name, pair in rows] for way in next(iter(maps.values()))},
            [f"{name}\n{self.test.classes[c]}" for (name, _), (_, c) in zip(rows, pictured, strict=True)],
            [sample.mask == c + 1 for sample, c in pictured],
        )

    def scores(self, traces: Mapping[str, Trace], maps: Maps, precision: pd.DataFrame) -> pd.DataFrame:
        """Pooled IoU of Otsu's masks of each model's best class, in percent: a row for each model, a column for each way."""
        rows = {name: self._pairs(t, best(precision[name])) for name, t in traces.items()}
        found = {name: {way: self._iou(traces[name], m, rows[name]) for way, m in ways.items()} for name, ways in maps.items()}
        return pd.DataFrame(found).T

    def _pairs(self, traced: Trace, target: int) -> list[int]:
        """The numbers of the pairs of class `target`."""
        return [pair for pair, (_, c) in enumerate(traced.pairs.tolist()) if c == target]

    def _largest(self, traced: Trace, target: int, count: int = 2) -> list[int]:
        images = traced.pairs[:, 0].tolist()
        areas = {pair: -int((self.samples[images[pair]].mask == target + 1).sum()) for pair in self._pairs(traced, target)}
        return sorted(areas, key=areas.__getitem__)[:count]

    def _iou(self, traced: Trace, heatmaps: Tensor, rows: list[int]) -> float:
        pairs = zip(otsu_masks(heatmaps[rows]), traced.pairs[rows].tolist(), strict=True)
        counts = [metrics.count(mask, metrics.regions(self.samples[i].mask, c)) for mask, (i, c) in pairs]
        tp, fp, fn = torch.stack(counts).sum(dim=0).tolist()
        return float(100 * tp / (tp + fp + fn))


def best(precision: pd.Series[float]) -> int:
    """The number of the class with the largest average precision."""
    return int(precision.to_numpy().argmax())

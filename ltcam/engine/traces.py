"""What one forward and its backwards leave."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ltcam.errors import InputError


@dataclass(frozen=True)
class Bias:
    """An additive bias, the gradient (P, K[, h, w]) at the sum, and the stage or traced layer that follows.

    bias is (K,), or like the gradient if it varies in space or by image. A term of another shape is not in the map.
    """

    name: str
    stage: str
    bias: Tensor
    gradient: Tensor

    @property
    def value(self) -> Tensor:
        """The bias in a shape that multiplies the gradient: (1, K, 1, 1), or (P, K, h, w)."""
        return self.bias.view(1, -1, 1, 1) if self.bias.ndim == 1 else self.bias


@dataclass(frozen=True)
class Trace:
    """What one forward and its backwards leave. Every tensor is on the images' device, and detached without `create_graph`.

    pairs  (P, 2) long: (image, class), sorted; the class is -1 if the target was a function of the logits
    logits (N, C)
    layers names of the traced layers, in the order of the forward pass
    stages {"S1": layer name, ...} for the layers traced as stages
    size   (H, W) of the images
    biases, inputs  only with `fullgrad=True`: the bias terms, and (image, gradient) at the input, each (P, 3, H, W)
    residual  (P,) float64, with fullgrad=True too: (all terms - score) / (their absolute values + the input term's norm)
    """

    pairs: Tensor
    logits: Tensor
    layers: list[str]
    stages: dict[str, str]
    size: tuple[int, int]
    biases: list[Bias] = field(default_factory=list)
    inputs: tuple[Tensor, Tensor] | None = None
    residual: Tensor | None = None
    _activations: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _gradients: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def features(self, name: str) -> Tensor:
        """(N, K, h, w): the output of layer `name` for each image."""
        return self._activations[self._known(name)]

    def activation(self, name: str, part: slice = slice(None)) -> Tensor:
        """(P, K, h, w): the output of layer `name` for the image of each pair. `part` selects pairs."""
        return per_pair(self.features(name), self.pairs[part])

    def gradient(self, name: str) -> Tensor:
        """(P, K, h, w): the gradient of each pair's logit with respect to the output of layer `name`."""
        return self._gradients[self._known(name)]

    def select(self, layers: str | Sequence[str] | None) -> list[str]:
        """Names of traced layers by name, stage label ("S5"), range of labels ("S3-S5") or a sequence of these; None: all."""
        if layers is None:
            return list(self.layers)
        if isinstance(layers, list | tuple):
            return [name for item in layers for name in self.select(item)]
        if layers in self.layers:
            return [layers]
        if isinstance(layers, str) and (labels := labels_in(layers)) and all(label in self.stages for label in labels):
            return [self.stages[label] for label in labels]
        raise InputError(f"layer {layers!r} was not traced: expected one of {self.layers} or of {list(self.stages)}")

    def terms(self, layers: str | Sequence[str] | None = None) -> list[Bias]:
        """FullGrad's bias terms that are maps, of the layers that `select` gives; None: all."""
        if self.inputs is None:
            raise InputError("method 'fullgrad' needs the gradients at the biases: trace(..., fullgrad=True)")
        stages = {t.stage for t in self.biases} if layers is None else self.select(layers)
        return [t for t in self.biases if t.gradient.ndim == 4 and t.stage in stages]

    def _known(self, name: str) -> str:
        if not isinstance(name, str) or name not in self._activations:
            raise InputError(f"layer {name!r} was not traced: expected one of {self.layers}")
        return name


def labels_in(text: str) -> list[str]:
    """ "S3-S5" -> ["S3", "S4", "S5"]. Empty if the text is no label or range of labels."""
    match = re.fullmatch(r"S(\d{1,3})(?:-S(\d{1,3}))?", text)
    return [f"S{i}" for i in range(int(match[1]), int(match[2] or match[1]) + 1)] if match else []


def per_pair(value: Tensor, pairs: Tensor) -> Tensor:
    """(N, ...) -> (P, ...): the image of each pair, without a copy if each image has just one pair."""
    image = pairs[:, 0]
    return value if torch.equal(image, torch.arange(len(value), device=image.device)) else value[image]

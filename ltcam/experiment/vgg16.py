"""VGG16 as the paper uses it (Sec. 3.1): torchvision's network with ImageNet weights and a new head."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import VGG
from torchvision.models.vgg import cfgs, make_layers

from ltcam.engine.tricks import whole
from ltcam.errors import InputError
from ltcam.experiment import weights as sources
from ltcam.files import AnyPath, sha256

Head = Literal["fc", "gap"]


def vgg16(
    num_classes: int,
    head: Head = "fc",
    weights: AnyPath | None = "imagenet",
    hidden: int | None = None,
    width: int = 1,
) -> VGG:
    """torchvision's VGG16 (Sec. 3.1) with `.features` unchanged (31 modules) and its head replaced.

    head    "fc": torchvision's classifier with its last layer replaced; "gap": global average pooling and one linear layer
    weights "imagenet" (the sources of `ltcam.experiment.weights`), None (random), or the path of a state dict or checkpoint
    hidden  width of the two hidden "fc" layers. None takes the source's layers if it has any (torchvision's file: 4096), else
            1024; with another width than the source's they start at random
    width   divides every channel count, for a toy of the same 31 modules in tests; must be 1 with "imagenet"

    `model.source` says where the weights came from.
    """
    if head not in ("fc", "gap"):
        raise InputError(f"head={head!r} is unknown: expected 'fc' or 'gap'")
    if width != 1 and weights == "imagenet":
        raise InputError(f"width={width} has no ImageNet weights: pass weights=None, or width=1")
    num_classes, width = whole("num_classes", num_classes), whole("width", width, most=64)  # channels of the first layers
    if hidden is not None:
        hidden = whole("hidden", hidden)
    state, source = _state(weights)
    offered = state["classifier.0.bias"].numel() if source.head and head == "fc" else None
    pretrained = offered is not None and hidden in (None, offered)
    channels = [c if c == "M" else int(c) // width for c in cfgs["D"]]
    with torch.device("meta"):  # torchvision would build a head of 120 million weights, replaced below
        model = VGG(nn.Identity(), init_weights=False)
    model.features = make_layers(channels)
    if head == "gap":
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Linear(channels[-2], num_classes)
    else:
        width = hidden or offered or 1024
        model.avgpool = nn.AdaptiveAvgPool2d(7)
        model.classifier = nn.Sequential(
            nn.Linear(channels[-2] * 49, width), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(width, num_classes),
        )  # fmt: skip
    taken = ("features.", "classifier.0.", "classifier.3.") if pretrained else "features."
    model.load_state_dict(model.state_dict() | {name: value for name, value in state.items() if name.startswith(taken)})
    model.source = replace(source, head=pretrained)
    return model


def _state(weights: AnyPath | None) -> tuple[dict[str, Tensor], sources.Source]:
    if weights is None:
        return {}, sources.Source("random", "", head=False)
    if weights == "imagenet":
        return sources.imagenet_vgg16()
    path, state = Path(weights), sources.bare(sources.load(weights))
    if absent := [f"features.{i}.weight" for i in sources.CONV_INDICES if f"features.{i}.weight" not in state]:
        raise InputError(f"{path} has no {absent[0]}: expected a state dict of VGG16")
    return state, sources.Source(path.name, sha256(path), head="classifier.3.weight" in state)

"""One image file, one class, any torchvision CNN: `ltcam explain photo.jpg --model resnet50 --class "tabby" --out heat.png`."""

from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import get_model, get_model_weights, list_models

from ltcam import Config
from ltcam.data import preprocess
from ltcam.data.base import read
from ltcam.engine.stages import labels_in, stages
from ltcam.engine.views import over_views
from ltcam.errors import InputError, MissingError, UnavailableError
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.trained import load_checkpoint
from ltcam.experiment.vgg16 import bare, load
from ltcam.files import AnyPath

Classifier = tuple[nn.Module, Sequence[str], tuple[int, int]]  # in eval mode, its classes, its input (height, width)


def classifier(name: str, checkpoint: AnyPath | None) -> Classifier:
    """A checkpoint of `ltcam train`, a state dict of the torchvision model `name`, or torchvision's own weights (None).

    The model classifies an image or its pixels. The classes of a state dict are named "0", "1", ...
    """
    dense = name in list_models(module=models.segmentation)
    if not dense and name not in list_models(module=models):
        raise InputError(f"model {name!r} is no classifier of torchvision: expected e.g. vgg16, resnet50 or fcn_resnet50")
    if checkpoint is None:
        pretrained = get_model_weights(name).DEFAULT
        try:
            model = get_model(name, weights=pretrained)
        except OSError as error:
            raise UnavailableError(f"{pretrained.url} cannot be reached ({error}): fetch it and pass --checkpoint") from error
        if dense:
            model.aux_classifier = None  # a head for training, which no logit depends on
        return model.eval(), pretrained.meta["categories"], (224, 224)
    state = load(checkpoint)
    if {"model", "record"} <= state.keys():
        trained = load_checkpoint(checkpoint, "cpu")
        return trained.model, trained.classes, trained.size
    state = {key: value for key, value in bare(state).items() if not str(key).startswith("aux_classifier.")}
    options: dict[str, Any] = {"weights_backbone": None} if dense else {}
    try:
        classes = [str(c) for c in range(len([*state.values()][-1]))]  # as many as the last bias has values
        model = get_model(name, weights=None, num_classes=len(classes), **options)
        model.load_state_dict(state)
    except (RuntimeError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{checkpoint} does not fit {name}: expected its state dict ({reason})") from error
    return model.eval(), classes, (224, 224)


def pretrained(name: str) -> Classifier | None:
    """`classifier` with torchvision's own weights, or None where they are out of reach. Says nothing of it."""
    with suppress(UnavailableError), redirect_stdout(StringIO()) as said, redirect_stderr(said):
        return classifier(name, None)
    return None


def maps(
    image: AnyPath, model: Classifier, target: str, config: Config, per_stage: bool = False, tiles: int | None = None
) -> tuple[Tensor, str, dict[str, Tensor]]:
    """The image (3, H, W) uint8, the class explained, and {title: heatmap (H, W)}, that of `config` last.

    target: a class by name or index, or "" for the class with the largest logit; per_stage: give each stage's own map too;
    tiles: as in `Protocol`.
    """
    network, classes, size = model
    if target and target not in classes and not target.isdecimal():
        raise InputError(f"class {target!r} is unknown: expected an index or one of {', '.join(classes[:20])}")
    chosen = None if not target else list(classes).index(target) if target in classes else int(target)
    if not Path(image).is_file():
        raise MissingError(f"no image at {image}: expected a photograph there")
    pixels = torch.from_numpy(read(image, "RGB", upright=True)).permute(2, 0, 1)
    device, views = "cuda" if torch.cuda.is_available() else "cpu", Protocol(tiles=tiles)
    at = (pixels.shape[1], pixels.shape[2])
    images = preprocess(pixels, views.entering(at, size))[None].to(device)
    layers, own = stages(network.to(device), images=images), config.layers
    named = {name for item in ([own] if isinstance(own, str) else own) for name in (labels_in(item) or [item])}
    alone = [label for label, layer in layers.items() if per_stage and named & {label, layer, "all"}]
    asked = {stage: replace(config, layers=stage, refine=None) for stage in alone} | {str(config): config}
    found = over_views(network, images, chosen, asked.values(), layers, size, tiles=views.crops(at), one_by_one=True)
    heats = {way: heat[0].cpu() for ways, stack in found.heatmaps([0], at) for way, heat in zip(ways, stack, strict=True)}
    return pixels, classes[int(found.pairs[0, 1])], {title: heats[way] for title, way in asked.items()}

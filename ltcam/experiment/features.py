"""What the network is trained on: images, or the features of its frozen stages, computed once and kept image by image."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, Dataset, Subset
from torchvision.models import VGG
from torchvision.transforms import v2
from tqdm import tqdm

from ltcam import data as datasets
from ltcam.data import Segmentation
from ltcam.engine.stages import stages
from ltcam.experiment.parallel import gather_object, loader, processes
from ltcam.experiment.recipe import Recipe

log = logging.getLogger(__name__)
_KEPT: dict[tuple[str, ...], dict[str, Tensor]] = {}  # the device and weights that computed them -> image -> features


class Labelled(Dataset[tuple[Tensor, Tensor]]):
    """(network input, multi-hot label) of a data set, optionally augmented."""

    def __init__(self, data: Segmentation, size: tuple[int, int], augment: Callable[[Tensor], Tensor] | None = None) -> None:
        self.data, self.size, self.augment = data, size, augment
        self.labels = data.labels  # read here once, not in every loader process

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = datasets.preprocess(self.data.image(index), self.size)
        return (self.augment(image) if self.augment else image), self.labels[index]


class Features(Dataset[tuple[Tensor, Tensor]]):
    """(features of an image or of one of its mirror images, drawn at random, its label)."""

    def __init__(self, features: Sequence[Tensor], labels: Tensor) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        mirrors = self.features[index]
        return mirrors[int(torch.randint(len(mirrors), ())) if len(mirrors) > 1 else 0], self.labels[index]


Inputs = Labelled | Features | Subset[tuple[Tensor, Tensor]]


@torch.no_grad()
def predict(model: nn.Module, data: Inputs, batch_size: int, device: torch.device) -> Tensor:
    """Logits (N, C), on the CPU, of a data set of (input, label) pairs. Processes share the batches; each returns all."""
    model.eval()
    with processes().split_between_processes(list(BatchSampler(range(len(data)), batch_size, False))) as batches:
        shown = tqdm(loader(data, device, batch_sampler=batches), disable=None, leave=False)
        logits = [model(inputs.to(device)).float().cpu() for inputs, _ in shown]
    return torch.cat(gather_object(logits))


def prepare(
    model: VGG, fit: Segmentation, size: tuple[int, int], recipe: Recipe, device: torch.device
) -> tuple[Inputs, nn.Module]:
    """The inputs of the training, and the module that maps them to logits: `model`, or its part behind the frozen stages."""
    boundary = int(list(stages(model).values())[recipe.frozen - 1].split(".")[1]) + 1 if recipe.frozen else 0
    frozen, free = model.features[:boundary].requires_grad_(False), model.features[boundary:]
    if recipe.augment not in ("none", "flips"):
        return Labelled(fit, size, augmentation(fit)), model
    flips = [(), (-1,)] if fit.upright else [(), (-1,), (-2,), (-2, -1)]
    mirrored = Labelled(fit, size, partial(_mirrors, flips[:1] if recipe.augment == "none" else flips))
    features = Features(_computed(frozen, mirrored, recipe, device), fit.labels)
    return features, nn.Sequential(free, model.avgpool, nn.Flatten(), model.classifier)


def augmentation(data: Segmentation) -> v2.Transform:
    flips = [v2.RandomHorizontalFlip()] if data.upright else [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    return v2.Compose([*flips, v2.RandomAffine(0, scale=data.jitter, interpolation=v2.InterpolationMode.BILINEAR)])


def _computed(frozen: nn.Module, mirrored: Labelled, recipe: Recipe, device: torch.device) -> list[Tensor]:
    """The frozen stages' features (mirrors, ...) of every image and its mirror images. Each image is computed alone and kept,
    so other seeds, folds and hold-outs use the same features."""
    key = (str(device), *map(_digest, frozen.parameters()))
    if key not in _KEPT:
        _KEPT.clear()
    kept = _KEPT.setdefault(key, {})
    images = [_digest(mirrored[i][0]) for i in range(len(mirrored))]
    if missing := list({image: i for i, image in enumerate(images) if image not in kept}.values()):
        log.info("%s: %d frozen stages' features of %d images, computed once", recipe.data, recipe.frozen, len(missing))
        each = nn.Sequential(nn.Flatten(0, 1), frozen)  # a batch of one image is one of its mirror images
        found = predict(each, Subset(mirrored, missing), 1, device)
        kept.update(zip((images[i] for i in missing), found.view(len(missing), -1, *found.shape[1:]), strict=True))
    return [kept[image] for image in images]


def _mirrors(flips: Sequence[tuple[int, ...]], image: Tensor) -> Tensor:
    """(3, H, W) -> (mirrors, 3, H, W)."""
    return torch.stack([image.flip(dims) for dims in flips])


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()

"""A trained model, loaded from its file."""

from dataclasses import dataclass
from typing import Any

import torch
from torchvision.models import VGG

from ltcam import data as datasets
from ltcam.data import DataError, Segmentation
from ltcam.errors import InputError
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.vgg16 import load, vgg16
from ltcam.files import AnyPath, sha256


@dataclass(frozen=True)
class Trained:
    """A trained model with everything needed to use it."""

    model: VGG
    recipe: Recipe
    classes: tuple[str, ...]
    size: tuple[int, int]
    record: dict[str, Any]  # its last epoch, the source of the weights, the fingerprint of the data trained on
    sha256: str = ""  # of the checkpoint

    def load(self, part: str) -> Segmentation:
        """Part `part` of its data set. Raises DataError if the files it was trained on have changed since."""
        data, before = datasets.load(self.recipe.data, part), self.record.get("fingerprint")
        if before and part == self.recipe.train and data.fingerprint != before:
            raise DataError(
                f"{data.title}, part {part}: its files have changed since the training (fingerprint {before[:12]}... then, "
                f"{data.fingerprint[:12]}... now): restore them, or train again; `ltcam data check` finds damage"
            )
        return data.with_classes()


def load_checkpoint(path: AnyPath, device: str | torch.device | None = None) -> Trained:
    """The model that `train` left at `path`, in eval mode. Raises MissingError or InputError if there is none."""
    state = load(path)
    try:
        record, weights = state["record"], state["model"]
        recipe, classes, size = Recipe(**record["recipe"]), tuple(record["classes"]), (record["size"][0], record["size"][1])
        hidden = None if recipe.head == "gap" else weights["classifier.0.bias"].numel()
        outputs = [value.numel() for name, value in weights.items() if name.startswith("classifier.")][-1]  # of the last bias
        model = vgg16(outputs, recipe.head, None, hidden, recipe.width)
        model.load_state_dict(weights)
    except (AttributeError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} is not a checkpoint of ltcam train ({error}): expected its checkpoint.pt") from error
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    return Trained(model, recipe, classes, size, record, sha256(path))

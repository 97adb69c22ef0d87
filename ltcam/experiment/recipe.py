"""The settings of a training that the paper omits, and the trainings of a profile."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import yaml

from ltcam import files
from ltcam.engine.tricks import is_whole, one_of, whole
from ltcam.errors import InputError
from ltcam.experiment.protocol import Loss, plain
from ltcam.experiment.vgg16 import Head

Augment = Literal["none", "flips", "light"]
# What a profile may set beside its recipe.
DEFAULTS: dict[str, Any] = {
    "seeds": [], "folds": 0, "batch_size": 8,
    "softmax": None,  # what the setting "softmax" changes here, e.g. {seeds: [0]}; None: it is not trained
    "deltas": [float(delta) for delta in range(0, 100, 10)],  # of the cross of percentile scope, scale and delta
    "varied": ["Grad-CAM", "Grad-CAM, fused", "LTGrad-CAM", "Layer-CAM", "LTLayer-CAM", "FullGrad"],  # rows of the ablations
    "protocols": ["labels", "outputs", "size"],  # of the ablations
    "ablated": None, "others": [],  # the first so many seeds are ablated; other trainings, by their folders
    "first": None, "images": None,  # so many training images are swept, images looked into; None: all
    "chosen_on": None, "drawn_on": None, "scored_on": None,  # images for what goes beyond the paper
    "second_cut": True, "pictures": 5, "tiles": None,  # at a share of the maximum; pixels of a crop's side, None: no crops
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run. Equal recipes on equal data, weights and machines give equal checkpoints."""

    data: str = "demo"
    train: str = "train"  # the part trained on
    test: str = "test"  # the held-out part
    loss: Loss = "sigmoid"  # a sigmoid a class; or a softmax, whose probability the classes of an image share
    head: Head = "fc"
    hidden: int | None = None
    width: int = 1
    weights: str | None = "imagenet"
    size: tuple[int, int] | None = None  # (height, width) of the input; None: the data set's own
    frozen: int = 2  # stages kept as they are
    epochs: int = 4
    batch_size: int = 16
    lr: float = 3e-4  # of the head
    slow: float = 0.1  # the convolutions learn at `slow` times `lr`
    weight_decay: float = 1e-4
    # "flips"; "light" adds scales. With "none" and "flips" the frozen stages' features are computed once for each image and
    # its mirror images, so training is several times faster.
    augment: Augment = "light"
    balance: bool = False  # give more weight to the images of rare classes
    bfloat16: bool = False  # autocast in training: about twice as fast on CPUs that compute in it, 18 times slower on others
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        for name in ("lr", "slow", "weight_decay"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name in ("epochs", "batch_size", "width", "hidden"):
            if (name, getattr(self, name)) != ("hidden", None):
                whole(name, getattr(self, name))
        for name, most in (("frozen", 5), ("seed", 2**31)):
            if not is_whole(value := getattr(self, name), most) and (value != 0 or isinstance(value, bool)):
                raise InputError(f"{name}={value!r}: expected a whole number from 0 to {most}")
        for name in ("balance", "bfloat16"):
            if not isinstance(value := getattr(self, name), bool):
                raise InputError(f"{name}={value!r}: expected true or false")
        one_of("augment", self.augment, Augment)
        one_of("head", self.head, Head)
        one_of("loss", self.loss, Loss)


def _number(name: str, value: Any) -> float:
    """`value` as a float; YAML reads 1e-3 as text. Raises InputError if it is no finite number from 0."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise InputError(f"{name}={value!r}: expected a number from 0, e.g. 0.001")
    return number


class Training(NamedTuple):
    """name: its folder in those of the study; seed: the name of its training, which all folds share."""

    name: str
    seed: str
    fold: str
    recipe: Recipe


def planned(data: str, recipe: Mapping[str, Any], seeds: Sequence[int] = (), folds: int = 0) -> list[Training]:
    """Every training of a profile. recipe: fields of `Recipe`. Fold f trains on `train<f>` and holds out `test<f>`."""
    base = Recipe(data=data, **recipe)
    if folds and not seeds:
        raise InputError(f"folds={folds} without seeds: expected seeds too, e.g. [0]")
    seeded = [Training(f"seed{seed}", f"seed{seed}", "", replace(base, seed=seed)) for seed in seeds]
    return (
        [
            Training(f"{name}/fold{f}", name, f"fold{f}", replace(own, train=f"{own.train}{f}", test=f"{own.test}{f}"))
            for name, _, _, own in seeded
            for f in range(folds)
        ]
        or seeded
        or [Training("", "", "", base)]
    )


def profile(name: str) -> dict[str, dict[str, Any]]:
    """The settings of profile `name` by data set, from `notebooks/profiles`. Raises InputError for an unknown one."""
    found = sorted((files.NOTEBOOKS / "profiles").glob("*.yaml"))
    if not found:
        do = "train and reproduce need a checkout of the repository: run them in it, or install it with pip install -e"
        raise InputError(f"{files.NOTEBOOKS / 'profiles'} has no profiles: {do}")
    read = [yaml.safe_load(file.read_text("utf-8")) for file in found if file.name.startswith(f"{name}.")]
    if not read:
        raise InputError(f"profile {name!r} is unknown: expected one of {sorted({file.name.split('.')[0] for file in found})}")
    return {settings["data"]: settings for settings in read}


def settings(texts: Sequence[str]) -> dict[str, Any]:
    """Fields of a recipe from "NAME=VALUE", with values as in a profile's file. Raises InputError for an unknown name."""
    found = dict(text.partition("=")[::2] for text in texts)
    known = [field.name for field in fields(Recipe)]
    if unknown := [name for name in found if name not in known]:
        raise InputError(f"{unknown[0]!r} is not a setting of a recipe: expected NAME=VALUE with a name of {', '.join(known)}")
    return {name: yaml.safe_load(value) for name, value in found.items()}


def tuning(recipe: Recipe) -> Recipe:
    """`recipe` trained on nine tenths of its training part and scored on the rest. Recipes are chosen by this score."""
    return replace(recipe, train=f"{recipe.train}/fit", test=f"{recipe.train}/tune")

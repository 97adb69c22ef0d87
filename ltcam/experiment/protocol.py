"""How a data set is run, for every configuration alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from math import log
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from ltcam.engine.config import Config
from ltcam.engine.stages import Outputs
from ltcam.engine.tricks import one_of, whole
from ltcam.engine.views import check, scaled
from ltcam.errors import InputError

Loss = Literal["sigmoid", "softmax"]
Labels = Literal["true", "predicted", "top", "every", "all"]
Border = Literal["reflected", "masked"]
BORDER = 32  # pixels of the input
LATER = dict.fromkeys(("scales", "flip", "tiles", "border"))  # what counts that are made without it do not name


@dataclass(frozen=True)
class Protocol:
    """Each field is kept with the counts.

    labels    "true": heatmaps of the classes that are present. "predicted": of the classes with a logit above 0, or else of
              the largest logit. "top": of the class of the largest logit alone, or of none if that is the logit of "none". An
              explained class that is absent has only false positives, a missed one only false negatives. "every": a pass that
              explains the classes of all three, so that each of them can be read from it. "all": every class in every image,
              also where it is absent
    outputs   where the stages S1 to S5 are read, as in `ltcam.engine.stages.stages`
    size      (height, width) of the input; None: the size that the model was trained at
    bfloat16  autocast of the forward and the backward; the maps are still summed in float32
    scales, flip  maps are averaged over the input at each scale, and mirrored too; as in `ltcam.explain_scales`
    tiles     images with a longer side, in their own pixels, are explained in crops, one image at a time, as `over_views` does.
              Others are explained whole, at `size`. None: all are
    border    "reflected": the input is 32 pixels wider at each edge, by reflection, and the map is cut there. "masked": the
              map's outermost 32 pixels of the input are set to 0. None: neither. Of one view alone
    """

    batch_size: int = 8
    labels: Labels = "true"
    outputs: Outputs = "pool"
    size: tuple[int, int] | None = None
    bfloat16: bool = False
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    tiles: int | None = None
    border: Border | None = None

    def __post_init__(self) -> None:
        whole("batch_size", self.batch_size)
        one_of("labels", self.labels, Labels)
        one_of("outputs", self.outputs, Outputs)
        check(self.scales, self.flip, self.tiles)
        if self.border is not None:
            one_of("border", self.border, Border)
            if self.several:
                raise InputError(f"border={self.border!r} with scales, flip or tiles: expected it with one view")
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))

    @property
    def measured(self) -> Protocol:
        """The protocol of a pass that these counts can be read from."""
        return self if self.labels in ("true", "all") else replace(self, labels="every")

    def identity(self, size: tuple[int, int]) -> dict[str, Any]:
        """What counts depend on, as plain values. size: what the model was trained at."""
        found = asdict(self) | {"size": list(self.size or size), "scales": list(self.scales)}
        unused = () if self.several else ("scales", "flip")
        return {name: value for name, value in found.items() if value is not None and name not in unused}

    @property
    def several(self) -> bool:
        """Whether maps are means over views or crops, or of another scale."""
        return (*self.scales, self.flip, self.tiles) != (1.0, False, None)

    def crops(self, image: tuple[int, int]) -> int | None:
        """The side of crops of an image (H, W); None: it is explained whole."""
        return self.tiles if self.tiles and max(image) > self.tiles else None

    def entering(self, image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """The size at which an image (H, W) enters a network that was trained at `size`: its own to be cut into crops, else
        that of the largest view, which has all details."""
        return image if self.crops(image) else scaled(self.size or size, max(1.0, *self.scales))

    @property
    def name(self) -> str:
        """What differs from the default, for the name of a file: "" or "labels=predicted"."""
        changed = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "batch_size"}
        default = Protocol(self.batch_size)
        return ",".join(f"{name}={_text(value)}" for name, value in changed.items() if value != getattr(default, name))


def explained(logits: Tensor, labels: Labels, loss: Loss) -> Tensor:
    """The outputs that a model names by itself: bool like its logits (N, outputs), by the rule of `labels`.

    What is more likely than not is predicted: with a sigmoid a logit above 0, with a softmax a probability above half of the
    largest one. The largest logit always is.
    """
    top = logits.amax(dim=1, keepdim=True)
    if labels == "top":
        return logits == top
    return (logits == top) | (logits > (0 if loss == "sigmoid" else top - log(2)))


class Way(NamedTuple):
    """A configuration and how its maps become masks.

    cut  "otsu": each class's map by itself, at Otsu's threshold or the configuration's own `fraction`. "argmax": a pixel gets
         the largest of the image's classes, each over its maximum, and a background of value t. Class -1 is background
    """

    config: Config
    cut: str = "otsu"
    t: float = 0.0


def _text(value: Any) -> str:
    return "x".join(f"{item:g}" for item in value) if isinstance(value, tuple) else str(value)


def plain(value: Any) -> Any:
    """`value` as JSON and checkpoints can hold it: numpy's scalars become Python's, sequences tuples."""
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    return value.item() if isinstance(value, np.generic) else value

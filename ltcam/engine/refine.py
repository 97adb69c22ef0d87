"""Maps spread along the similarity of the trace's own features: places that look alike to the network share their evidence.

This needs no training and no second pass, because the trace keeps the features. Region-CAM (Cai and Abhayaratne 2025) and the
random walk of AffinityNet (Ahn and Kwak 2018) spread maps too. The similarity here is our own choice.
"""

import math
from numbers import Real
from typing import Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from ltcam.engine.targets import describe
from ltcam.engine.traces import Trace
from ltcam.engine.tricks import one_of, whole
from ltcam.errors import InputError

Then = Literal["", "times", "floor"]
THENS: tuple[Then, ...] = get_args(Then)


class Refine(NamedTuple):
    """How maps are spread, as an option of `ltcam.explain`. The text of one is LAYERS[:SIZE[:POWER[:STEPS[:THEN]]]].

    layers  whose features are compared: a name, a stage label ("S5") or a range of labels ("S3-S5")
    size    the map gets about size x size places, in the images' aspect: 28 x 28 for square images
    power   of the similarities, above 0. The larger it is, the fewer places share
    steps   how often the map is spread
    then    what follows: "" nothing, "times" the map itself is multiplied in, "floor" the least value is taken off
    """

    layers: str = "S3-S5"
    size: int = 28
    power: float = 8.0
    steps: int = 1
    then: Then = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The `Refine` of a text such as "S3-S5:28:8". Raises InputError for anything else."""
        parts = text.split(":")
        try:
            layers, size, power, steps, then = (*parts, *f"{cls()}:".split(":")[len(parts) :])
            how = cls(layers, int(size), float(power), int(steps), THENS[THENS.index(then)])
        except ValueError as error:
            said = "no way to spread a map: expected LAYERS[:SIZE[:POWER[:STEPS[:THEN]]]], e.g. S3-S5:28:8"
            raise InputError(f"refine={text!r} is {said}") from error
        return how.checked()

    def __str__(self) -> str:
        return f"{self.layers}:{self.size}:{self.power:g}:{self.steps}" + (self.then and f":{self.then}")

    def checked(self) -> Self:
        """Itself. Raises InputError for a field that is out of range."""
        if not isinstance(self.layers, str) or not self.layers:
            raise InputError(f"refine's layers={self.layers!r}: expected a name, a stage label or a range of labels")
        whole("refine's size", self.size, 64)
        whole("refine's steps", self.steps)
        if isinstance(self.power, bool) or not isinstance(self.power, int | float | Real) or not 0 < self.power < math.inf:
            raise InputError(f"refine's power={self.power!r}: expected a number above 0")
        one_of("refine's then", self.then, Then)
        return self

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the spread maps of images (H, W)."""
        aspect = math.sqrt(size[0] / size[1])
        return max(1, round(self.size * aspect)), max(1, round(self.size / aspect))


def refine(maps: Tensor, trace: Trace, how: Refine | None = None, alike: Tensor | None = None) -> Tensor:
    """The maps (P, h, w) of a trace's pairs, spread: (P, h', w') with (h', w') = `how.grid(trace.size)`.

    Each place gets the mean of the map over all places, weighted by `similarity`. So a map stays within its own range.
    alike  what `similarity` gives, if several maps of a trace are spread alike

    Raises InputError for other maps, for fields of `how` out of range, and for layers that were not traced.
    """
    how = (how or Refine()).checked()
    if not isinstance(maps, Tensor) or maps.ndim != 3 or not maps.is_floating_point() or len(maps) != len(trace.pairs):
        raise InputError(f"the maps are {describe(maps)}: expected floats (P, h, w) of the trace's {len(trace.pairs)} pairs")
    alike = similarity(trace, how) if alike is None else alike
    small = _resized(maps[:, None].to(alike), how.grid(trace.size)).flatten(1)
    image = trace.pairs[:, 0].contiguous()
    rank = torch.arange(len(image), device=image.device) - torch.searchsorted(image, image)
    spread = small.new_zeros(len(alike), int(rank.max()) + 1, small.shape[1]).index_put((image, rank), small)
    for _ in range(how.steps):
        spread = spread @ alike.mT
    found = spread[image, rank]
    if how.then == "times":
        found = found * small
    if how.then == "floor":
        found = found - found.amin(dim=1, keepdim=True)
    return found.view(-1, *how.grid(trace.size)).to(maps.dtype)


def similarity(trace: Trace, how: Refine) -> Tensor:
    """(N, n, n) for the n places of `how.grid`: how much place j gives to place i. Rows sum to 1.

    It is the cosine of the features of two places, averaged over the layers, not below 0, to a power. Features are brought to
    the grid first. A place is like itself: 1. An image takes n^2 numbers, 2.5 MB in float32 for 28 x 28 and 39 MB for 56 x 56,
    and while they are made about four times as much, and its features on the grid: 4 MB for VGG16's S3 to S5 at 28 x 28.
    """
    with torch.autocast(trace.logits.device.type, enabled=False):
        units = [_unit(trace.features(name), how.grid(trace.size)) for name in trace.select(how.layers)]
        together = torch.cat(units, dim=1) / math.sqrt(len(units))
        alike = (together.mT @ together).clamp(min=0)
        alike.diagonal(dim1=1, dim2=2).fill_(1)
        return normalize(alike**how.power, p=1, dim=2)


def _unit(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, K, h, w) -> (N, K, n): the features of each place over their length."""
    return normalize(_resized(features.to(torch.promote_types(features.dtype, torch.float32)), grid).flatten(2), dim=1)


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, K, *size), bilinear. A larger map is averaged down, so that none of its places is skipped."""
    return interpolate(values, size, mode="bilinear", align_corners=False, antialias=True)

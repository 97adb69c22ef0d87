"""Maps spread along the similarity of the trace's own features: places that look alike to the network share their evidence.

Region-CAM (Cai and Abhayaratne 2025) and the random walk of AffinityNet (Ahn and Kwak 2018) spread maps too. The similarity
here is our own choice. It needs no training and no second pass.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from ltcam.engine.shapes import ranks, wide
from ltcam.engine.trace import Trace
from ltcam.engine.tricks import is_number, one_of, whole
from ltcam.errors import InputError

Then = Literal["", "times", "floor"]

# (N, K, h, w) at another size. A larger map is averaged down, so that none of its places is skipped.
_resized = partial(interpolate, mode="bilinear", align_corners=False, antialias=True)


@dataclass(frozen=True)
class Refine:
    """How maps are spread, as an option of `ltcam.explain`. Raises InputError for a field that is out of range.

    layers  whose features are compared: a name, a stage label ("S5") or a range of labels ("S3-S5")
    size    the map gets about size x size places, at most 64 x 64, in the images' aspect: 28 x 28 for square images
    power   of the similarities, above 0. The larger it is, the fewer places share
    steps   how often the map is spread
    then    what follows: "" nothing, "times" multiplies by the map itself, "floor" subtracts the least value
    """

    layers: str = "S3-S5"
    size: int = 28
    power: float = 8.0
    steps: int = 1
    then: Then = ""

    def __post_init__(self) -> None:
        if not isinstance(self.layers, str) or not self.layers:
            raise InputError(f"refine's layers={self.layers!r}: expected a name, a stage label or a range of labels")
        whole("refine's size", self.size, 64)
        whole("refine's steps", self.steps)
        if not is_number(self.power) or not 0 < self.power < math.inf:
            raise InputError(f"refine's power={self.power!r}: expected a number above 0")
        one_of("refine's then", self.then, Then)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the spread maps of images (H, W)."""
        aspect = math.sqrt(size[0] / size[1])
        return max(1, round(self.size * aspect)), max(1, round(self.size / aspect))


def refine(maps: Tensor, trace: Trace, how: Refine, alike: Tensor | None = None) -> Tensor:
    """The maps (P, h, w) of a trace's pairs, spread: (P, h', w') with (h', w') = `how.grid(trace.size)`.

    Each place gets the mean of the map over all places, weighted by `similarity` (`alike`, if known). So a map stays within its
    own range. Raises InputError for layers that were not traced.
    """
    alike, grid = similarity(trace, how) if alike is None else alike, how.grid(trace.size)
    small = _resized(maps[:, None].to(alike), grid).flatten(1)
    image, rank = trace.pairs[:, 0], ranks(trace.pairs)
    spread = small.new_zeros(len(alike), int(rank.max()) + 1, small.shape[1]).index_put((image, rank), small)
    for _ in range(how.steps):
        spread = spread @ alike.mT
    found = spread[image, rank]
    then = {"": found, "times": found * small, "floor": found - found.amin(dim=1, keepdim=True)}[how.then]
    return then.view(-1, *grid).to(maps.dtype)


def similarity(trace: Trace, how: Refine) -> Tensor:
    """(N, n, n) for the n places of `how.grid`: how much place j gives to place i. Rows sum to 1.

    It is the cosine of the features of two places on the grid, averaged over the layers, not below 0, to a power. A place is
    like itself: 1. An image takes n^2 numbers, and four times as much while they are made.
    """
    grid = how.grid(trace.size)
    features = [_resized(wide(trace.features(name)), grid).flatten(2) for name in trace.select(how.layers)]
    together = torch.cat([normalize(f, dim=1) for f in features], dim=1) / math.sqrt(len(features))
    alike = (together.mT @ together).clamp(min=0)
    alike.diagonal(dim1=1, dim2=2).fill_(1)
    return normalize(alike**how.power, p=1, dim=2)

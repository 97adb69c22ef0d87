"""Magnetic-tile surface defects (Huang, Qiu, Yuan, The Visual Computer 2020): an industrial data set like KSDD2.

`LTCAM_DATA/magnetic_tile/MT_{Blowhole,Break,Crack,Fray,Uneven,Free}/Imgs/expK_num_N.{jpg,png}`. The png is the mask. Its edges
are smoothed, so foreground is > 127. The label is binary (defective or free). The folder's defect type is kept as `kind`.

Up to six images (exposures K = 1..6) with neighbouring N show the same tile, so a random split would leak. Sorted by N, images
within 100 of each other form a group, whatever their folders. The smallest N names it. The test part is 30% of the groups of
each kind. Four Uneven images have empty masks. They are defective, but never scored.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltcam.data.base import DataError, Entry, Segmentation, read, require
from ltcam.files import AnyPath

KINDS = ("Blowhole", "Break", "Crack", "Fray", "Uneven", "Free")
EMPTY = frozenset(f"MT_Uneven/{name}" for name in ("exp3_num_45042", "exp4_num_124690", "exp4_num_352527", "exp4_num_45057"))
SAME_TILE = 100


class MagneticTile(Segmentation):
    title = "Magnetic tile"
    classes = ("defect",)
    jitter = (0.8, 1.0)  # never enlarged: defects at the border would leave the image
    upright = False

    def __init__(self, part: str, root: AnyPath) -> None:
        super().__init__(part)
        if part not in ("train", "test"):
            raise DataError(f"part {part!r} of magnetic_tile is unknown: expected 'train' or 'test'")
        folder = require(root, "magnetic_tile", "Magnetic tile")
        everything = [
            Entry(f"MT_{kind}/{path.stem}", path, path.with_suffix(".png"), kind)
            for kind in KINDS
            for path in (folder / f"MT_{kind}" / "Imgs").glob("*.jpg")
        ]
        if not everything:
            raise DataError(f"no images in {folder}: expected MT_*/Imgs/*.jpg, see data/README.md")
        tiles = [[replace(entry, group=str(_number(tile[0]))) for entry in tile] for tile in groups(everything)]
        test = test_groups(tiles)
        every = sorted((entry for tile in tiles for entry in tile), key=lambda entry: entry.name)
        self.entries = [entry for entry in every if (entry in test) == (part == "test")]

    def mask(self, index: int) -> NDArray[np.uint8]:
        return (read(self.entries[index].mask, "L") > 127).astype(np.uint8)

    @cached_property
    def labels(self) -> Tensor:
        return torch.tensor([[float(entry.kind != "Free")] for entry in self.entries])

    @cached_property
    def scored(self) -> list[int]:
        return [i for i, entry in enumerate(self.entries) if entry.kind != "Free" and entry.name not in EMPTY]


def groups(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries of each tile, in the order of their numbers."""
    ordered = sorted(entries, key=lambda entry: (_number(entry), entry.name))
    result = [ordered[:1]]
    for previous, entry in pairwise(ordered):
        if _number(entry) - _number(previous) > SAME_TILE:
            result.append([])
        result[-1].append(entry)
    return result


def test_groups(tiles: Sequence[Sequence[Entry]]) -> set[Entry]:
    """The entries of 30% of the tiles of each kind. A tile's kind is the first of KINDS that it shows."""
    rng = random.Random(0)
    test: set[Entry] = set()
    for kind in KINDS:
        of_kind = [tile for tile in tiles if min(KINDS.index(entry.kind) for entry in tile) == KINDS.index(kind)]
        rng.shuffle(of_kind)
        test.update(entry for tile in of_kind[: round(0.3 * len(of_kind))] for entry in tile)
    return test


def _number(entry: Entry) -> int:
    match = re.fullmatch(r"exp\d+_num_(\d+)", entry.image.stem)
    if match is None:
        raise DataError(f"{entry.image} is not named expK_num_N.jpg: it does not belong to the data set; remove it")
    return int(match[1])

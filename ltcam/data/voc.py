"""PASCAL VOC 2012 segmentation (Everingham et al., IJCV 2015), or a subset of it in the same layout.

`LTCAM_DATA/VOCdevkit/VOC2012`, parts `train`, `val`, `trainval` and, if its list is there, `train_aug` (train plus images with
masks from SBD). A line of a list is a name, or the paths of an image and its mask. Test masks are not public, so the paper's
"test" is `val` here. Image labels come from the masks. On request they come from the XML annotations (every object, difficult
ones too). The two differ in two images.
"""

import re
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltcam.data.base import VOID, DataError, Entry, Segmentation, read, require
from ltcam.files import AnyPath

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
OFFICIAL = {"train": 1464, "val": 1449}
LINE = re.compile(r"([^/\s]\S*)?|/*([^/\s]\S*\.\w+)\s+/*([^/\s]\S*\.\w+)")  # x, or /JPEGImages/x.jpg /Masks/x.png


class VOC2012(Segmentation):
    classes = CLASSES

    def __init__(self, part: str, root: AnyPath, annotations: bool = False) -> None:
        super().__init__(part)
        folder = require(root, "VOCdevkit/VOC2012", "PASCAL VOC 2012")
        lists = folder / "ImageSets" / "Segmentation"
        if not (lists / f"{part}.txt").is_file():
            raise DataError(
                f"part {part!r} has no list {lists / part}.txt: expected one of {sorted(p.stem for p in lists.glob('*.txt'))}"
            )
        self.entries = listed(lists / f"{part}.txt")
        if not self.entries:
            raise DataError(f"{lists / part}.txt is empty: expected one name per line; fetch the data set again")
        self.annotations = folder / "Annotations" if annotations else None
        parts = {name: lists / f"{name}.txt" for name in OFFICIAL}
        full = all(path.is_file() and len(listed(path)) == OFFICIAL[name] for name, path in parts.items())
        self.title = "PASCAL VOC 2012" if full else "PASCAL VOC 2012 subset"

    def mask(self, index: int) -> NDArray[np.uint8]:
        path = self.entries[index].mask
        mask = read(path)
        if strange := [v for v in np.flatnonzero(np.bincount(mask.ravel())).tolist() if len(CLASSES) < v < VOID]:
            raise DataError(f"{path} holds the labels {strange}: expected 0 to {len(CLASSES)} and {VOID}; fetch it again")
        return mask

    @cached_property
    def labels(self) -> Tensor:
        if self.annotations is None:
            return super().labels
        return torch.stack([self.multi_hot(_objects(self.annotations / f"{entry.name}.xml")) for entry in self.entries])


def listed(path: AnyPath) -> list[Entry]:
    """The images of a list `ImageSets/Segmentation/<part>.txt`.

    Raises DataError for a line that is neither a name nor two paths, or that leaves the folder of the data set.
    """
    entries, folder = [], Path(path).parents[2]
    for line in Path(path).read_text().splitlines():
        match = LINE.fullmatch(line.strip())
        if not match or ".." in re.split(r"[/\s]", line):
            raise DataError(f"{path} has the line {line!r}: expected a name, or an image and a mask in {folder}; correct it")
        name, image, mask = match.groups()
        if name:
            image, mask = f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png"
        if image:
            entries.append(Entry(name or Path(image).stem, folder / image, folder / mask))
    return entries


def _objects(path: Path) -> list[int]:
    try:
        return sorted({CLASSES.index(str(o.text)) for o in ElementTree.parse(path).getroot().findall("object/name")})
    except (FileNotFoundError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged ({error}): fetch the data set again") from error

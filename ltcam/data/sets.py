"""The data sets that are files under `LTCAM_DATA`: which images a part has, how a mask is read. More is in data/README.md."""

import random
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltcam.data.base import VOID, DataError, Entry, Segmentation, read
from ltcam.data.demo import Demo

CHECKSUMS = Path(__file__).with_name("checksums")


class VOC2012(Segmentation):
    """PASCAL VOC 2012 segmentation (Everingham et al., IJCV 2015), or a subset of it in the same layout.

    The parts are the lists `train`, `val`, `trainval` and, if it is there, `train_aug` (train plus images with masks from SBD).
    Test masks are not public, so the paper's "test" is `val` here. Image labels come from the masks.
    """

    name, title, folder = "voc2012", "PASCAL VOC 2012", "VOCdevkit/VOC2012"
    classes = (
        "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
        "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    )  # fmt: skip
    official, subsets = {"train": 1464, "val": 1449}, True
    held_out, headline, compared = "val", "mIoU", (3,)
    jitter, upright = (0.8, 1.25), True

    @classmethod
    def listed(cls, folder: Path) -> dict[str, list[Entry]]:
        parts: dict[str, list[Entry]] = {}
        for path in sorted(folder.glob("ImageSets/Segmentation/[!.]*.txt")):
            parts[path.stem] = []
            lines = path.read_text("utf-8-sig", "replace").splitlines()
            for line in filter(str.strip, lines):  # x, or /JPEGImages/x.jpg /Masks/x.png
                match = re.fullmatch(r"([^/\s]\S*)|/*([^/\s]\S*\.\w+)\s+/*([^/\s]\S*\.\w+)", line.strip())
                if not match or ".." in re.split(r"[/\s]", line) or {*line} & {"\0", "\ufffd"}:
                    expected = "expected a name, or an image and a mask in"
                    raise DataError(f"{path} has the line {line!r}: {expected} {folder}; correct it, in UTF-8")
                name, image, mask = match.groups()
                if name:
                    image, mask = f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png"
                    more = f"SegmentationClassAug/{name}.png"  # those of SBD
                    mask = more if not (folder / mask).is_file() and (folder / more).is_file() else mask
                parts[path.stem].append(Entry(name or Path(image).stem, folder / image, folder / mask))
        return parts

    def mask(self, index: int) -> NDArray[np.uint8]:
        path, most = self.entries[index].mask, len(self.classes)
        mask = read(path)
        if strange := [v for v in np.flatnonzero(np.bincount(mask.ravel())).tolist() if most < v < VOID]:
            raise DataError(f"{path} holds the labels {strange}: expected 0 to {most} and {VOID}; fetch it again")
        return mask


class KSDD(Segmentation):
    """KolektorSDD (Tabernik et al., J. Intelligent Manufacturing 2019): cracks in 50 commutators, 52 of 399 images.

    Images of about 500 x 1,260 (width x height) enter the network at 232 x 640 and are scored at their own size. The parts are
    three folds over commutators: each image is in one test part, and in the training parts of the other two folds. The images
    of kos26 are the same bytes as those of kos01, and kos34's as kos27's, with masks drawn twice: twins share group and fold.
    """

    name, title, folder = "ksdd", "KolektorSDD", "KolektorSDD"
    official, subsets = {"all": 399, "test0": 128, "test1": 136, "test2": 135}, True
    held_out = "test0"
    size, larger = (640, 232), (960, 344)
    twins: Mapping[int, int] = {26: 1, 34: 27}
    mode = None  # kos20/Part4 has the value 2 where others have 1
    # Drawn once with seed 0, so that each fold has about as many defective images (17, 17, 18). They are written down so that
    # no held-out mask has to be opened to know them. tests/data/test_sets.py draws them again.
    folds = (
        (3, 6, 10, 11, 13, 22, 23, 27, 31, 33, 34, 37, 39, 44, 46, 47),
        (1, 5, 8, 14, 19, 24, 26, 28, 29, 32, 35, 36, 41, 43, 45, 48, 50),
        (2, 4, 7, 9, 12, 15, 16, 17, 18, 20, 21, 25, 30, 38, 40, 42, 49),
    )

    @classmethod
    def listed(cls, folder: Path) -> dict[str, list[Entry]]:
        """Those of the commutators that are there: eight images of each, seven of kos21."""
        numbers = [n for n in range(1, 51) if (folder / f"kos{n:02}").is_dir()]
        every = {
            Entry(name, folder / f"{name}.jpg", folder / f"{name}_label.bmp", group=f"kos{cls.twins.get(n, n):02}"): n
            for n in numbers
            for name in (f"kos{n:02}/Part{k}" for k in range(7 if n == 21 else 8))
        }
        parts = {"all": [*every]}
        for k, fold in enumerate(cls.folds):
            parts[f"train{k}"] = [entry for entry, n in every.items() if n not in fold]
            parts[f"test{k}"] = [entry for entry, n in every.items() if n in fold]
        return parts


class KSDD2(Segmentation):
    """KolektorSDD2 (Bozic, Tabernik, Skocaj, Computers in Industry 2021): surface defects.

    The two "(copy)" files of the training part are duplicates and left out, which gives the official 2331 + 1004 images. They
    are about 230 x 630 (width x height), enter the network at 232 x 640 and are scored at their own size.
    """

    name, title, folder = "ksdd2", "KSDD2", "KolektorSDD2"
    official, defective = {"train": 2331, "test": 1004}, {"train": 246, "test": 110}
    size, larger = (640, 232), (960, 344)

    @classmethod
    def listed(cls, folder: Path) -> dict[str, list[Entry]]:
        images = sorted(path for path in folder.glob("t*/*.png") if path.stem.isdigit())
        entries = [Entry(f"{path.parent.name}/{path.stem}", path, path.with_name(f"{path.stem}_GT.png")) for path in images]
        return {part: [entry for entry in entries if entry.name.startswith(f"{part}/")] for part in cls.official}


class MagneticTile(Segmentation):
    """Magnetic-tile surface defects (Huang, Qiu, Yuan, The Visual Computer 2020), labelled as defective or free.

    Up to six images (exposures K of expK_num_N) with neighbouring N show the same tile, so a random split would leak. Sorted by
    N, images within 100 of the one before form a group, whatever their folders. The smallest N names it. The test part is 30%
    of the groups of each kind. Four Uneven images have empty masks. They are defective, but never scored.
    """

    name, title, folder = "magnetic_tile", "Magnetic tile", "magnetic_tile"
    official, larger = {"train": 933, "test": 411}, (320, 288)
    above = 127  # the edges of its masks are smoothed
    kinds = ("Blowhole", "Break", "Crack", "Fray", "Uneven", "Free")
    empty = tuple(f"MT_Uneven/{name}" for name in ("exp3_num_45042", "exp4_num_124690", "exp4_num_352527", "exp4_num_45057"))

    @classmethod
    def listed(cls, folder: Path) -> dict[str, list[Entry]]:
        here = {path.relative_to(folder).as_posix() for kind in cls.kinds for path in folder.glob(f"MT_{kind}/Imgs/*.jpg")}
        every = set(re.findall(rf"{cls.folder}/(\S+\.jpg)", (CHECKSUMS / f"{cls.name}.sha256").read_text("utf-8")))
        images = sorted(  # of the whole set, so that the split does not depend on which files are here
            (int(match[2]), f"MT_{match[1]}/{path.stem}", match[1], path)
            for path in (folder / name for name in (every if here & every else here))
            if (match := re.fullmatch(r".*MT_(\w+)/Imgs/exp\d+_num_(\d+)\.jpg", path.as_posix()))
        )
        group, last, entries, kinds = 0, -1000, [], dict[str, str]()
        for number, name, kind, path in images:
            group, last = group if number - last <= 100 else number, number
            entries.append(Entry(name, path, path.with_suffix(".png"), kind, str(group)))
            kinds[str(group)] = min(kinds.get(str(group), kind), kind, key=cls.kinds.index)
        rng, test = random.Random(0), set[str]()
        for kind in cls.kinds:  # a tile is of the first kind that it shows
            groups = [group for group, first in kinds.items() if first == kind]
            rng.shuffle(groups)
            test.update(groups[: round(0.3 * len(groups))])
        entries.sort(key=lambda entry: entry.name)
        there = [entry for entry in entries if entry.image.relative_to(folder).as_posix() in here]
        return {part: [e for e in there if (e.group in test) == (part == "test")] for part in cls.official}

    @cached_property
    def labels(self) -> Tensor:
        return torch.tensor([[float(entry.kind != "Free")] for entry in self.entries])

    def mask(self, index: int) -> NDArray[np.uint8]:
        found, entry = super().mask(index), self.entries[index]
        if entry.kind != "Free" and entry.name not in self.empty and not found.any():
            raise DataError(f"{entry.mask} shows no defect, but {entry.kind} is one: fetch the data set again")
        return found


SETS: dict[str, type[Segmentation]] = {kind.name: kind for kind in (Demo, VOC2012, MagneticTile, KSDD, KSDD2)}


def known(name: str) -> type[Segmentation]:
    """The data set `name`, for what holds whether it is there or not. Raises DataError for an unknown name."""
    if name not in SETS:
        raise DataError(f"data set {name!r} is unknown: expected one of {', '.join(SETS)}")
    return SETS[name]

"""What every data set gives, (image, multi-hot label, mask, name) at native size, and how an image enters the network."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from ltcam.engine.targets import describe
from ltcam.engine.tricks import is_whole
from ltcam.errors import InputError
from ltcam.files import AnyPath

VOID = 255
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MODES = {  # of `read`: the modes of PIL that are taken, and what they are called
    "RGB": ("[^F].*", "8 or 16 bits"),
    "L": ("[^FI].*", "8 bits"),
    None: ("[PL1]", "one label of 8 bits a pixel"),
}


class DataError(InputError):
    """A data set is missing, incomplete or damaged. The message names the file and says what to do."""


class Sample(NamedTuple):
    image: Tensor  # (3, H, W) uint8
    label: Tensor  # (C,) float, 0 or 1
    mask: Tensor  # (H, W) uint8: 0 background, c + 1 for class c, 255 void
    name: str


@dataclass(frozen=True)
class Entry:
    """One image of a data set: its files, if it has any, and a finer label for analysis (e.g. the type of a defect)."""

    name: str
    image: Path = Path()
    mask: Path = Path()
    kind: str = ""
    group: str = ""  # images of the same tile or commutator share it, and stay on one side of a split


class Segmentation(Dataset[Sample], ABC):
    """A data set with image labels to train on and masks to score against. The values here fit a set of defects."""

    name: str
    title: str  # the name in results; that of a subset says so
    folder: str = ""  # under the data root; a generated set has none
    official: Mapping[str, int] = {}  # how many images its parts have
    defective: Mapping[str, int] = {}  # how many of these have a defect, where no checksum guards the masks
    subsets: bool = False  # whether `ltcam data check` takes fewer images for whole; the title always says "subset"
    held_out: str = "test"  # the part that heatmaps are scored on where nothing else is asked for
    headline: str = "IoU"  # the metric that comes first: "IoU" of all pixels together, or "mIoU", the mean over classes
    compared: tuple[int, ...] = (4,)  # the tables of the paper whose numbers stand beside ours
    classes: tuple[str, ...] = ("defect",)
    size: tuple[int, int] = (224, 224)  # (height, width) of the network's input
    larger: tuple[int, int] = (320, 320)  # the same in the ablation of the input size
    jitter: tuple[float, float] = (0.8, 1.0)  # range of the scale jitter in training; an enlarged image may lose its defect
    upright: bool = False  # False: an image may be flipped upside down
    mode: str | None = "L"  # as which `read` reads a mask
    above: int = 0  # a pixel of a mask is a defect if its value is larger
    empty: Sequence[str] = ()  # images whose mask does not show what their label names; they are never scored

    def __init__(self, part: str, root: AnyPath) -> None:
        """Raises DataError if the part, or the data set under `root`, is not there."""
        folder = self.under(root)
        parts = self.listed(folder)
        if not parts.get(part):
            known = [name for name, entries in parts.items() if entries]
            raise DataError(f"part {part!r} of {self.name} is not in {folder}: expected one of {known}, see data/README.md")
        self.part, self.entries = part, parts[part]
        self.title += "" if self.whole(parts) else " subset"

    @classmethod
    @abstractmethod
    def listed(cls, folder: Path) -> dict[str, list[Entry]]:
        """The images of each part, in a fixed order. Raises DataError if they cannot be listed."""

    @classmethod
    def under(cls, root: AnyPath) -> Path:
        """Its folder. Raises DataError if it is not there."""
        folder, first = Path(root) / cls.folder, cls.folder.split("/")[0]
        if cls.folder and not folder.is_dir():
            do = f"set LTCAM_DATA to the folder that holds {first}, or complete it"
            raise DataError(f"{cls.title} is not at {folder}: {do}, see data/README.md")
        return folder

    @classmethod
    def whole(cls, parts: Mapping[str, Sequence[Entry]]) -> bool:
        """Whether these are as many as the official ones."""
        return all(len(parts.get(part, ())) == count for part, count in cls.official.items())

    def check(self, subset: bool = False) -> None:
        """Raises DataError if images are missing, unless subsets of this set are in use or `subset` allows one."""
        if self.title.endswith(" subset") and not (subset or self.subsets):
            do = f"`ltcam data check {self.name}` says how many; fetch them, or pass --subset, which every result will say"
            raise DataError(f"{self.title}: images of the whole set are missing: {do}")

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        image, mask = self.pair(index)
        return Sample(image, self.labels[index], torch.from_numpy(mask), self.entries[index].name)

    def with_classes(self) -> Self:
        """Itself. Raises DataError if no image has a class."""
        if self.labels.any():
            return self
        raise DataError(f"{self.title} has no image with a class in part {self.part!r}: complete it, or name another part")

    def pair(self, index: int) -> tuple[Tensor, NDArray[np.uint8]]:
        """Image and mask. Raises DataError for files that cannot be read, and for different sizes."""
        image, mask, name = self.image(index), self.mask(index), self.entries[index].name
        if image.shape[1:] != mask.shape:
            sizes = "the mask is {} x {}, the image {} x {}".format(*mask.shape, *image.shape[1:])
            raise DataError(f"{name}: {sizes}: expected the same size; fetch both again")
        return image, mask

    def image(self, index: int) -> Tensor:
        """(3, H, W) uint8. Raises DataError for a file that cannot be read."""
        return torch.from_numpy(read(self.entries[index].image, "RGB")).permute(2, 0, 1)

    def mask(self, index: int) -> NDArray[np.uint8]:
        """(H, W) as in `Sample`. Raises DataError for a file that cannot be read."""
        path = self.entries[index].mask
        values = read(path, self.mode)
        if 0 < values.max() <= self.above:
            raise DataError(f"{path} has values from 0 to {values.max()}: expected black and white, 0 to 255; scale it")
        return (values > self.above).astype(np.uint8)

    @property
    def groups(self) -> list[str]:
        """The group of each image, which a bootstrap draws as a whole: its entry's group, or the image alone."""
        return [entry.group or entry.name for entry in self.entries]

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of each image, from its file's header. Raises DataError for a file that cannot be read."""
        found = []
        for entry in self.entries:
            with opened(entry.image) as image:
                found.append((image.height, image.width))
        return found

    @cached_property
    def labels(self) -> Tensor:
        """(N, C) float: the classes present in each image, read from the masks unless a subclass has labels of its own."""
        values = np.arange(1, len(self.classes) + 1)
        return torch.from_numpy(np.stack([np.isin(values, self.mask(i)) for i in range(len(self))])).float()

    @cached_property
    def annotated(self) -> list[int]:
        """Indices of the images whose masks show what their labels name: all but the `empty` ones."""
        return [i for i, entry in enumerate(self.entries) if entry.name not in self.empty]

    @cached_property
    def scored(self) -> list[int]:
        """Indices of the images that heatmaps are scored on: those of `annotated` with a class."""
        return [i for i in self.annotated if self.labels[i].any()]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of the images and masks of this part."""
        digest = hashlib.sha256()
        try:
            for entry in self.entries:
                digest.update(entry.name.encode() + entry.image.read_bytes() + entry.mask.read_bytes())
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read ({error.strerror}): fetch the data set again") from error
        return digest.hexdigest()


def read(path: AnyPath, mode: str | None = None, upright: bool = False) -> NDArray[np.uint8]:
    """An image file as an array, converted to `mode`: "RGB" (16 bits become 8, alpha is left out), "L", or None for indices.

    upright: turn the image as its EXIF orientation says. Without it the image stays as stored, which is how masks are drawn.
    Raises DataError if the file is missing, damaged, too large to be safe, has too many bits, or uses at most 12 of 16.
    """
    taken, expected = MODES[mode]
    with opened(path) as image:
        if not re.fullmatch(taken, image.mode):
            raise DataError(f"{path} has PIL's mode {image.mode}: expected {expected}; convert it")
        if upright:
            image = ImageOps.exif_transpose(image)
        if mode == "L" and image.mode not in ("L", "1", "I", "I;16"):
            red, green, blue, alpha = np.moveaxis(np.asarray(image.convert("RGBA")), 2, 0)
            if (red != green).any() or (green != blue).any() or (alpha < 255).any() or image.mode == "P":
                raise DataError(f"{path} is a mask in color, by a palette or with transparency: expected grey; convert it")
        if image.mode.startswith("I"):  # PIL would make all above 255 white
            values = np.asarray(image).astype(int)
            low, high = values.min(), values.max()
            if low < 0 or 0 < high < 2**12 or high >= 2**16:  # as 16 bits it would be black or white
                raise DataError(f"{path} has values from {low} to {high}: expected 8 bits or all of 16; scale it to 8 bits")
            image = Image.fromarray((values >> 8).astype(np.uint8))
        return np.array(image.convert(mode) if mode else image, dtype=np.uint8)


@contextmanager
def opened(path: AnyPath) -> Iterator[Image.Image]:
    """An image file for PIL. Raises DataError, also for what goes wrong in the block, if it is missing or damaged."""
    try:
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: expected an image there; fetch the data set again") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}): it is damaged; fetch it again") from error


def preprocess(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 -> (3, *size) float, ImageNet-normalised; the aspect ratio is not kept."""
    if image.ndim != 3 or len(image) != 3 or image.dtype != torch.uint8 or not image.numel():
        raise DataError(f"an image is {describe(image)}: expected uint8 (3, H, W)")
    if not isinstance(size, Sequence) or len(size) != 2 or not all(map(is_whole, size)):
        raise DataError(f"size={size!r}: expected (height, width), whole numbers of pixels above 0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one image is too little work for several: waiting for each other made them 15 times slower
    try:
        resized = F.resize(image, list(size), antialias=True)
        normalised: Tensor = F.normalize(F.to_dtype(resized, torch.float32, scale=True), MEAN, STD)
    finally:
        torch.set_num_threads(threads)
    return normalised

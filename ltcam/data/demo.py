"""A data set that needs no download: 120 images of 160 x 160 made on the fly, always the same.

The backgrounds are textures that scikit-image ships (brick, grass, gravel). Scratches, spots, stains and cracks of varied size,
contrast and place are drawn on them: one or two classes in an image, none in about a third. Every defect is drawn from a signed
distance, so its mask is exact: it has the pixels whose centre lies inside.
"""

import hashlib
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from skimage import data as textures
from torch import Tensor

from ltcam.data.base import Entry, Segmentation

SIZE = 160
SEED = 2308
GREYS = (0.85, 1.0), (0.0, 0.15), (0.35, 0.5), (0.0, 0.12)  # scratches are bright, spots and cracks dark, stains brownish
Field = NDArray[np.float64]  # (SIZE, SIZE) signed distance in pixels, negative inside


class Demo(Segmentation):
    name, title, official = "demo", "demo (generated)", {"train": 96, "test": 24}
    compared, classes = (3, 4), ("scratch", "spot", "stain", "crack")
    size, jitter = (SIZE, SIZE), (0.8, 1.25)

    @classmethod
    def listed(cls, folder: Path) -> dict[str, list[Entry]]:
        entries = [Entry(f"demo/{number:03d}") for number in range(120)]
        return {"train": entries[24:], "test": entries[:24]}

    def drawn(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return render(int(self.entries[index].name.removeprefix("demo/")))

    def image(self, index: int) -> Tensor:
        return torch.from_numpy(self.drawn(index)[0]).permute(2, 0, 1)

    def mask(self, index: int) -> NDArray[np.uint8]:
        return self.drawn(index)[1]

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        return [self.size] * len(self)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(array.tobytes() for i in range(len(self)) for array in self.drawn(i))).hexdigest()


@cache
def render(number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image `number`: (SIZE, SIZE, 3) uint8 and its mask (SIZE, SIZE), c + 1 where class c is."""
    rng = np.random.default_rng((SEED, number))
    texture: Field = getattr(textures, ("brick", "grass", "gravel")[rng.integers(3)])() / 255
    top, left = rng.integers(0, 512 - SIZE, 2)
    crop = np.rot90(texture[top : top + SIZE, left : left + SIZE], int(rng.integers(4)))
    grey = 0.5 + (crop - crop.mean()) * rng.uniform(0.5, 0.9)
    image = np.clip(grey[..., None] * rng.uniform(0.9, 1.1, 3), 0, 1)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for kind in rng.choice(4, size=number % 3, replace=False):
        distance = SHAPES[kind](rng)
        greys = [rng.uniform(*bounds) for bounds in GREYS]
        colour = greys[kind] * np.array([1, 0.7, 0.4] if kind == 2 else [1, 1, 1])
        image += np.clip(0.5 - distance, 0, 1)[..., None] * (colour - image) * rng.uniform(0.6, 0.95)
        mask[distance <= 0] = kind + 1
    image += rng.normal(0, 0.01, image.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8), mask


def _scratch(rng: np.random.Generator) -> Field:
    """A thin line, slightly bent."""
    start, angle = rng.uniform(25, SIZE - 25, 2), rng.uniform(0, 2 * np.pi)
    bend, length = rng.uniform(-0.25, 0.25), rng.uniform(45, 120)
    steps = angle + np.linspace(0, bend, 8)
    points = start + np.cumsum(np.stack([np.sin(steps), np.cos(steps)], 1) * length / 8, axis=0)
    return _stroke(points, rng.uniform(1.5, 4.0))


def _spot(rng: np.random.Generator) -> Field:
    """An ellipse, nearly round."""
    y, x = _from(rng.uniform(20, SIZE - 20, 2))
    radius, aspect = rng.uniform(5, 15), rng.uniform(0.75, 1.33)
    return np.hypot(y * aspect, x / aspect) - radius


def _stain(rng: np.random.Generator) -> Field:
    """A large blob whose radius wobbles with the angle."""
    y, x = _from(rng.uniform(35, SIZE - 35, 2))
    angle, radius = np.arctan2(y, x), rng.uniform(18, 38)
    wobble = sum(rng.uniform(0, 0.35 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 6))
    return np.hypot(y, x) - radius * (1 + wobble)


def _crack(rng: np.random.Generator) -> Field:
    """A jagged walk."""
    steps = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.uniform(-0.9, 0.9, 14))
    walk = np.stack([np.sin(steps), np.cos(steps)], 1) * rng.uniform(5, 11)
    return _stroke(rng.uniform(30, SIZE - 30, 2) + np.cumsum(walk, axis=0), rng.uniform(1.5, 3.5))


def _stroke(points: Field, width: float) -> Field:
    """Signed distance to the polyline through `points` (n, 2), drawn `width` pixels wide."""
    distances = []
    for start, (dy, dx) in zip(points[:-1], np.diff(points, axis=0), strict=True):
        y, x = _from(start)
        along = np.clip((y * dy + x * dx) / (dy * dy + dx * dx), 0, 1)
        distances.append(np.hypot(y - along * dy, x - along * dx))
    return np.asarray(np.min(distances, axis=0)) - width / 2


def _from(point: Field) -> tuple[Field, Field]:
    """How far each row and each column is from `point`, (SIZE, 1) and (1, SIZE)."""
    return np.arange(SIZE)[:, None] - point[0], np.arange(SIZE)[None] - point[1]


SHAPES = (_scratch, _spot, _stain, _crack)

"""KolektorSDD (Tabernik et al., J. Intelligent Manufacturing 2019; CC BY-NC-SA 4.0): cracks in commutators, one class.

`LTCAM_DATA/KolektorSDD/kosNN/PartK.jpg` with `PartK_label.bmp`: 50 commutators, 399 grey images of about 500 x 1,260 (width x
height), 52 of them defective. A pixel of a mask is a defect if it is above 0 (kos20/Part4 has 2, the others 1). Images enter
the network at 232 x 640 and are scored at their own size. A folder with only some of the commutators is called a subset.

Parts `train0`/`test0` to `train2`/`test2` are three folds over commutators. Each image is in one test part, and in the training
parts of the other two folds. The images of kos01 and kos26 are the same bytes, and so are those of kos27 and kos34. Their masks
were drawn twice. Such twins share a group and a fold. `all` is every image.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltcam.data.base import DataError, Entry, Segmentation, read, require
from ltcam.files import AnyPath

TWINS = {26: 1, 34: 27}
# Drawn once with seed 0, so that each fold has about as many defective images (17, 17, 18; of 128, 136, 135). The folds are
# written down so that no held-out mask has to be opened to know them. tests/data/test_datasets.py draws them again.
FOLDS = (
    (3, 6, 10, 11, 13, 22, 23, 27, 31, 33, 34, 37, 39, 44, 46, 47),
    (1, 5, 8, 14, 19, 24, 26, 28, 29, 32, 35, 36, 41, 43, 45, 48, 50),
    (2, 4, 7, 9, 12, 15, 16, 17, 18, 20, 21, 25, 30, 38, 40, 42, 49),
)
ALL = tuple(range(1, 51))
PARTS = (
    {"all": ALL}
    | {f"train{k}": tuple(n for n in ALL if n not in fold) for k, fold in enumerate(FOLDS)}
    | {f"test{k}": fold for k, fold in enumerate(FOLDS)}
)


class KSDD(Segmentation):
    classes = ("defect",)
    size = (640, 232)
    jitter = (0.8, 1.0)
    upright = False

    def __init__(self, part: str, root: AnyPath) -> None:
        super().__init__(part)
        if part not in PARTS:
            raise DataError(f"part {part!r} of ksdd is unknown: expected one of {list(PARTS)}")
        folder = require(root, "KolektorSDD", "KolektorSDD")
        whole = all(entry.image.is_file() for entry in entries(folder, ALL))
        self.title = "KolektorSDD" if whole else "KolektorSDD subset"
        self.entries = [entry for entry in entries(folder, PARTS[part]) if entry.image.is_file()]
        if not self.entries:
            raise DataError(f"no images of part {part!r} in {folder}: expected kosNN/PartK.jpg, see data/README.md")

    def mask(self, index: int) -> NDArray[np.uint8]:
        return (read(self.entries[index].mask) > 0).astype(np.uint8)


def entries(folder: AnyPath, commutators: tuple[int, ...]) -> list[Entry]:
    """The images of `commutators` by name, whether they are there or not: eight each, seven of kos21."""
    folder = Path(folder)
    return [
        Entry(f"{kos}/Part{k}", folder / kos / f"Part{k}.jpg", folder / kos / f"Part{k}_label.bmp", group=f"kos{twin:02}")
        for n in commutators
        for kos, twin in [(f"kos{n:02}", TWINS.get(n, n))]
        for k in range(7 if n == 21 else 8)
    ]

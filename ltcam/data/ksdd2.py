"""KolektorSDD2 (Bozic, Tabernik, Skocaj, Computers in Industry 2021; CC BY-NC-SA 4.0): surface defects, one class.

`LTCAM_DATA/KolektorSDD2/{train,test}/NNNNN.png` with `NNNNN_GT.png`. The two "(copy)" files of the training part are duplicates
and left out, which gives the official 2331 + 1004 images. An image is defective if its mask is not empty. Images
(about 230 x 630) enter the network at 232 x 640 (width x height) and are scored at their own size.
"""

import numpy as np
from numpy.typing import NDArray

from ltcam.data.base import DataError, Entry, Segmentation, read, require
from ltcam.files import AnyPath


class KSDD2(Segmentation):
    title = "KSDD2"
    classes = ("defect",)
    size = (640, 232)
    jitter = (0.8, 1.0)
    upright = False

    def __init__(self, part: str, root: AnyPath) -> None:
        super().__init__(part)
        folder = require(root, f"KolektorSDD2/{part}", f"KSDD2's part {part!r}")
        images = sorted(path for path in folder.glob("*.png") if path.stem.isdigit())
        if not images:
            raise DataError(f"no images in {folder}: expected NNNNN.png and NNNNN_GT.png, see data/README.md")
        self.entries = [Entry(f"{part}/{path.stem}", path, path.with_name(f"{path.stem}_GT.png")) for path in images]

    def mask(self, index: int) -> NDArray[np.uint8]:
        return (read(self.entries[index].mask, "L") > 0).astype(np.uint8)

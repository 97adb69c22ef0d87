"""The data sets by name. Each gives (image, multi-hot label, mask, name).

Open `base.py` first: it says what every data set gives. Each data set has its own file. `checks.py` is `ltcam data check`, and
`fetch.py` is `ltcam data get`. This wing may import `engine`.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ltcam.data.base import DataError, Sample, Segmentation, preprocess
from ltcam.data.demo import Demo
from ltcam.data.ksdd import KSDD
from ltcam.data.ksdd2 import KSDD2
from ltcam.data.magnetic_tile import MagneticTile
from ltcam.data.voc import VOC2012
from ltcam.files import data_root

__all__ = ["NAMES", "DataError", "Sample", "Segmentation", "load", "preprocess"]

_SETS: dict[str, Callable[[str, Path], Segmentation]] = {
    "demo": lambda part, root: Demo(part),
    "voc2012": VOC2012,
    "magnetic_tile": MagneticTile,
    "ksdd": KSDD,
    "ksdd2": KSDD2,
}
NAMES = tuple(_SETS)


def load(name: str, part: str, annotations: bool = False) -> Segmentation:
    """Part `part` of the data set `name` under `LTCAM_DATA`.

    part is "train" or "test". For voc2012 it is the name of a list, for ksdd one of `ltcam.data.ksdd.PARTS`. `<part>/fit` and
    `<part>/tune` are the two sides of a hold-out of it. `<part>/36` is its first 36 images. annotations: take the image labels
    of voc2012 from its XML files, not from its masks. Raises DataError if the data set or the part is not there.
    """
    if name not in _SETS:
        raise DataError(f"data set {name!r} is unknown: expected one of {', '.join(NAMES)}")
    if annotations and name != "voc2012":
        raise DataError(f"data set {name!r} has no annotations: expected 'voc2012', or annotations=False")
    whole, slash, side = part.partition("/")
    data = VOC2012(whole, data_root(), annotations) if annotations else _SETS[name](whole, data_root())
    return _side_of(data, side) if slash else data


def present() -> dict[str, Segmentation]:
    """The held-out part of every data set under `LTCAM_DATA`, and of the demo, by title. Heatmaps are scored on it."""
    found = []
    for name in NAMES:
        with suppress(DataError):
            found.append(load(name, {"voc2012": "val", "ksdd": "test0"}.get(name, "test")))
    return {data.title: data for data in found}


def _side_of(data: Segmentation, side: str) -> Segmentation:
    """Reduce `data` to one side of a hold-out, whose groups stay whole, or to its first images, in place."""
    if side.isdecimal() and int(side):
        data.entries = data.entries[: int(side)]
    elif side in ("fit", "tune"):
        groups = sorted(set(data.groups))
        random.Random(0).shuffle(groups)
        tune = set(groups[: max(1, round(0.1 * len(groups)))])
        data.entries = [e for e, group in zip(data.entries, data.groups, strict=True) if (group in tune) == (side == "tune")]
    else:
        known = f"'{data.part}', '{data.part}/fit' or '{data.part}/tune'"
        raise DataError(f"part '{data.part}/{side}' is unknown: expected {known}")
    data.part = f"{data.part}/{side}"
    return data

"""The data sets by name. Each gives (image, multi-hot label, mask, name).

Open `base.py` first: it says what every data set gives. `get.py` is `ltcam data get` and `ltcam data check`.
This wing may import `engine`.
"""

from ltcam.errors import companion

companion("pandas", "pooch", "skimage", "tqdm", "yaml")

import random
from contextlib import suppress

from ltcam.data.base import DataError, Sample, Segmentation, preprocess
from ltcam.data.sets import SETS, known
from ltcam.files import data_root

__all__ = ["DataError", "Sample", "Segmentation", "load", "preprocess", "present"]


def load(name: str, part: str) -> Segmentation:
    """Part `part` of the data set `name` under `LTCAM_DATA`.

    part is "train" or "test", for voc2012 the name of a list, for ksdd "all", "train0", "test0" and so on. `<part>/fit` is nine
    tenths of the part, `<part>/tune` the rest; groups are not split. `<part>/36` is its first 36 images. Raises DataError
    if the data set or the part is not there.
    """
    whole, slash, side = part.partition("/")
    data = known(name)(whole, data_root())
    if side.isdecimal() and int(side):
        data.entries = data.entries[: int(side)]
    elif side in ("fit", "tune"):
        groups = sorted(set(data.groups))
        if len(groups) < 2:
            raise DataError(f"part {whole!r} of {name} is one image or group: a hold-out needs at least two; complete it")
        random.Random(0).shuffle(groups)
        tune = set(groups[: max(1, round(0.1 * len(groups)))])
        data.entries = [e for e, group in zip(data.entries, data.groups, strict=True) if (group in tune) == (side == "tune")]
    elif slash:
        raise DataError(f"part {part!r} is unknown: expected '{whole}', '{whole}/fit' or '{whole}/tune'")
    data.part = part
    return data


def present() -> dict[str, Segmentation]:
    """The held-out part of every data set under `LTCAM_DATA`, and of the demo, by title. Heatmaps are scored on it."""
    found = []
    for name, kind in SETS.items():
        with suppress(DataError):
            found.append(load(name, kind.held_out))
    return {data.title: data for data in found}

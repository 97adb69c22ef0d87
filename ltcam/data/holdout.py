"""A hold-out of the training part, to choose a recipe by: `<part>/tune` is a tenth of its groups, `<part>/fit` the rest."""

import random
from typing import Literal, get_args

from ltcam.data.base import DataError, Segmentation

Side = Literal["fit", "tune"]
SHARE, SEED = 0.1, 0


def side_of(data: Segmentation, side: str) -> Segmentation:
    """`data` cut down to one side, in place. Groups stay whole. Raises DataError for another side."""
    if side not in get_args(Side):
        raise DataError(f"part '{data.part}/{side}' is unknown: expected '{data.part}', or with /fit or /tune behind it")
    groups = sorted(set(data.groups))
    random.Random(SEED).shuffle(groups)
    tune = set(groups[: max(1, round(SHARE * len(groups)))])
    data.entries = [e for e, group in zip(data.entries, data.groups, strict=True) if (group in tune) == (side == "tune")]
    data.part = f"{data.part}/{side}"
    return data

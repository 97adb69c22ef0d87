"""A share of a part. `<part>/tune` is a tenth of its groups and `<part>/fit` is the rest: a hold-out, for choosing a recipe.
`<part>/36` is its first 36 images, for a quick look.
"""

import random
from typing import Literal, get_args

from ltcam.data.base import DataError, Segmentation

Side = Literal["fit", "tune"]
SHARE, SEED = 0.1, 0


def side_of(data: Segmentation, side: str) -> Segmentation:
    """Reduce `data` to one side or to its first images, in place. The groups of a hold-out stay whole.

    Raises DataError if there is no such side.
    """
    if side.isdecimal() and int(side):
        data.entries, data.part = data.entries[: int(side)], f"{data.part}/{side}"
        return data
    if side not in get_args(Side):
        raise DataError(
            f"part '{data.part}/{side}' is unknown: expected '{data.part}', '{data.part}/fit' or '{data.part}/tune'"
        )
    groups = sorted(set(data.groups))
    random.Random(SEED).shuffle(groups)
    tune = set(groups[: max(1, round(SHARE * len(groups)))])
    data.entries = [e for e, group in zip(data.entries, data.groups, strict=True) if (group in tune) == (side == "tune")]
    data.part = f"{data.part}/{side}"
    return data

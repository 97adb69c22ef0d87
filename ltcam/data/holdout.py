"""A hold-out of the training part, for choosing a recipe. `<part>/tune` is a tenth of its groups, `<part>/fit` is the rest."""

import random
from typing import Literal, get_args

from ltcam.data.base import DataError, Segmentation

Side = Literal["fit", "tune"]
SHARE, SEED = 0.1, 0


def side_of(data: Segmentation, side: str) -> Segmentation:
    """Reduce `data` to one side, in place. Groups stay whole. Raises DataError if there is no such side."""
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

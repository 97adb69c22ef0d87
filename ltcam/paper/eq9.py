"""Why delta = 20 hardly matters, and whether another reading of Eq. 9 would make it matter.

Eq. 9 has "the delta-th percentile of the positive values in each feature map". `READINGS` are other ways to read it. They are
here for notebook 08 alone, and no option of the library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltcam.engine.cam import wide
from ltcam.engine.methods import gradcam
from ltcam.engine.percentiles import thresholds
from ltcam.engine.traces import Trace
from ltcam.engine.tricks import layerize, truncate
from ltcam.experiment.configs import Config
from ltcam.experiment.intervals import VERDICTS, draws, ends, verdict
from ltcam.experiment.segmentation import otsu_counts

Reading = Callable[[Tensor, Tensor, float], Tensor]  # of A, G (P, K, h, w) and delta: which gradients are kept, bool
DELTA = 20.0
SHARES = (10.0, 20.0, 40.0, 60.0, 80.0, 90.0)
NONE = "δ = 0"
FUSED = Config("gradcam", "S1-S5", DELTA)


def _over(values: Tensor, limits: Tensor) -> Tensor:
    return values >= limits.view(-1, 1, 1, 1)


def _percentile(values: Tensor, delta: float) -> Tensor:
    """(P, ...) -> (P,): s[ceil((n - 1) delta / 100)] of all n values in ascending order."""
    rows = values.flatten(1)
    return rows.kthvalue(1 + ceil((rows.shape[1] - 1) * delta / 100), dim=1).values


def _of_weights(a: Tensor, g: Tensor, delta: float) -> Tensor:
    weights = g.clamp(min=0).mean(dim=(2, 3), keepdim=True)
    return _over(weights, thresholds(weights.flatten(1), [delta])) & (g > 0)


EQ9 = "positive values (Eq. 9)"
READINGS: dict[str, Reading] = {
    EQ9: lambda a, g, delta: _over(g, thresholds(g.flatten(1), [delta])),
    "all values": lambda a, g, delta: _over(g, _percentile(g, delta)),
    "absolute values": lambda a, g, delta: _over(g, _percentile(g.abs(), delta)),
    "positive channel weights": _of_weights,
    "positive activation times gradient": lambda a, g, delta: _over(a * g, thresholds((a * g).flatten(1), [delta])),
    "fraction of the maximum": lambda a, g, delta: (g > 0) & _over(g, g.amax(dim=(1, 2, 3)) * delta / 100),
}


def maps(traced: Trace, kept: Reading, delta: float = DELTA) -> list[Tensor]:
    """Grad-CAM's map of every traced layer (P, h, w), of the gradients that `kept` keeps."""
    layers = ((wide(traced.activation(name)), wide(traced.gradient(name))) for name in traced.layers)
    return [gradcam(a, torch.where(kept(a, g, delta), g, 0)) for a, g in layers]


def dropped(traced: Trace, deltas: Sequence[float] = SHARES) -> Iterator[list[Any]]:
    """(pair, stage, delta, share): the percentage of the sum of positive gradients that Eq. 9 drops. NaN if there are none."""
    for stage, layer in traced.stages.items():
        gradient = wide(traced.gradient(layer))
        whole = truncate(gradient, 0).double().sum(dim=(1, 2, 3))
        for delta in deltas:
            left = truncate(gradient, delta).double().sum(dim=(1, 2, 3))
            for pair, share in enumerate((100 * (1 - left / whole)).tolist()):
                yield [pair, stage, delta, share]


def counts(traced: Trace, regions: Sequence[Tensor]) -> Iterator[list[Any]]:
    """(pair, reading, tp, fp, fn): the pixel counts of LTGrad-CAM under each reading, and at delta = 0.

    regions: for each pair what its mask says of each pixel, (H, W), from `ltcam.experiment.metrics.regions`.
    """
    readings = {NONE: (READINGS[EQ9], 0.0), **{name: (kept, DELTA) for name, kept in READINGS.items()}}
    found = [maps(traced, kept, delta) for kept, delta in readings.values()]
    for pair, region in enumerate(regions):
        size = (region.shape[0], region.shape[1])
        heats = torch.cat([layerize([m[pair : pair + 1] for m in own], size) for own in found])
        for name, row in zip(readings, otsu_counts(heats[:, None], region[None])[:, 0].tolist(), strict=True):
            yield [pair, name, *row]


def table(counts: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The score of each reading in percent, and its difference from delta = 0, with intervals and verdict.

    counts: of the function `counts`, with the columns name, group and class of each pair.
    """
    scored: dict[str, NDArray[np.float64]] = {}
    for name, rows in counts.groupby("reading", sort=False):
        (scored[str(name)],) = draws(rows.assign(**FUSED._asdict()), metric).values()
    table = []
    for name, own in scored.items():
        change = own - scored[NONE]
        changed = ends(change, "change", "change_low", "change_high")
        table.append({"reading": name, **ends(own), **changed, "verdict": VERDICTS[verdict(change)]})
    return pd.DataFrame(table)

"""What the paper claims. Each claim is a function from the scores of named configurations to margins, in points.

A claim holds when every margin is above zero. `judging.py` judges the claims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from ltcam.engine.config import Config
from ltcam.experiment.scores import Floats
from ltcam.experiment.study import Study
from ltcam.paper.tables import COLUMNS, DELTAS, ROWS, SEVEN, SWEPT

Scores = Mapping[str, Mapping[Config, Any]]  # part, "test" or "train" -> configuration -> percent, a number or an array
Margins = Iterable[tuple[Any, str]]  # positive if the claim holds, and the numbers behind it
Side = Config | Mapping[Config, float]  # a configuration, or a weighted sum of some
S1, S2, S3, S4, S5 = STAGES = tuple(Config("gradcam", f"S{i}") for i in range(1, 6))
FUSED, TRUNCATED = Config("gradcam", "S1-S5"), Config("gradcam", "S5", 0.0)
LT0, LT20 = SEVEN["LTGrad-CAM(l=5, δ=0)"], SEVEN["LTGrad-CAM(l=5, δ=20)"]
GRADCAM, FULLGRAD, LTFULLGRAD = SEVEN["Grad-CAM"], SEVEN["FullGrad"], ROWS[2]["LTFullGrad(δ=0)"]
LAYERCAM = SEVEN["Layer-CAM(l=5, δ=0)"]


class Claim(NamedTuple):
    """statement: in our words; quote: the paper's words in `section`; needs: the tables it reads; metric: the paper's name."""

    statement: str
    section: str
    quote: str
    needs: tuple[str, ...]
    margins: Callable[[Scores], Margins]
    metric: str = "mIoU"

    @property
    def table(self) -> int:
        """3 if the paper's numbers are class means on VOC 2012, 4 if they are pooled scores on KSDD2."""
        return 4 if {"table4", "sweep"} & set(self.needs) else 3

    def place(self, study: Study) -> tuple[int, str]:
        """The table of seven methods that decides the claim, and its column."""
        home = self.table if self.table in study.compared else study.compared[0]
        return home, COLUMNS[home][self.metric]


def _over(*pairs: tuple[str, Side, Side], low: float = 0.0, high: float = inf) -> Callable[[Scores], Margins]:
    """For each (label, left, right), left minus right lies inside (low, high)."""

    def margins(scores: Scores) -> Margins:
        for label, left, right in pairs:
            a, b = (_sum(side, scores["test"]) for side in (left, right))
            yield np.minimum(a - b - low, high - (a - b)), "" if np.ndim(a) else f"{label}{a:.2f} against {b:.2f}"

    return margins


def _sum(side: Side, scores: Mapping[Config, Any]) -> Any:
    return scores[side] if isinstance(side, Config) else sum(weight * scores[config] for config, weight in side.items())


def _curve(method: str, scores: Mapping[Config, Any]) -> Floats:
    """(deltas, ...)"""
    return np.stack([scores[Config(method, SWEPT[method], delta)] for delta in DELTAS])


def _peaks(scores: Scores) -> Margins:
    """The best score strictly inside 0..90, minus the better of the two ends."""
    for method in SWEPT:
        curve = _curve(method, scores["test"])
        inside, outside = curve[1:-1], curve[[0, -1]]
        said = ""
        if curve.ndim == 1:
            top, end = DELTAS[1 + int(inside.argmax())], DELTAS[-1 if outside[1] > outside[0] else 0]
            said = f"{method} {inside.max():.2f} at δ={top:g} against {outside.max():.2f} at δ={end:g}"
        yield inside.max(axis=0) - outside.max(axis=0), said


def _agreement(scores: Scores) -> Margins:
    """Spearman's rank correlation of the curves on both parts, minus 0.5. A flat curve agrees with none."""
    for method in SWEPT:
        train, test = (rankdata(_curve(method, scores[part]), axis=0) for part in ("train", "test"))
        spread = train.std(axis=0) * test.std(axis=0)
        shared = (train * test).mean(axis=0) - train.mean(axis=0) * test.mean(axis=0)
        rho = np.divide(shared, spread, out=np.zeros_like(shared), where=spread > 0)
        yield rho - 0.5, "" if np.ndim(rho) else f"{method} {rho:.2f}"


GENTLE = [
    (f"{method} ", {Config(method, layers, delta): 0.2 for delta in DELTAS[:5]}, Config(method, layers))
    for method, layers in SWEPT.items()
]
CLAIMS = (
    Claim(
        "Fusing all stages beats each of S1 to S4", "3.2", "fusing multiple layers is more effective than shallow features",
        ("table1",), _over(*((f"S{i}: ", FUSED, stage) for i, stage in enumerate(STAGES[:4], 1))),
    ),
    Claim(
        "Fusing all stages costs against S5 alone", "3.2", "but weaker than deep features S5",
        ("table1",), _over(("", S5, FUSED)),
    ),
    Claim(
        "The score rises with depth, S1 to S5", "2.2", "high-resolution semantic features exist still in the shallow feature "
        "maps, while containing some noise",
        ("table1",), _over(*((f"S{i + 1} over S{i}: ", STAGES[i], STAGES[i - 1]) for i in range(1, 5))),
    ),
    Claim(
        "Truncation alone (S5, δ=0) helps Grad-CAM", "3.3", "results in a 0.92% improvement in mIoU",
        ("table2",), _over(("", TRUNCATED, GRADCAM)),
    ),
    Claim(
        "Truncation with δ=0 leaves FullGrad almost the same: within 0.5 points", "3.3",
        "the mIoU remains almost the same, with a slight decrease of 0.09%",
        ("table2",), _over(("", LTFULLGRAD, FULLGRAD), low=-0.5, high=0.5),
    ),
    Claim(
        "Truncation (δ=0) gains more on the fused stages than on S5", "1",
        "enable gradient-weighted CAM-based methods to benefit from layerization tricks",
        ("table1", "table2", "table3"), _over(("gain ", {LT0: 1, FUSED: -1}, {TRUNCATED: 1, GRADCAM: -1})),
    ),
    Claim(
        "Objects: LTGrad-CAM (l=5) beats Grad-CAM", "3.4", "significantly improves the performance of Grad-CAM",
        ("table3",), _over(("δ=0: ", LT0, GRADCAM), ("δ=20: ", LT20, GRADCAM)),
    ),
    Claim(
        "Objects: LTGrad-CAM with δ=20 exceeds FullGrad", "3.4", "which exceeds that of FullGrad, one of the sota methods",
        ("table3",), _over(("", LT20, FULLGRAD)),
    ),
    Claim(
        "Objects: LTGrad-CAM with δ=0 exceeds FullGrad", "3.4", "which exceeds that of FullGrad, one of the sota methods",
        ("table3",), _over(("", LT0, FULLGRAD)),
    ),
    Claim(
        "Objects: LTGrad-CAM (δ=20) is comparable to Layer-CAM (l=5): at most 2.5 points below, as in the paper", "3.4",
        "to a comparable level with Layer-CAM",
        ("table3",), _over(("", LT20, LAYERCAM), low=-2.5),
    ),
    Claim(
        "Objects: δ=20 beats δ=0", "3.4", "select a small non-zero value",
        ("table3",), _over(("", LT20, LT0)),
    ),
    Claim(
        "Defects: LTGrad-CAM (l=5) beats Grad-CAM", "3.4", "significantly improves the performance of Grad-CAM",
        ("table4",), _over(("δ=0: ", LT0, GRADCAM), ("δ=20: ", LT20, GRADCAM)),
    ),
    Claim(
        "Defects: LTGrad-CAM with δ=0 beats Layer-CAM (l=5)", "3.4",
        "it outperforms the mIoU score of the state-of-the-art Layer-CAM by 4.09%",
        ("table4",), _over(("", LT0, LAYERCAM)),
    ),
    Claim(
        "Defects: LTGrad-CAM with δ=20 beats Layer-CAM (l=5)", "3.4", "this gap further expands to 6.45%",
        ("table4",), _over(("", LT20, LAYERCAM)),
    ),
    Claim(
        "Defects: LTGrad-CAM with δ=20 beats Layer-CAM (l=5) in micro-F1", "3.4",
        "In terms of the micro-F1 metric, our method improves by 7.4%",
        ("table4",), _over(("", LT20, LAYERCAM)), "Micro-F1",
    ),
    Claim(
        "Defects: δ=20 beats δ=0", "3.4", "this gap further expands to 6.45%",
        ("table4",), _over(("", LT20, LT0)),
    ),
    Claim(
        "Defects: LTGrad-CAM (δ=20) beats every other method", "3.5",
        "our proposed LTGrad-CAM outperforms existing methods by a large margin in defect inspection tasks",
        ("table4",), _over(*((f"{row} ", LT20, config) for row, config in SEVEN.items() if not row.startswith("LT"))),
    ),
    Claim(
        "Over δ the score rises, then falls: the best lies inside 0 to 90", "3.5",
        "all three curves show an increasing trend followed by a decreasing trend",
        ("sweep",), _peaks,
    ),
    Claim(
        "Over δ from 0 to 40 the mean score is above that without truncation", "3.5",
        "the performance after gradient truncation is generally improved",
        ("sweep",), _over(*GENTLE),
    ),
    Claim(
        "The curves of both parts agree: rank correlation above 0.5", "3.5",
        "the trend on the training set is very similar to that on the testing set",
        ("sweep",), _agreement,
    ),
)  # fmt: skip

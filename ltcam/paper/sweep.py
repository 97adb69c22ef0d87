"""Sec. 3.5: three methods over the truncation delta, on the held-out part (Fig. 4) and on the training part (Fig. 5).

delta is the only number that a user of the tricks has to choose. The paper chooses it on the training part. So the choice is
judged here by what it costs on the test part.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from ltcam.experiment import metrics
from ltcam.experiment.configs import Config
from ltcam.paper import tables as paper

METHODS = {"gradcam": "S1-S5", "layercam": "S1-S5", "fullgrad": "all"}
DELTAS = [float(delta) for delta in range(0, 100, 10)]
CONFIGS = [Config(method, layers, delta) for method, layers in METHODS.items() for delta in (None, *DELTAS)]


def scores(counts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The scores of both roles' counts in percent: column `part` with the role, then those of `metrics.scores`."""
    tables = {role: metrics.scores(found) for role, found in counts.items()}
    both: pd.DataFrame = pd.concat(tables, names=["part", None]).reset_index("part")
    return both.reset_index(drop=True)


def headline(data: str) -> str:
    """The headline score of a data set: class means ("mIoU") on photographs, pooled "IoU" on defects and on the demo."""
    return "IoU" if 4 in paper.COMPARED[data] else "mIoU"


def curves(table: pd.DataFrame, metric: str) -> dict[str, pd.DataFrame]:
    """For each method in a sweep `table`, `metric` by ascending delta, with a column for each part; without "no truncation"."""
    truncated = table.dropna(subset="delta")
    return {m: truncated[truncated["method"] == m].pivot(index="delta", columns="part", values=metric) for m in METHODS}


def chosen(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """What choosing delta by `metric` on the training part is worth on the test part: one row per method of the sweep `table`.

    delta   the best delta on the training part (the smallest of equals); "no truncation" cannot be chosen
    none    the test part's score without truncation; test: its score at delta
    best    its best score over all delta, at best_delta
    regret  best - test, in points
    rank_correlation  Spearman's, of the two parts' curves, in [-1, 1]; NaN where one of them is flat
    """
    none = table[(table["part"] == "test") & table["delta"].isna()].set_index("method")[metric]
    rows = []
    for method, curve in curves(table, metric).items():
        delta, best_delta = float(curve["train"].idxmax()), float(curve["test"].idxmax())  # type: ignore[arg-type]
        test, best = curve["test"][delta], curve["test"][best_delta]
        rank = curve.corr(method="spearman").loc["train", "test"]
        rows.append([method, delta, none[method], test, best_delta, best, best - test, rank])
    return pd.DataFrame(rows, columns=["method", "delta", "none", "test", "best_delta", "best", "regret", "rank_correlation"])


def shape(curve: pd.Series[float]) -> str:
    """A curve over delta in words: "rises, then falls" if its maximum is above both ends, else its higher end, or flat."""
    first, last, highest = curve.iloc[0], curve.iloc[-1], curve.max()
    if highest == curve.min():
        return "is flat"
    if highest > max(first, last):
        return "rises, then falls"
    return f"is highest at δ={curve.index[0 if first == highest else -1]:g}"

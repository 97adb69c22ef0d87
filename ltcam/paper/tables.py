"""The paper's tables: the configuration of each row, and the printed numbers (`data/paper_values.csv`) beside ours.

Tables 1 to 3 are on PASCAL VOC 2012, Table 4 is on KSDD2. Its rows satisfy F1 = 2PR / (P + R) and IoU = F1 / (2 - F1), so they
are pooled over pixels. Those of Tables 2 and 3 do not, so they are class means. Figs. 4 and 5 have three methods over delta, on
the held-out part and on the training part.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from ltcam.engine.config import Config
from ltcam.experiment.scores import draws, scores, span
from ltcam.experiment.study import Role, Study
from ltcam.files import ROOT
from ltcam.paper.registry import Need, make, result

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

SEVEN = {
    "Grad-CAM++": Config("gradcam++"),
    "Grad-CAM": Config("gradcam"),
    "FullGrad": Config("fullgrad", "all"),
    "Layer-CAM(l=1, δ=0)": Config("layercam", "S5", 0.0),
    "Layer-CAM(l=5, δ=0)": Config("layercam", "S1-S5", 0.0),
    "LTGrad-CAM(l=5, δ=0)": Config("gradcam", "S1-S5", 0.0),
    "LTGrad-CAM(l=5, δ=20)": Config("gradcam", "S1-S5", 20.0),
}
ROWS = {
    1: {
        **{f"S{i}": Config("gradcam", f"S{i}") for i in range(1, 6)},
        "S3+S4+S5": Config("gradcam", "S3-S5"),
        "S1+S2+S3+S4+S5": Config("gradcam", "S1-S5"),
    },
    2: {
        "Grad-CAM++": Config("gradcam++"),
        "Grad-CAM": Config("gradcam"),
        "LTGrad-CAM(l=1, δ=0)": Config("gradcam", "S5", 0.0),
        "FullGrad": Config("fullgrad", "all"),
        "LTFullGrad(δ=0)": Config("fullgrad", "all", 0.0),
    },
    3: SEVEN,
    4: SEVEN,
}
SWEPT = {"gradcam": "S1-S5", "layercam": "S1-S5", "fullgrad": "all"}  # the methods of Figs. 4 and 5, and their layers
DELTAS = [float(delta) for delta in range(0, 100, 10)]
SWEEP = [Config(method, layers, delta) for method, layers in SWEPT.items() for delta in (None, *DELTAS)]
CLASS_MEANS = {"mIoU": "mIoU", "Precision": "mPrecision", "Recall": "mRecall", "Micro-F1": "mF1"}
POOLED = {"mIoU": "IoU", "Precision": "Precision", "Recall": "Recall", "Micro-F1": "F1"}
COLUMNS = {1: CLASS_MEANS, 2: CLASS_MEANS, 3: CLASS_MEANS, 4: POOLED}  # ours, by the paper's name of a metric
PRINTED_ON = {1: "PASCAL VOC 2012", 2: "PASCAL VOC 2012", 3: "PASCAL VOC 2012", 4: "KSDD2"}
STYLES = ("background-color: #b7e1c0; color: black", "background-color: #bcd4f0; color: black")  # best, second best


def _needs(number: int) -> list[Need]:
    return [Need(list(ROWS[number].values()))]


@result("Grad-CAM by stage", lambda study: _needs(1))
def table1(study: Study) -> pd.DataFrame:
    return _scored(1, study)


@result("Truncation without layerization", lambda study: _needs(2))
def table2(study: Study) -> pd.DataFrame:
    return _scored(2, study)


@result("Seven methods", lambda study: _needs(3), tables=(3,))
def table3(study: Study) -> pd.DataFrame:
    return _scored(3, study)


@result("Seven methods", lambda study: _needs(4), tables=(4,))
def table4(study: Study) -> pd.DataFrame:
    return _scored(4, study)


def _scored(number: int, study: Study) -> pd.DataFrame:
    """Column `row` with the paper's name, the configuration, class means and pooled scores in percent."""
    table = scores(study.counts(ROWS[number].values()))
    table.insert(0, "row", list(ROWS[number]))
    return table


@result("Every score over δ", lambda study: [Need(SWEEP, role) for role in get_args(Role)])
def sweep(study: Study) -> pd.DataFrame:
    """Figs. 4 and 5. Column `part` has the role: "test" or "train"."""
    found = {role: scores(study.counts(SWEEP, role)) for role in get_args(Role)}
    both: pd.DataFrame = pd.concat(found, names=["part", None]).reset_index("part")
    return both.reset_index(drop=True)


@result("What choosing δ on the training part is worth")
def delta_choice(study: Study) -> pd.DataFrame:
    """One row per method of the sweep, by the headline score.

    delta   the best delta on the training part (the smallest of equals); "no truncation" cannot be chosen
    none    the test part's score without truncation; test: its score at delta
    best    its best score over all delta, at best_delta
    regret  best - test, in points
    rank_correlation  Spearman's, of the two parts' curves, in [-1, 1]; NaN where one of them is flat
    """
    table, rows = sweep(study), []
    plain = table[(table["part"] == "test") & table["delta"].isna()].set_index("method")[study.metric]
    for method, curve in curves(table, study.metric).items():
        delta, best_delta = float(curve["train"].idxmax()), float(curve["test"].idxmax())  # type: ignore[arg-type]
        test, best = curve["test"][delta], curve["test"][best_delta]
        rank = curve.corr(method="spearman").loc["train", "test"]
        rows.append([method, delta, plain[method], test, best_delta, best, best - test, rank])
    return pd.DataFrame(rows, columns=["method", "delta", "none", "test", "best_delta", "best", "regret", "rank_correlation"])


def curves(table: pd.DataFrame, metric: str) -> dict[str, pd.DataFrame]:
    """For each method in a sweep `table`, `metric` by ascending delta, with a column for each part; without "no truncation"."""
    truncated = table.dropna(subset="delta")
    return {m: truncated[truncated["method"] == m].pivot(index="delta", columns="part", values=metric) for m in SWEPT}


@result("Every number of the paper, and ours", golden=("table", "row", "metric", "paper", "ours", "difference"))
def comparison(study: Study) -> pd.DataFrame:
    """A row for each printed number: table, row, metric, paper, ours, difference (points), and our interval.

    low, high: over images and trainings, in percent; inside: whether the paper's number lies in it. Precision and recall have
    none.
    """
    parts = []
    for number in (1, 2, *study.compared):
        wide = compared(number, make(f"table{number}", study)).rename_axis(index="row")
        long = pd.concat({metric: wide[metric] for metric in published(number)}, names=["metric"]).reset_index()
        parts.append(long.assign(table=number)[["table", "row", "metric", "paper", "ours", "difference"]])
    rows: pd.DataFrame = pd.concat(parts, ignore_index=True)
    counts = study.counts(config for number in (1, 2, *study.compared) for config in ROWS[number].values())
    columns = [COLUMNS[number][metric] for number, metric in zip(rows["table"], rows["metric"], strict=True)]
    drawn = [name for name in dict.fromkeys(columns) if name.removeprefix("m") in ("IoU", "F1")]
    spans = {(name, config): span(values) for name in drawn for config, values in draws(counts, name).items()}
    places = [(name, ROWS[n][row]) for name, n, row in zip(columns, rows["table"], rows["row"], strict=True)]
    rows[["low", "high"]] = np.round([spans.get(place, (np.nan, np.nan)) for place in places], 2)
    return rows.assign(inside=rows["paper"].between(rows["low"], rows["high"]).where(rows["low"].notna()))


def compared(number: int, ours: pd.DataFrame) -> pd.DataFrame:
    """Columns (metric, "paper" | "ours" | "difference"), rows with the paper's names. Ours are pooled for Table 4, else class
    means. A difference is ours minus the paper's, in points."""
    printed, table = published(number), ours.set_index("row")
    columns: dict[tuple[str, str], pd.Series[float]] = {}
    for metric in map(str, printed):
        mine = table.loc[printed.index, COLUMNS[number][metric]].round(2)
        columns |= {(metric, "paper"): printed[metric].round(2), (metric, "ours"): mine}
        columns[metric, "difference"] = (mine - columns[metric, "paper"]).round(2)
    return pd.DataFrame(columns)


def beside(number: int, study: Study, difference: bool = False) -> Styler:
    """Table `number` for display: the paper's columns beside ours, with the best and second best of each column marked."""
    wide = compared(number, make(f"table{number}", study)).rename_axis(index=None)
    shown = wide if difference else wide.drop(columns="difference", level=1)
    names: list[Any] = list(shown)
    marked = [column for column in names if column[1] != "difference"]
    caption = f"Table {number}: the paper's on {PRINTED_ON[number]}, ours on {study.title}"
    signed: dict[Any, Any] = {column: "{:.2f}" if column in marked else "{:+.2f}" for column in names}
    return shown.style.format(signed).set_caption(caption).apply(_mark, subset=marked)


def ranks(column: pd.Series[float]) -> list[int]:
    """1 for the best of a column, 2 for the second best, 0 for the others."""
    return [int(rank) if rank <= 2 else 0 for rank in column.rank(ascending=False, method="min")]


def _mark(column: pd.Series[float]) -> list[str]:
    return [STYLES[rank - 1] if rank else "" for rank in ranks(column)]


@cache
def published(number: int, column: str = "value") -> pd.DataFrame:
    """The paper's table `number` as printed, in percent: rows with the paper's names, a column for each metric.

    column "style": how each value is printed: "bold", "underline" or "".
    """
    values = pd.read_csv(ROOT / "data" / "paper_values.csv", keep_default_na=False)
    chosen = values[values["table"] == number]
    wide = chosen.pivot(index="row", columns="metric", values=column)
    return wide.loc[list(dict.fromkeys(chosen["row"])), list(dict.fromkeys(chosen["metric"]))]


def arithmetic(number: int) -> pd.DataFrame:
    """How far the printed metrics are from those of pooled pixels, where F1 = 2PR / (P + R) and IoU = F1 / (2 - F1).

    Columns "F1 - 2PR/(P+R)" and "IoU - F1/(2-F1)" in points, and "pooled": whether rounding explains both differences.
    """
    p, r, f1, iou = (published(number)[metric] / 100 for metric in ("Precision", "Recall", "Micro-F1", "mIoU"))
    half = 0.5e-4  # half of the last digit printed; both formulas increase with their inputs
    pooled = _f1(p - half, r - half).le(f1 + half) & _f1(p + half, r + half).ge(f1 - half)
    pooled &= _iou(f1 - half).le(iou + half) & _iou(f1 + half).ge(iou - half)
    off = {"F1 - 2PR/(P+R)": f1 - _f1(p, r), "IoU - F1/(2-F1)": iou - _iou(f1)}
    return ((pd.DataFrame(off) * 100).round(3) + 0.0).assign(pooled=pooled)  # + 0.0: no -0.000


def underlined() -> list[str]:
    """A sentence for each column of Tables 3 and 4 in which the paper underlines a row other than the second best."""
    found = []
    for number in (3, 4):
        values, styles = published(number), published(number, "style")
        for metric in map(str, values):
            second, marked = values[metric].nlargest(2).index[1], styles.index[styles[metric] == "underline"].to_list()
            if marked != [second]:
                named = " and ".join(f"{row}'s {values.loc[row, metric]}" for row in marked) or "nothing"
                best = f"{second}'s {values.loc[second, metric]}"
                found.append(f"Table {number}, {metric}: {named} is underlined, the second best is {best}")
    return found


def _f1(precision: pd.Series[float], recall: pd.Series[float]) -> pd.Series[float]:
    return 2 * precision * recall / (precision + recall)


def _iou(f1: pd.Series[float]) -> pd.Series[float]:
    return f1 / (2 - f1)

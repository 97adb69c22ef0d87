"""The paper's tables: the configuration of each row, and the printed numbers (`data/paper_values.csv`) beside ours.

Tables 1 to 3 are on PASCAL VOC 2012, Table 4 is on KSDD2. Table 4's rows satisfy F1 = 2PR / (P + R) and IoU = F1 / (2 - F1), so
its numbers are pooled over pixels. The rows of Tables 2 and 3 do not, so their numbers are class means.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pandas as pd

from ltcam.experiment import metrics
from ltcam.experiment.configs import Config, configurations
from ltcam.files import ROOT

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
TABLES = {
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
CAPTIONS = {1: "Grad-CAM by stage", 2: "Truncation without layerization", 3: "Seven methods", 4: "Seven methods"}
# The paper's table(s) that a data set is compared with.
COMPARED = {"voc2012": [3], "ksdd2": [4], "ksdd": [4], "magnetic_tile": [4], "demo": [3, 4]}
CLASS_MEANS = {"mIoU": "mIoU", "Precision": "mPrecision", "Recall": "mRecall", "Micro-F1": "mF1"}
POOLED = {"mIoU": "IoU", "Precision": "Precision", "Recall": "Recall", "Micro-F1": "F1"}
CSS = {"bold": "font-weight: bold", "underline": "text-decoration: underline", "": ""}


def table(number: int, counts: pd.DataFrame) -> pd.DataFrame:
    """Our table `number`: column `row` with the paper's name, the configuration, class means and pooled scores in percent.

    counts: of `TABLES[number]`. Several trainings give mean and standard deviation, as in `ltcam.experiment.metrics.scores`.
    """
    names = {config: row for row, config in TABLES[number].items()}
    ours = metrics.scores(counts)
    return ours.assign(row=[names[config] for config in configurations(ours)])[["row", *ours.columns]]


def published(number: int) -> pd.DataFrame:
    """The paper's table `number` as printed: rows with the paper's names, one column per metric, in percent."""
    return _printed(number, "value")


def emphasis(number: int) -> pd.DataFrame:
    """How each value of `published(number)` is printed: "bold", "underline" or ""."""
    return _printed(number, "style")


def beside(number: int, ours: pd.DataFrame) -> pd.DataFrame:
    """Columns (metric, "paper" | "ours"), rows with the paper's names. Ours are pooled for Table 4, else class means."""
    printed, names = published(number), POOLED if number == 4 else CLASS_MEANS
    scores = ours.set_index("row").loc[printed.index]
    columns: dict[tuple[str, str], pd.Series[float]] = {}
    for metric in map(str, printed):
        columns |= {(metric, "paper"): printed[metric], (metric, "ours"): scores[names[metric]]}
    return pd.DataFrame(columns).round(2)


def compare(number: int, ours: pd.DataFrame) -> pd.DataFrame:
    """`beside` with a third column for each metric: (metric, "difference"), ours minus the paper's, in points."""
    both = beside(number, ours)
    columns: dict[tuple[str, str], pd.Series[float]] = {}
    for metric in map(str, published(number)):
        paper, mine = both[metric, "paper"], both[metric, "ours"]
        columns |= {(metric, "paper"): paper, (metric, "ours"): mine, (metric, "difference"): (mine - paper).round(2)}
    return pd.DataFrame(columns)


def tidy(number: int, ours: pd.DataFrame) -> pd.DataFrame:
    """`compare` with one row for each printed number: columns table, row, metric, paper, ours, difference."""
    wide = compare(number, ours).rename_axis(index="row")
    long: pd.DataFrame = pd.concat({metric: wide[metric] for metric in map(str, published(number))}, names=["metric"])
    long = long.reset_index().assign(table=number)
    return long[["table", "row", "metric", "paper", "ours", "difference"]]


def styled(number: int, ours: pd.DataFrame, title: str) -> Styler:
    """`compare` for display. The paper's numbers are bold and underlined as printed, ours are marked by `mark`.

    title: of the data set that `ours` was measured on.
    """
    wide, css, names = compare(number, ours), emphasis(number).replace(CSS), list(published(number))
    css.columns = pd.MultiIndex.from_product([names, ["paper"]])
    return (
        wide.rename_axis(index=None)
        .style.format("{:.2f}")
        .format("{:+.2f}", subset=[(metric, "difference") for metric in names])
        .set_caption(f"Table {number}: the paper's on {'KSDD2' if number == 4 else 'VOC 2012'}, ours on {title}")
        .apply(lambda _: css, axis=None, subset=list(css))
        .apply(mark, subset=[(metric, "ours") for metric in names])
    )


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
        values, styles = published(number), emphasis(number)
        for metric in map(str, values):
            second, marked = values[metric].nlargest(2).index[1], styles.index[styles[metric] == "underline"].to_list()
            if marked != [second]:
                named = " and ".join(f"{row}'s {values.loc[row, metric]}" for row in marked) or "nothing"
                best = f"{second}'s {values.loc[second, metric]}"
                found.append(f"Table {number}, {metric}: {named} is underlined, the second best is {best}")
    return found


def mark(column: pd.Series[float]) -> list[str]:
    """A style for `DataFrame.style.apply`: the best of a column green, the second best blue."""
    styles = ("background-color: #b7e1c0; color: black", "background-color: #bcd4f0; color: black")
    ranked = column.rank(ascending=False, method="min")
    return [styles[int(rank) - 1] if rank <= 2 else "" for rank in ranked]


@cache
def _printed(number: int, column: str) -> pd.DataFrame:
    values = pd.read_csv(ROOT / "data" / "paper_values.csv", keep_default_na=False)
    chosen = values[values["table"] == number]
    return chosen.pivot(index="row", columns="metric", values=column).loc[
        list(dict.fromkeys(chosen["row"])), list(dict.fromkeys(chosen["metric"]))
    ]


def _f1(precision: pd.Series[float], recall: pd.Series[float]) -> pd.Series[float]:
    return 2 * precision * recall / (precision + recall)


def _iou(f1: pd.Series[float]) -> pd.Series[float]:
    return f1 / (2 - f1)

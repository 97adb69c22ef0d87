"""The paper's tables: which configuration each row is, and the numbers printed there (`data/paper_values.csv`).

Tables 1 to 3 are on PASCAL VOC 2012, Table 4 on KSDD2. Table 4's rows satisfy F1 = 2PR / (P + R) and IoU = F1 / (2 - F1), so
its numbers are pooled over pixels; those of Tables 2 and 3 do not, so they are class means.
"""

from __future__ import annotations

import pandas as pd

from ltcam import metrics
from ltcam.evaluation import Config
from ltcam.paths import ROOT

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
COMPARED = {"voc2012": [3], "ksdd2": [4], "magnetic_tile": [4], "demo": [3, 4]}  # the table(s) a data set is the counterpart of
CLASS_MEANS = {"mIoU": "mIoU", "Precision": "mPrecision", "Recall": "mRecall", "Micro-F1": "mF1"}
POOLED = {"mIoU": "IoU", "Precision": "Precision", "Recall": "Recall", "Micro-F1": "F1"}


def table(number: int, counts: pd.DataFrame, classes: tuple[int, ...] | None = None) -> pd.DataFrame:
    """Our table `number`: column `row` as the paper names it, the configuration, class means and pooled scores in percent.

    counts as `ltcam.evaluation.evaluate` gives them for `TABLES[number]`; classes as in `ltcam.metrics.scores`.
    """
    names = {tuple(_plain(config)): row for row, config in TABLES[number].items()}
    ours = metrics.scores(counts, classes)
    return ours.assign(row=[names[tuple(_plain(c))] for c in ours[metrics.CONFIG].itertuples(index=False)])[
        ["row", *ours.columns]
    ]


def published(number: int) -> pd.DataFrame:
    """The paper's table `number` as printed: rows by the paper's names, one column a metric, in percent."""
    values = pd.read_csv(ROOT / "data" / "paper_values.csv")
    chosen = values[values["table"] == number]
    return chosen.pivot(index="row", columns="metric", values="value").loc[
        list(dict.fromkeys(chosen["row"])), list(dict.fromkeys(chosen["metric"]))
    ]


def beside(number: int, ours: pd.DataFrame) -> pd.DataFrame:
    """Columns (metric, "paper" | "ours"), rows by the paper's names; ours are pooled scores for Table 4, else class means."""
    printed, names = published(number), POOLED if number == 4 else CLASS_MEANS
    scores = ours.set_index("row").loc[printed.index]
    columns: dict[tuple[str, str], pd.Series[float]] = {}
    for metric in map(str, printed):
        columns |= {(metric, "paper"): printed[metric], (metric, "ours"): scores[names[metric]]}
    return pd.DataFrame(columns).round(2)


def mark(column: pd.Series[float]) -> list[str]:
    """A style for `DataFrame.style.apply`: the best of a column green, the second best blue."""
    styles = ("background-color: #b7e1c0; color: black", "background-color: #bcd4f0; color: black")
    ranked = column.rank(ascending=False, method="min")
    return [styles[int(rank) - 1] if rank <= 2 else "" for rank in ranked]


def _plain(config: object) -> list[object]:
    return [None if pd.isna(value) else value for value in config]  # type: ignore[attr-defined]

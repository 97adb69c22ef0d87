"""The paper's tables: the configuration of each row, and the printed numbers (`data/paper_values.csv`) beside ours.

Tables 1 to 3 are on PASCAL VOC 2012, Table 4 is on KSDD2. Its rows satisfy F1 = 2PR / (P + R) and IoU = F1 / (2 - F1), so they
are pooled over pixels. Those of Tables 2 and 3 do not, so they are class means. Figs. 4 and 5 have three methods over delta, on
the held-out part and on the training part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from ltcam.engine.config import Config
from ltcam.experiment.protocol import Loss
from ltcam.experiment.scores import NEAR, Counts, Floats, draws, ends, judge, scores, span
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
    1: {f"S{i}": Config("gradcam", f"S{i}") for i in range(1, 6)}
    | {"S3+S4+S5": Config("gradcam", "S3-S5"), "S1+S2+S3+S4+S5": Config("gradcam", "S1-S5")},
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
PRINTED_ON = {1: "PASCAL VOC 2012", 2: "PASCAL VOC 2012", 3: "PASCAL VOC 2012", 4: "KSDD2"}
SWEPT = {"gradcam": "S1-S5", "layercam": "S1-S5", "fullgrad": "all"}  # the methods of Figs. 4 and 5, and their layers
DELTAS = [float(delta) for delta in range(0, 100, 10)]
SWEEP = [Config(method, layers, delta) for method, layers in SWEPT.items() for delta in (None, *DELTAS)]
# Beyond the figures: percentiles close to 100, and delta as a fraction of the largest gradient.
READ = {"percentile": [*DELTAS, 95.0, 99.0], "fraction of the maximum": DELTAS[1:]}
FURTHER = [
    config for method, layers in SWEPT.items() for by, deltas in READ.items() for delta in deltas
    if (config := Config(method, layers, delta, by=by)) not in SWEEP
]  # fmt: skip
BOTH = get_args(Loss)  # settings
CLASS_MEANS = {"mIoU": "mIoU", "Precision": "mPrecision", "Recall": "mRecall", "Micro-F1": "mF1"}
POOLED = {"mIoU": "IoU", "Precision": "Precision", "Recall": "Recall", "Micro-F1": "F1"}
COLUMNS = {1: CLASS_MEANS, 2: CLASS_MEANS, 3: CLASS_MEANS, 4: POOLED}  # ours, by the paper's name of a metric
STYLES = ("", "background-color: #b7e1c0; color: black", "background-color: #bcd4f0; color: black")  # by `ranks`
CHANGE = ("change", "change_low", "change_high")
WORDS = ("better", "worse")  # a margin that is a change holds, or fails


def margin(values: Floats, names: Sequence[str] = CHANGE, words: Sequence[str] = WORDS, near: float = NEAR) -> dict[str, Any]:
    """The columns that say what a margin is: its value and its ends, under `names`, and its verdict, in `words`."""
    return {**ends(values, *names), "verdict": judge([values], near)[0].replace("holds", words[0]).replace("fails", words[1])}


def _register(number: int) -> None:
    """Table `number` as a result: column `row` with the paper's name, the configuration, class means and pooled scores (%)."""

    def table(study: Study) -> pd.DataFrame:
        found = scores(study.counts(ROWS[number].values()))
        found.insert(0, "row", list(ROWS[number]))
        return found

    table.__name__ = f"table{number}"
    own = (number,) if ROWS[number] is SEVEN else ()  # the others are about the method, and belong to every data set
    result(CAPTIONS[number], lambda study: [Need(list(ROWS[number].values()))], tables=own, losses=BOTH)(table)


for _number in ROWS:
    _register(_number)


@result("Every score over δ", lambda study: [Need(SWEEP, role) for role in get_args(Role)], losses=BOTH)
def sweep(study: Study) -> pd.DataFrame:
    """Figs. 4 and 5. Column `part` has the role: "test" or "train"."""
    return by_part({role: study.counts(SWEEP, role) for role in get_args(Role)})


def by_part(counts: Mapping[str, Counts]) -> pd.DataFrame:
    """The scores of each part, one below the other."""
    both: pd.DataFrame = pd.concat({role: scores(own) for role, own in counts.items()}, names=["part", None])
    return both.reset_index("part").reset_index(drop=True)


@result("Both readings of δ", lambda study: [Need([*SWEEP, *FURTHER], role) for role in get_args(Role)], losses=("softmax",))
def deltas(study: Study) -> pd.DataFrame:
    """The headline score over delta in both readings of Eq. 9, on both parts, as a percentile up to 99.

    Columns part, by, method, delta, value with its interval, and its change from no truncation, which is a row of the
    percentile's without delta. A delta of 0 is the same in both. The sigmoid has no file of it, and the percentiles of `SWEEP`.
    """
    rows, configs = [], SWEEP + FURTHER * (study.loss == "softmax")
    for role in get_args(Role):
        scores = draws(study.counts(configs, role), study.metric)
        for config, own in scores.items():
            plain = scores[replace(config, delta=None, by="percentile")]
            about = {"part": role, "by": config.by, "method": config.method, "delta": config.delta}
            rows.append(about | ends(own) | margin(own - plain))
    return pd.DataFrame(rows).sort_values(["part", "by", "method", "delta"], kind="stable", na_position="first")


@result("What choosing δ on the training part is worth", losses=BOTH)
def delta_choice(study: Study) -> pd.DataFrame:
    """One row per method of the sweep, by the headline score.

    delta   the best delta on the training part (the smallest of equals); "no truncation" cannot be chosen
    none    the test part's score without truncation; test: its score at delta
    best    its best score over all delta, at best_delta
    regret  best - test, in points
    rank_correlation  Spearman's, of the two parts' curves, in [-1, 1]; NaN where one of them is flat
    """
    table, rows = sweep(study), []
    for method in SWEPT:
        wide = table[table["method"] == method].pivot(index="delta", columns="part", values=study.metric)
        curve, none = wide[wide.index.notna()], wide.loc[wide.index.isna(), "test"].item()
        chosen, test = int(curve["train"].argmax()), curve["test"]
        rank = curve.corr(method="spearman").loc["train", "test"]
        regret = test.max() - test.iloc[chosen]
        rows.append([method, curve.index[chosen], none, test.iloc[chosen], test.idxmax(), test.max(), regret, rank])
    return pd.DataFrame(rows, columns=["method", "delta", "none", "test", "best_delta", "best", "regret", "rank_correlation"])


@result("Every number of the paper, and ours", golden=("table", "row", "metric", "paper", "ours", "difference"), losses=BOTH)
def comparison(study: Study) -> pd.DataFrame:
    """A row for each printed number, in percent and points. low, high: our interval over images and trainings, which precision
    and recall have not; inside: whether the paper's number lies in it."""
    numbers, rows = (1, 2, *study.compared), []
    counts = study.counts(config for number in numbers for config in ROWS[number].values())
    drawn = {name: draws(counts, name) for name in {COLUMNS[n][metric] for n in numbers for metric in ("mIoU", "Micro-F1")}}
    for number in numbers:
        wide: Any = compared(number, make(f"table{number}", study))
        for metric, row in product(map(str, published(number)), ROWS[number]):
            own = drawn.get(COLUMNS[number][metric])
            interval = span(own[ROWS[number][row]]) if own else (np.nan, np.nan)
            rows.append([number, row, metric, *wide.loc[row, metric], *np.round(interval, 2)])
    table = pd.DataFrame(rows, columns=["table", "row", "metric", "paper", "ours", "difference", "low", "high"])
    return table.assign(inside=table["paper"].between(table["low"], table["high"]).where(table["low"].notna()))


@result("How many pairs of rows stand in the order that the paper prints", losses=BOTH)
def orders(study: Study) -> pd.DataFrame:
    """By table, of all `pairs` of its rows those whose difference in mIoU has the sign that it has in the paper: `agree`."""
    rows = []
    for number in (1, 2, *study.compared):
        printed, ours = published(number)["mIoU"], make(f"table{number}", study).set_index("row")[COLUMNS[number]["mIoU"]]
        same = [(printed[a] - printed[b]) * (ours[a] - ours[b]) > 0 for a, b in combinations(ROWS[number], 2)]
        rows.append([number, PRINTED_ON[number], len(same), sum(same)])
    return pd.DataFrame(rows, columns=["table", "paper_on", "pairs", "agree"]).assign(data=study.title)


def compared(number: int, ours: pd.DataFrame) -> pd.DataFrame:
    """Columns (metric, "paper" | "ours" | "difference"), rows with the paper's names. Ours are pooled for Table 4, else class
    means. A difference is ours minus the paper's, in points."""
    columns: dict[tuple[str, str], pd.Series[float]] = {}
    for metric, printed in published(number).items():
        mine = ours.set_index("row").loc[printed.index, COLUMNS[number][str(metric)]].round(2)
        each = {"paper": printed, "ours": mine, "difference": (mine - printed).round(2)}
        columns |= {(str(metric), name): column for name, column in each.items()}
    return pd.DataFrame(columns)


def settings(study: Study) -> list[Study]:
    """A study, and beside that of the sigmoid the softmax's if it was trained."""
    return [own for own in study.both if own is study or (own.out / "trainings.csv").is_file()]


def beside(number: int, study: Study, difference: bool = False) -> Styler:
    """Table `number` for display: the paper's columns beside ours, in each setting that was trained, with the best and second
    best of each column marked."""
    both, parts = settings(study), list[pd.DataFrame]()
    for own in both:
        named = {"ours": own.loss, "difference": f"{own.loss} - paper"} if len(both) > 1 else {}
        wide = compared(number, make(f"table{number}", own)).rename_axis(index=None)
        parts.append(wide.rename(columns=named, level=1).drop(columns="paper" if parts else [], level=1))
    shown = pd.concat(parts, axis=1)[[*published(number)]]
    columns: list[Any] = list(shown)
    off = [column for column in columns if column[1] not in ("paper", "ours", *BOTH)]
    shown = shown if difference else shown.drop(columns=off)
    formats: dict[Any, Any] = {column: "{:+.2f}" if column in off else "{:.2f}" for column in shown}
    caption = f"Table {number}: the paper's on {PRINTED_ON[number]}, ours on {study.title}"
    marked = [column for column in columns if column not in off]
    styled = shown.style.format(formats).set_caption(caption)
    return styled.apply(lambda column: [STYLES[rank] for rank in ranks(column)], subset=marked)


def ranks(column: pd.Series[float]) -> list[int]:
    """1 for the best of a column, 2 for the second best, 0 for the others."""
    return [int(rank) if rank <= 2 else 0 for rank in column.rank(ascending=False, method="min")]


@cache
def published(number: int, column: str = "value") -> pd.DataFrame:
    """The paper's table `number` as printed, in percent: rows with the paper's names, a column for each metric.

    column "style": how each value is printed: "bold", "underline" or "".
    """
    values = pd.read_csv(ROOT / "data" / "paper_values.csv", keep_default_na=False)
    chosen = values[values["table"] == number]
    wide = chosen.pivot(index="row", columns="metric", values=column)
    return wide.loc[chosen["row"].unique(), chosen["metric"].unique()]

"""The paper's claims, each judged on measured tables: `judge(read(folder, data), data)`.

A claim is a function of the scores of named configurations that gives margins, in points: it holds when every margin is
above zero. With the counts at hand the smallest margin has an interval (`intervals`): where that spans zero, or the
trainings do not agree in the sign, the verdict is a tie. What a claim says of PASCAL VOC in Tables 1 and 2, and of KSDD2 in
Figs. 4 and 5, the paper says of the method, so these are judged on every data set; what Tables 3 and 4 compare is judged on
objects and on defects alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltcam.errors import InputError, MissingError
from ltcam.experiment import intervals, metrics
from ltcam.experiment.evaluation import FLOATS, Config, configurations
from ltcam.experiment.intervals import DRAWS, Draws, draws
from ltcam.experiment.study import Role, known
from ltcam.paper.kept import pick
from ltcam.paper.sweep import CONFIGS, DELTAS, METHODS
from ltcam.paper.tables import CLASS_MEANS, COMPARED, POOLED, SEVEN, TABLES, published

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

TITLES = {
    "claim": "claim", "quote": "in the paper's words (Sec.)", "verdict": "ours", "interval": "least difference (95%)",
    "trainings": "in trainings", "numbers": "numbers", "paper": "paper", "paper_on": "on",
}  # fmt: skip
COLORS = {
    "holds": "background-color: #b7e1c0; color: black",
    "does not hold": "background-color: #f2c6b4; color: black",
    "tie": "background-color: #f4e7b0; color: black",
}
Scores = Mapping[str, Mapping[Config, float]]  # part, "test" or "train" -> configuration -> percent
Margins = Iterable[tuple[float, str]]  # how far on the right side, and the numbers that say so
Side = Config | Mapping[Config, float]  # a configuration, or a weighted sum of some

NOT_MEASURED = "not measured"

S1, S2, S3, S4, S5 = STAGES = tuple(Config("gradcam", f"S{i}") for i in range(1, 6))
FUSED, TRUNCATED = Config("gradcam", "S1-S5"), Config("gradcam", "S5", 0.0)
LT0, LT20 = SEVEN["LTGrad-CAM(l=5, δ=0)"], SEVEN["LTGrad-CAM(l=5, δ=20)"]
GRADCAM, FULLGRAD, LTFULLGRAD = SEVEN["Grad-CAM"], SEVEN["FullGrad"], TABLES[2]["LTFullGrad(δ=0)"]
LAYERCAM = SEVEN["Layer-CAM(l=5, δ=0)"]
USED = [*CONFIGS, *(config for table in TABLES.values() for config in table.values())]  # of what claims can be


class Claim(NamedTuple):
    """statement: ours; quote: the paper's words in section `section`; needs: the files it reads; metric: the paper's name."""

    statement: str
    section: str
    quote: str
    needs: tuple[str, ...]
    margins: Callable[[Scores], Margins]
    metric: str = "mIoU"

    @property
    def table(self) -> int:
        """3: the paper's numbers are of VOC 2012 and class means; 4: of KSDD2 and pooled."""
        return 4 if {"table4", "sweep"} & set(self.needs) else 3


def read(folder: Path, data: str) -> dict[str, pd.DataFrame]:
    """The tables of data set `data` in `folder` (results/<profile>/<data>): "table1" ... and "sweep", where they exist.

    Raises MissingError where there is none, InputError where two files give one configuration different scores.
    """
    names = [f"table{number}" for number in (1, 2, *COMPARED[data])] + ["sweep"]
    paths = {name: folder / f"{name}.csv" for name in names}
    found = {name: pd.read_csv(path, dtype=FLOATS) for name, path in paths.items() if path.is_file()}
    tables = {name: table.assign(part=table.get("part", "test")) for name, table in found.items()}
    if not tables:
        raise MissingError(f"no table is in {folder}: expected {', '.join(names)} (.csv); run notebooks 02 to 05 first")
    shared = pd.concat([table.assign(file=name) for name, table in tables.items()])
    for config, rows in shared.groupby(["part", *metrics.CONFIG], dropna=False):
        if rows["mIoU"].max() - rows["mIoU"].min() > 0.01:
            raise InputError(
                f"{', '.join(rows['file'])} in {folder} give {config} different mIoU ({', '.join(map(str, rows['mIoU']))}): "
                "they are of different runs; run notebooks 02 to 05 again"
            )
    return tables


def resample(folder: Path, data: str, number: int = DRAWS) -> dict[str, dict[str, Draws]]:
    """{part: {metric: draws}} for `judge`, from the counts of data set `data` in `folder`."""
    counts = {part: pick(known(folder, part), USED) for part in get_args(Role)}
    columns = sorted({_column(claim, data) for claim in CLAIMS})
    return {part: {c: draws(table, c, number) for c in columns} for part, table in counts.items() if len(table)}


def judge(
    tables: Mapping[str, pd.DataFrame], data: str, resampled: Mapping[str, Mapping[str, Draws]] | None = None
) -> pd.DataFrame:
    """Every claim on the tables (as `read` gives them) of data set `data`, one row each.

    Columns: claim, section, quote, verdict ("holds", "does not hold", "tie" or "not measured"), numbers (those of ours and of
    the paper that decide it, in percent), paper (the verdict on the paper's own numbers, or "no numbers"), paper_on (their
    data), and with `resampled` (of `resample`) margin, ci_low, ci_high: the smallest margin in points, and its interval, and
    trainings: in how many of them it is above zero ("2 of 3").
    """
    rows = []
    for claim in CLAIMS:
        verdict, numbers = _decide(claim, _measured(claim, tables, data))
        least = _spread(claim, resampled, data) if resampled and verdict != NOT_MEASURED else None
        sure: dict[str, Any] = {}
        if least is not None:
            verdict = intervals.verdict(least)
            sure = dict(zip(("margin", "ci_low", "ci_high"), intervals.interval(least), strict=True))
            sure["trainings"] = intervals.agreement(least)
        in_paper, printed = _decide(claim, _published(claim))
        rows.append({
            "claim": claim.statement, "section": claim.section, "quote": claim.quote, "verdict": verdict,
            "numbers": f"{numbers or NOT_MEASURED} (paper {printed or 'prints none'})",
            "paper": in_paper if printed else "no numbers", "paper_on": "KSDD2" if claim.table == 4 else "VOC 2012", **sure,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _decide(claim: Claim, scores: Scores) -> tuple[str, str]:
    """The verdict, and the numbers of the smallest margin; with several, how many are above zero."""
    try:
        margins = list(claim.margins(scores))
    except KeyError:  # a configuration that nobody measured
        return NOT_MEASURED, ""
    held, (smallest, text) = sum(margin > 0 for margin, _ in margins), min(margins)
    return "holds" if smallest > 0 else "does not hold", f"{held} of {len(margins)}, least {text}" if len(margins) > 1 else text


def _measured(claim: Claim, tables: Mapping[str, pd.DataFrame], data: str) -> Scores:
    home, column = _home(claim, data), _column(claim, data)
    everywhere = len(claim.needs) > 1  # a claim over several tables reads the data set's own comparison
    files = [f"table{home}" if everywhere and name == "table3" else name for name in claim.needs]
    scores: dict[str, dict[Config, float]] = {"test": {}, "train": {}}
    for table in (tables[name] for name in files if name in tables):
        for part, config, score in zip(table["part"], configurations(table), table[column], strict=True):
            scores[part][config] = score
    return scores


def _home(claim: Claim, data: str) -> int:
    return claim.table if claim.table in COMPARED[data] else COMPARED[data][0]


def _column(claim: Claim, data: str) -> str:
    return (POOLED if _home(claim, data) == 4 else CLASS_MEANS)[claim.metric]


def _spread(claim: Claim, resampled: Mapping[str, Mapping[str, Draws]], data: str) -> NDArray[np.float64] | None:
    """The smallest margin (1 + DRAWS, trainings); None where the counts are not all there."""
    column = _column(claim, data)
    found = {part: columns[column] for part, columns in resampled.items()}
    shape = next(iter(found["test"].values())).shape

    def least(place: tuple[int, ...]) -> float:
        return min(
            margin for margin, _ in claim.margins({p: {c: v[place] for c, v in some.items()} for p, some in found.items()})
        )

    try:
        return np.array([least(place) for place in np.ndindex(shape)]).reshape(shape)
    except KeyError:
        return None


@cache
def _published(claim: Claim) -> Scores:
    numbers = [int(name[-1]) for name in claim.needs if name != "sweep"]
    return {"test": {TABLES[n][str(row)]: score for n in numbers for row, score in published(n)[claim.metric].items()}}


def _over(*pairs: tuple[str, Side, Side], low: float = 0.0, high: float = inf) -> Callable[[Scores], Margins]:
    """Each pair (label, left, right): left less right is inside (low, high)."""

    def margins(scores: Scores) -> Margins:
        for label, left, right in pairs:
            a, b = (_sum(side, scores["test"]) for side in (left, right))
            yield min(a - b - low, high - (a - b)), f"{label}{a:.2f} against {b:.2f}"

    return margins


def _sum(side: Side, scores: Mapping[Config, float]) -> float:
    weights = {side: 1.0} if isinstance(side, Config) else side
    return sum(weight * scores[config] for config, weight in weights.items())


def _curve(method: str, scores: Mapping[Config, float]) -> pd.Series[float]:
    return pd.Series({f"{delta:g}": scores[Config(method, METHODS[method], delta)] for delta in DELTAS})


def _peaks(scores: Scores) -> Margins:
    """The best score strictly inside 0..90 less the better end."""
    for method in METHODS:
        curve = _curve(method, scores["test"])
        top, end = (str(some.idxmax()) for some in (curve.iloc[1:-1], curve.iloc[[0, -1]]))
        yield curve[top] - curve[end], f"{method} {curve[top]:.2f} at δ={top} against {curve[end]:.2f} at δ={end}"


def _agreement(scores: Scores) -> Margins:
    """Spearman's rank correlation of the curves on both parts less 0.5; a flat curve agrees with none."""
    for method in METHODS:
        train, test = (_curve(method, scores[part]).rank() for part in ("train", "test"))
        rho = train.corr(test) if min(train.nunique(), test.nunique()) > 1 else 0.0
        yield rho - 0.5, f"{method} {rho:.2f}"


GENTLE = [
    (f"{method} ", {Config(method, layers, delta): 0.2 for delta in DELTAS[:5]}, Config(method, layers))
    for method, layers in METHODS.items()
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


def styled(judged: pd.DataFrame, title: str) -> Styler:
    """`judge` to look at, a row a claim. title: of the data set that it was judged on."""
    ends = [f"{low:+.2f} to {high:+.2f}" if high == high else "" for low, high in judged[["ci_low", "ci_high"]].to_numpy()]
    quote = '"' + judged["quote"] + '" (' + judged["section"] + ")"
    shown = judged.assign(quote=quote, interval=ends)[list(TITLES)].rename(columns=TITLES)
    return (
        shown.style.hide()
        .map(lambda verdict: COLORS.get(verdict, ""), subset=["ours", "paper"])
        .set_table_styles([{"selector": "th, td", "props": "text-align: left; vertical-align: top"}])
        .set_caption(f"The paper's claims on {title}: ours, and by the paper's own numbers on the data set in the last column")
    )

"""The paper's claims, judged on measured tables: `judge(read(folder, data), data)`.

With the counts, the smallest margin of a claim has an interval (`intervals`). If it spans zero, or the trainings do not agree
in the sign, the verdict is a tie. Tables 1 and 2 (PASCAL VOC) and Figs. 4 and 5 (KSDD2) are about the method, so claims on them
are judged on every data set. Claims on Table 3 are judged on objects only, claims on Table 4 on defects only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltcam.errors import InputError, MissingError
from ltcam.experiment import intervals, metrics
from ltcam.experiment.configs import FLOATS, Config, configurations, pick
from ltcam.experiment.intervals import DRAWS, Draws, draws
from ltcam.experiment.study import Role, known
from ltcam.files import AnyPath
from ltcam.paper.claims import CLAIMS, NOT_MEASURED, Claim, Scores
from ltcam.paper.sweep import CONFIGS
from ltcam.paper.tables import CLASS_MEANS, COMPARED, POOLED, TABLES, published, tidy

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

USED = [*CONFIGS, *(config for table in TABLES.values() for config in table.values())]  # by some claim
TITLES = {
    "claim": "claim", "quote": "in the paper's words (Sec.)", "verdict": "ours", "interval": "least difference (95%)",
    "trainings": "in trainings", "numbers": "numbers", "paper": "paper", "paper_on": "on",
}  # fmt: skip
COLORS = {
    "holds": "background-color: #b7e1c0; color: black",
    "does not hold": "background-color: #f2c6b4; color: black",
    "tie": "background-color: #f4e7b0; color: black",
}


def read(folder: AnyPath, data: str) -> dict[str, pd.DataFrame]:
    """The tables of data set `data` in `folder` (results/<profile>/<data>): "table1" ... and "sweep", if they exist.

    Raises MissingError if there is none, and InputError if two files give one configuration different scores.
    """
    folder = Path(folder)
    names = [f"table{number}" for number in (1, 2, *COMPARED[data])] + ["sweep"]
    there = [name for name in names if (folder / f"{name}.csv").is_file()]
    found = {name: pd.read_csv(folder / f"{name}.csv", dtype=FLOATS) for name in there}
    tables = {name: table.assign(part=table.get("part", "test")) for name, table in found.items()}
    if not tables:
        raise MissingError(f"no table is in {folder}: expected {', '.join(names)} (.csv); run notebooks 02 to 05 first")
    shared = pd.concat([table.assign(file=name) for name, table in tables.items()])
    for config, rows in shared.groupby(["part", *metrics.of_config(shared)], dropna=False):
        if rows["mIoU"].max() - rows["mIoU"].min() > 0.01:
            raise InputError(
                f"{', '.join(rows['file'])} in {folder} give {config} different mIoU ({', '.join(map(str, rows['mIoU']))}): "
                "they come from different runs; run notebooks 02 to 05 again"
            )
    return tables


def resample(folder: AnyPath, data: str, number: int = DRAWS) -> dict[str, dict[str, Draws]]:
    """{part: {metric: draws}} for `judge`, from the counts of data set `data` in `folder`."""
    counts = {part: pick(known(folder, part), USED) for part in get_args(Role)}
    columns = sorted({_place(claim, data)[1] for claim in CLAIMS})
    return {part: {c: draws(table, c, number) for c in columns} for part, table in counts.items() if len(table)}


def numbers(tables: Mapping[str, pd.DataFrame], folder: AnyPath) -> pd.DataFrame:
    """Every printed number of the paper beside ours: `ltcam.paper.tables.tidy` of each table, with our interval.

    tables: from `read`; folder: of the counts. low, high: our interval over images and trainings, in percent; inside: whether
    the paper's number lies in it. Precision and recall have none. Raises MissingError if no table of the paper is there.
    """
    printed = {number: table for number in TABLES if (table := tables.get(f"table{number}")) is not None}
    if not printed:
        raise MissingError(f"no table of the paper is in {folder}: expected table1.csv. Run notebook 02 first")
    counts = pick(known(folder), [config for number in printed for config in TABLES[number].values()])
    rows = pd.concat([tidy(number, table) for number, table in printed.items()], ignore_index=True)
    columns = [(POOLED if number == 4 else CLASS_MEANS)[m] for number, m in zip(rows["table"], rows["metric"], strict=True)]
    drawn = [name for name in dict.fromkeys(columns) if name.removeprefix("m") in ("IoU", "F1") and len(counts)]
    spans = {(name, config): intervals.span(v) for name in drawn for config, v in draws(counts, name).items()}
    places = [(name, TABLES[n][row]) for name, n, row in zip(columns, rows["table"], rows["row"], strict=True)]
    rows[["low", "high"]] = np.round([spans.get(place, (np.nan, np.nan)) for place in places], 2)
    return rows.assign(inside=rows["paper"].between(rows["low"], rows["high"]).where(rows["low"].notna()))


def judge(
    tables: Mapping[str, pd.DataFrame], data: str, resampled: Mapping[str, Mapping[str, Draws]] | None = None
) -> pd.DataFrame:
    """Every claim, judged on the tables (from `read`) of data set `data`, one row each.

    Columns: claim, section, quote, verdict ("holds", "does not hold", "tie" or "not measured"), numbers (ours and the paper's
    that decide it, in percent), paper (the verdict on the paper's own numbers, or "no numbers"), paper_on (the paper's data
    set). With `resampled` (from `resample`) also margin, ci_low, ci_high (the smallest margin and its interval, in points), and
    trainings (in how many the margin is above zero, "2 of 3").
    """
    rows = []
    for claim in CLAIMS:
        verdict, numbers = _decide(claim, _measured(claim, tables, data))
        least = _spread(claim, resampled, data) if resampled and verdict != NOT_MEASURED else None
        sure: dict[str, Any] = {}
        if least is not None:
            verdict = intervals.verdict(least)
            sure = {**intervals.ends(least, "margin"), "trainings": intervals.agreement(least)}
        in_paper, printed = _decide(claim, _published(claim))
        rows.append({
            "claim": claim.statement, "section": claim.section, "quote": claim.quote, "verdict": verdict,
            "numbers": f"{numbers or NOT_MEASURED} (paper {printed or 'prints none'})",
            "paper": in_paper if printed else "no numbers", "paper_on": "KSDD2" if claim.table == 4 else "VOC 2012", **sure,
        })  # fmt: skip
    return pd.DataFrame(rows)


def listed(judged: pd.DataFrame) -> pd.Series[str]:
    """Each verdict of a claims.csv (read as texts) in Markdown, with the smallest margin in points and what decides it."""
    return judged.apply(_listed, axis=1)


def _listed(row: pd.Series[str]) -> str:
    if row["verdict"] == NOT_MEASURED:
        return NOT_MEASURED
    ends = [f"{float(row[name]):+.2f}" for name in ("margin", "ci_low", "ci_high") if row.get(name)]
    sure = ", margin {} ({} to {})".format(*ends) if ends else ""
    agree = f", above zero in {row['trainings']} trainings" if row.get("trainings") else ""
    return f"**{row['verdict']}**{sure}{agree}: {row['numbers']}"


def _decide(claim: Claim, scores: Scores) -> tuple[str, str]:
    """The verdict and the numbers of the smallest margin. If there are several margins, also how many are above zero."""
    try:
        margins = list(claim.margins(scores))
    except KeyError:  # a configuration that nobody measured
        return NOT_MEASURED, ""
    held, (smallest, text) = sum(margin > 0 for margin, _ in margins), min(margins)
    return "holds" if smallest > 0 else "does not hold", f"{held} of {len(margins)}, least {text}" if len(margins) > 1 else text


def _measured(claim: Claim, tables: Mapping[str, pd.DataFrame], data: str) -> Scores:
    home, column = _place(claim, data)
    everywhere = len(claim.needs) > 1  # a claim on several tables reads the data set's own table of seven
    files = [f"table{home}" if everywhere and name == "table3" else name for name in claim.needs]
    scores: dict[str, dict[Config, float]] = {"test": {}, "train": {}}
    for table in (tables[name] for name in files if name in tables):
        for part, config, score in zip(table["part"], configurations(table), table[column], strict=True):
            scores[part][config] = score
    return scores


def _place(claim: Claim, data: str) -> tuple[int, str]:
    """The table of seven methods that decides the claim, and its column."""
    home = claim.table if claim.table in COMPARED[data] else COMPARED[data][0]
    return home, (POOLED if home == 4 else CLASS_MEANS)[claim.metric]


def _spread(claim: Claim, resampled: Mapping[str, Mapping[str, Draws]], data: str) -> NDArray[np.float64] | None:
    """The smallest margin (1 + DRAWS, trainings); None if counts are missing."""
    found = {part: columns[_place(claim, data)[1]] for part, columns in resampled.items()}
    shape = next(iter(found["test"].values())).shape

    try:
        margins = [
            claim.margins({part: {c: float(v[place]) for c, v in some.items()} for part, some in found.items()})
            for place in np.ndindex(shape)
        ]
        return np.array([min(margin for margin, _ in each) for each in margins]).reshape(shape)
    except KeyError:
        return None


@cache
def _published(claim: Claim) -> Scores:
    numbers = [int(name[-1]) for name in claim.needs if name != "sweep"]
    return {"test": {TABLES[n][str(row)]: score for n in numbers for row, score in published(n)[claim.metric].items()}}


def styled(judged: pd.DataFrame, title: str) -> Styler:
    """The table of `judge` for display, one row per claim. title: of the data set that it was judged on."""
    ends = [f"{low:+.2f} to {high:+.2f}" if high == high else "" for low, high in judged[["ci_low", "ci_high"]].to_numpy()]
    quote = '"' + judged["quote"] + '" (' + judged["section"] + ")"
    shown = judged.assign(quote=quote, interval=ends)[list(TITLES)].rename(columns=TITLES)
    return (
        shown.style.hide()
        .map(lambda verdict: COLORS.get(verdict, ""), subset=["ours", "paper"])
        .set_table_styles([{"selector": "th, td", "props": "text-align: left; vertical-align: top"}])
        .set_caption(f"The paper's claims on {title}: ours, and by the paper's own numbers on the data set in the last column")
    )

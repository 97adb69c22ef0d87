"""The verdict on each of the paper's claims: `make("claims", study)`.

The smallest margin of a claim has an interval (`ltcam.experiment.scores`). If it spans zero, or the trainings do not agree in
the sign, the verdict is a tie. Tables 1 and 2 and Figs. 4 and 5 are about the method, so claims on them are judged on every
data set. Claims on Table 3 are judged on objects only, claims on Table 4 on defects only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from ltcam.engine.config import Config
from ltcam.experiment.scores import agreement, configurations, draws, ends, verdict
from ltcam.experiment.study import Role, Study
from ltcam.paper.claims import CLAIMS, Claim, Scores
from ltcam.paper.registry import make, result
from ltcam.paper.tables import ROWS, SWEEP, published

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

NOT_MEASURED = "not measured"
TITLES = {
    "claim": "claim", "quote": "in the paper's words (Sec.)", "verdict": "ours", "interval": "least difference (95%)",
    "trainings": "in trainings", "numbers": "numbers", "paper": "paper", "paper_on": "on",
}  # fmt: skip
COLORS = {
    "holds": "background-color: #b7e1c0; color: black",
    "does not hold": "background-color: #f2c6b4; color: black",
    "tie": "background-color: #f4e7b0; color: black",
}


@result("The paper's claims")
def claims(study: Study) -> pd.DataFrame:
    """Every claim, one row each.

    Columns: claim, section, quote, verdict ("holds", "does not hold", "tie" or "not measured"), numbers (ours and the paper's
    that decide it, in percent), paper (the verdict on the paper's own numbers, or "no numbers"), paper_on (the paper's data
    set), margin, ci_low, ci_high (the smallest margin and its interval, in points), and trainings (in how many the margin is
    above zero, "2 of 3").
    """
    tables = {name: make(name, study) for name in (*(f"table{n}" for n in (1, 2, *study.compared)), "sweep")}
    drawn = _drawn(study)
    rows = []
    for claim in CLAIMS:
        said, numbers = _decide(claim, _measured(claim, tables, study))
        sure: dict[str, Any] = {}
        if said != NOT_MEASURED:
            of_claim = {part: columns[claim.place(study)[1]] for part, columns in drawn.items()}
            least = np.min([margin for margin, _ in claim.margins(of_claim)], axis=0)
            said, sure = verdict(least), {**ends(least, "margin"), "trainings": agreement(least)}
        in_paper, printed = _decide(claim, _published(claim))
        rows.append({
            "claim": claim.statement, "section": claim.section, "quote": claim.quote, "verdict": said,
            "numbers": f"{numbers or NOT_MEASURED} (paper {printed or 'prints none'})",
            "paper": in_paper if printed else "no numbers", "paper_on": "KSDD2" if claim.table == 4 else "VOC 2012", **sure,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _drawn(study: Study) -> dict[str, dict[str, Any]]:
    """{part: {metric: draws}} of all that some claim reads."""
    used = {"test": [*SWEEP, *(config for rows in ROWS.values() for config in rows.values())], "train": SWEEP}
    metrics = sorted({claim.place(study)[1] for claim in CLAIMS})
    counts = {role: study.counts(used[role], role) for role in get_args(Role)}
    return {role: {metric: draws(own, metric) for metric in metrics} for role, own in counts.items()}


def _decide(claim: Claim, scores: Scores) -> tuple[str, str]:
    """The verdict and the numbers of the smallest margin. If there are several margins, also how many are above zero."""
    try:
        margins = list(claim.margins(scores))
    except KeyError:  # a configuration that nobody measured
        return NOT_MEASURED, ""
    held, (smallest, text) = sum(margin > 0 for margin, _ in margins), min(margins)
    return "holds" if smallest > 0 else "does not hold", f"{held} of {len(margins)}, least {text}" if len(margins) > 1 else text


def _measured(claim: Claim, tables: Mapping[str, pd.DataFrame], study: Study) -> Scores:
    home, column = claim.place(study)
    everywhere = len(claim.needs) > 1  # a claim on several tables reads the data set's own table of seven
    files = [f"table{home}" if everywhere and name == "table3" else name for name in claim.needs]
    scores: dict[str, dict[Config, float]] = {"test": {}, "train": {}}
    for table in (tables[name] for name in files if name in tables):
        parts = table.get("part", pd.Series("test", table.index))
        for part, config, score in zip(parts, configurations(table), table[column], strict=True):
            scores[part][config] = score
    return scores


@cache
def _published(claim: Claim) -> Scores:
    numbers = [int(name[-1]) for name in claim.needs if name != "sweep"]
    return {"test": {ROWS[n][str(row)]: score for n in numbers for row, score in published(n)[claim.metric].items()}}


def judged(study: Study, *sections: str) -> Styler:
    """The claims of some sections of the paper for display, one row per claim; without sections, all of them."""
    table = make("claims", study)
    return styled(table[table["section"].isin(sections) | (not sections)], study.title)


def styled(judged: pd.DataFrame, title: str) -> Styler:
    """The table of `claims` for display. title: of the data set that it was judged on."""
    spans = [f"{low:+.2f} to {high:+.2f}" if high == high else "" for low, high in judged[["ci_low", "ci_high"]].to_numpy()]
    quote = '"' + judged["quote"] + '" (' + judged["section"].astype(str) + ")"
    shown = judged.assign(quote=quote, interval=spans)[list(TITLES)].rename(columns=TITLES)
    return (
        shown.style.hide()
        .map(lambda verdict: COLORS.get(verdict, ""), subset=["ours", "paper"])
        .set_table_styles([{"selector": "th, td", "props": "text-align: left; vertical-align: top"}])
        .set_caption(f"The paper's claims on {title}: ours, and by the paper's own numbers on the data set in the last column")
    )

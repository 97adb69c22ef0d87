"""The paper's claims (`claims.yaml`), and the verdict on each: `make("claims", study)`.

`ltcam.experiment.scores.judge` gives the verdicts, from the intervals of a claim's margins. Tables 1 and 2 and Figs. 4 and 5
are about the method, so claims on them are judged on every data set. Claims on Table 3 are judged on objects only, claims on
Table 4 on defects only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from scipy.stats import rankdata

from ltcam.engine.config import Config
from ltcam.experiment.scores import NEAR, Counts, Draws, Floats, agreement, draws, ends, judge, survive
from ltcam.experiment.study import Study
from ltcam.paper.registry import Need, make, result
from ltcam.paper.tables import BOTH, COLUMNS, DELTAS, ROWS, SWEEP, SWEPT, published

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

Scores = Mapping[str, Mapping[Config, Any]]  # part, "test" or "train" -> configuration -> percent, a number or an array
Margin = tuple[Any, str, tuple[Any, ...]]  # positive if the claim holds; a template, and the numbers behind it that fill it
NOT_MEASURED = "not measured"
TITLES = {
    "claim": "claim", "quote": "in the paper's words (Sec.)", "verdict": "ours", "holm": "with Holm",
    "interval": "what decides (95%)", "trainings": "in trainings", "numbers": "numbers", "paper": "paper", "paper_on": "on",
}  # fmt: skip
COLORS = {"holds": "b7e1c0", "fails": "f2c6b4", "equal": "bcd4f0", "open": "f4e7b0"}
STYLES = {word: f"background-color: #{color}; color: black" for word, color in COLORS.items()}


class Claim(NamedTuple):
    """An entry of `claims.yaml`, which says what its fields are."""

    claim: str
    section: str
    quote: str
    source: str
    margins: str | Mapping[str, Sequence[str | Mapping[str, float]]]
    metric: str = "mIoU"
    low: float = 0.0
    high: float = inf

    @property
    def table(self) -> int:
        """3 if the paper's numbers are class means on VOC 2012, 4 if they are pooled scores on KSDD2."""
        return 3 if self.source in ("Table 1", "Table 2", "Table 3") else 4

    def over(self, scores: Scores) -> Iterator[Margin]:
        """The margins of some scores. Raises KeyError for a configuration that has none."""
        if isinstance(self.margins, str):
            yield from (CURVES[self.margins](method, scores) for method in SWEPT)
            return
        for name, sides in self.margins.items():
            left, right = (_sum({side: 1} if isinstance(side, str) else side, scores["test"]) for side in sides)
            text, numbers = f"{name}{{:.2f}} against {{:.2f}}", (left, right)
            yield left - right - self.low, text, numbers
            if self.high < inf:
                yield self.high - (left - right), text, numbers


def _sum(weights: Mapping[str, float], scores: Mapping[Config, Any]) -> Any:
    return sum(weight * scores[Config.parse(text)] for text, weight in weights.items())


def _curve(method: str, scores: Mapping[Config, Any]) -> Floats:
    """(deltas, ...)"""
    return np.stack([scores[Config(method, SWEPT[method], delta)] for delta in DELTAS])


def _peaks(method: str, scores: Scores) -> Margin:
    """The best score strictly inside 0..90, minus the better of the two ends."""
    curve = _curve(method, scores["test"])
    inside, outside = curve[1:-1], curve[[0, -1]]
    best, end = inside.max(axis=0), outside.max(axis=0)
    at, end_at = np.take(DELTAS[1:-1], inside.argmax(axis=0)), np.take(DELTAS[:: len(DELTAS) - 1], outside.argmax(axis=0))
    return best - end, f"{method} {{:.2f}} at δ={{:g}} against {{:.2f}} at δ={{:g}}", (best, at, end, end_at)


def _agreement(method: str, scores: Scores) -> Margin:
    """Spearman's rank correlation of the curves on both parts, minus 0.5. A flat curve agrees with none."""
    train, test = (rankdata(_curve(method, scores[part]), axis=0) for part in ("train", "test"))
    spread = train.std(axis=0) * test.std(axis=0)
    shared = (train * test).mean(axis=0) - train.mean(axis=0) * test.mean(axis=0)
    rho = np.divide(shared, spread, out=np.zeros_like(shared), where=spread > 0)
    return rho - 0.5, f"{method} {{:.2f}}", (rho,)


CURVES: dict[str, Callable[[str, Scores], Margin]] = {"peaks": _peaks, "agreement": _agreement}
CLAIMS = [Claim(**entry) for entry in yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text("utf-8"))]


def needs(study: Study) -> list[Need]:
    sides = [side for claim in CLAIMS if not isinstance(claim.margins, str) for pair in claim.margins.values() for side in pair]
    texts = [text for side in sides for text in ([side] if isinstance(side, str) else side)]
    return [Need([*SWEEP, *map(Config.parse, texts)]), Need(SWEEP, "train")]


@result("The paper's claims", needs, losses=BOTH)
def claims(study: Study) -> pd.DataFrame:
    """The verdicts on masks at Otsu's threshold, as `verdicts` gives them."""
    return verdicts(study, {need.role: study.counts(need.configs, need.role) for need in needs(study)})


def verdicts(study: Study, counts: Mapping[str, Counts]) -> pd.DataFrame:
    """Every claim, one row each, by the counts of each part.

    Columns: claim, section, quote, verdict (of `judge`, or "not measured"), holm (the verdict if it survives Holm's procedure
    over all claims of the data set, else "open"), numbers (ours that decide it and the paper's, in percent), paper ("holds" or
    "fails" by the paper's own numbers, or "no numbers"), paper_on (the paper's data set), margin, ci_low, ci_high (the margin
    that decides and its interval, in points), trainings (in how many it is above zero, "2 of 3"), and p (of `judge`).
    """

    @cache
    def drawn(metric: str) -> dict[str, Draws]:
        return {part: draws(own, metric) for part, own in counts.items()}

    rows = []
    for claim in CLAIMS:
        said, decides, p, numbers, sure = NOT_MEASURED, None, np.nan, NOT_MEASURED, {}
        if claim.source not in ("Table 3", "Table 4") or claim.table in study.compared:
            home = claim.table if claim.table in study.compared else study.compared[0]
            scores = drawn(COLUMNS[home][claim.metric])
            means = {part: {config: values[0].mean() for config, values in own.items()} for part, own in scores.items()}
            margins = [margin for margin, *_ in claim.over(scores)]
            own = claim.low or claim.margins == "agreement"  # a bound of its own, or ranks: nothing is negligible
            said, decides, p = judge(margins, 0 if own else NEAR)
            numbers = _decide(claim, means, decides)[1]
            sure = {**ends(margins[decides], "margin"), "trainings": agreement(margins[decides])}
        try:
            in_paper, printed = _decide(claim, _printed(claim), decides)
        except KeyError:  # the paper draws a curve
            in_paper, printed = "no numbers", "prints none"
        rows.append({
            "claim": claim.claim, "section": claim.section, "quote": claim.quote, "verdict": said,
            "numbers": f"{numbers} (paper {printed})", "paper": in_paper,
            "paper_on": "KSDD2" if claim.table == 4 else "VOC 2012", **sure, "p": p,
        })  # fmt: skip
    table = pd.DataFrame(rows)
    kept = survive(table["p"].to_numpy()) | table["p"].isna()
    return table.assign(holm=table["verdict"].where(kept, "open"))


def _decide(claim: Claim, scores: Scores, decides: int | None = None) -> tuple[str, str]:
    """The verdict of numbers alone, and those of one margin, or of the smallest; of several also how many are above zero."""
    margins = [(margin, text.format(*numbers)) for margin, text, numbers in claim.over(scores)]
    held, text = sum(margin > 0 for margin, _ in margins), (min(margins) if decides is None else margins[decides])[1]
    said = "holds" if held == len(margins) else "fails"
    return said, f"{held} of {len(margins)}, {text}" if len(margins) > 1 else text


def _printed(claim: Claim) -> Scores:
    """The paper's numbers on the data set of a claim. Tables 1 to 3 agree where they have the same row."""
    numbers = [n for n in ROWS if (n == 4) == (claim.table == 4) and claim.metric in published(n)]
    return {"test": {ROWS[n][str(row)]: score for n in numbers for row, score in published(n)[claim.metric].items()}}


def judged(study: Study, *sections: str, name: str = "claims") -> Styler:
    """The claims of some sections of the paper for display, one row per claim; without sections, all of them."""
    table = make(name, study)
    table = table[table["section"].isin(sections) | (not sections)]
    caption = f"The paper's claims on {study.title}: ours, and by the paper's own numbers on the data set in the last column"
    spans = [f"{low:+.2f} to {high:+.2f}" if high == high else "" for low, high in table[["ci_low", "ci_high"]].to_numpy()]
    quote = '"' + table["quote"] + '" (' + table["section"] + ")"
    shown = table.assign(quote=quote, interval=spans)[list(TITLES)].rename(columns=TITLES)
    return (
        shown.style.hide()
        .map(lambda said: STYLES.get(said.split(",")[0], ""), subset=["ours", "with Holm", "paper"])
        .set_table_styles([{"selector": "th, td", "props": "text-align: left; vertical-align: top"}])
        .set_caption(caption)
    )

"""What the ablations found: sentences, each with a number, its interval and its table: `collect(read(folder))`.

A sentence says only what was changed. The number says in which direction, so the sentence fits any result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ltcam.experiment.intervals import VERDICTS, interval, median, verdict
from ltcam.files import AnyPath
from ltcam.paper.breakdown import BY_CLASS, FIXED

SUMMARY = (  # what docs/results.md shows
    "Truncation alone (δ=0) changes Grad-CAM at S5 by",
    "With head = gap, truncation alone (δ=0) changes Grad-CAM at S5 by",
    "LTGrad-CAM (δ=20) differs from Grad-CAM by",
    "LTGrad-CAM (δ=20) differs from Layer-CAM (l=5) by",
    "With outputs = relu, LTGrad-CAM (δ=20) differs from Layer-CAM (l=5) by",
    "Maps divided by their maximum before the sum change LTGrad-CAM by",
    "On single objects, the gain of truncation at S5 and the overlap of negative and positive gradients' maps have a rank "
    "correlation of",
    "Class by class, the mean gain of truncation at S5 and the overlap of negative and positive gradients' maps have a rank "
    "correlation of",
    "The δ chosen on the training part costs LTGrad-CAM, against the best in hindsight,",
    "The configuration that the training part chooses differs from LTGrad-CAM(l=5, δ=20) by",
    "By the defaults the order of the seven methods agrees with the paper's by a rank correlation of",
)
TRAININGS = {
    "bfloat16": "Another training (bfloat16: {})",
    "seed": "Another training (seed {})",
    "head": "Another head ({})",
    "training": "The same training again",
}
TRICKS = {  # in another run
    "truncation at S5": "truncation alone (δ=0) changes Grad-CAM at S5 by",
    "LTGrad-CAM instead of Layer-CAM": "LTGrad-CAM (δ=20) differs from Layer-CAM (l=5) by",
}
OVERLAP = "the overlap of negative and positive gradients' maps"
GOES_WITH = {  # the gain of truncation at S5
    "area": "On single objects, the gain of truncation at S5 and the object's share of the image",
    "overlap": f"On single objects, the gain of truncation at S5 and {OVERLAP}",
    FIXED: f"On objects of one size, the gain of truncation at S5 and {OVERLAP}",
    "classes": "On single objects, the gain of truncation at S5 and the number of classes in the image",
    BY_CLASS: f"Class by class, the mean gain of truncation at S5 and {OVERLAP}",
}


class Finding(NamedTuple):
    """value in `unit` ("points", "times", "percent", or "" for a correlation) with its interval; NaN if it has none."""

    finding: str
    value: float
    ci_low: float
    ci_high: float
    unit: str
    verdict: str
    table: str = ""

    @property
    def number(self) -> str:
        """ "+8.45 points (+6.12 to +10.80)", or "1.20 times (...)" """
        signed = "+" if self.unit in ("points", "") else ""
        between = "" if pd.isna(self.ci_low) else f" ({self.ci_low:{signed}.2f} to {self.ci_high:{signed}.2f})"
        value = f"{self.value:{signed}.2f} {self.unit}".strip()
        return f"{value}{between}{', a tie' if self.verdict == 'tie' else ''}"


def read(folder: AnyPath) -> dict[str, pd.DataFrame]:
    """The tables that findings come from, by their names in `folder` (results/<profile>/<data>)."""
    folder = Path(folder)
    there = [name for name in COLLECTORS if (folder / name).is_file()]
    return {name: pd.read_csv(folder / name, dtype={"level": str, "group": str}) for name in there}


def collect(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Every finding whose numbers are in `tables`: one row each, with the columns of `Finding`."""
    found = [finding._replace(table=name) for name, table in tables.items() for finding in COLLECTORS[name](table)]
    return pd.DataFrame(found, columns=Finding._fields)


def listed(table: pd.DataFrame) -> list[Finding]:
    """The rows of a table from `collect`."""
    texts = ["unit", "verdict"]  # empty fields are read as NaN
    rows = table[[*Finding._fields]].astype(dict.fromkeys(texts, object)).fillna(dict.fromkeys(texts, ""))
    return [Finding(*row) for row in rows.itertuples(index=False)]


def _ablations(table: pd.DataFrame) -> Iterator[Finding]:
    changes = {
        ("trick", "truncation at S5", "Grad-CAM, truncated"): SUMMARY[0],
        ("trick", "fusion of S1 to S5", "Grad-CAM, fused"): "Fusing S1 to S5 changes Grad-CAM by",
        ("trick", "both", "LTGrad-CAM"): SUMMARY[2],
        ("trick", "LTGrad-CAM instead of Layer-CAM", "LTGrad-CAM"): SUMMARY[3],
        ("trick", "truncation of Layer-CAM", "LTLayer-CAM"): "Truncation (δ=20) changes fused Layer-CAM by",
        ("trick", "truncation of FullGrad", "LTFullGrad"): "Truncation (δ=20) changes FullGrad by",
        ("per", "channel", "LTGrad-CAM"): "Percentiles per channel instead of per layer change LTGrad-CAM by",
        ("compare", "gt", "LTGrad-CAM"): "Dropping the threshold itself (> instead of ≥) changes LTGrad-CAM by",
        ("fuse", "max", "LTGrad-CAM"): "The maximum over stages instead of their sum changes LTGrad-CAM by",
        ("normalize", "max", "LTGrad-CAM"): SUMMARY[5],
        ("normalize", "minmax", "LTGrad-CAM"): "Maps brought to 0 to 1 before the sum change LTGrad-CAM by",
        ("normalize", "tanh", "LTGrad-CAM"): "Layer-CAM's tanh scaling before the sum changes LTGrad-CAM by",
        ("normalize", "max", "Layer-CAM"): "Maps divided by their maximum before the sum change Layer-CAM by",
        ("fraction", "0.2", "LTGrad-CAM"): "A cut at 0.2 of the maximum instead of Otsu's changes LTGrad-CAM by",
        ("fraction", "0.35", "LTGrad-CAM"): "A cut at 0.35 of the maximum instead of Otsu's changes LTGrad-CAM by",
        ("fraction", "0.5", "LTGrad-CAM"): "A cut at 0.5 of the maximum instead of Otsu's changes LTGrad-CAM by",
        ("outputs", "relu", "LTGrad-CAM"): "Stages read before their pools change LTGrad-CAM by",
        ("labels", "predicted", "LTGrad-CAM"): "Predicted instead of true labels change LTGrad-CAM by",
    }  # fmt: skip
    for row in table.dropna(subset="change").to_dict("records"):
        key = (row["factor"], row["level"], row["row"])
        trick, _, run = row["level"].partition(", ")
        if key in changes:
            yield _change(changes[key], row)
        elif row["factor"] == "trick" and trick in TRICKS:
            yield _change(f"With {run}, {TRICKS[trick]}", row)
        elif row["factor"] == "size" and row["row"] == "LTGrad-CAM":
            yield _change("A larger input changes LTGrad-CAM by", row)
        elif row["factor"] in TRAININGS and row["row"] in ("LTGrad-CAM", "Layer-CAM"):
            yield _change(f"{TRAININGS[row['factor']].format(row['level'])} changes {row['row']} by", row)


def _cross(table: pd.DataFrame) -> Iterator[Finding]:
    plain = table[(table["normalize"] == "none") & table["delta"].notna()]
    for best in plain.loc[plain.groupby("per", sort=False)["value"].idxmax()].to_dict("records"):
        chosen = f"with percentiles per {best['per']}, {best['delta']:g}"
        yield _change(f"The best δ of LTGrad-CAM {chosen}, differs from no truncation by", best)


def _breakdown(table: pd.DataFrame) -> Iterator[Finding]:
    where = {
        "kind": "{}",
        "area": "objects of {} of the image",
        "classes": "images whose number of classes is {}",
        "overlap": "objects whose overlap of negative and positive gradients' maps is {}",
    }
    for row in table[table["row"] == "truncation at S5"].to_dict("records"):
        yield _found(f"On {where[row['by']].format(row['group'])}, truncation at S5 changes Grad-CAM by", row, "points")


def _correlations(table: pd.DataFrame) -> Iterator[Finding]:
    for row in table[table["gain"] == "truncation at S5"].to_dict("records"):
        yield _found(f"{GOES_WITH[row['amount']]} have a rank correlation of", row)


def _readings(table: pd.DataFrame) -> Iterator[Finding]:
    changed = table[~table["factor"].isin(["defaults", "training"])].head(1)
    for row in pd.concat([table[table["factor"] == "defaults"], changed]).to_dict("records"):
        sentence = f"Of all that was changed, {row['factor']} = {row['level']} comes nearest to that order, by"
        if row["factor"] == "defaults":
            sentence = "By the defaults the order of the seven methods agrees with the paper's by"
        yield Finding(f"{sentence} a rank correlation of", row["tau"], row["ci_low"], row["ci_high"], "", "")


def _signs(table: pd.DataFrame) -> Iterator[Finding]:
    for stage in table["stage"].unique():
        for sign in ("negative", "positive"):
            lifts = median(table.loc[table["stage"] == stage, sign].to_numpy())
            sentence = f"Against chance, the map of {sign} gradients at {stage} lies on the object"
            yield Finding(sentence, *interval(lifts), "times", VERDICTS[verdict(lifts - 1)])


def _stages(table: pd.DataFrame) -> Iterator[Finding]:
    deepest = table[table["stage"] == table["stage"].max()]
    for name, chosen in {"without truncation": deepest["delta"].isna(), "at δ=20": deepest["delta"] == 20}.items():
        energy = interval(median(deepest.loc[chosen, "energy"].to_numpy()))
        yield Finding(f"S5's share of the fused sum {name} is", *energy, "percent", "")


def _delta_choice(table: pd.DataFrame) -> Iterator[Finding]:
    names = {"gradcam": "LTGrad-CAM", "layercam": "LTLayer-CAM", "fullgrad": "LTFullGrad"}
    for row in table.to_dict("records"):
        sentence = f"The δ chosen on the training part costs {names[row['method']]}, against the best in hindsight,"
        yield Finding(sentence, row["regret"], nan, nan, "points", "")


def _beyond(table: pd.DataFrame) -> Iterator[Finding]:
    for row in table[table["row"] != "chosen"].to_dict("records"):
        yield _change(f"The configuration that the training part chooses differs from {row['row']} by", row)


def _found(sentence: str, row: Mapping[Any, Any], unit: str = "") -> Finding:
    return Finding(sentence, row["value"], row["ci_low"], row["ci_high"], unit, row["verdict"])


def _change(sentence: str, row: Mapping[Any, Any]) -> Finding:
    return Finding(sentence, row["change"], row["change_low"], row["change_high"], "points", row["verdict"])


COLLECTORS: dict[str, Callable[[pd.DataFrame], Iterator[Finding]]] = {
    "ablations.csv": _ablations,
    "cross.csv": _cross,
    "breakdown.csv": _breakdown,
    "correlations.csv": _correlations,
    "signs.csv.gz": _signs,
    "stages.csv.gz": _stages,
    "delta_choice.csv": _delta_choice,
    "beyond.csv": _beyond,
    "readings.csv": _readings,
}

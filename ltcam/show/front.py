"""What the front page shows for one data set: claims, tables beside the paper's, figures, and what made each result.

It is all plain text. `templates/index.html` escapes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from ltcam import files
from ltcam.files import AnyPath
from ltcam.paper import tables as paper

VERDICTS = {"holds": "held", "tie": "tied", "does not hold": "failed"}  # in claims.csv: the word and the class of the chip
CLAIM = ("claim", "section", "quote", "verdict", "numbers", "paper", "paper_on", "margin", "ci_low", "ci_high", "trainings")
NUMBER = r"((?:gain )?-?\d+\.\d+.*)$"  # from the first number with decimals on
HEADERS = {"ci_low": "95% from", "ci_high": "to"}
FIGURES = {
    "samples": "Samples, with one class outlined",
    "areas": "How much of an image a class covers",
    "fig1": "Fig. 1: Grad-CAM by stage",
    "fig2": "Fig. 2: seven methods; the paper's figure is on PASCAL VOC",
    "fig3": "Fig. 3: seven methods; the paper's figure is on KSDD2",
    "fig4": "Fig. 4: scores over δ on the held-out part",
    "fig5": "Fig. 5: scores over δ on the training part",
    "truncation": "Heatmaps without and with truncation",
    "failures": "Where the method fails",
    "ablations": "What each choice is worth, one at a time",
    "cross": "Scores by percentile scope, scale of the stages' maps, and δ",
    "gain_by_area": "Points gained, by the size of the object",
    "gain_by_overlap": "Points gained, by how far negative gradients lie on the object",
    "signs": "Where positive and negative gradients lie",
    "stages": "What each stage adds to the sum, and how much δ leaves",
    "dropped": "How much of the positive gradient δ drops",
    "steps": "Beyond the paper: what each step adds",
    "beyond": "Beyond the paper: the same images after each step",
    "seeds": "Beyond the paper: the score of seeds by threshold",
    "failures_beyond": "Beyond the paper: where it fails",
    "plug_in": "The tricks on other kinds of networks",
}
MORE = {
    "findings": "What the ablations found",
    "sweep": "Every score over δ",
    "ablations": "What each choice is worth, one at a time",
    "breakdown": "Scores by class or defect type, object size, number of classes, and overlap of the signs",
    "correlations": "What the gains correlate with",
    "readings": "How well each reading agrees with the paper's order of methods",
    "eq9": "Other readings of Eq. 9",
    "best": "Beyond the paper, step by step",
    "search": "Beyond the paper: every try of the search",
}


def section(profile: str, name: str, notebooks: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything the front page shows of the data set `name`."""
    folder = files.results(profile, name)
    records = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    found = claims(folder / "claims.csv")
    numbers = sorted({1, 2, *paper.COMPARED.get(name, []), *(n for n in paper.TABLES if (folder / f"table{n}.csv").is_file())})
    tables = {n: table(n, folder / f"table{n}.csv") for n in numbers}
    more = {label: next(iter(sorted(folder.rglob(f"{stem}.csv"))), None) for stem, label in MORE.items()}
    return {
        "name": name,
        "title": next((str(r["data"]) for r in records.values() if isinstance(r.get("data"), str)), name),
        "claims": [c for c in found if c["chip"] != "not measured"],
        "unmeasured": [c["claim"] for c in found if c["chip"] == "not measured"],
        "counts": {word: sum(c["chip"] == word for c in found) for word in VERDICTS.values()},
        "tables": [t for t in tables.values() if t],
        "absent": [n for n, t in tables.items() if not t],
        "more": {label: listed(pd.read_csv(path)) for label, path in more.items() if path},
        "figures": [_figure(path, name) for path in _ordered(files.figures(profile, name))],
        "notebooks": [n for n in notebooks if n["data"] == name],
        "provenance": listed(pd.DataFrame([_provenance(path, record) for path, record in records.items()])),
    }


def claims(path: AnyPath) -> list[dict[str, str]]:
    """One row per claim of claims.csv: `CLAIM` ("" for a missing column), chip, ours, theirs, and a short form of both.

    ours, theirs: all that `numbers` says about each; ours_short, theirs_short: only the two compared scores.
    """
    if not Path(path).is_file():
        return []
    t = pd.read_csv(path, dtype=str, keep_default_na=False).reindex(columns=list(CLAIM), fill_value="")
    t["chip"] = t["verdict"].replace(VERDICTS)
    t[["ours", "theirs"]] = t["numbers"].str.extract(r"^(.*?)(?: \(paper (.*)\))?$").fillna("")
    for column in ("ours", "theirs"):
        t[column] = t[column].str.replace(r"^(\d+ of \d+), least ", r"\1 comparisons, the closest: ", regex=True)
        t[f"{column}_short"] = t[column].str.extract(NUMBER)[0].fillna(t[column]).str.replace(r" at δ=\d+", "", regex=True)
    for column in ("margin", "ci_low", "ci_high"):
        t[column] = [f"{float(value):.2f}" if value else "" for value in t[column]]
    return [{str(key): str(value) for key, value in row.items()} for row in t.to_dict("records")]


def table(number: int, path: AnyPath) -> dict[str, Any] | None:
    """The paper's table `number` beside ours, two cells per metric: (text, "best", "second" or ""); None without a file."""
    if not Path(path).is_file():
        return None
    both = paper.beside(number, pd.read_csv(path))
    ranks = both.rank(ascending=False, method="min")
    marks = {1.0: "best", 2.0: "second"}
    return {
        "number": number,
        "caption": paper.CAPTIONS[number],
        "paper": "KSDD2" if number == 4 else "PASCAL VOC 2012",
        "scores": "pooled pixels" if number == 4 else "class means",
        "metrics": list(both.columns.unique(0)),
        "rows": {
            name: [(f"{value:.2f}", marks.get(rank, "")) for value, rank in zip(both.loc[name], ranks.loc[name], strict=True)]
            for name in both.index
        },
    }


def listed(table: pd.DataFrame) -> dict[str, Any]:
    """columns, rows (each a list of texts), and constant: {column: text} of what is the same in every row of several.

    A column that is empty throughout is left out.
    """
    texts = table.rename(columns=HEADERS).map(_text)
    same = [c for c in texts if len(texts) > 1 and texts[c].map(str).nunique() == 1]
    kept = texts.drop(columns=same).loc[:, lambda t: (t.map(len) > 0).any()]
    constant = {c: texts[c].iloc[0] for c in same if texts[c].iloc[0]}
    return {"columns": list(kept), "rows": kept.to_numpy().tolist(), "constant": constant}


def _text(value: Any) -> str | list[str]:
    """A list, of links, stays one."""
    if isinstance(value, list):
        return value
    return "" if pd.isna(value) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _ordered(folder: Path) -> list[Path]:
    order = list(FIGURES)
    return sorted(
        folder.glob("*.png"), key=lambda path: (order.index(path.stem) if path.stem in order else len(order), path.name)
    )


def _figure(path: Path, name: str) -> dict[str, Any]:
    with Image.open(path) as image:
        width, height = image.size
    caption = FIGURES.get(path.stem, path.stem)
    return {"path": f"figures/{name}/{path.name}", "caption": caption, "width": width, "height": height}


def _provenance(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """One row: what made a result. Its files are links."""
    recipe, beside = record.get("recipe", {}), (path.with_suffix(".csv"), path.with_suffix(".csv.gz"), path)
    return {
        "files": [f"results/{path.parent.name}/{file.name}" for file in beside if file.is_file()],
        "commit": f"{str(record.get('commit'))[:10]}{' with changes' if record.get('dirty') else ''}",
        "finished": record.get("finished", ""),
        "seconds": record.get("seconds", ""),
        "device": record.get("device", ""),
        "torch": record.get("versions", {}).get("torch", ""),
        "seed": str(recipe.get("seed", "")),
        "epochs": str(recipe.get("epochs", "")),
        "weights": record.get("source", {}).get("name", ""),
        "part": record.get("part", ""),
        "images scored": str(record.get("images", {}).get("scored", "")),
    }

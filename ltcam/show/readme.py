"""The sections of README.md and docs/ that are computed from committed files.

`ltcam readme` writes them, and `ltcam readme --check` names the stale ones. A section stands between `<!-- begin NAME -->` and
`<!-- end NAME -->`. The rest of a page is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ltcam.errors import InputError
from ltcam.experiment.recipe import Recipe
from ltcam.files import ROOT, atomic
from ltcam.paper import beyond as best
from ltcam.paper import findings, judging, search
from ltcam.paper import tables as paper
from ltcam.paper.claims import NOT_MEASURED
from ltcam.paper.reproduce import profile, trainings

HOMES = {"voc2012": "paper", "ksdd": "real", "magnetic_tile": "real"}  # the profile that a data set's committed results are of
TITLES = {"voc2012": "PASCAL VOC 2012", "ksdd": "KolektorSDD", "magnetic_tile": "Magnetic tile"}
ALL, PHOTOS, DEFECTS = list(TITLES), ["voc2012"], ["ksdd", "magnetic_tile"]
SOURCES = {  # of the paper -> our notebook, its files, and our data sets, with the counterpart first
    "Table 1": ("02_layer_cams", ["table1.csv"], ALL),
    "Table 2": ("03_truncation", ["table2.csv"], ALL),
    "Table 3": ("04_comparison", ["table3.csv"], PHOTOS),
    "Table 4": ("04_comparison", ["table4.csv"], DEFECTS),
    "Fig. 1": ("02_layer_cams", ["fig1.png"], ALL),
    "Fig. 2": ("04_comparison", ["fig2.png"], PHOTOS),
    "Fig. 3": ("04_comparison", ["fig3.png"], DEFECTS),
    "Fig. 4": ("05_delta_sweep", ["sweep.csv", "fig4.png"], [*DEFECTS, *PHOTOS]),
    "Fig. 5": ("05_delta_sweep", ["sweep.csv", "fig5.png"], [*DEFECTS, *PHOTOS]),
    "Claims": ("06_paper_vs_reproduced", ["claims.csv"], ALL),
}
SHOWN = {1: PHOTOS, 2: PHOTOS, 3: PHOTOS, 4: DEFECTS}  # in the page's tables
NOT_YET = "not measured yet"
VERDICTS = ("holds", "tie", "does not hold", NOT_MEASURED)
SMALL = {"Grad-CAM of": {1: "VOC 2012"}, "method": {3: "VOC 2012", 4: "KSDD2"}}
STYLES = {"bold": "**{:.2f}**", "underline": "<ins>{:.2f}</ins>", "": "{:.2f}"}
AUGMENTED = {"none": "as they are", "flips": "mirrored", "light": "mirrored, scaled"}
SETTINGS: dict[str, Callable[[Recipe], str]] = {
    "trained on, held out": lambda r: f"{r.train}, {r.test}",
    "stages kept as they are": lambda r: f"{r.frozen} of 5",
    "epochs": lambda r: str(r.epochs),
    "batch": lambda r: str(r.batch_size),
    "highest rate of the head": lambda r: f"{r.lr:g}",
    "... of the convolutions": lambda r: f"{r.lr * r.slow:g}" if r.frozen < 5 else "none",
    "weight decay": lambda r: f"{r.weight_decay:g}",
    "images are": lambda r: AUGMENTED[r.augment],
    "rare classes weigh more": lambda r: "yes" if r.balance else "no",
    "training in": lambda r: "bfloat16" if r.bfloat16 else "float32",
}


def tables() -> str:
    """The paper's tables beside ours, in percent. The paper's are marked as printed, ours by the best two of a column."""
    return "\n\n".join(_beside(number, data) for number, shown in SHOWN.items() for data in shown)


def outputs() -> str:
    """Every table and figure of the paper: its notebook, the command that makes it on the demo data, our files."""
    rows = []
    for item, (notebook, _, _) in SOURCES.items():
        command = f"`ltcam reproduce --profile demo --only {notebook[:2]}`"
        links = "<br>".join(f"[{file}]({file})" for file in files(item)) or NOT_YET
        rows.append([item, f"[{notebook}](notebooks/{notebook}.ipynb)", command, links])
    return _table(["in the paper", "notebook", "command", "ours"], rows)


def claims(numbers: bool = True) -> str:
    """Every claim of the paper, with the verdicts of its own numbers and of ours, from `claims.csv` of each data set."""
    judged = _judged()
    columns = {}
    for title, t in judged.items():
        columns["the paper's own numbers"] = t["paper"]
        columns[title] = judging.listed(t) if numbers else t["verdict"]
    return _table(["Sec.", "claim", *columns], pd.DataFrame(columns).reset_index().to_numpy()) if judged else NOT_YET


def beyond() -> str:
    """The rounds of the search, then what each step adds on the held-out part, from `best.csv` of each data set."""
    found, header = [], ["round", "training images", "tries", "best by otsu", "best by argmax"]
    if (folder := _results("voc2012") / "search").is_dir():
        found.append(_table(header, search.rounds(search.read(folder))))
    for data, title in TITLES.items():
        if (path := _results(data) / "best.csv").is_file():
            rows = best.listed(pd.read_csv(path))
            found.append(f"**{title}**\n\n" + _table(["protocol", "step", "IoU (%)", "points", ""], rows))
    return "\n\n".join(found) or NOT_YET


def found() -> str:
    """`ltcam.paper.findings.SUMMARY`: one row per finding, and for each data set its number with a link to the table."""
    columns = {}
    for data, title in TITLES.items():
        path = _results(data) / "findings.csv"
        if path.is_file():
            folder = path.parent.relative_to(ROOT).as_posix()
            columns[title] = {
                finding.finding: f"[{finding.number}]({folder}/{finding.table})"
                for finding in findings.listed(pd.read_csv(path))
            }
    rows = [[sentence, *(column.get(sentence, NOT_MEASURED) for column in columns.values())] for sentence in findings.SUMMARY]
    return _table(["", *columns], rows) if columns else NOT_YET


def settings() -> str:
    """The training recipe of every profile, one column per file of `notebooks/profiles`."""
    runs = [run for name in ("demo", "real", "paper") for run in profile(name)]
    recipes = [Recipe(data=run["data"], **run["recipe"]) for run in runs]
    rows = [[name, *map(value, recipes)] for name, value in SETTINGS.items()]
    rows.append(["trainings", *(f"{len(trainings(run))}" for run in runs)])
    return _table(["", *(f"`{run['profile']}.{run['data']}`" for run in runs)], rows)


def summary() -> str:
    """Two small tables of mIoU, Grad-CAM by stage and the seven methods: the paper's numbers and ours, by data set."""
    return "\n\n".join(_small(title, numbers) for title, numbers in SMALL.items())


def verdicts() -> str:
    """How many of the paper's claims hold, tie and fail: one row per data set."""
    judged = {title: table["verdict"].value_counts() for title, table in _judged().items()}
    rows = [[title, *(str(counts.get(verdict, 0)) for verdict in VERDICTS)] for title, counts in judged.items()]
    return _table(["claims of the paper that", "hold", "tie", "fail", "are not measured"], rows) if rows else NOT_YET


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"summary": summary, "verdicts": verdicts},
    "docs/results.md": {"tables": tables, "claims": claims, "findings": found, "beyond": beyond, "map": outputs},
    "docs/settings.md": {"settings": settings},
    "docs/replication.md": {"replication": partial(claims, numbers=False)},
}


def files(item: str) -> list[str]:
    """The committed files of a table or figure, relative to the checkout."""
    _, names, data = SOURCES[item]
    planned = [f"{'figures' if n.startswith('fig') else 'results'}/{HOMES[d]}/{d}/{n}" for d in data for n in names]
    return [file for file in planned if (ROOT / file).is_file()]


def stale() -> list[tuple[str, str]]:
    """(page, section) for each section that differs from the committed files. Raises InputError as `sections` does."""
    found = []
    for page in PAGES:
        written = sections(page, (ROOT / page).read_text(encoding="utf-8"))
        found += [(page, name) for name in PAGES[page] if written[name] != _section(page, name)]
    return found


def write() -> list[tuple[str, str]]:
    """Write the stale sections again; returns their pages and names. Raises InputError as `sections` does."""
    changed = stale()
    for page, name in changed:
        before, rest = (ROOT / page).read_text(encoding="utf-8").split(f"<!-- begin {name} -->")
        after = rest.split(f"<!-- end {name} -->")[1]
        with atomic(ROOT / page) as temporary:
            text = f"{before}<!-- begin {name} -->{_section(page, name)}<!-- end {name} -->{after}"
            temporary.write_text(text, encoding="utf-8")
    return changed


def sections(page: str, text: str) -> dict[str, str]:
    """The text between the markers of each section. Raises InputError if one is unknown, missing or not closed."""
    blocks = dict(re.findall(r"<!-- begin (\S+) -->(.*?)<!-- end \1 -->", text, re.DOTALL))
    marks = re.findall(r"<!-- (?:begin|end) (\S+) -->", text)
    for name in [*PAGES[page], *marks]:
        if name not in PAGES[page] or name not in blocks or marks.count(name) != 2:
            raise InputError(
                f"{page}, section {name!r}: expected <!-- begin NAME --> and then <!-- end NAME --> once, "
                f"for each of {', '.join(PAGES[page])} and nothing else"
            )
    return blocks


def _section(page: str, name: str) -> str:
    up = "../" * page.count("/")
    text = re.sub(r"\]\((?=(?:results|figures|notebooks)/)", f"]({up}", PAGES[page][name]())
    return f"\n\n{text}\n\n"


def _small(title: str, numbers: Mapping[int, str]) -> str:
    """mIoU: the paper's printed column and ours for each measured table, with the rows of the first table."""
    columns: dict[str, pd.Series[Any]] = {}
    for number, printed_on in numbers.items():
        columns[f"paper, {printed_on}"] = paper.published(number)["mIoU"].map("{:.2f}".format)
        for data in SHOWN[number]:
            if (path := _results(data) / f"table{number}.csv").is_file():
                ours = paper.beside(number, table := pd.read_csv(path))["mIoU", "ours"].map("{:.2f}".format)
                spread = table.set_index("row").get(("IoU" if number == 4 else "mIoU") + "_std")
                plus = "" if spread is None else spread.map(" ± {:.2f}".format)
                columns[f"ours, {TITLES[data]}"] = ours + plus
    both = pd.DataFrame(columns).reindex(next(iter(columns.values())).index)
    return _table([title, *both], both.reset_index().to_numpy(), "---:")


def _judged() -> dict[str, pd.DataFrame]:
    """`claims.csv` of each data set that has one, by its title, indexed by section and claim."""
    found = {title: _results(data) / "claims.csv" for data, title in TITLES.items()}
    return {
        title: pd.read_csv(path, dtype=str, keep_default_na=False).set_index(["section", "claim"])
        for title, path in found.items()
        if path.is_file()
    }


def _beside(number: int, data: str) -> str:
    on, scores = ("KSDD2", "pooled pixels") if number == 4 else ("PASCAL VOC 2012", "class means")
    path = _results(data) / f"table{number}.csv"
    if not path.is_file():
        return f"**Table {number}.** {paper.CAPTIONS[number]} on {TITLES[data]}: {NOT_YET}."
    both, printed, ours = paper.beside(number, table := pd.read_csv(path)), paper.emphasis(number), table.set_index("row")
    of = "mean and standard deviation of the trainings" if "mIoU_std" in table else "one training"
    header, columns = [""], [list(both.index)]
    for metric in map(str, printed):
        mine = both[metric, "ours"]
        best = mine.rank(ascending=False, method="min").map({1.0: "bold", 2.0: "underline"}).fillna("")
        spread = (paper.POOLED if number == 4 else paper.CLASS_MEANS)[metric] + "_std"
        plus = [f" ± {std:.2f}" for std in ours.loc[both.index, spread]] if spread in ours else [""] * len(both)
        header += [f"{metric}: paper", "ours"]
        columns += [
            _styled(both[metric, "paper"], printed[metric]),
            [a + b for a, b in zip(_styled(mine, best), plus, strict=True)],
        ]
    caption = f"**Table {number}.** {paper.CAPTIONS[number]}; the paper on {on}, ours on {TITLES[data]} ({scores}; {of})."
    return f"{caption}\n\n{_table(header, zip(*columns, strict=True), '---:')}"


def _results(data: str) -> Path:
    return ROOT / "results" / HOMES[data] / data


def _styled(column: pd.Series[float], styles: pd.Series[str]) -> list[str]:
    return [STYLES[style].format(value) for value, style in zip(column, styles, strict=True)]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "---") -> str:
    lines = [header, ["---", *[align] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)

"""The sections of README.md and docs/ that come from committed files: `make docs`, or `python -m ltcam.show.docs [--check]`.

A section stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. The rest of a page is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache, partial
from itertools import product
from pathlib import Path

import pandas as pd
import yaml

from ltcam.errors import InputError
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.study import Study
from ltcam.files import NOTEBOOKS, ROOT, write
from ltcam.paper import tables as paper
from ltcam.paper.registry import RESULTS
from ltcam.paper.tables import PRINTED_ON
from ltcam.show.figures import FIGURES

VERDICTS = {"holds": "hold", "tie": "tie", "does not hold": "fail", "not measured": "are not measured"}
STYLES = {"bold": "**{:.2f}**", "underline": "<ins>{:.2f}</ins>", "": "{:.2f}"}
Sections = Mapping[str, Callable[[], str]]
FIELDS = ["train", "test", "frozen", "epochs", "batch_size", "lr", "slow", "weight_decay", "augment", "balance", "bfloat16"]


@cache
def studies() -> list[Study]:
    """Those whose results are committed."""
    places = [path.parts[-3:-1] for path in sorted(ROOT.glob("results/*/*/trainings.csv"))]
    return [Study(profile, data, kept=True) for profile, data in places if profile != "demo"]


def tables() -> str:
    """The paper's tables beside ours, in percent. The paper's are marked as printed, ours by the best two of a column."""
    shown = [(number, study) for number, study in product(PRINTED_ON, studies()) if (number == 4) == (study.metric == "IoU")]
    return "\n\n".join(_beside(number, study) for number, study in shown)


def summary() -> str:
    """Grad-CAM by stage, and the seven methods: the paper's mIoU and ours."""
    return "\n\n".join(_small(title, numbers) for title, numbers in {"Grad-CAM of": [1], "method": [3, 4]}.items())


def claims(numbers: bool = True) -> str:
    """Every claim of the paper, with the verdicts of its own numbers and of ours, and what decides them if `numbers`."""
    found = {study.title: _claims(study) for study in studies()}
    first = next(iter(found.values()))
    columns = {title: judged.apply(_decided, axis=1) if numbers else judged["verdict"] for title, judged in found.items()}
    start = first[["section", "claim", "paper"]].set_axis(["Sec.", "claim", "the paper's own numbers"], axis=1)
    return _table(start.assign(**columns))


def verdicts() -> str:
    """How many of the paper's claims hold, tie and fail: one row per data set."""
    counts = {study.title: _claims(study)["verdict"].value_counts() for study in studies()}
    frame = pd.DataFrame(counts).reindex([*VERDICTS]).fillna(0).astype(int).rename(VERDICTS).T
    return _table(frame.rename_axis("claims of the paper that").reset_index())


def beyond() -> str:
    """What each step beyond the paper adds, and the best against the best of our rows of Table 3, by data set."""
    return "\n\n".join(f"**{study.title}**\n\n{_table(_steps(pd.read_csv(study.out / 'best.csv')))}" for study in studies())


def gallery(study: Study) -> str:
    """Every figure of a study with its caption, and a link to every table."""
    figures = [(entry, path) for name, entry in FIGURES.items() for path in study.figures.glob(f"{name}.png")]
    tables = [(entry, path) for name, entry in RESULTS.items() for path in study.out.glob(f"{name}.csv*")]
    pictures = [f"![{entry.alt}]({_shown(path)})\n\n*{entry.caption}*" for entry, path in figures]
    linked = "\n".join(f"- {entry.caption}: [{path.name}]({_shown(path)})" for entry, path in tables)
    return "\n\n".join(["## Figures", *pictures, "## Tables", linked])


def settings() -> str:
    """The fields of every profile's recipe, and its number of trainings; a column for each file of `notebooks/profiles`."""
    runs = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((NOTEBOOKS / "profiles").glob("*.yaml"))}
    recipes = {f"`{name}`": asdict(Recipe(data=run["data"], **run["recipe"])) for name, run in runs.items()}
    frame = pd.DataFrame(recipes).loc[FIELDS]
    frame.loc["trainings"] = [max(1, len(run.get("seeds", []))) * run.get("folds", 1) for run in runs.values()]
    return _table(frame.rename_axis("").reset_index())


def pages() -> dict[str, Sections]:
    """{page: {section: what it says}}"""
    galleries: dict[str, Sections] = {f"docs/{study.data}.md": {"gallery": partial(gallery, study)} for study in studies()}
    return galleries | {
        "README.md": {"summary": summary, "verdicts": verdicts},
        "docs/results.md": {"tables": tables, "claims": claims, "beyond": beyond},
        "docs/settings.md": {"settings": settings},
        "docs/replication.md": {"replication": partial(claims, numbers=False)},
    }


def renewed(page: str, text: str, sections: Sections) -> str:
    """The text of a page with its sections written anew. Raises InputError if one is unknown, missing or not closed."""
    found = re.findall(r"<!-- (\S+) (\S+) -->", text)
    ends = [(word, name) for name in dict.fromkeys(name for _, name in found) for word in ("begin", "end")]
    if found != ends or {name for _, name in found} != set(sections):
        marks = "<!-- begin NAME --> and then <!-- end NAME --> once"
        raise InputError(f"{page} has the marks {found}: expected {marks}, for each of {', '.join(sections)} and nothing else")
    for name, said in sections.items():
        before, rest = text.split(f"<!-- begin {name} -->")
        after = rest.split(f"<!-- end {name} -->")[1]
        linked = re.sub(r"\]\((?=(?:results|figures|notebooks)/)", "](" + "../" * page.count("/"), said())
        text = f"{before}<!-- begin {name} -->\n\n{linked}\n\n<!-- end {name} -->{after}"
    return text


def main(check: bool) -> int:
    """Write the pages whose sections are stale, or only name them; the exit status is 1 if one is stale and `check`."""
    stale = 0
    for page, sections in pages().items():
        old = (ROOT / page).read_text(encoding="utf-8")
        new = renewed(page, old, sections)
        if old != new:
            stale += 1
            sys.stdout.write(f"{page}: {'stale, run make docs' if check else 'written anew'}\n")
            if not check:
                write(ROOT / page, new)
    return int(check and stale > 0)


def _beside(number: int, study: Study) -> str:
    table = pd.read_csv(study.out / f"table{number}.csv")
    both, printed, spread = paper.compared(number, table), paper.published(number, "style"), _spread(number, table)
    columns = {"": both.index.to_series()}
    for metric in map(str, printed):
        best = [("", "bold", "underline")[rank] for rank in paper.ranks(both[metric, "ours"])]
        for of, style in (("paper", printed[metric]), ("ours", best)):
            styled = [STYLES[name].format(value) for value, name in zip(both[metric, of], style, strict=True)]
            columns[f"{metric}: {of}"] = pd.Series(styled, both.index)
        columns[f"{metric}: ours"] += spread[metric]
    of = "mean and standard deviation of the trainings" if "mIoU_std" in table else "one training"
    on = f"the paper on {PRINTED_ON[number]}, ours on {study.title} ({'pooled pixels' if number == 4 else 'class means'}; {of})"
    return f"**Table {number}.** {RESULTS[f'table{number}'].caption}; {on}.\n\n{_table(pd.DataFrame(columns), numbers=True)}"


def _small(title: str, numbers: list[int]) -> str:
    columns: dict[str, pd.Series[str]] = {}
    for number in numbers:
        columns[f"paper, {PRINTED_ON[number].removeprefix('PASCAL ')}"] = paper.published(number)["mIoU"].map("{:.2f}".format)
        for study in (study for study in studies() if (number == 4) == (study.metric == "IoU")):
            table = pd.read_csv(study.out / f"table{number}.csv")
            mine = paper.compared(number, table)["mIoU", "ours"].map("{:.2f}".format)
            columns[f"ours, {study.title}"] = mine + _spread(number, table)["mIoU"]
    rows = next(iter(columns.values())).index
    return _table(pd.DataFrame(columns).loc[rows].rename_axis(title).reset_index(), numbers=True)


def _spread(number: int, table: pd.DataFrame) -> pd.DataFrame:
    """ " ± 0.26" for each row and metric of the paper's table, or "" where there is one training."""
    names = paper.POOLED if number == 4 else paper.CLASS_MEANS
    found = table.set_index("row").reindex(columns=[f"{own}_std" for own in names.values()]).set_axis([*names], axis=1)
    return found.map(lambda std: "" if pd.isna(std) else f" ± {std:.2f}")


def _claims(study: Study) -> pd.DataFrame:
    return pd.read_csv(study.out / "claims.csv", dtype=str, keep_default_na=False)


def _decided(row: pd.Series[str]) -> str:
    """The verdict on a claim, with the smallest margin in points and the numbers that decide it."""
    if row["verdict"] == "not measured":
        return row["verdict"]
    margin, low, high = (f"{float(row[name]):+.2f}" for name in ("margin", "ci_low", "ci_high"))
    sure = f"margin {margin} ({low} to {high}), above zero in {row['trainings']} trainings"
    return f"**{row['verdict']}**, {sure}: {row['numbers']}"


def _steps(table: pd.DataFrame) -> pd.DataFrame:
    """best.csv in words: every step, then of each view the best of our rows of Table 3, under each cut."""
    rows = table[table["kind"] == "row"]
    top = rows.loc[rows.groupby(["cut", "views"], sort=False)["value"].idxmax()]
    shown = pd.concat([table[table["kind"] == "step"], top.assign(name="best, against " + top["name"] + ", " + top["views"])])
    shown = shown.sort_values("cut", key=lambda cut: cut.map([*table["cut"].unique()].index), kind="stable")
    score = shown.apply(lambda row: f"{row['value']:.2f} ({row['ci_low']:.2f} to {row['ci_high']:.2f})", axis=1)
    added = shown.apply(lambda row: f"{row['change']:+.2f} ({row['change_low']:+.2f} to {row['change_high']:+.2f})", axis=1)
    points, verdict = added.where(shown["change"].notna(), ""), shown["verdict"].fillna("")
    return pd.DataFrame({"protocol": shown["cut"], "step": shown["name"], "IoU (%)": score, "points": points, " ": verdict})


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _table(frame: pd.DataFrame, numbers: bool = False) -> str:
    """In Markdown; after the first column, numbers stand at the right."""
    align = ["left", *["right" if numbers else "left"] * (frame.shape[1] - 1)]
    cells = frame.astype(str).map(lambda cell: cell.replace("|", r"\|"))
    return re.sub(r" {2,}", " ", re.sub(r"-{3,}", "---", cells.to_markdown(index=False, disable_numparse=True, colalign=align)))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))

"""The sections of README.md and docs/ that come from committed files: `make docs`, or `python docs/sections.py [--check]`.

A section stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. The rest of a page is written by hand.
"""

import re
import sys

import pandas as pd

from ltcam.errors import InputError, one_line
from ltcam.experiment import provenance
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.study import Study
from ltcam.files import NOTEBOOKS, ROOT, write
from ltcam.paper import RESULTS, registry, tables
from ltcam.show.figures import FIGURES

FOUND = sorted(ROOT.glob("results/[!d]*/*/trainings.csv"))
STUDIES = [own for path in FOUND for own in Study(path.parts[-3], path.parts[-2], kept=True).both]
VERDICTS = {
    "holds": "hold", "holds, negligible": "hold, negligibly", "equal": "are equal", "open": "are open",
    "fails, negligible": "fail, negligibly", "fails": "fail", "not measured": "are not measured",
}  # fmt: skip
STYLES = {"bold": "**{:.2f}**", "underline": "<ins>{:.2f}</ins>", "": "{:.2f}"}
CLAIM = "**{verdict}**, margin {margin:+.2f} ({ci_low:+.2f} to {ci_high:+.2f}), {trainings}: {numbers}"
FIELDS = ["train", "test", "frozen", "epochs", "batch_size", "lr", "slow", "weight_decay", "augment", "balance", "bfloat16"]


def pages() -> dict[str, dict[str, str]]:
    """{page: {section: what it says}}, the sections in the page's order."""
    beside = [compared(number, title, ours) for number in tables.PRINTED_ON for title, ours in kept(f"table{number}").items()]
    beyond = [f"**{title}**\n\n{markdown(steps(table))}" for title, table in kept("best").items()]
    return {f"docs/{study.data}.md": {"gallery": gallery(study)} for study in STUDIES if study.loss == "sigmoid"} | {
        "README.md": {"summary": f"{summary('Grad-CAM of', 1)}\n\n{summary('method', 3, 4)}", "verdicts": verdicts()},
        "docs/tables.md": {"tables": "\n\n".join(beside), "claims": claims(), "beyond": "\n\n".join(beyond)},
        "docs/settings.md": {"settings": settings()},
        "docs/replication.md": {"replication": claims(numbers=False)},
    }


def kept(name: str) -> dict[str, pd.DataFrame]:
    """A committed table of every data set and setting that has it; of the paper's tables, of those that stand beside it."""
    shown = [own for own in STUDIES if name in registry.names(own)]
    shown = [own for own in shown if not name.startswith("table") or (name == "table4") == (own.metric == "IoU")]
    return {titled(own): provenance.load(own.out / f"{name}.csv", dtype=registry.TEXTS) for own in shown}


def titled(study: Study) -> str:
    """The data set, and the setting if it is that of the paper's text."""
    return f"{study.title}, softmax" if study.loss == "softmax" else study.title


def beside(number: int, ours: pd.DataFrame) -> pd.DataFrame:
    """A table of the paper and ours, in percent. Its numbers are marked as printed, ours by the best two of a column."""
    both, printed, trained = tables.compared(number, ours), tables.published(number, "style"), ours.set_index("row")
    columns: dict[str, pd.Series[str]] = {}
    for metric in map(str, printed):
        best = [("", "bold", "underline")[rank] for rank in tables.ranks(both[metric, "ours"])]
        for of, styles in (("paper", printed[metric]), ("ours", best)):
            styled = [STYLES[name].format(value) for value, name in zip(both[metric, of], styles, strict=True)]
            columns[f"{metric}: {of}"] = pd.Series(styled, both.index)
        if (name := f"{tables.COLUMNS[number][metric]}_std") in trained:
            columns[f"{metric}: ours"] += trained[name].map(" ± {:.2f}".format)
    return pd.DataFrame(columns)


def compared(number: int, title: str, ours: pd.DataFrame) -> str:
    """`beside` under its caption."""
    scores = "pooled pixels" if number == 4 else "class means"
    of = "mean and standard deviation of the trainings" if "mIoU_std" in ours else "one training"
    said = f"{RESULTS[f'table{number}'].caption}; the paper on {tables.PRINTED_ON[number]}, ours on {title} ({scores}; {of})."
    return f"**Table {number}.** {said}\n\n{markdown(beside(number, ours).rename_axis('').reset_index(), 'right')}"


def summary(rows: str, *numbers: int) -> str:
    """The paper's mIoU and ours, of some tables side by side. rows: what their rows are."""
    columns: dict[str, pd.Series[str]] = {}
    for number in numbers:
        paper = f"paper, {tables.PRINTED_ON[number].removeprefix('PASCAL ')}"
        for title, ours in kept(f"table{number}").items():
            plain = beside(number, ours).replace(r"\*\*|</?ins>", "", regex=True)
            columns |= {paper: plain["mIoU: paper"], f"ours, {title}": plain["mIoU: ours"]}
    return markdown(pd.DataFrame(columns).loc[plain.index].rename_axis(rows).reset_index(), "right")


def claims(numbers: bool = True) -> str:
    """Every claim of the paper, with the verdicts of its own numbers and of ours, and what decides ours if `numbers`.

    One table for each setting.
    """
    settings: dict[bool, dict[str, pd.Series[str]]] = {}
    for title, own in kept("claims").items():
        columns = settings.setdefault(title.endswith("softmax"), {})
        columns |= {"Sec.": own["section"], "claim": own["claim"], "the paper's own numbers": own["paper"]}
        own["verdict"] += (own["holm"] != own["verdict"]).map({True: " (with Holm open)", False: ""})
        own["trainings"] = own["trainings"].str.replace(r"(\d of \d)", r"above zero in \1 trainings", regex=True)
        columns[title] = own.apply(CLAIM.format_map, axis=1).where(own["margin"].notna() & numbers, own["verdict"])
    return "\n\n".join(markdown(pd.DataFrame(columns)) for columns in settings.values())


def verdicts() -> str:
    """How many of the paper's claims have each verdict: one row per data set."""
    counts = {title: table["verdict"].value_counts() for title, table in kept("claims").items()}
    frame = pd.DataFrame(counts).reindex([*VERDICTS]).fillna(0).astype(int).rename(VERDICTS).T
    return markdown(frame.rename_axis("claims of the paper that").reset_index())


def steps(table: pd.DataFrame) -> pd.DataFrame:
    """best.csv in words: every step beyond the paper, then of each view the best of our rows of Table 3, under each cut."""
    top = table.loc[table[table["kind"] == "row"].groupby(["cut", "views"], sort=False)["value"].idxmax()]
    shown = pd.concat([table[table["kind"] == "step"], top.assign(name="best, against " + top["name"] + ", " + top["views"])])
    shown = shown.sort_values("cut", key=lambda cut: cut.map([*table["cut"].unique()].index), kind="stable")
    score = shown.apply("{value:.2f} ({ci_low:.2f} to {ci_high:.2f})".format_map, axis=1)
    points = shown.apply("{change:+.2f} ({change_low:+.2f} to {change_high:+.2f})".format_map, axis=1)
    points, verdict = points.where(shown["change"].notna(), ""), shown["verdict"].fillna("")
    return pd.DataFrame({"protocol": shown["cut"], "step": shown["name"], "IoU (%)": score, "points": points, " ": verdict})


def gallery(study: Study) -> str:
    """Every figure of a study, in both settings, with its caption, and a link to every table."""
    said = []
    for own in study.both:
        place = f"figures/{placed(own)}"
        drawn = {name: entry for name, entry in FIGURES.items() if (own.figures / f"{name}.png").is_file()}
        setting = "; softmax, one class an image" * (own.loss == "softmax")
        said += [f"![{entry.alt}]({place}/{name}.png)\n\n*{entry.caption}{setting}*" for name, entry in drawn.items()]
    return "\n\n".join(["## Figures", *said, *(f"## Tables: {titled(own)}\n\n{linked(own)}" for own in study.both)])


def placed(study: Study) -> str:
    """Where a study's files are, in `results` and in `figures`."""
    return f"{study.profile}/{study.data}{'/softmax' * (study.loss == 'softmax')}"


def linked(study: Study) -> str:
    """A point for each table of a study, with a link to its file."""
    place = f"results/{placed(study)}"
    made = [own for own in RESULTS.values() if (study.out / own.file).is_file()]
    return "\n".join(f"- {own.caption}: [{own.file}]({place}/{own.file})" for own in made)


def settings() -> str:
    """The fields of every profile's recipe, and its numbers of trainings; a column for each file of `notebooks/profiles`."""
    columns = {}
    for profile, data in (path.stem.split(".") for path in sorted((NOTEBOOKS / "profiles").glob("*.yaml"))):
        study = Study(profile, data, kept=True)
        recipe = Recipe(data=data, **study.settings["recipe"])
        done = len(study.names) if (study.out / "trainings.csv").is_file() else 0
        columns[f"`{profile}.{data}`"] = vars(recipe) | {"trainings planned": len(study.planned), "measured": done}
    return markdown(pd.DataFrame(columns).loc[[*FIELDS, "trainings planned", "measured"]].rename_axis("").reset_index())


def markdown(frame: pd.DataFrame, align: str = "left") -> str:
    """A table; align: of all columns but the first."""
    cells = frame.astype(str).map(lambda cell: cell.replace("|", r"\|"))
    text = cells.to_markdown(index=False, disable_numparse=True, colalign=["left", *[align] * (frame.shape[1] - 1)])
    return re.sub(r" {2,}", " ", re.sub(r"-{3,}", "---", text))


def renewed(page: str, text: str, sections: dict[str, str]) -> str:
    """The text of a page with its sections written anew. Raises InputError if one is unknown, missing or not closed."""
    if (found := re.findall(r"<!-- (\S+) (\S+) -->", text)) != [(word, name) for name in sections for word in ("begin", "end")]:
        marks = "<!-- begin NAME --> and then <!-- end NAME --> once"
        raise InputError(f"{page} has the marks {found}: expected {marks}, for each of {', '.join(sections)} and nothing else")
    text = re.sub(r"(?s)(<!-- begin (\S+) -->).*?(<!-- end )", lambda m: f"{m[1]}\n\n{sections[m[2]]}\n\n{m[3]}", text)
    return re.sub(r"\]\((?=(?:results|figures|notebooks)/)", "](" + "../" * page.count("/"), text)


def main(check: bool) -> int:
    """Write the pages whose sections are stale, or only name them; the exit status is 1 if one is stale and `check`."""
    new = {page: renewed(page, (ROOT / page).read_text(encoding="utf-8"), sections) for page, sections in pages().items()}
    stale = [page for page, text in new.items() if text != (ROOT / page).read_text(encoding="utf-8")]
    for page in stale:
        sys.stdout.write(f"{page}: {'stale, run make docs' if check else 'written anew'}\n")
        if not check:
            write(ROOT / page, new[page])
    return int(check and bool(stale))


if __name__ == "__main__":
    with one_line("docs/sections.py"):
        sys.exit(main("--check" in sys.argv[1:]))

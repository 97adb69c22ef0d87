"""A static site of one profile's results: `ltcam report --profile demo --out site`.

A front page (the paper's tables beside ours, claims, figures, provenance), the executed notebooks, and a page to move delta
and the stages on (`explorer.py`). No notebook is executed, nothing is fetched: the pages work from file://.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from PIL import Image

from ltcam import data as datasets
from ltcam import files
from ltcam.errors import InputError, MissingError
from ltcam.experiment import provenance
from ltcam.experiment.study import Study
from ltcam.paper import tables as paper
from ltcam.show import explorer, pages

PICTURES = 4  # on the page with the sliders
MARK = ".ltcam-report"  # a file that tells a site of ours from any other folder
FIGURES = {
    "samples": "Samples, with one class outlined",
    "areas": "How much of an image a class covers",
    "fig1": "Fig. 1: Grad-CAM by stage",
    "fig2": "Fig. 2: seven methods, counterpart of the paper's on PASCAL VOC",
    "fig3": "Fig. 3: seven methods, counterpart of the paper's on KSDD2",
    "fig4": "Fig. 4: scores over δ on the held-out part",
    "fig5": "Fig. 5: scores over δ on the part trained on",
    "ablations": "What each choice is worth, one at a time",
    "cross": "Percentile scope, scale of the stages' maps, and δ",
    "gain_by_area": "Points gained, over the size of the object",
    "gain_by_overlap": "Points gained, over how far negative gradients lie on the object",
    "signs": "Where positive and negative gradients lie",
    "stages": "What each stage adds, and what δ leaves of it",
    "plug_in": "Networks of other libraries, plugged in",
}
MORE = {
    "findings": "What the ablations found",
    "comparison": "Every number of the paper beside ours",
    "sweep": "Every score over δ",
    "ablations": "What each choice is worth, one at a time",
    "breakdown": "Scores by class or defect type, by the object's size, by the number of classes, by the overlap of the signs",
    "correlations": "What the gains go with",
    "readings": "Under which reading the paper's order of methods appears",
}
HEADERS = {
    "section": "Sec.",
    "paper": "on the paper's own numbers",
    "paper_on": "which are of",
    "margin": "least margin",
    "ci_low": "95% from",
    "ci_high": "to",
}
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("ltcam.show", "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip


def report(profile: str, out: Path) -> Path:
    """Write the site of `profile` to the folder `out`; returns its front page.

    A site that is there is replaced when the new one is whole. Raises MissingError where there is nothing to report, and
    InputError where `out` holds anything but a site of ours.
    """
    out = out.resolve()
    names = _data(profile)
    notebooks = _notebooks(profile)
    if not names and not notebooks:
        raise MissingError(f"nothing to report in {files.results(profile)}: run `ltcam reproduce --profile {profile}` first")
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there and no site of ltcam: expected a new or empty folder; choose another --out")
    with _whole(out) as site:
        (site / MARK).touch()
        sections = [_section(profile, name, site, notebooks) for name in names]
        pictures, skipped = _pictures(profile, names)
        common = {"profile": profile, "commit": (provenance.COMMIT or "unknown")[:10]}
        _render(site / "index.html", "index.html", sections=sections, **common)
        _render(site / "explore.html", "explore.html", pictures=pictures, skipped=skipped, **common)
        for before, notebook, after in zip([None, *notebooks], notebooks, [*notebooks[1:], None], strict=False):
            _render(site / notebook["page"], "notebook.html", notebook=notebook, before=before, after=after, **common)
        constants = {
            "PICTURES": pictures, "DELTAS": explorer.DELTAS, "METHODS": explorer.METHODS, "FUSED": explorer.FUSED,
        }  # fmt: skip
        _write(site / "data.js", "".join(f"const {name} = {json.dumps(value)};\n" for name, value in constants.items()))
        _write(site / "explore.js", _template("explore.js"))
        _write(site / "style.css", _template("style.css") + pages.highlighting())
    return out / "index.html"


def _order(name: str) -> tuple[int, str]:
    """Photographs before defects, as in the paper; what the project does not know comes last."""
    known = list(paper.COMPARED)
    return (known.index(name) if name in known else len(known), name)


def _data(profile: str) -> list[str]:
    """The data sets with results."""
    return sorted({path.parent.name for path in files.results(profile).glob("*/*.csv")}, key=_order)


def _notebooks(profile: str) -> list[dict[str, Any]]:
    """The executed notebooks, a series a data set."""
    found = [path for path in (files.results(profile) / "notebooks").glob("[0-9]*.ipynb") if ".failed" not in path.suffixes]
    made = [pages.notebook(path) for path in found]
    return sorted(made, key=lambda notebook: (_order(notebook["data"]), notebook["page"]))


def _section(profile: str, name: str, site: Path, notebooks: list[dict[str, Any]]) -> dict[str, Any]:
    """What the front page shows of a data set; files that it links to are copied."""
    folder = files.results(profile, name)
    records = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    copies = {path: Path("results", name, path.relative_to(folder)) for path in folder.rglob("*")}
    copies = {path: copy for path, copy in copies.items() if path.suffix in (".csv", ".gz", ".json")}
    copies |= {path: Path("figures", name, path.name) for path in files.figures(profile, name).glob("*.png")}
    for path, copy in copies.items():
        target = site / copy
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    wanted = {1, 2, *paper.COMPARED.get(name, []), *(n for n in paper.TABLES if (folder / f"table{n}.csv").is_file())}
    tables = [
        {
            "number": n, "caption": paper.CAPTIONS[n], "html": _beside(n, folder / f"table{n}.csv"),
            "paper": "KSDD2" if n == 4 else "PASCAL VOC 2012", "scores": "pooled pixels" if n == 4 else "class means",
        }
        for n in sorted(wanted)
    ]  # fmt: skip
    title = next((str(r["data"]) for r in records.values() if isinstance(r.get("data"), str)), name)
    return {
        "name": name, "title": title, "tables": tables, "claims": _plain(folder / "claims.csv"),
        "more": {label: _plain(path) for stem, label in MORE.items() for path in sorted(folder.rglob(f"{stem}.csv"))[:1]},
        "figures": [_figure(path, name) for path in _ordered(files.figures(profile, name))],
        "notebooks": [n for n in notebooks if n["data"] == name],
        "provenance": [_provenance(path, record) for path, record in records.items()],
    }  # fmt: skip


def _beside(number: int, path: Path) -> Markup | None:
    if not path.is_file():
        return None
    both = paper.beside(number, pd.read_csv(path))
    style = (
        both.rename_axis(None)
        .style.format("{:.2f}")
        .apply(paper.mark)
        .format_index(escape="html")
        .format_index(escape="html", axis=1)
    )
    # Cells are numbers, the headings are escaped.
    return Markup(style.to_html(table_uuid=f"{path.parent.name.encode().hex()}_{number}"))  # nosec B704


def _plain(path: Path) -> Markup | None:
    if not path.is_file():
        return None
    table = pd.read_csv(path)
    table = table[sorted(table, key=lambda name: name not in ("claim", "verdict", "numbers"))]  # what a phone shows unscrolled
    table = table.rename(columns=HEADERS)
    html = table.to_html(index=False, border=0, na_rep="", classes="text", float_format="{:.4g}".format)
    # pandas escapes every cell.
    return Markup(html)  # nosec B704


def _ordered(folder: Path) -> list[Path]:
    order = list(FIGURES)
    return sorted(
        folder.glob("*.png"), key=lambda path: (order.index(path.stem) if path.stem in order else len(order), path.name)
    )


def _figure(path: Path, name: str) -> dict[str, Any]:
    with Image.open(path) as image:
        width, height = image.size
    return {
        "path": f"figures/{name}/{path.name}", "caption": FIGURES.get(path.stem, path.stem), "width": width, "height": height,
    }  # fmt: skip


def _provenance(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """A row: what made one result."""
    recipe, images = record.get("recipe", {}), record.get("images", {})
    links = [
        f"results/{path.parent.name}/{file.name}"
        for file in (path.with_suffix(".csv"), path.with_suffix(".csv.gz"), path)
        if file.is_file()
    ]
    dirty = " with changes" if record.get("dirty") else ""
    return {
        "file": links,
        "commit": f"{str(record.get('commit'))[:10]}{dirty}",
        "finished": record.get("finished", ""),
        "seconds": record.get("seconds", ""),
        "device": record.get("device", ""),
        "torch": record.get("versions", {}).get("torch", ""),
        "seed": recipe.get("seed", ""),
        "epochs": recipe.get("epochs", ""),
        "weights": record.get("source", {}).get("name", ""),
        "part": record.get("part", ""),
        "images scored": images.get("scored", ""),
    }


def _pictures(profile: str, names: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """For the page with the sliders, and a sentence for each data set that has none."""
    made: list[dict[str, Any]] = []
    skipped: list[str] = []
    for name in names:
        try:
            study = Study(profile, name)
            made += explorer.pictures(study.trained, study.test, max(1, PICTURES // len(names)))
        except MissingError:
            skipped.append(f"No heatmaps of {name}: the model was not trained here, see `ltcam reproduce --profile {profile}`.")
        except datasets.DataError:
            skipped.append(f"No heatmaps of {name}: its images are not here, see `ltcam data list`.")
    return made, skipped


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `out` when the block ends well, and is removed when it does not."""
    temporary, old = (out.with_name(f".{out.name}.{os.getpid()}.{state}.partial") for state in ("new", "old"))
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if out.exists():
            out.rename(old)
        temporary.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _template(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _render(path: Path, template: str, **values: Any) -> None:
    _write(path, TEMPLATES.get_template(template).render(**values))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")

"""A static site of one profile's results: `ltcam report --profile demo --out site`.

The front page says what the paper claims and what came of it, and has a picture with sliders for delta and the stages
(`front.py`, `explorer.py`). The picture also has a page of its own. The executed notebooks follow (`pages.py`). No notebook is
executed and nothing is fetched. The pages work from file://.
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

from ltcam import data as datasets
from ltcam import files
from ltcam.errors import InputError, MissingError
from ltcam.experiment import provenance
from ltcam.experiment.study import Study
from ltcam.files import AnyPath
from ltcam.paper import tables as paper
from ltcam.show import explorer, front, pages

PICTURES = 4  # with sliders
MARK = ".ltcam-report"  # a file that marks a folder as a site of ltcam
HOME = Path(__file__).parent / "templates"
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("ltcam.show", "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip


def report(profile: str, out: AnyPath) -> Path:
    """Write the site of `profile` to the folder `out`; returns its front page.

    An existing site is replaced when the new one is complete. Raises MissingError if there is nothing to report, and InputError
    if `out` holds anything but a site of ltcam.
    """
    out = Path(out).resolve()
    names = sorted({path.parent.name for path in files.results(profile).glob("*/*.csv")}, key=_order)
    notebooks = _notebooks(profile)
    if not names and not notebooks:
        raise MissingError(f"nothing to report in {files.results(profile)}: run `ltcam reproduce --profile {profile}` first")
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not a site of ltcam: expected a new or empty folder; choose another --out")
    with files.writing(out), _whole(out) as site:
        (site / MARK).touch()
        for name in names:
            _copy(profile, name, site)
        sections = [front.section(profile, name, notebooks) for name in names]
        pictures, skipped = _pictures(profile, names)
        common = {"profile": profile, "commit": (provenance.COMMIT or "unknown")[:10]}
        for page in ("index.html", "explore.html"):
            _render(site / page, page, sections=sections, pictures=pictures, skipped=skipped, **common)
        for before, notebook, after in zip([None, *notebooks], notebooks, [*notebooks[1:], None], strict=False):
            _render(site / notebook["page"], "notebook.html", notebook=notebook, before=before, after=after, **common)
        constants = {
            "PICTURES": pictures, "DELTAS": explorer.DELTAS, "METHODS": explorer.METHODS, "FUSED": explorer.FUSED,
        }  # fmt: skip
        script = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in constants.items())
        (site / "data.js").write_text(script, encoding="utf-8")
        shutil.copyfile(HOME / "explore.js", site / "explore.js")
        style = (HOME / "style.css").read_text(encoding="utf-8") + pages.highlighting()
        (site / "style.css").write_text(style, encoding="utf-8")
    return out / "index.html"


def _order(name: str) -> tuple[int, str]:
    """Photographs come before defects, as in the paper. Unknown data sets come last."""
    known = list(paper.COMPARED)
    return (known.index(name) if name in known else len(known), name)


def _notebooks(profile: str) -> list[dict[str, Any]]:
    """The executed notebooks, one series per data set."""
    found = [path for path in (files.results(profile) / "notebooks").glob("[0-9]*.ipynb") if ".failed" not in path.suffixes]
    made = [pages.notebook(path) for path in found]
    return sorted(made, key=lambda notebook: (_order(notebook["data"]), notebook["page"]))


def _copy(profile: str, name: str, site: Path) -> None:
    """Copy the files of a data set that the site links to: tables, records and figures."""
    folder = files.results(profile, name)
    copies = {path: Path("results", name, path.relative_to(folder)) for path in folder.rglob("*")}
    copies = {path: copy for path, copy in copies.items() if path.suffix in (".csv", ".gz", ".json")}
    copies |= {path: Path("figures", name, path.name) for path in files.figures(profile, name).glob("*.png")}
    for path, copy in copies.items():
        target = site / copy
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _pictures(profile: str, names: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The pictures with sliders, and a sentence for each data set that has none."""
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
    """A temporary folder. It replaces `out` if the block ends well, and is removed if not."""
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


def _render(path: Path, template: str, **values: Any) -> None:
    path.write_text(TEMPLATES.get_template(template).render(**values), encoding="utf-8")

"""Run the notebook series: `ltcam reproduce --profile demo|real|paper`.

A profile is one or more files `notebooks/profiles/<profile>.<data>.yaml`. The series runs once for each, in order, and every
notebook gets a fresh kernel. Executed copies go to `results/<profile>/notebooks`. The notebooks write tables and figures
themselves. A notebook is up to date if its copy was made with the same inputs and the files that it left are unchanged. When
one runs, all later ones run again, since they read what it writes. This costs little, since trainings and counts are kept.
"""

import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets import default

from ltcam import data as datasets
from ltcam import files
from ltcam.data import DataError
from ltcam.errors import InputError, UnavailableError
from ltcam.experiment import provenance
from ltcam.experiment.parallel import alone
from ltcam.experiment.recipe import profile
from ltcam.experiment.study import Study
from ltcam.paper import kernels, pictures, registry, shares

log = logging.getLogger(__name__)


def reproduce(
    name: str, only: str = "", data: str = "", start: str = "", force: bool = False, seeds: Sequence[int] = (),
    subset: bool = False,
) -> list[Path]:  # fmt: skip
    """Execute the series for every data set of profile `name`; returns the executed notebooks.

    only    run only the notebooks whose names start with this ("04")
    start   begin at the first notebook whose name starts with this
    data    run only this data set of the profile
    seeds   instead of the profile's
    force   also run notebooks whose inputs have not changed; finished trainings and counts are still kept

    subset  also run on a data set whose files are not all there

    A notebook without a `profile` parameter reads no results of a profile, and runs with the demo only. A data set that is not
    there is skipped with a warning. If `data` named it, or no data set is left, DataError is raised before anything runs. Where
    counts are kept but no checkpoint is left, only the tables are made again. A notebook that fails stops the run with
    UnavailableError. It never replaces a good copy.
    """
    logging.getLogger("papermill").setLevel(logging.WARNING)
    studies = [Study(name, key, seeds=seeds) for key in profile(name) if data in ("", key)]
    numbered = [path for path in sorted(files.NOTEBOOKS.glob("*.ipynb")) if re.fullmatch(r"\d\d_\w+", path.stem)]  # no copies
    expected = {path: set(papermill.inspect_notebook(_literal(path))) for path in numbered}
    series = {path: known for path, known in expected.items() if "profile" in known or name == "demo"}
    chosen = [path for path in series if path.name >= start and path.name.startswith(only)]
    if not studies or not chosen:
        raise InputError(
            f"nothing to run: profile {name!r} has no data set {data!r}, or no notebook from {start!r} on starts with {only!r}"
        )
    reasons = [_missing(study, subset) for study in studies]
    if any(reasons) and (data or all(reasons)):
        raise DataError("\n".join(reasons))
    for study in studies:
        study.complete()
    done: list[Path] = []
    for study, reason in zip(studies, reasons, strict=True):
        if reason:
            log.warning("skipped: %s", reason)
            continue
        with alone(study.out, ".run.lock"):
            files.clear(study.figures)
            if study.counted_only() and not force and not study.kept:
                _tables(study)
            else:
                done += _series(study, series, chosen, force, not only)
    return done


def whole(studies: Sequence[Study]) -> None:
    """Train what is missing, make every table, and leave to git what these are made from: one setting counts for another."""
    for study in studies:
        study.train()
        for name in registry.names(study):
            registry.make(name, study)
    for study in studies:
        shares.thin(study)


def _missing(study: Study, subset: bool) -> str:
    """Why the data of a study cannot be used; "" if they can, or if its counts are all that is left."""
    try:
        if not study.counted_only():
            study.test.check(subset)
    except DataError as error:
        return f"{error}; or fetch it: ltcam data get {study.data}"
    return ""


def _tables(study: Study) -> None:
    """Make the tables of kept counts, and say what is left as it is."""
    kept = Study(study.profile, study.data, kept=True)
    for file, reason in registry.stale(kept, write=True).items():
        if reason != "written":
            log.warning("%s: %s", file, reason)
    log.warning(
        "%s: no checkpoint is in %s, so %d tables were made from kept counts; figures and notebooks stay as they are. "
        "To train again: ltcam reproduce --profile %s --data %s --force",
        study.data, study.runs, len(kept.made), study.profile, study.data,
    )  # fmt: skip


def _series(study: Study, series: Mapping[Path, set[str]], chosen: Sequence[Path], force: bool, both: bool) -> list[Path]:
    """Execute the `chosen` notebooks of a study that are not up to date. series: each notebook with its parameters. both: of
    a profile with two settings make the `whole` of both before the last notebook. A run that is killed there goes on there."""
    digest, copies = hashlib.sha256(json.dumps(inputs(study), sort_keys=True).encode()), []
    stale, both = force or not (study.kept or _trained(study)), both and not study.kept
    for path, known in series.items():
        values = {key: value for key, value in study.parameters().items() if key in known}
        cells = [(cell["cell_type"], cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"]]
        digest.update(json.dumps([cells, values], sort_keys=True).encode())
        if path not in chosen:
            continue
        copies.append(files.results(study.profile) / "notebooks" / f"{path.stem}.{study.data}.ipynb")
        started, said = time.time(), "unchanged, skipped"
        if stale := stale or not _current(copies[-1], digest.hexdigest()):  # what follows reads what this one writes
            if both and study.settings["softmax"] is not None and path == [*series][-1]:
                whole(Study(study.profile, study.data, seeds=study.given).both)
            _execute(path, values, copies[-1], digest.hexdigest(), study)
            said = f"{time.time() - started:.0f} s"
        log.info("[%d/%d] %s %s: %s", len(copies), len(chosen), path.stem, study.data, said)
    return copies


def inputs(study: Study) -> dict[str, Any]:
    """What every notebook of a study reads: settings, versions, SHA-256 of the package's code and of printed and golden values,
    fingerprints of the data, titles of all data sets (notebook 00 shows them). Raises DataError if the study's own data are
    missing or damaged."""
    parts = dict.fromkeys(part for t in study.planned.values() for part in (t.recipe.train, t.recipe.test))
    values, machine = files.ROOT / "data", provenance.environment()
    paths = [*files.PACKAGE.rglob("*.py"), *files.PACKAGE.rglob("*.yaml"), *values.glob("*.csv")]
    return {
        "settings": study.settings,
        "versions": {"python": machine["python"], **machine["versions"]},
        "files": sorted(map(files.sha256, [*paths, *(values / "golden" / study.profile).glob("*.csv")])),
        "data": {part: datasets.load(study.data, part).fingerprint for part in parts if study.data != "demo"},  # that is code
        "shown": list(datasets.present()),
    }


def _trained(study: Study) -> bool:
    """Whether `trainings.csv` names the checkpoints that are there, and all of them are."""
    try:
        known = dict(zip(study.trainings["name"], study.trainings["checkpoint"], strict=True))
        there = [name for name in study.planned if (study.runs / name / "checkpoint.pt").is_file()]
        return known == {name: json.loads((study.runs / name / "run.json").read_text("utf-8"))["checkpoint"] for name in there}
    except (OSError, ValueError, KeyError):  # not trained yet, or cut off
        return False


def _current(copy: Path, digest: str) -> bool:
    """Whether an executed notebook was made with these inputs, and the files that it left are there unchanged."""
    try:
        about = json.loads(copy.read_text("utf-8"))["metadata"]["ltcam"]
    except (OSError, ValueError, KeyError):  # not made yet, or cut off
        return False
    root = files.results("").parent
    return about["digest"] == digest and all(registry.unchanged(root / file, made) for file, made in about["left"].items())


def _execute(notebook: Path, parameters: Mapping[str, Any], target: Path, digest: str, study: Study) -> None:
    """Execute into `<target>.failed.ipynb`, which becomes `target` only if nothing failed."""
    running, started = target.with_name(f"{target.stem}.failed.ipynb"), time.time()
    with files.writing(running):
        running.parent.mkdir(parents=True, exist_ok=True)
        try:
            executed = papermill.execute_notebook(
                _literal(notebook), _literal(running), parameters, kernel_name="python3", stderr_file=sys.stderr,
                progress_bar=False, extra_arguments=["--log-level=ERROR"], kernel_manager_class=_OwnKernel,
            )  # fmt: skip
        except (RuntimeError, PapermillExecutionError) as error:
            said = f": its kernel cannot start ({error}): make sure that ipykernel is installed and TMPDIR can be written"
            if isinstance(error, DeadKernelError):
                said = ": its kernel died, as happens when memory runs out"
            if isinstance(error, PapermillExecutionError):
                said = f" failed in cell {error.exec_count}: {error.ename}: {error.evalue}"
            raise UnavailableError(f"{notebook.name}{said}. See {running}") from error
        executed.metadata["papermill"].update(input_path=notebook.name, output_path=target.name)  # no path of this machine
        executed.metadata["ltcam"] = {"digest": digest, "left": _left(study, started)}
        for cell in executed.cells:
            if "outputs" in cell:  # progress is for whoever waits, not for readers
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        pictures.shrink(executed)
        running.write_text(nbformat.writes(executed), "utf-8")  # type: ignore[no-untyped-call]
        running.replace(target)


def _left(study: Study, started: float) -> dict[str, str]:
    """The SHA-256 of the tables and figures that are newer than `started`. Counts grow from one notebook to the next."""
    root = files.results("").parent
    walks = [os.walk(folder, followlinks=True) for folder in (study.out, study.figures)]  # a training may be a link
    there = sorted(Path(folder, name) for walk in walks for folder, _, names in walk for name in names)
    new = [path for path in there if path.suffix in (".csv", ".png", ".pdf") and path.stat().st_mtime >= started]
    return {path.relative_to(root).as_posix(): files.sha256(path) for path in new}


class _OwnKernel(AsyncKernelManager):
    """Runs `python3` with this interpreter, whatever kernel of that name JUPYTER_PATH has. What a user has set for his own
    notebooks (a backend of matplotlib, files that IPython runs at its start) does not reach these."""

    @default("kernel_spec_manager")
    def _own(self) -> KernelSpecManager:
        return KernelSpecManager(parent=self, kernel_dirs=[])

    async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
        try:
            kernels.fork()
            home = mkdtemp()
            finalize(self, rmtree, home, ignore_errors=True)
            pinned = {"MPLBACKEND": kernels.INLINE, "IPYTHONDIR": home}
            await self._async_start_kernel(**options | {"env": {**os.environ, **pinned}})
        except (OSError, NoSuchKernel) as error:  # or its folder would be told as closed
            raise RuntimeError(str(error)) from error


def _literal(path: Path) -> str:
    """`path` for papermill, which would fill in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")

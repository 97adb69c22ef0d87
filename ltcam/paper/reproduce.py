"""Run the notebook series: `ltcam reproduce --profile demo|real|paper`.

A profile is one or more files `notebooks/profiles/<profile>.<data>.yaml`. The series runs once for each, in order, and every
notebook gets a fresh kernel. Executed copies go to `results/<profile>/notebooks`. The notebooks write tables and figures
themselves. A notebook is up to date if its copy was made with the same inputs and the files that it left are unchanged. When
one runs, all later ones run again, since they read what it writes. This costs little, since trainings and counts are kept.
"""

import hashlib
import json
import logging
import platform
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import write_ipynb
from traitlets import default

from ltcam import data as datasets
from ltcam import files
from ltcam.data import DataError, Segmentation
from ltcam.data.demo import Demo
from ltcam.errors import InputError, UnavailableError
from ltcam.experiment import provenance
from ltcam.experiment.parallel import alone
from ltcam.experiment.recipe import profile
from ltcam.experiment.study import Study
from ltcam.files import sha256
from ltcam.paper import pictures, registry

log = logging.getLogger(__name__)


def reproduce(
    name: str, only: str = "", data: str = "", start: str = "", force: bool = False, seeds: Sequence[int] = ()
) -> list[Path]:
    """Execute the series for every data set of profile `name`; returns the executed notebooks.

    only    run only the notebooks whose names start with this ("04")
    start   begin at the first notebook whose name starts with this
    data    run only this data set of the profile
    seeds   instead of the profile's
    force   also run notebooks whose inputs have not changed; finished trainings and counts are still kept

    A notebook without a `profile` parameter reads no results of a profile, and runs with the demo only. A data set that is not
    there is skipped with a warning. If `data` named it, or no data set is left, DataError is raised before anything runs. Where
    counts are kept but no checkpoint is left, only the tables are made again. A notebook that fails stops the run with
    UnavailableError. It never replaces a good copy.
    """
    logging.getLogger("papermill").addFilter(_said)
    sets = {key: own for key, own in profile(name).items() if data in ("", key)}
    numbered = [path for path in sorted(files.NOTEBOOKS.glob("*.ipynb")) if re.fullmatch(r"\d\d_\w+", path.stem)]  # no copies
    expected = {path: papermill.inspect_notebook(_literal(path)) for path in numbered}
    series = [path for path, parameters in expected.items() if "profile" in parameters or name == "demo"]
    begin = next((i for i, path in enumerate(series) if path.name.startswith(start)), len(series))
    chosen = [path for path in series[begin:] if path.name.startswith(only)]
    if not sets or not chosen:
        raise InputError(
            f"nothing to run: profile {name!r} has no data set {data!r}, or no notebook from {start!r} on starts with {only!r}"
        )
    studies = _readable([Study(name, key, seeds=seeds) for key in sets], named=bool(data))
    done: list[Path] = []
    with ExitStack() as held:
        for study in studies:
            held.enter_context(alone(study.out, ".run.lock"))
            files.clear(study.figures)
        for study in studies:
            if not force and study.counted_only():
                _tables(study)
            else:
                done += _series(study, series, chosen, {path: set(own) for path, own in expected.items()}, force)
    return done


def _series(
    study: Study, series: Sequence[Path], chosen: Sequence[Path], expected: Mapping[Path, set[str]], force: bool
) -> list[Path]:
    """Execute the `chosen` notebooks of a study that are not up to date."""
    digest, copies = hashlib.sha256(json.dumps(inputs(study), sort_keys=True).encode()), []
    stale = force or not _trained(study)
    for path in series:
        values = {key: value for key, value in study.parameters().items() if key in expected[path]}
        cells = [(cell["cell_type"], cell["source"]) for cell in json.loads(path.read_text())["cells"]]
        digest.update(json.dumps([cells, values], sort_keys=True).encode())
        copy = files.results(study.profile) / "notebooks" / f"{path.stem}.{study.data}.ipynb"
        if path not in chosen:
            continue
        started, said = time.time(), "unchanged, skipped"
        if stale or not _current(copy, digest.hexdigest()):
            stale = True  # what follows reads what this one writes
            _execute(path, values, copy, digest.hexdigest(), study)
            said = f"{time.time() - started:.0f} s"
        copies.append(copy)
        log.info("[%d/%d] %s %s: %s", len(copies), len(chosen), path.stem, study.data, said)
    return copies


def inputs(study: Study) -> dict[str, Any]:
    """What every notebook of a study reads: versions, the package's code, printed and golden values, fingerprints of the data.
    Raises DataError if the study's own data are missing or damaged."""
    prints: dict[str, str] = {}
    for part in dict.fromkeys(part for t in study.planned.values() for part in (t.recipe.train, t.recipe.test)):
        prints |= _print(datasets.load(study.data, part))
    for shown in datasets.present().values():  # notebook 00 shows them all
        with suppress(DataError):
            prints |= _print(shown)
    code, values = files.PACKAGE, files.ROOT / "data"
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in provenance.PACKAGES}},
        "code": _sha256(code.rglob("*.py"), code),
        "values": _sha256([*values.glob("*.csv"), *(values / "golden" / study.profile).glob("*.csv")], values),
        "data": prints,
        "settings": study.settings,
    }


def _readable(studies: Sequence[Study], named: bool) -> list[Study]:
    """The studies whose data are there, or whose counts are all that is left."""
    found, missing = [], []
    for study in studies:
        try:
            if not study.counted_only():
                datasets.load(study.data, next(iter(study.planned.values())).recipe.test)
            found.append(study)
        except DataError as error:
            missing.append(f"{error}; or fetch it: ltcam data get {study.data}")
    if missing and (named or not found):
        raise DataError("\n".join(missing))
    for reason in missing:
        log.warning("skipped: %s", reason)
    return found


def _tables(study: Study) -> None:
    """Make the tables of kept counts, and say what is left as it is."""
    kept = Study(study.profile, study.data, kept=True)
    for file, reason in registry.stale(kept).items():
        if reason == "stale":
            with files.atomic(kept.out / file) as temporary:
                temporary.write_bytes(kept.made[file.partition(".")[0]])
        else:
            log.warning("%s: %s", file, reason)
    log.warning(
        "%s: no checkpoint is in %s, so %d tables were made from kept counts; figures and notebooks stay as they are. "
        "To train again: ltcam reproduce --profile %s --data %s --force",
        study.data, study.runs, len(registry.names(kept)), study.profile, study.data,
    )  # fmt: skip


def _trained(study: Study) -> bool:
    """Whether `trainings.csv` names the checkpoints that are there, and all of them are."""
    try:
        known = dict(zip(study.trainings["name"], study.trainings["checkpoint"], strict=True))
        made = {name: json.loads((study.runs / name / "run.json").read_text())["checkpoint"] for name in study.planned}
    except (OSError, ValueError, KeyError):  # not trained yet, or cut off
        return False
    return known == made and all((study.runs / name / "checkpoint.pt").is_file() for name in made)


def _current(copy: Path, digest: str) -> bool:
    """Whether an executed notebook was made with these inputs, and the files that it left are there unchanged."""
    try:
        about = json.loads(copy.read_text())["metadata"]["ltcam"]
    except (OSError, ValueError, KeyError):  # not made yet, or cut off
        return False
    root = files.results("").parent
    left = {file: sha256(root / file) for file in about["left"] if (root / file).is_file()}
    return bool(about["digest"] == digest and left == about["left"])


def _execute(notebook: Path, parameters: Mapping[str, Any], target: Path, digest: str, study: Study) -> None:
    failed = target.with_name(f"{target.stem}.failed.ipynb")
    for leftover in target.parent.glob(f".{target.stem}.*.partial.ipynb"):  # left by a run that was killed
        leftover.unlink()
    with files.atomic(target) as temporary:
        started = time.time()
        try:
            executed = papermill.execute_notebook(
                _literal(notebook), _literal(temporary), parameters, kernel_name="python3", log_output=True,
                progress_bar=False, extra_arguments=["--log-level=ERROR"], kernel_manager_class=_OwnKernel,
            )  # fmt: skip
        except (PapermillExecutionError, DeadKernelError) as error:
            temporary.replace(failed)
            said = f"{notebook.name}: its kernel died, as happens when memory runs out"
            if isinstance(error, PapermillExecutionError):
                said = f"{notebook.name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}"
            raise UnavailableError(f"{said}. See {failed}") from error
        executed.metadata["papermill"].update(input_path=notebook.name, output_path=target.name)  # no path of this machine
        executed.metadata["ltcam"] = {"digest": digest, "left": _left(study, started)}
        _clean(executed)
        write_ipynb(executed, str(temporary))
    failed.unlink(missing_ok=True)


def _clean(executed: nbformat.NotebookNode) -> None:
    for cell in (cell for cell in executed.cells if "outputs" in cell):  # progress is for whoever waits, not for readers
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    pictures.shrink(executed)


def _left(study: Study, started: float) -> dict[str, str]:
    """The SHA-256 of the tables and figures that are newer than `started`. Counts grow from one notebook to the next."""
    root = files.results("").parent
    folders = [
        path for folder in (study.out, study.figures) for kind in ("csv", "png", "pdf") for path in folder.rglob(f"*.{kind}")
    ]
    return {path.relative_to(root).as_posix(): sha256(path) for path in sorted(folders) if path.stat().st_mtime >= started}


def _said(record: logging.LogRecord) -> bool:
    """Keep from papermill's log only what the notebooks print on stderr, one line each."""
    record.msg, record.args = record.getMessage().strip(), ()
    return record.levelno >= logging.WARNING and bool(record.msg)


class _OwnKernel(AsyncKernelManager):
    """Runs `python3` with this interpreter, whatever kernel of that name JUPYTER_PATH has."""

    @default("kernel_spec_manager")
    def _own(self) -> KernelSpecManager:
        return KernelSpecManager(parent=self, kernel_dirs=[])


def _literal(path: Path) -> str:
    """`path` for papermill, which would fill in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _print(data: Segmentation) -> dict[str, str]:
    """The fingerprint under the name of the part. The demo has none, since it is code."""
    return {} if isinstance(data, Demo) else {f"{data.title}, {data.part}": data.fingerprint}


def _sha256(paths: Iterable[Path], root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()} {sha256(path)} ".encode())
    return digest.hexdigest()

"""Run the notebook series: `ltcam reproduce --profile demo|real|paper`.

A profile is one or more papermill files `notebooks/profiles/<profile>.<data>.yaml`. The series runs once for each file, in
order, and every notebook gets a fresh kernel. Executed copies go to `results/<profile>/notebooks`. The notebooks write tables
and figures themselves. A notebook that is up to date is skipped, see `ltcam.paper.steps`.
"""

import json
import logging
import time
from ast import literal_eval
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import papermill
import yaml
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import write_ipynb
from traitlets import default

from ltcam import files
from ltcam.data import DataError
from ltcam.errors import InputError, UnavailableError
from ltcam.experiment.locks import alone
from ltcam.experiment.study import Training, planned
from ltcam.paper import pictures, steps

log = logging.getLogger(__name__)


def profile(name: str) -> list[dict[str, Any]]:
    """The parameters of each run of a profile. Raises InputError for an unknown one."""
    found = sorted((files.NOTEBOOKS / "profiles").glob(f"{name}.*.yaml"))
    if not found:
        known = sorted({file.name.split(".")[0] for file in (files.NOTEBOOKS / "profiles").glob("*.yaml")})
        raise InputError(f"profile {name!r} is unknown: expected one of {known}")
    return [yaml.safe_load(file.read_text()) for file in found]


def trainings(run: Mapping[str, Any]) -> list[Training]:
    """Every training that a run of a profile names."""
    return planned(run["data"], run["recipe"], run.get("seeds", ()), run.get("folds", 0))


def reproduce(
    name: str,
    only: str = "",
    data: str = "",
    recipe: Mapping[str, Any] | None = None,
    start: str = "",
    force: bool = False,
    seeds: Sequence[int] = (),
) -> list[Path]:
    """Execute the series for every data set of profile `name`; returns the executed notebooks.

    only    run only the notebooks whose names start with this ("04")
    start   begin at the first notebook whose name starts with this
    data    run only this data set of the profile
    recipe, seeds  changes to the training recipe; seeds instead of the profile's
    force   also run notebooks whose inputs have not changed; finished trainings and counts are still kept

    A notebook without a `profile` parameter reads no results of a profile, and runs with the demo only. A data set that is not
    there is skipped with a warning. If `data` named it, or no data set is left, DataError is raised before anything runs. A
    notebook that fails stops the run with UnavailableError. It never replaces a good copy.
    """
    logging.getLogger("papermill").addFilter(_said)
    runs = [run for run in profile(name) if data in ("", run["data"])]
    parameters = {path: papermill.inspect_notebook(_literal(path)) for path in sorted(files.NOTEBOOKS.glob("[0-9]*.ipynb"))}
    series = [path for path, expected in parameters.items() if "profile" in expected or name == "demo"]
    begin = next((i for i, path in enumerate(series) if path.name.startswith(start)), len(series))
    chosen = [path for path in series[begin:] if path.name.startswith(only)]
    if not runs or not chosen:
        raise InputError(
            f"nothing to run: profile {name!r} has no data set {data!r}, or no notebook from {start!r} on starts with {only!r}"
        )
    varied = {
        name: literal_eval(about["default"])
        for expected in parameters.values()
        for name, about in expected.items()
        if name in ("deltas", "varied", "protocols", "ablated")
    }
    for run in runs:
        run["recipe"] = {**run["recipe"], **(recipe or {})}
        run["seeds"] = list(seeds or run.get("seeds", ()))
        run["series"] = {name: run.get(name, value) for name, value in varied.items()} if len(chosen) > 1 else {}
    read = _inputs(name, runs, named=bool(data))
    runs = [run for run in runs if run["data"] in read]
    done = []
    with ExitStack() as held:
        for run in runs:
            held.enter_context(alone(files.results(name, run["data"]), "run"))
            files.clear(files.figures(name, run["data"]))
        for number, (run, notebook) in enumerate(((run, path) for run in runs for path in chosen), 1):
            started = time.time()
            values = {key: value for key, value in run.items() if key in parameters[notebook]}
            cells = [(cell["cell_type"], cell["source"]) for cell in json.loads(notebook.read_text())["cells"]]
            lasting = {key: value for key, value in values.items() if key != "series"}  # which changes no result
            digest = steps.digest(cells=cells, parameters=lasting, read=read[run["data"]])
            record = steps.Steps(name, run["data"], [path.stem for path in series])
            done.append(files.results(name) / "notebooks" / f"{notebook.stem}.{run['data']}.ipynb")
            said = "unchanged, skipped"
            if force or not record.current(notebook.stem, digest):
                with record.running(notebook.stem, digest):
                    _execute(notebook, values, done[-1])
                said = f"{time.time() - started:.0f} s"
            log.info("[%d/%d] %s %s: %s", number, len(runs) * len(chosen), notebook.stem, run["data"], said)
    return done


def _inputs(name: str, runs: Sequence[Mapping[str, Any]], named: bool) -> dict[str, dict[str, Any]]:
    """{data set: what its notebooks read} for those that are there. Raises DataError if none is, or a named one is not."""
    read, missing = {}, []
    for run in runs:
        try:
            read[run["data"]] = steps.inputs(name, trainings(run))
        except DataError as error:
            missing.append(f"{error}; or fetch it: ltcam data get {run['data']}")
    if missing and (named or not read):
        raise DataError("\n".join(missing))
    for reason in missing:
        log.warning("skipped: %s", reason)
    return read


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


def _execute(notebook: Path, parameters: Mapping[str, Any], target: Path) -> None:
    failed = target.with_name(f"{target.stem}.failed.ipynb")
    for leftover in target.parent.glob(f".{target.stem}.*.partial.ipynb"):  # left by a run that was killed
        leftover.unlink()
    with files.atomic(target) as temporary:
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
        for cell in (cell for cell in executed.cells if "outputs" in cell):  # progress is for whoever waits, not for readers
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        pictures.shrink(executed)
        write_ipynb(executed, str(temporary))
    failed.unlink(missing_ok=True)

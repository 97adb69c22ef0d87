"""Run the notebook series: `ltcam reproduce --profile demo|real|paper`.

A profile is one or more papermill files `notebooks/profiles/<profile>.<data>.yaml`; the series runs once for each, in order,
every notebook in a fresh kernel. Executed copies go to `results/<profile>/notebooks`, tables and figures where the notebooks
put them.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import papermill
import yaml
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import write_ipynb

from ltcam import datasets, paths
from ltcam.training import Recipe

log = logging.getLogger(__name__)


def profile(name: str) -> list[dict[str, Any]]:
    """The parameters of each run of a profile. Raises ValueError for an unknown one."""
    files = sorted((paths.NOTEBOOKS / "profiles").glob(f"{name}.*.yaml"))
    if not files:
        known = sorted({file.name.split(".")[0] for file in (paths.NOTEBOOKS / "profiles").glob("*.yaml")})
        raise ValueError(f"profile {name!r} is unknown: expected one of {known}")
    return [yaml.safe_load(file.read_text()) for file in files]


def reproduce(name: str, only: str = "", data: str = "", recipe: Mapping[str, Any] | None = None) -> list[Path]:
    """Execute the series for every data set of profile `name`; returns the executed notebooks.

    only    run the notebooks whose names start with this ("04"); data: just this data set of the profile
    recipe  overrides of the training recipe

    A notebook without a `profile` parameter reads no results of one, and runs with the demo alone. Every data set is opened
    first: DataError comes before anything has run. A notebook that fails stops the run with RuntimeError, naming the failing
    cell's error and where the partial notebook is; a good copy is never replaced by it.
    """
    runs = [run for run in profile(name) if data in ("", run["data"])]
    notebooks = [path for path in sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb")) if path.name.startswith(only)]
    if not runs or not notebooks:
        raise ValueError(f"nothing to run: profile {name!r} has no data set {data!r}, or no notebook starts with {only!r}")
    for run in runs:
        run["recipe"] = {**run["recipe"], **(recipe or {})}
        settings = Recipe(data=run["data"], **run["recipe"])
        for part in (settings.train, settings.test):
            datasets.load(settings.data, part)
    logging.getLogger("papermill").addFilter(_said)
    own = {path: "profile" in papermill.inspect_notebook(str(path)) for path in notebooks}
    steps = [(run, path) for run in runs for path in notebooks if own[path] or name == "demo"]
    done = []
    for number, (run, notebook) in enumerate(steps, 1):
        started = time.time()
        done.append(_execute(notebook, run))
        log.info("[%d/%d] %s %s: %.0f s", number, len(steps), notebook.stem, run["data"], time.time() - started)
    return done


def _said(record: logging.LogRecord) -> bool:
    """Of papermill's log just what the notebooks say on stderr, a line each."""
    record.msg, record.args = record.getMessage().strip(), ()
    return record.levelno >= logging.WARNING and bool(record.msg)


def _execute(notebook: Path, run: Mapping[str, Any]) -> Path:
    target = paths.results(run["profile"]) / "notebooks" / f"{notebook.stem}.{run['data']}.ipynb"
    failed = target.with_name(f"{target.stem}.failed.ipynb")
    expected = papermill.inspect_notebook(str(notebook))
    parameters = {key: value for key, value in run.items() if key in expected}
    try:
        with paths.atomic(target) as temporary:
            try:
                executed = papermill.execute_notebook(
                    str(notebook), str(temporary), parameters, kernel_name="python3", log_output=True,
                    progress_bar=False, extra_arguments=["--log-level=ERROR"],
                )  # fmt: skip
            except PapermillExecutionError:
                temporary.replace(failed)
                raise
            executed.metadata["papermill"].update(input_path=notebook.name, output_path=target.name)  # no path of this machine
            write_ipynb(executed, str(temporary))
    except PapermillExecutionError as error:
        raise RuntimeError(
            f"{notebook.name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}. See {failed}"
        ) from error
    failed.unlink(missing_ok=True)
    return target

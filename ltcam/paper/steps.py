"""Which notebooks are up to date. `results/<profile>/<data>/steps.json` records the inputs of each, and the files it left.

A notebook is up to date if its inputs are the same and its files are as they were left by the last notebook that wrote them
(counts grow from one notebook to the next). When a notebook runs, all later ones run again, since they read what it writes.
This costs little, since trainings and counts are kept.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ltcam import data as datasets
from ltcam import files
from ltcam.data import DataError, Segmentation
from ltcam.data.demo import Demo
from ltcam.experiment import provenance
from ltcam.experiment.study import Training
from ltcam.files import sha256

UNDER_WAY, OUTDATED = "under way", "outdated"  # in place of a digest


def inputs(profile: str, trainings: Sequence[Training]) -> dict[str, Any]:
    """What every notebook of a run reads: versions, the package's code, printed and golden values, fingerprints of the data.

    Raises DataError if the run's own data are missing or damaged.
    """
    prints: dict[str, str] = {}
    for data, part in dict.fromkeys((t.recipe.data, part) for t in trainings for part in (t.recipe.train, t.recipe.test)):
        prints |= _print(datasets.load(data, part))
    for shown in datasets.present().values():  # notebook 00 shows them all
        with suppress(DataError):
            prints |= _print(shown)
    code, values = files.PACKAGE, files.ROOT / "data"
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in provenance.PACKAGES}},
        "code": _sha256(code.rglob("*.py"), code),
        "values": _sha256([*values.glob("*.csv"), *(values / "golden" / profile).glob("*.csv")], values),
        "data": prints,
    }


def digest(**dependencies: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()


class Steps:
    """The record of one profile and data set. names: the series, in order."""

    def __init__(self, profile: str, data: str, names: Sequence[str]) -> None:
        self.root, self.names = files.results("").parent, names
        self.folders = files.results(profile, data), files.figures(profile, data)
        self.notebooks = (files.results(profile) / "notebooks", f"*.{data}.ipynb")
        self.path = self.folders[0] / "steps.json"
        self.steps: dict[str, dict[str, Any]] = {name: {"digest": OUTDATED, "files": {}} for name in names}
        with suppress(FileNotFoundError, ValueError):  # cut off, e.g. by a power failure
            self.steps |= {name: kept for name, kept in json.loads(self.path.read_text()).items() if name in names}
        for step in self.steps.values():
            if step["digest"] == UNDER_WAY:  # it was cut off: files newer than the record are its own
                step["files"] |= self._hashes(self._written())

    def current(self, name: str, digest: str) -> bool:
        """Whether step `name` ran with the inputs of `digest`, and all its files are there unchanged."""
        ran = [step["files"].items() for step in self.steps.values() if step["digest"] != OUTDATED]
        left, files = dict(file for files in ran for file in files), self.steps[name]["files"]
        return self.steps[name]["digest"] == digest and self._hashes(files) == {file: left[file] for file in files}

    @contextmanager
    def running(self, name: str, digest: str) -> Iterator[None]:
        """Run step `name` in this block. Before it, this and all later steps become outdated. After it, `name` is current."""
        for later in self.names[self.names.index(name) :]:
            self.steps[later]["digest"] = OUTDATED
        step = self.steps[name]
        step["digest"], step["files"] = UNDER_WAY, self._hashes(step["files"])
        self._write()
        yield
        step["digest"], step["files"] = digest, self._hashes([*step["files"], *self._written()])
        self._write()

    def _written(self) -> list[str]:
        """Files that are newer than the record."""
        folder, pattern = self.notebooks
        files = [file for parent in self.folders for file in parent.rglob("*") if file.is_file()] + list(folder.glob(pattern))
        whole = [f for f in files if ".partial" not in f.name and ".lock" not in f.name]  # the others were left by a killed run
        return [f.relative_to(self.root).as_posix() for f in whole if f.stat().st_mtime_ns > self.path.stat().st_mtime_ns]

    def _hashes(self, files: Iterable[str]) -> dict[str, str]:
        """SHA-256 of the `files` that are there."""
        return {file: sha256(self.root / file) for file in sorted(files) if (self.root / file).is_file()}

    def _write(self) -> None:
        files.write(self.path, json.dumps(self.steps, indent=1) + "\n")


def _print(data: Segmentation) -> dict[str, str]:
    """The fingerprint under the name of the part. The demo has none, since it is code."""
    return {} if isinstance(data, Demo) else {f"{data.title}, {data.part}": data.fingerprint}


def _sha256(files: Iterable[Path], root: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(root).as_posix()} {sha256(file)} ".encode())
    return digest.hexdigest()

"""What the package raises is of one family, and of the builtin that callers caught before there was one."""

import ast
import builtins
import errno
import importlib
import io
import os
import pickle
import re
import runpy
import subprocess
import sys
from functools import partial
from importlib.metadata import packages_distributions, requires

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch import nn
from typer.testing import CliRunner

import ltcam
from ltcam import __main__, errors
from ltcam import data as datasets
from ltcam.data import DataError
from ltcam.experiment.store import Store
from ltcam.files import ROOT

FAMILY = {
    errors.InputError: ValueError,
    errors.MissingError: FileNotFoundError,
    errors.UnavailableError: RuntimeError,
    errors.PackageError: ImportError,
    errors.DivergedError: FloatingPointError,
    DataError: ValueError,
}
ALLOWED = {
    "type(error)": "parallel.py passes on what a loader process raised, as it was raised there",
    "error.__context__ if isinstance(error.__context__, OSError) else error": "trained.py: why torch.save could not write",
    "TypeError": "targets.py: it becomes an InputError in the same file",
    "typer.Exit": "an exit code, no error",
    "RuntimeError": "reproduce.py: it becomes an UnavailableError in the same file",
}


def raised():
    """{file:line: what is raised} of every `raise` in ltcam/ with an exception of its own."""
    for path in sorted((ROOT / "ltcam").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and node.exc is not None:
                yield f"{path.name}:{node.lineno}", ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)


def test_every_raise_is_of_the_family():
    places, names = zip(*raised(), strict=True)
    family = {member.__name__ for member in FAMILY}
    assert [place for place, name in zip(places, names, strict=True) if name not in family | set(ALLOWED)] == []
    assert set(names) == family | set(ALLOWED), "nobody raises what is listed here"


@pytest.mark.parametrize(("member", "builtin"), FAMILY.items())
def test_a_member_is_the_builtin_too(member, builtin):
    assert issubclass(member, ltcam.LtcamError) and issubclass(member, builtin)
    error = pickle.loads(pickle.dumps(member("delta=-1: expected 0")))  # as from a loader's process
    assert type(error) is member and str(error) == "delta=-1: expected 0"


def test_the_family_is_complete():
    members = {
        v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception) and v is not ltcam.LtcamError
    }
    assert members | {DataError} == set(FAMILY)


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        ("KolektorSDD2/test/readme.txt", "ksdd2", "part 'test' of ksdd2 is not in "),
        (
            "magnetic_tile/readme.txt",
            "magnetic_tile",
            "part 'test' of magnetic_tile is not in ",
        ),
        (
            "magnetic_tile/MT_Free/Imgs/photo.jpg",
            "magnetic_tile",
            "part 'test' of magnetic_tile is not in ",
        ),
    ],
)
def test_a_folder_of_something_else_is_refused(file, name, message, tmp_path, monkeypatch):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    monkeypatch.setenv("LTCAM_DATA", str(tmp_path))
    with pytest.raises(DataError, match=message):
        datasets.load(name, "test")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.delitem(sys.modules, "ltcam.experiment")
    with pytest.raises(errors.PackageError, match=r"pandas is not installed, .*: pip install 'ltcam\[companion\]'"):
        importlib.import_module("ltcam.experiment")


def test_the_engine_needs_torch_torchvision_and_numpy_alone():
    """Every other package is hidden, the companion's and the tests'."""
    kept = {"ltcam"}
    wanted = ["torch", "torchvision", "numpy"]
    while wanted:  # and what these need themselves
        kept.add(name := canonicalize_name(wanted.pop()))
        asked = [Requirement(text) for text in requires(name) or []]
        needed = {canonicalize_name(r.name) for r in asked if not r.marker or r.marker.evaluate({"extra": ""})}
        wanted += needed - kept
    hidden = sorted(m for m, names in packages_distributions().items() if not kept & set(map(canonicalize_name, names)))
    assert {"pandas", "matplotlib", "tqdm", "skimage", "accelerate", "captum", "typer"} <= set(hidden)
    hide = f"import sys; sys.modules.update(dict.fromkeys({hidden!r})); "
    run = "import ltcam, ltcam.engine.baselines, torch; from torchvision.models import resnet18; "
    run += "print(ltcam.explain(ltcam.trace(resnet18(), torch.rand(1, 3, 64, 64), 1), 'gradcam', delta=20).shape); "
    done = subprocess.run([sys.executable, "-c", hide + run], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "torch.Size([1, 64, 64])\n", done.stderr
    done = subprocess.run([sys.executable, "-c", hide + "import ltcam.__main__"], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "ltcam: typer is not installed, only the engine's packages are: pip install 'ltcam[companion]'\n"
    wings = ["data", "data.base", "data.get", "experiment", "experiment.seeds", "paper", "show"]
    run = f"""import ltcam
for wing in {wings}:
    try:
        __import__("ltcam." + wing)
    except ltcam.errors.PackageError as error:
        print(wing, error)"""
    done = subprocess.run([sys.executable, "-c", f"{hide}\n{run}"], capture_output=True, text=True, cwd=ROOT)
    said = r" \w+ is not installed, only the engine's packages are: pip install 'ltcam\[companion\]'\n"
    assert re.fullmatch(said.join([*wings, ""]), done.stdout), done.stderr


class Stopped(nn.Module):
    """Its forward is stopped by what is not about the images."""

    def __init__(self, error):
        super().__init__()
        self.conv, self.error = nn.Conv2d(3, 2, 1), error

    def forward(self, images):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("out of memory"),  # `evaluate` then goes on with fewer at a time
        RuntimeError("DataLoader worker (pid 3336) is killed by signal: Killed. "),  # torch's signal handler raises it
    ],
)
def test_what_stops_a_forward_is_no_fault_of_the_images(error):
    with pytest.raises(type(error)) as caught:
        ltcam.trace(Stopped(error), torch.zeros(1, 3, 4, 4), 0, ["conv"])
    assert caught.value is error


@pytest.fixture
def closed(monkeypatch):
    """Makes a file one of another user, who keeps it to himself. Root reads those too, so for root the open is refused."""

    def close(path):
        path.chmod(0)
        if os.geteuid() == 0:
            for module in (io, builtins):
                monkeypatch.setattr(module, "open", partial(refused, path, module.open))

    def refused(path, opened, file, *arguments, **options):
        if str(file) == str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return opened(file, *arguments, **options)

    return close


TABLES, EVALUATE = "ltcam.paper toy voc2012", "ltcam evaluate --config gradcam --out OUT --checkpoint "
CLOSED = {  # a file, and the command that reads it
    "trainings.csv": TABLES, "provenance.json": TABLES, "signs.csv.gz": TABLES, "seed0/counts.val.csv.gz": TABLES,
    "seed0/checkpoint.pt": f"{EVALUATE}FILE", "seed0/evaluated/provenance.json": f"{EVALUATE}RUN/checkpoint.pt",
    "seed0/run.json": "ltcam train --data voc2012 --profile toy",
    "tries/profile/labels.csv": "ltcam train --data voc2012 --profile toy --tune",
    "seeds/2007_000008.npy": "ltcam eval-seeds --folder SEEDS --data voc2012 --part val",
}  # fmt: skip


@pytest.mark.parametrize("file", CLOSED)
def test_results_of_another_user_end_in_one_line(file, study, closed, monkeypatch):
    path, run = study.out / file, study.out / "seed0"
    words = {"OUT": run / "evaluated", "FILE": path, "SEEDS": path.parent}
    name, *arguments = [str(words.get(word, word)) for word in CLOSED[file].replace("RUN/", f"{run}/").split()]
    if file.startswith("seeds"):
        exported = ["export-seeds", "--checkpoint", run / "checkpoint.pt", "--part", "val", "--out", path.parent]
        CliRunner().invoke(__main__.app, [*map(str, exported)], catch_exceptions=False)
    elif not path.is_file():
        CliRunner().invoke(__main__.app, arguments, catch_exceptions=False)
    if "counts" in file:
        (study.out / "counts.sqlite").unlink()
    closed(path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    for module in ("ltcam.__main__", "ltcam.paper.__main__"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    said = f"{name}: {path} cannot be opened (Permission denied): ask its owner, or set LTCAM_OUTPUT, LTCAM_RUNS or LTCAM_DATA"
    assert ended.value.code == f"{said} to a folder of your own"


def test_a_store_that_is_closed(study, monkeypatch):
    """It is read, and what would be written is told."""
    number = Store(study.out).find(part="val")[0]
    store = Store(study.out)
    store.db.execute("PRAGMA query_only = on")
    assert len(store.frame(number))
    with pytest.raises(
        errors.UnavailableError, match=r"counts\.sqlite: attempt to write a readonly database; name a folder of"
    ):
        store.note({"a": 1}, 0, 1)

"""What the package raises is of one family, and of the builtin that callers caught before there was one."""

import ast
import importlib
import pickle
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch import nn

import ltcam
from ltcam import data as datasets
from ltcam import errors
from ltcam.data import DataError
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
    members = {v for v in vars(errors).values() if isinstance(v, type) and v is not ltcam.LtcamError}
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

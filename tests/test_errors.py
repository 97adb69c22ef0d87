"""What the package raises is of one family, and of the builtin that callers caught before there was one."""

import ast
import pickle

import pytest

import ltcam
from ltcam import errors
from ltcam.datasets import DataError
from ltcam.paths import ROOT

FAMILY = {
    errors.InputError: ValueError,
    errors.MissingError: FileNotFoundError,
    errors.UnavailableError: RuntimeError,
    errors.PackageError: ImportError,
    errors.DivergedError: FloatingPointError,
    DataError: ValueError,
}
ALLOWED = {
    "_MirrorError": "fetch.py tries the next mirror and tells of all in an UnavailableError",
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

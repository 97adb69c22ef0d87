"""What a fault test records: how often the fault was tried, what was lost, what ended in a traceback, and what was said."""

import json
import platform

import pytest

from ltcam import __main__ as command_line
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.vgg16 import load
from tests import lookalikes
from tests.data.test_get import ksdd2, offer, root, server, small  # noqa: F401 - fixtures
from tests.experiment.test_counting import counted
from tests.tiny import TINY


class Fault:
    def __init__(self, name):
        self.name, self.tried, self.lost, self.crashed, self.message = name, 0, 0, 0, ""

    def attempt(self, call, whole=lambda: True):
        """What `ltcam` says where its command does `call`: the line it ends with, "" if well; then all has to be `whole()`."""
        self.tried += 1
        said = ""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command_line, "app", call)
            patch.setattr(command_line.logging, "basicConfig", lambda **_: None)
            try:
                command_line.main()
            except SystemExit as stop:
                said = str(stop.code).removeprefix("ltcam: ")
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                self.crashed += 1
        self.crashed += "Traceback" in said
        self.lost += not whole()
        self.message = self.message or said.replace(platform.node(), "HOST")
        return said


@pytest.fixture
def fault():
    """`fault(name)` begins the row of a fault; the test fails where anything was lost or crashed in it."""
    begun = []

    def begin(name):
        begun.append(Fault(name))
        return begun[-1]

    yield begin
    assert begun
    for row in map(vars, begun):
        assert row["tried"] and not row["lost"] and not row["crashed"], row


@pytest.fixture
def voc(tmp_path, monkeypatch):
    """A recipe of two short epochs on a tiny VOC, and its folder."""
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.voc(tmp_path / "data")))
    return Recipe(data="voc2012", test="val", **TINY | {"epochs": 2})


def evaluate(trained, part, configs, out, protocol=Protocol()):  # noqa: B008 - it is frozen
    """Every count of `configs`, sorted; what is there is not measured again."""
    store, number = counted(out, trained, part, configs, protocol)
    table = store.frame(number)
    store.db.close()
    return table.sort_values(["name", "class", "config", "cut", "t"], ignore_index=True)


def contents(folder, *suffixes):
    """Every file, or those of some suffixes, by its path, and what is in it. Of the store it is the exports that count."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and ".sqlite" not in p.name)
    found = (p for p in files if not suffixes or p.suffix in suffixes)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def run_of(folder):
    """What a training or an evaluation leaves, but for times: tables as bytes, checkpoints as their tensors and values.

    Those of a run that went on have the same in other bytes: pickle writes a text once where it is one object.
    """
    plain = {p.name: json.dumps(load(p), default=lambda t: t.numpy().tobytes().hex()) for p in sorted(folder.rglob("*.pt"))}
    return contents(folder, ".csv", ".gz") | plain

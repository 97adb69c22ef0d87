"""What a fault test records: how often the fault was tried, what was lost, what ended in a traceback, and what was said.

`LTCAM_FAULTS_LOG` names a file that each test adds its row to, as JSON; `python -m tests.faults.report` makes the page of it.
Without it each row has to be on the page already.
"""

import json
import os
import platform
from pathlib import Path

import pytest

from ltcam import __main__ as command_line
from ltcam.experiment.checkpoints import load_checkpoint
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.training import train
from ltcam.experiment.weights import load
from tests import lookalikes
from tests.data.test_fetch import ksdd2, offer, root, server  # noqa: F401 - fixtures
from tests.experiment.test_training import TINY
from tests.faults.report import PAGE, rows


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
    known = {row["fault"] for row in rows(PAGE.read_text())} if PAGE.is_file() else set()
    for row in map(vars, begun):
        if log := os.environ.get("LTCAM_FAULTS_LOG"):
            with Path(log).open("a") as file:
                file.write(json.dumps(row) + "\n")
        else:
            assert row["name"] in known, "docs/reliability.md lacks this fault: make faults"
        assert row["tried"] and not row["lost"] and not row["crashed"], row


@pytest.fixture
def voc(tmp_path, monkeypatch):
    """A recipe of three short epochs on a tiny VOC, and its folder."""
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.voc(tmp_path / "data")))
    return Recipe(data="voc2012", test="val", **TINY)


@pytest.fixture(scope="session")
def _trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTCAM_DATA", str(lookalikes.voc(folder / "data")))
        return train(Recipe(data="voc2012", test="val", **TINY | {"epochs": 1}), folder / "run"), folder / "data"


@pytest.fixture
def checkpoint(_trained, monkeypatch):
    """The checkpoint of one epoch, with the data it was trained on in place; neither is to be changed."""
    monkeypatch.setenv("LTCAM_DATA", str(_trained[1]))
    return _trained[0]


@pytest.fixture
def trained(checkpoint):
    return load_checkpoint(checkpoint)


def contents(folder, *suffixes):
    """Every file, or those of some suffixes, by its path, and what is in it."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and (not suffixes or p.suffix in suffixes))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def run_of(folder):
    """What a training or an evaluation leaves, but for times: tables as bytes, checkpoints as their tensors and values.

    Those of a run that went on have the same in other bytes: pickle writes a text once where it is one object.
    """
    plain = {p.name: json.dumps(load(p), default=lambda t: t.numpy().tobytes().hex()) for p in sorted(folder.rglob("*.pt"))}
    return contents(folder, ".csv", ".gz") | plain

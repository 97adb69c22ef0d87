"""kill -9 at a random moment, then the same command once more: what it leaves is what an undisturbed run leaves."""

import shutil
import signal
from pathlib import Path

import nbformat
import psutil
import pytest

from ltcam import files
from ltcam.data import get
from ltcam.experiment import training
from ltcam.experiment.study import Study
from ltcam.paper import reproduce
from tests import tiny
from tests.faults import kills
from tests.faults.conftest import contents, run_of


def killed(fault, work, arguments, again, whole, folder, before=None):
    """Kill `work` on a copy of `before`, go on with `again`, compare; TIMES over."""
    seconds, changes = kills.undisturbed(work, arguments(folder / "whole"), folder / "whole")
    expected = whole(folder / "whole")
    assert expected and changes > 3
    for number in range(kills.TIMES):
        out = folder / f"killed{number}"
        if before:
            shutil.copytree(before, out)
        when = kills.kill(number, work, arguments(out), out, seconds, changes)
        said = fault.attempt(lambda out=out: again(out), lambda out=out: whole(out) == expected)
        assert not said and whole(out) == expected, when
        assert not [path for path in out.rglob("*") if ".partial" in path.name or path.suffix == ".lock"], when


def test_train(voc, fault, tmp_path):
    killed(
        fault("kill -9 of `ltcam train`"), kills.train, lambda out: (voc, str(out)),
        lambda out: training.train(voc, out), run_of, tmp_path,
    )  # fmt: skip


def test_evaluate(checkpoint, fault, tmp_path):
    killed(
        fault("kill -9 of `ltcam evaluate`"), kills.evaluate, lambda out: (str(checkpoint), str(out)),
        lambda out: kills.evaluate(str(checkpoint), str(out)), run_of, tmp_path,
    )  # fmt: skip


def test_data_get(ksdd2, fault, tmp_path):
    source = get.SOURCES["ksdd2"]
    killed(
        fault("kill -9 of `ltcam data get`"), kills.get, lambda out: (str(out), source),
        lambda out: get.get("ksdd2", out), contents, tmp_path / "roots",
    )  # fmt: skip


CELL = """
from pathlib import Path
from ltcam import files
files.NOTEBOOKS = Path({!r})
from ltcam import paper
study = paper.open(profile, data)
paper.make("table1", study)
"""


def one_notebook(folder):
    """A series of one notebook, which makes a table."""
    few = {"deltas": [20], "varied": ["LTGrad-CAM"], "protocols": []}
    notebooks = tiny.profile(folder, "voc2012", **few)
    parameters = nbformat.v4.new_code_cell('profile = ""\ndata = ""', metadata={"tags": ["parameters"]}, id="parameters")
    cells = [parameters, nbformat.v4.new_code_cell(CELL.format(str(folder)), id="table")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), notebooks / "02_counts.ipynb")
    return notebooks


def test_reproduce(checkpoint, fault, tmp_path, monkeypatch):
    """One notebook with its kernel, which is killed too or, every other time, left to see that it is alone."""
    notebooks, before = one_notebook(tmp_path / "notebooks"), tmp_path / "before"
    seen = fault("kill -9 of `ltcam reproduce`")
    monkeypatch.setattr(files, "NOTEBOOKS", notebooks)
    monkeypatch.setenv("LTCAM_OUTPUT", str(before))
    shutil.copytree(checkpoint.parent, files.runs("tiny", "voc2012"))
    Study("tiny", "voc2012").train()
    monkeypatch.setenv("LTCAM_OUTPUT", str(tmp_path / "whole"))
    shutil.copytree(before, tmp_path / "whole")
    seconds, changes = kills.undisturbed(kills.series, (str(notebooks),), tmp_path / "whole")
    expected = contents(tmp_path / "whole", ".csv", ".gz")
    assert {Path(path).name for path in expected} >= {"counts.val.csv.gz", "table1.csv"}
    for number in range(kills.TIMES):
        out = shutil.copytree(before, tmp_path / f"killed{number}")
        monkeypatch.setenv("LTCAM_OUTPUT", str(out))
        when = kills.kill(number, kills.series, (str(notebooks),), out, seconds, changes)
        alone = kills.kernels(out)
        for kernel in alone if number % 2 == 0 else []:
            kernel.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(alone, timeout=60)
        assert not alive, when
        said = seen.attempt(lambda: reproduce.reproduce("tiny"), lambda out=out: contents(out, ".csv", ".gz") == expected)
        assert not said and contents(out, ".csv", ".gz") == expected, when
        assert not [path for path in out.rglob("*") if ".partial" in path.name or path.suffix == ".lock"], when


def test_a_kill_is_a_kill(voc, tmp_path):
    """Right before the first change nothing is there, and the process did not end by itself."""
    process, _ = kills._start(kills.train, (voc, str(tmp_path / "out")), tmp_path / "out", fatal=1)
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "out").exists()
    with pytest.raises(AssertionError, match="it always ended before the kill"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(kills, "SEED", 0)
        patch.setattr(kills, "STARTS", 3)
        kills.kill(0, kills.train, (voc, str(tmp_path / "out")), tmp_path / "nowhere", 1e4, 1)

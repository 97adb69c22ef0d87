"""kill -9 at a random moment, then the same command once more: what it leaves is what an undisturbed run leaves."""

import shutil
import signal
from pathlib import Path

import psutil
import pytest

from ltcam.data import fetch
from ltcam.experiment import training
from ltcam.experiment.study import Study, planned
from ltcam.paper import reproduce
from tests import lookalikes
from tests.faults import kills
from tests.faults.conftest import contents, run_of
from tests.paper.test_reproduce import RECIPE, tables_and_figures


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
    source = fetch.SOURCES["ksdd2"]
    killed(
        fault("kill -9 of `ltcam data get`"), kills.get, lambda out: (str(out), source),
        lambda out: fetch.get("ksdd2", out), contents, tmp_path / "roots",
    )  # fmt: skip


def test_reproduce(fault, tmp_path, monkeypatch):
    """One notebook, with its figures and its kernel, which is killed too or, every other time, left to see that it is alone."""
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.ksdd2(tmp_path / "data")))
    seen, before = fault("kill -9 of `ltcam reproduce`"), tmp_path / "before"
    monkeypatch.setenv("LTCAM_OUTPUT", str(before))
    Study.train("paper", "ksdd2", planned("ksdd2", RECIPE, [0]))
    monkeypatch.setenv("LTCAM_OUTPUT", str(tmp_path / "whole"))
    shutil.copytree(before, tmp_path / "whole")
    seconds, changes = kills.undisturbed(kills.layer_cams, (RECIPE,), tmp_path / "whole")
    expected = tables_and_figures(tmp_path / "whole")
    assert {Path(path).name for path in expected} >= {"counts.csv.gz", "table1.csv", "fig1.png"}
    for number in range(kills.TIMES):
        out = shutil.copytree(before, tmp_path / f"killed{number}")
        monkeypatch.setenv("LTCAM_OUTPUT", str(out))
        when = kills.kill(number, kills.layer_cams, (RECIPE,), out, seconds, changes)
        alone = kills.kernels(out)
        for kernel in alone if number % 2 == 0 else []:
            kernel.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(alone, timeout=60)
        assert not alive, when
        said = seen.attempt(
            lambda: reproduce.reproduce("paper", only="02", data="ksdd2", recipe=RECIPE, seeds=[0]),
            lambda out=out: tables_and_figures(out) == expected,
        )
        assert not said and tables_and_figures(out) == expected, when
        assert not [path for path in out.rglob("*") if ".partial" in path.name or path.suffix == ".lock"], when


def test_a_kill_is_a_kill(voc, tmp_path):
    """Right before the first change nothing is there, and the process did not end by itself."""
    process, _ = kills._start(kills.train, (voc, str(tmp_path / "out")), tmp_path / "out", fatal=1)
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "out").exists()
    with pytest.raises(AssertionError, match="it always ended before the kill"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(kills, "SEED", 0)
        kills.kill(0, kills.train, (voc, str(tmp_path / "out")), tmp_path / "nowhere", 1e4, 1)

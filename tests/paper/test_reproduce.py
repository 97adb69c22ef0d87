"""The runner. The `paper` profile runs end to end on look-alikes of its data sets with a tiny model: what readers with the
full data will run has run. Killed or interrupted in the middle, it goes on to the same tables and figures."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import psutil
import pytest
from nbclient.exceptions import DeadKernelError

from ltcam import files
from ltcam.data import DataError
from ltcam.experiment.configs import FLOATS, Protocol, counted
from ltcam.paper import pictures, reproduce, run
from ltcam.paper import tables as paper
from tests import lookalikes
from tests.experiment.test_training import TINY

RECIPE = {**TINY, "size": [96, 48], "epochs": 1}  # not square, as some data sets are
SERIES = [path.stem for path in sorted(files.NOTEBOOKS.glob("[0-9]*.ipynb")) if '"profile = ' in path.read_text()]
BEFORE = SERIES[: SERIES.index("02_layer_cams")]
ASKED = reproduce.profile


def shortened(name):
    """A profile that varies one row at two deltas, so that its measurements and their intervals are few."""
    return [run if name == "demo" else {**run, "deltas": [0, 20], "varied": ["LTGrad-CAM"]} for run in ASKED(name)]


def tables_and_figures(folder):
    kinds = (".csv", ".gz", ".png", ".pdf")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.suffix in kinds}


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "ltcam.paper.reproduce"]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(reproduce, "profile", shortened)


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    """A data root, the output of an undisturbed run, what it said, and its output when notebook 02 of VOC began."""
    root = tmp_path_factory.mktemp("undisturbed")
    data, output, middle = lookalikes.ksdd2(lookalikes.voc(root / "data")), root / "output", root / "middle"
    lines, log, execute = [], logging.Logger("series", logging.INFO), reproduce._execute
    log.addFilter(lambda record: lines.append(record.getMessage()))

    def copying(notebook, parameters, target):
        if target.name == "02_layer_cams.voc2012.ipynb":
            shutil.copytree(output, middle)
        execute(notebook, parameters, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTCAM_DATA", str(data))
        patch.setenv("LTCAM_OUTPUT", str(output))
        patch.setattr(reproduce, "_execute", copying)
        patch.setattr(reproduce, "log", log)
        patch.setattr(reproduce, "profile", shortened)
        done = reproduce.reproduce("paper", recipe=RECIPE, seeds=[0])
    return data, output, middle, lines, done


@pytest.fixture
def undisturbed(looks, monkeypatch, tmp_path):
    """A copy of the output of the undisturbed run, to run in."""
    monkeypatch.setenv("LTCAM_DATA", str(looks[0]))
    monkeypatch.setenv("LTCAM_OUTPUT", str(tmp_path))
    return shutil.copytree(looks[1], tmp_path, dirs_exist_ok=True)


def test_one_pass_measures_what_the_series_reads(undisturbed, looks):
    """The first notebook that scores the held-out part measured all; none of those after it wrote its counts again."""
    folder, asked = (
        looks[1] / "results" / "paper" / "voc2012",
        next(r for r in reproduce.profile("paper") if r["data"] == "voc2012"),
    )
    series = {name: asked[name] for name in ("deltas", "varied", "protocols")}
    for role, place in {"test": folder / "seed0", "train": folder / "seed0" / "train"}.items():
        there = counted(pd.read_csv(place / "counts.csv.gz", dtype=FLOATS))
        assert set(there) == set(run.wanted("voc2012", role, Protocol(), **series)[""][0])
    assert (folder / "seed0" / "counts.csv.gz").stat().st_mtime < (folder / "table1.csv").stat().st_mtime


def test_the_paper_profile_end_to_end(undisturbed, looks):
    _, output, _, lines, done = looks
    names = [f"{n}.{d}.ipynb" for d in ("ksdd2", "voc2012") for n in SERIES]
    assert [path.name for path in done] == names
    steps = [f"[{i}/{len(names)}] {name.split('.')[0]} {name.split('.')[1]}" for i, name in enumerate(names, 1)]
    assert [line.split(":")[0] for line in lines] == steps and all(line.endswith(" s") for line in lines)
    for path in done:
        assert str(files.ROOT) not in path.read_text() and str(output) not in path.read_text()
        cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
        assert not any(output.get("name") == "stderr" for cell in cells for output in cell.outputs)
        given = nbformat.read(path, 4).metadata["papermill"]["parameters"].get("series")
        assert given is None or given["ablated"] == (1 if ".voc2012." in path.name else None)
        again = nbformat.read(path, 4)
        pictures.shrink(again)
        assert again == nbformat.read(path, 4)  # its pictures are coarse
    for name, table in (("voc2012", 3), ("ksdd2", 4)):
        results, figures = files.results("paper", name), files.figures("paper", name)
        assert pd.read_csv(results / f"table{table}.csv")["row"].tolist() == list(paper.SEVEN)
        assert pd.read_csv(results / "table1.csv")["row"].tolist() == list(paper.TABLES[1])
        record = json.loads((results / f"table{table}.json").read_text())
        assert record["images"] == {"ksdd2": {"part": 8, "scored": 4}, "voc2012": {"part": 6, "scored": 6}}[name]
        assert record["recipe"]["seed"] == 0 and {"commit", "versions", "device", "source", "fingerprint"} <= record.keys()
        assert pd.read_csv(results / "data.csv")["class"].iloc[-1] == "all"
        for figure in ("samples", "areas", "fig1", f"fig{table - 1}"):
            assert (figures / f"{figure}.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(undisturbed.rglob("*partial*"))


def test_unchanged_notebooks_are_skipped_and_forced_ones_leave_the_same_bytes(undisturbed, caplog):
    caplog.set_level(logging.INFO)
    before, inside = tables_and_figures(undisturbed), {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.is_file()}
    reproduce.reproduce("paper", recipe=RECIPE, seeds=[0])
    assert len(said(caplog)) == 2 * len(SERIES) and all(line.endswith(": unchanged, skipped") for line in said(caplog))
    assert {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.is_file()} == inside
    reproduce.reproduce("paper", data="ksdd2", only="04", recipe=RECIPE, force=True, seeds=[0])
    assert said(caplog)[-1].startswith("[1/1] 04_comparison ksdd2: ") and not said(caplog)[-1].endswith("skipped")
    assert tables_and_figures(undisturbed) == before


STALL = """
import os
import time
from pathlib import Path
from ltcam.experiment import provenance
from ltcam.data import Segmentation

folder, at = Path(os.environ["STALL_IN"]), os.environ["STALL_AT"]
get, save = Segmentation.__getitem__, provenance.save

def stall():
    (folder / "stalled").touch()
    time.sleep(600)

def stalling_get(self, index):
    return stall() if at == "journal" and list(folder.rglob("counts.*.partial.jsonl")) else get(self, index)

def stalling_save(table, path, *args, **kwargs):
    stall() if at == path.name else save(table, path, *args, **kwargs)

Segmentation.__getitem__, provenance.save = stalling_get, stalling_save
"""


def stop(folder, at, how):
    """Run the series of VOC until notebook 02 is `at`, then stop the runner, and for SIGKILL the kernel with it."""
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # also where a background job ignores it
    call = f"reproduce.reproduce('paper', data='voc2012', recipe={RECIPE}, seeds=[0])"
    code = f"{heard}; from tests.paper.test_reproduce import reproduce, shortened; reproduce.profile = shortened; {call}"
    runner = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "STALL_IN": str(folder), "STALL_AT": at}, cwd=files.ROOT,
        start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while runner.poll() is None and not (folder / "stalled").exists():
            time.sleep(0.1)
        assert runner.poll() is None, runner.stderr.read()
        (folder / "stalled").unlink()
        kernels = psutil.Process(runner.pid).children(recursive=True)  # in a session of their own
        for process in [runner, *kernels] if how == signal.SIGKILL else [runner]:
            process.send_signal(how)
        runner.wait(timeout=300)
        gone, alive = psutil.wait_procs(kernels, timeout=60)
        assert gone and not alive
    finally:
        runner.kill()
        runner.stderr.close()


def test_stopped_in_the_middle_of_notebook_02_it_goes_on_to_the_same_tables_and_figures(looks, tmp_path, monkeypatch, caplog):
    """Killed when the first batch is counted, then interrupted between the counts and the table."""
    data, whole, middle = looks[:3]
    output = shutil.copytree(middle, tmp_path / "output")
    folder = output / "results" / "paper" / "voc2012"
    startup = tmp_path / "ipython" / "profile_default" / "startup" / "stall.py"  # every kernel reads it
    startup.parent.mkdir(parents=True)
    startup.write_text(STALL)
    monkeypatch.setenv("LTCAM_DATA", str(data))
    monkeypatch.setenv("LTCAM_OUTPUT", str(output))
    counts = folder / "seed0" / "counts.csv.gz"
    with monkeypatch.context() as stalling:
        stalling.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
        stop(folder, "journal", signal.SIGKILL)
        assert list(folder.rglob("counts.*.partial.jsonl")) and not counts.exists()
        stop(folder, "table1.csv", signal.SIGINT)
        assert counts.exists() and not (folder / "table1.csv").exists()
        assert not list(output.rglob("*partial*"))
    assert not (output / "results" / "paper" / "notebooks" / "02_layer_cams.voc2012.ipynb").exists()
    caplog.set_level(logging.INFO)
    reproduce.reproduce("paper", data="voc2012", recipe=RECIPE, seeds=[0])
    assert [line.endswith(" voc2012: unchanged, skipped") for line in said(caplog)] == [name in BEFORE for name in SERIES]
    assert tables_and_figures(output) == tables_and_figures(whole)


@pytest.fixture
def toys(output, monkeypatch):
    """Three notebooks, one of them without a profile, and a kernel that writes a table and the cells' source."""
    for name, source in (("00_a", "profile = 'demo'"), ("01_b", "data = 'demo'"), ("03_c", "profile = 'demo'")):
        cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
        (output / "notebooks").mkdir(exist_ok=True)
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), output / "notebooks" / f"{name}.ipynb")
    shutil.copytree(files.NOTEBOOKS / "profiles", output / "notebooks" / "profiles")
    ran = []

    def execute(notebook, parameters, target):
        ran.append(notebook.stem)
        time.sleep(0.02)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(parameters))
        (files.results("demo", "demo") / f"{notebook.stem}.csv").write_text("a table")

    monkeypatch.setattr(files, "NOTEBOOKS", output / "notebooks")
    monkeypatch.setattr(reproduce, "_execute", execute)

    def run(**options):
        ran.clear()
        reproduce.reproduce("demo", **options)
        return ran.copy()

    assert run() == ["00_a", "01_b", "03_c"] and run() == []
    return run


def test_what_runs_again(toys, output):
    assert toys(force=True) == ["00_a", "01_b", "03_c"]
    assert toys(start="01", force=True) == ["01_b", "03_c"] and toys() == []
    assert toys(only="01", force=True) == ["01_b"] and toys() == ["03_c"]  # which reads what that wrote
    (output / "results" / "demo" / "notebooks" / "03_c.demo.ipynb").unlink()
    assert toys() == ["03_c"]
    (files.results("demo", "demo") / "01_b.csv").write_text("another table")
    assert toys() == ["01_b", "03_c"]
    notebook = nbformat.read(output / "notebooks" / "01_b.ipynb", 4)
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text="said")]
    nbformat.write(notebook, output / "notebooks" / "01_b.ipynb")
    assert toys() == []
    notebook.cells.append(nbformat.v4.new_markdown_cell("A word."))
    nbformat.write(notebook, output / "notebooks" / "01_b.ipynb")
    assert toys() == ["01_b", "03_c"]
    yaml = output / "notebooks" / "profiles" / "demo.demo.yaml"
    yaml.write_text(yaml.read_text() + "data: demo\n")
    assert toys() == []


def test_a_changed_parameter_runs_what_takes_it(toys, output):
    notebook = output / "notebooks" / "01_b.ipynb"
    notebook.write_text(notebook.read_text().replace("data = 'demo'", "recipe = {}"))
    assert toys() == ["01_b", "03_c"] and toys() == []
    assert toys(recipe={"epochs": 3}) == ["01_b", "03_c"]


def test_a_failing_notebook_keeps_the_good_copy_and_is_named(looks, monkeypatch, output):
    monkeypatch.setenv("LTCAM_DATA", str(looks[0]))
    good = files.results("paper") / "notebooks" / "02_layer_cams.ksdd2.ipynb"
    good.parent.mkdir(parents=True)
    good.write_text("good")
    with pytest.raises(
        RuntimeError,
        match=r"02_layer_cams.ipynb failed in cell \d+: MissingError: .*trainings.csv is missing: run .*failed.ipynb",
    ):
        reproduce.reproduce("paper", only="02", data="ksdd2", recipe=RECIPE)
    assert good.read_text() == "good" and good.with_name("02_layer_cams.ksdd2.failed.ipynb").is_file()


def test_a_dead_kernel_is_named_too(output, monkeypatch):
    def die(notebook, temporary, *args, **kwargs):
        (output / temporary).write_text("half")
        raise DeadKernelError("Kernel died")

    monkeypatch.setattr(reproduce.papermill, "execute_notebook", die)
    target = output / "results" / "04.demo.ipynb"
    with pytest.raises(RuntimeError, match=r"04_comparison.ipynb: its kernel died, .* See .*04.demo.failed.ipynb"):
        reproduce._execute(files.NOTEBOOKS / "04_comparison.ipynb", {}, target)
    assert target.with_name("04.demo.failed.ipynb").read_text() == "half" and not target.exists()


def test_missing_data_are_all_named_before_anything_runs(tmp_path, monkeypatch, output):
    monkeypatch.setenv("LTCAM_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError) as caught:
        reproduce.reproduce("paper")
    ksdd2, voc = str(caught.value).splitlines()
    assert ksdd2.startswith("KSDD2's part 'train' is not at ") and ksdd2.endswith("; or fetch it: ltcam data get ksdd2")
    assert voc.startswith("PASCAL VOC 2012 is not at ") and voc.endswith("; or fetch it: ltcam data get voc2012")
    assert not list(output.iterdir())


def test_a_set_that_is_missing_is_passed_over_unless_it_was_named(toys, tmp_path, monkeypatch, output, caplog):
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.ksdd2(tmp_path / "data")))
    files.results("paper", "ksdd2").mkdir(parents=True)
    files.results("demo", "demo").mkdir(parents=True, exist_ok=True)
    done = reproduce.reproduce("paper")
    assert [path.name for path in done] == ["00_a.ksdd2.ipynb", "03_c.ksdd2.ipynb"]
    (line,) = [message for message in said(caplog) if message.startswith("skipped")]
    assert line.startswith("skipped: PASCAL VOC 2012 is not at ") and line.endswith("fetch it: ltcam data get voc2012")
    with pytest.raises(DataError, match=r"PASCAL VOC 2012 is not at .* ltcam data get voc2012"):
        reproduce.reproduce("paper", data="voc2012")


def test_unknown_profiles_and_empty_selections():
    with pytest.raises(ValueError, match=r"profile 'full' is unknown: expected one of \['demo', 'paper', 'real'\]"):
        reproduce.profile("full")
    with pytest.raises(ValueError, match="nothing to run: profile 'demo' has no data set 'ksdd2'"):
        reproduce.reproduce("demo", data="ksdd2")
    with pytest.raises(ValueError, match="no notebook from '04' on starts with '02'"):
        reproduce.reproduce("demo", only="02", start="04")

"""The runner, on a series of two short notebooks: what runs again, what a failure leaves, what is said where parts are gone.

The notebooks are executed in this process, but for one test with a kernel. `make nbval` executes the series itself on the demo.
"""

import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from typer.testing import CliRunner

from ltcam import files
from ltcam.__main__ import app
from ltcam.data import DataError
from ltcam.errors import InputError, UnavailableError
from ltcam.experiment.study import Study
from ltcam.paper import reproduce
from ltcam.paper.reproduce import reproduce as run
from tests import lookalikes

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
FIRST = 'profile = "demo"\ndata = "demo"'
TABLE = "from pathlib import Path\nfrom ltcam import files\n(files.results(profile, data) / '{}.csv').write_text('a table')"


def write(path, *cells):
    """A notebook of these cells; the first has the parameters."""
    made = [nbformat.v4.new_code_cell(source, id=f"c{n}") for n, source in enumerate(cells)]
    made[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=KERNEL), path)


def here(ran):
    """papermill's `execute_notebook` without a kernel."""

    def execute(source, target, parameters, **_):
        notebook, known = nbformat.read(source, 4), {"display": print}  # as IPython has it
        ran.append(Path(source).stem)
        time.sleep(0.02)  # a file is newer than the start by the clock of the file system
        for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
            try:
                exec(cell.source, known)
            except Exception as error:
                Path(target).write_text("half")
                raise PapermillExecutionError(number - 1, number, cell.source, type(error).__name__, str(error), []) from error
            known |= parameters if number == 1 else {}
            cell.execution_count = number
            cell.outputs = [nbformat.v4.new_output("stream", name=name, text=name) for name in ("stdout", "stderr")]
        notebook.metadata["papermill"] = {"parameters": dict(parameters), "input_path": str(source), "output_path": str(target)}
        nbformat.write(notebook, target)
        return notebook

    return execute


@pytest.fixture
def toys(study, monkeypatch):
    """A function that runs a series of two notebooks for the study of profile "toy", and returns which ran. It has run once."""
    ran, whole = [], []
    monkeypatch.setattr(reproduce.papermill, "execute_notebook", here(ran))
    monkeypatch.setattr(reproduce, "whole", lambda both: whole.extend((own.loss, *ran) for own in both))
    for name in ("01_a", "02_b"):
        write(files.NOTEBOOKS / f"{name}.ipynb", FIRST, TABLE.format(name))

    def series(**options):
        ran.clear()
        whole.clear()
        run("toy", **options)
        return ran.copy()

    assert series() == ["01_a", "02_b"] and series() == []
    series.study, series.copies, series.whole = study, files.results("toy") / "notebooks", whole
    return series


def edit(name, change):
    path = files.NOTEBOOKS / f"{name}.ipynb"
    notebook = nbformat.read(path, 4)
    change(notebook.cells)
    nbformat.write(notebook, path)


def test_a_copy_says_what_made_it_and_nothing_of_the_machine(toys):
    copy = nbformat.read(toys.copies / "02_b.voc2012.ipynb", 4)
    assert copy.metadata["papermill"]["parameters"] == {"profile": "toy", "data": "voc2012"}
    assert copy.metadata["papermill"]["input_path"] == "02_b.ipynb"
    assert (
        list(copy.metadata["ltcam"]["left"]) == ["results/toy/voc2012/02_b.csv"] and len(copy.metadata["ltcam"]["digest"]) == 64
    )
    assert [output.name for cell in copy.cells for output in cell.outputs] == ["stdout", "stdout"]
    assert str(files.NOTEBOOKS) not in (toys.copies / "02_b.voc2012.ipynb").read_text()


def test_what_changed_runs_again_and_what_follows_too(toys, caplog):
    caplog.set_level(logging.INFO, "ltcam.paper.reproduce")
    assert toys(force=True) == ["01_a", "02_b"]
    assert toys(only="01", force=True) == ["01_a"] and toys(start="02", force=True) == ["02_b"] and toys() == []
    edit("02_b", lambda cells: cells.append(nbformat.v4.new_code_cell("1 + 1")))
    assert toys() == ["02_b"]
    edit("01_a", lambda cells: cells.append(nbformat.v4.new_markdown_cell("A word.")))
    assert toys() == ["01_a", "02_b"]
    edit("01_a", lambda cells: cells[1].outputs.append(nbformat.v4.new_output("stream", text="said")))
    assert toys() == []  # outputs are not read
    (toys.study.out / "01_a.csv").write_text("another table")
    assert toys() == ["01_a", "02_b"]
    (toys.study.out / "02_b.csv").unlink()
    assert toys() == ["02_b"]
    (toys.copies / "02_b.voc2012.ipynb").write_text("cut o")
    assert toys() == ["02_b"]
    profile = files.NOTEBOOKS / "profiles" / "toy.voc2012.yaml"
    profile.write_text(profile.read_text() + "pictures: 4\n")
    assert toys() == ["01_a", "02_b"] and toys() == []
    caplog.clear()
    assert toys(seeds=[1, 0]) == ["01_a", "02_b"]
    toys(seeds=[1, 0], only="02")
    assert caplog.messages[-1].startswith("[1/1] 02_b voc2012: ")


def test_all_tables_of_both_settings_are_made_before_the_last_notebook(toys):
    """A run that is killed meanwhile goes on there. One notebook alone makes its own."""
    toys(force=True)
    assert toys.whole == []  # one setting: each notebook makes its own
    profile = files.NOTEBOOKS / "profiles" / "toy.voc2012.yaml"
    profile.write_text(profile.read_text() + "softmax: {seeds: [0]}\n")
    toys()
    assert toys.whole == [("sigmoid", "01_a"), ("softmax", "01_a")]
    assert toys() == toys.whole == [] and toys(only="02", force=True) == ["02_b"] and toys.whole == []


def test_another_checkpoint_or_a_missing_one_runs_all_again(toys):
    record = toys.study.runs / "seed1" / "run.json"
    before = record.read_text()
    record.write_text(json.dumps(json.loads(before) | {"checkpoint": "f" * 64}))
    assert toys() == ["01_a", "02_b"]
    record.write_text(before)
    assert toys() == []
    (toys.study.runs / "seed1" / "checkpoint.pt").unlink()
    assert toys() == ["01_a", "02_b"]


def test_a_run_that_trains_is_up_to_date_afterwards(toys):
    """The checkpoints that notebook 01 leaves are no new input of the next run."""
    shutil.move(toys.study.out, toys.study.out.with_name("kept"))
    toys.study.out.mkdir()
    back = f"\nimport shutil; shutil.copytree({str(toys.study.out.with_name('kept'))!r}, files.results(profile, data), "
    edit("01_a", lambda cells: cells[1].update(source=cells[1].source + back + "dirs_exist_ok=True)"))
    assert toys() == ["01_a", "02_b"] and toys() == []


def test_the_code_the_versions_and_the_data_are_inputs(toys, tmp_path, monkeypatch):
    before = reproduce.inputs(toys.study)
    assert {"python", "torch", "numpy", "matplotlib"} <= before["versions"].keys() and before == json.loads(json.dumps(before))
    assert list(before["data"]) == ["train", "val"] and "PASCAL VOC 2012 subset" in before["shown"]
    for name in ("a.py", "b/c.py"):
        (tmp_path / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / name).write_text("1")
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "package")
    one = reproduce.inputs(toys.study)
    (tmp_path / "package" / "b" / "c.py").write_text("2")
    two = reproduce.inputs(toys.study)
    assert {key for key in one if one[key] != two[key]} == {"files"}
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.voc(tmp_path / "other")))
    image = tmp_path / "other" / "VOCdevkit" / "VOC2012" / "JPEGImages"
    (image / "2007_000001.jpg").write_bytes((image / "2007_000002.jpg").read_bytes())
    assert {key for key, value in reproduce.inputs(toys.study).items() if value != two[key]} == {"data"}
    (image / "2007_000001.jpg").unlink()
    with pytest.raises(DataError, match=r"2007_000001\.jpg"):
        reproduce.inputs(toys.study)


def test_leftovers_are_no_notebooks_of_the_series(toys):
    for name in ("01_a-Copy1", "01_a.nbconvert", "x.nbconvert", "1_a", "notes"):
        write(files.NOTEBOOKS / f"{name}.ipynb", FIRST, "raise ValueError")
    assert toys(force=True) == ["01_a", "02_b"]


def test_a_notebook_without_a_profile_is_of_the_demo_alone(toys):
    write(files.NOTEBOOKS / "03_c.ipynb", 'data = "demo"')
    assert toys() == []


def test_a_failing_notebook_is_named_and_keeps_the_good_copy(toys):
    good = (toys.copies / "02_b.voc2012.ipynb").read_bytes()
    edit("02_b", lambda cells: cells[1].update(source="raise KeyError('why')"))
    with pytest.raises(
        UnavailableError, match=r"02_b\.ipynb failed in cell 2: KeyError: 'why'. See .*02_b\.voc2012\.failed\.ipynb"
    ):
        toys()
    failed = toys.copies / "02_b.voc2012.failed.ipynb"
    assert (toys.copies / "02_b.voc2012.ipynb").read_bytes() == good and failed.read_text() == "half"
    edit("02_b", lambda cells: cells[1].update(source="1"))
    assert toys() == ["02_b"] and not failed.exists() and not list(toys.copies.glob("*.partial*"))


def test_a_dead_kernel_is_named_too(toys, monkeypatch):
    def die(source, target, *_, **__):
        Path(target).write_text("half")
        raise DeadKernelError("Kernel died")

    monkeypatch.setattr(reproduce.papermill, "execute_notebook", die)
    with pytest.raises(
        UnavailableError, match=r"01_a\.ipynb: its kernel died, as happens .* See .*01_a\.voc2012\.failed\.ipynb"
    ):
        toys(force=True)


def test_two_runs_at_once_are_refused(toys):
    with (
        reproduce.alone(toys.study.out, ".run.lock"),
        pytest.raises(UnavailableError, match=rf"is being written by process {os.getpid()} on .*: wait for it, stop it"),
    ):
        toys()


def test_without_checkpoints_the_tables_are_made_of_counts(toys, monkeypatch, caplog):
    """Also where the data are gone. It says what is not redone."""
    for checkpoint in toys.study.runs.rglob("*.pt"):
        checkpoint.unlink()
    expected = (toys.study.out / "table3.csv").read_bytes()
    (toys.study.out / "table3.csv").write_text("wrong")
    (toys.study.out / "signs.csv.gz").unlink()
    monkeypatch.setenv("LTCAM_DATA", str(toys.study.out / "nowhere"))
    assert toys() == [] and (toys.study.out / "table3.csv").read_bytes() == expected
    *reasons, said = [record.getMessage() for record in caplog.records if record.name == "ltcam.paper.reproduce"]
    assert reasons == [f"signs.csv.gz: {toys.study.out / 'signs.csv.gz'} is missing: run ltcam reproduce first"]
    assert f"no checkpoint is in {toys.study.runs}, so 24 tables were made from kept counts" in said
    assert "figures and notebooks stay as they are" in said and "reproduce --profile toy --data voc2012 --force" in said
    assert not (toys.study.out / "signs.csv.gz").exists()


def test_a_kept_study_runs_its_notebooks_and_measures_nothing(toys, monkeypatch):
    """So pictures and pages follow where the checkpoints of the counts are gone."""
    for checkpoint in toys.study.runs.rglob("*.pt"):
        checkpoint.unlink()
    monkeypatch.setenv("LTCAM_KEPT", "1")
    profile = files.NOTEBOOKS / "profiles" / "toy.voc2012.yaml"
    profile.write_text(profile.read_text() + "softmax: {seeds: [0]}\n")  # which would be trained, and all its tables made
    edit("01_a", lambda cells: cells.append(nbformat.v4.new_markdown_cell("A word.")))
    assert toys() == ["01_a", "02_b"] and toys.whole == [] and toys() == []


def test_missing_data_are_all_named_before_anything_runs(tmp_path, monkeypatch, output):
    monkeypatch.setenv("LTCAM_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError) as caught:
        run("paper")
    ksdd2, voc = str(caught.value).splitlines()
    assert ksdd2.startswith("KSDD2 is not at ") or ksdd2.startswith("KSDD2's part")
    assert ksdd2.endswith("; or fetch it: ltcam data get ksdd2")
    assert voc.startswith("PASCAL VOC 2012 is not at ") and voc.endswith("; or fetch it: ltcam data get voc2012")
    assert not list(output.iterdir())


def test_a_set_that_is_missing_is_passed_over_unless_it_was_named(toys, caplog):
    settings = (
        (files.NOTEBOOKS / "profiles" / "toy.voc2012.yaml").read_text().replace("voc2012", "ksdd2").replace("val", "test")
    )
    (files.NOTEBOOKS / "profiles" / "toy.ksdd2.yaml").write_text(settings)
    assert toys() == []
    (line,) = [message for message in caplog.messages if message.startswith("skipped")]
    assert line.startswith("skipped: KSDD2") and line.endswith("fetch it: ltcam data get ksdd2")
    with pytest.raises(DataError, match=r"ltcam data get ksdd2"):
        toys(data="ksdd2")


def test_a_set_of_which_images_are_missing_is_refused_unless_one_asks(toys, caplog):
    """Subsets of VOC 2012 are made for tests; one of KSDD2 is a copy that was cut off, and each of its results says so."""
    lookalikes.ksdd2(files.data_root())
    settings = (files.NOTEBOOKS / "profiles" / "toy.voc2012.yaml").read_text()
    settings = settings.replace("voc2012", "ksdd2").replace("val", "test")
    (files.NOTEBOOKS / "profiles" / "toy.ksdd2.yaml").write_text(settings)
    said = "^KSDD2 subset: images of the whole set are missing: `ltcam data check ksdd2` says how many; fetch them"
    with pytest.raises(DataError, match=said):
        toys(data="ksdd2")
    assert toys() == ["01_a", "02_b"] and "skipped: KSDD2 subset" in caplog.text  # the other set alone
    for words in (["train", "--data", "ksdd2", "--profile", "toy"], ["reproduce", "--profile", "toy", "--data", "ksdd2"]):
        with pytest.raises(DataError, match=said):
            CliRunner().invoke(app, words, catch_exceptions=False)
    assert not Study("toy", "ksdd2").runs.exists()
    assert len(toys(data="ksdd2", subset=True)) == 2


def test_unknown_profiles_and_empty_selections(output):
    with pytest.raises(InputError, match=r"profile 'full' is unknown: expected one of \['demo', 'paper', 'real'\]"):
        run("full")
    with pytest.raises(InputError, match="nothing to run: profile 'demo' has no data set 'ksdd2'"):
        run("demo", data="ksdd2")
    with pytest.raises(InputError, match="no notebook from '04' on starts with '02'"):
        run("demo", only="02", start="04")
    with pytest.raises(InputError, match="profile 'demo' has no data set 'ksdd2': expected one of"):
        Study("demo", "ksdd2")


def test_this_interpreter_runs_and_braces_are_part_of_a_path(foreign, tmp_path, monkeypatch):
    """A kernel of another installation has the name that the notebooks ask for."""
    checkout, output = tmp_path / "a {checkout} é", tmp_path / "an {output} {0} é"
    (checkout / "profiles").mkdir(parents=True)
    (checkout / "profiles" / "demo.demo.yaml").write_text("{profile: demo, data: demo, recipe: {}}")
    write(checkout / "00_a.ipynb", "profile = 'demo'", "import sys; print(sys.executable, profile)")
    monkeypatch.setattr(files, "NOTEBOOKS", checkout)
    monkeypatch.setenv("LTCAM_OUTPUT", str(output))
    (done,) = run("demo")
    assert done == output / "results" / "demo" / "notebooks" / "00_a.demo.ipynb"
    assert nbformat.read(done, 4).cells[-1].outputs[0].text == f"{sys.executable} demo\n"


KERNELS = {  # what hinders a kernel, and what is said of it
    "a folder for its files": ("tempfile.tempdir", r"cannot start \(.*Not a directory.*\): make sure that ipykernel is"),
    "a program": (["/nowhere/python"], r"cannot start \(.*No such file.*\): make sure that ipykernel is installed"),
    "the right to run it": (["/"], r"cannot start \(.*Permission denied.*\): make sure that ipykernel is installed"),
    "ipykernel": (None, r"cannot start \(.*No such kernel.*\): make sure that ipykernel is installed and TMPDIR"),
    "a life": (["/bin/false"], r"cannot start \(Kernel died before replying to kernel_info\): make sure"),
}


@pytest.mark.parametrize("lacking", KERNELS)
def test_a_kernel_that_cannot_start_is_told_as_such(lacking, tmp_path, monkeypatch):
    what, said = KERNELS[lacking]
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    (tmp_path / "notebooks" / "profiles" / "demo.demo.yaml").write_text("{profile: demo, data: demo, recipe: {}}")
    write(tmp_path / "notebooks" / "00_a.ipynb", "profile = 'demo'")
    monkeypatch.setattr(files, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setenv("LTCAM_OUTPUT", str(tmp_path / "out"))
    if isinstance(what, str):
        (tmp_path / "file").touch()
        monkeypatch.setattr(what, str(tmp_path / "file" / "below"))
    elif what:
        monkeypatch.setattr("ipykernel.kernelspec.get_kernel_dict", lambda *_: {"argv": what, "language": "python"})
    else:
        monkeypatch.setitem(sys.modules, "ipykernel.kernelspec", None)
    with pytest.raises(UnavailableError, match=rf"^00_a\.ipynb: its kernel {said}") as caught:
        run("demo")
    assert "\n" not in str(caught.value) and "cannot be written" not in str(caught.value)


def test_a_file_behind_a_link_is_looked_at(toys, tmp_path):
    """A training may be a link to another disk."""
    (tmp_path / "elsewhere").mkdir()
    (toys.study.out / "seed9").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    where = "(files.results(profile, data) / 'seed9' / 'scores.csv')"
    edit("02_b", lambda cells: cells.append(nbformat.v4.new_code_cell(f"{where}.write_text('a table')")))
    assert toys() == ["02_b"] and toys() == []
    (tmp_path / "elsewhere" / "scores.csv").write_text("another")
    assert toys() == ["02_b"]


def test_the_kernel_has_none_of_the_users_surroundings(tmp_path, monkeypatch):
    """A backend without pictures, and a file that IPython runs at its start, would change the notebooks in silence."""
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("import pandas as pd; pd.set_option('display.max_rows', 2); users = True")
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    (tmp_path / "notebooks" / "profiles" / "demo.demo.yaml").write_text("{profile: demo, data: demo, recipe: {}}")
    drawn = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    write(tmp_path / "notebooks" / "00_a.ipynb", "profile = 'demo'", drawn, "print('users' in globals())")
    for variable, value in (("MPLBACKEND", "agg"), ("IPYTHONDIR", tmp_path / "ipython"), ("LTCAM_OUTPUT", tmp_path / "out")):
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setattr(files, "NOTEBOOKS", tmp_path / "notebooks")
    (done,) = run("demo")
    cells = nbformat.read(done, 4).cells
    assert any("image/png" in output.get("data", {}) for output in cells[-2].outputs)
    assert cells[-1].outputs[0].text == "False\n"


def test_the_series_runs_on_another_data_set_too(study, monkeypatch):
    """Every notebook that reads a profile, on photographs of two seeds, whose tables are made already."""
    for path in (files.ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"):
        shutil.copy(path, files.NOTEBOOKS)
    ran = []
    monkeypatch.setattr(reproduce.papermill, "execute_notebook", here(ran))
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: sys.modules["matplotlib.pyplot"].close("all"))
    before = {path.name: path.read_bytes() for path in study.out.glob("*.csv*")}
    run("toy")
    assert len(ran) >= 9 and {path.name: path.read_bytes() for path in study.out.glob("*.csv*")} == before
    assert len([*study.figures.glob("*.png")]) > 10

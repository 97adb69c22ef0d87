"""Which notebooks run again, and which do not."""

import json
import time

import pytest

from ltcam import files
from ltcam.data import DataError
from ltcam.experiment.study import planned
from ltcam.paper import steps
from tests import lookalikes

SERIES = ("01_a", "02_b", "03_c")


def record():
    return steps.Steps("toy", "demo", SERIES)


def current():
    return [name for name in SERIES if record().current(name, f"digest of {name}")]


def write(file, text):
    path = files.results("toy", "demo") / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def run(name, **files):
    with record().running(name, f"digest of {name}"):
        time.sleep(0.02)  # a file is newer than the record by the clock of the file system
        for file, text in files.items():
            write(f"{file}.csv", text)


@pytest.fixture
def done(output):
    """Each step leaves its table, and all of them the counts that grow."""
    for number, name in enumerate(SERIES, 1):
        run(name, **{f"table{number}": name, "counts": "." * number})
    assert current() == list(SERIES)
    return files.results("toy", "demo")


def test_the_record_names_files_and_what_they_hold(done, output):
    text = (done / "steps.json").read_text()
    assert list(json.loads(text)) == list(SERIES) and str(output) not in text
    files = [list(step["files"]) for step in json.loads(text).values()]
    assert files == [[f"results/toy/demo/{f}.csv" for f in ("counts", f"table{i}")] for i in (1, 2, 3)]


def test_another_digest_is_not_current(done):
    assert not record().current("02_b", "digest of something else")


@pytest.mark.parametrize("change", ["deleted", "changed"])
def test_a_file_that_is_not_as_it_was_left_is_noticed_by_the_step_that_wrote_it(done, change):
    (done / "table2.csv").unlink() if change == "deleted" else write("table2.csv", "by hand")
    assert current() == ["01_a", "03_c"]


def test_a_file_that_all_wrote_is_compared_with_what_the_last_one_left(done):
    write("counts.csv", "..")
    assert current() == []
    write("counts.csv", "...")
    assert current() == list(SERIES)


def test_a_step_that_runs_makes_later_ones_run_and_keeps_the_files_that_it_did_not_write_again(done):
    run("02_b", table2="new")
    assert current() == ["01_a", "02_b"]
    run("03_c", table3="new")
    assert current() == list(SERIES)
    (done / "counts.csv").unlink()
    assert current() == []


def test_what_a_step_wrote_before_it_was_cut_off_is_its_own(done):
    with pytest.raises(KeyboardInterrupt), record().running("02_b", "digest of 02_b"):
        time.sleep(0.02)
        write("counts.csv", "....")
        write("extra.csv", "half")
        raise KeyboardInterrupt
    assert current() == ["01_a"]
    run("02_b", table2="02_b")
    assert current() == ["01_a", "02_b"]
    (done / "extra.csv").unlink()
    assert current() == ["01_a"]


def test_a_step_that_was_cut_off_before_it_wrote_has_no_say(done):
    run("02_b", counts="new")
    with pytest.raises(KeyboardInterrupt), record().running("03_c", "digest of 03_c"):
        raise KeyboardInterrupt
    assert current() == ["01_a", "02_b"]


def test_a_renamed_step_is_forgotten(done):
    text = (done / "steps.json").read_text()
    (done / "steps.json").write_text(text.replace("02_b", "02_old"))
    assert current() == ["01_a", "03_c"]


def test_inputs_are_code_versions_values_and_the_data_there_are(tmp_path, monkeypatch):
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.ksdd2(tmp_path)))
    trainings = planned("ksdd2", {}, [0, 1])
    before = steps.inputs("paper", trainings)
    assert {"python", "torch", "numpy", "matplotlib"} <= before["versions"].keys()
    assert list(before["data"]) == ["KSDD2, train", "KSDD2, test"]
    assert steps.inputs("paper", trainings) == before == json.loads(json.dumps(before))
    assert steps.inputs("demo", trainings)["values"] != before["values"]  # with the demo's golden values
    folder = tmp_path / "KolektorSDD2" / "test"
    (folder / "10001.png").write_bytes((folder / "10003.png").read_bytes())
    after = steps.inputs("paper", trainings)
    assert {key for key in before if before[key] != after[key]} == {"data"}
    (folder / "10001_GT.png").unlink()
    with pytest.raises(DataError, match=r"10001_GT\.png"):
        steps.inputs("paper", trainings)
    lookalikes.voc(tmp_path)
    assert list(steps.inputs("demo", planned("demo", {}))["data"]) == [
        "PASCAL VOC 2012 subset, val"
    ]  # the other set is damaged


def test_the_code_is_every_module(tmp_path, monkeypatch):
    for name, text in (("a.py", "1"), ("b/c.py", "2")):
        (tmp_path / "ltcam" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ltcam" / name).write_text(text)
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "ltcam")
    before = steps.inputs("demo", planned("demo", {}))
    (tmp_path / "ltcam" / "b" / "c.py").write_text("3")
    after = steps.inputs("demo", planned("demo", {}))
    assert {key for key in before if before[key] != after[key]} == {"code"}

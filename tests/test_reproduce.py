"""The runner. The `paper` profile runs end to end on look-alikes of its data sets with a tiny model: what readers with the
full data will run has run."""

import json
import logging

import nbformat
import pandas as pd
import pytest

from ltcam import paper, paths, reproduce
from ltcam.datasets import DataError
from tests import lookalikes
from tests.test_training import TINY

RECIPE = {**TINY, "size": [64, 64], "epochs": 1}


@pytest.fixture
def data(tmp_path, monkeypatch):
    root = lookalikes.ksdd2(lookalikes.voc(tmp_path / "data"))
    monkeypatch.setenv("LTCAM_DATA", str(root))
    return root


def test_the_paper_profile_end_to_end(data, output, caplog):
    caplog.set_level(logging.INFO)
    done = reproduce.reproduce("paper", recipe=RECIPE)
    series = ("00_data", "01_train", "02_layer_cams", "04_comparison")
    names = [f"{n}.{d}.ipynb" for d in ("ksdd2", "voc2012") for n in series]
    assert [path.name for path in done] == names
    assert [r.message.split(":")[0] for r in caplog.records if r.name == "ltcam.reproduce"] == [
        f"[{i}/8] {name.split('.')[0]} {name.split('.')[1]}" for i, name in enumerate(names, 1)
    ]
    for path in done:
        assert str(paths.ROOT) not in path.read_text() and str(output) not in path.read_text()
        cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    for name, table in (("voc2012", 3), ("ksdd2", 4)):
        results, figures = paths.results("paper", name), paths.figures("paper", name)
        assert pd.read_csv(results / f"table{table}.csv")["row"].tolist() == list(paper.SEVEN)
        assert pd.read_csv(results / "table1.csv")["row"].tolist() == list(paper.TABLES[1])
        record = json.loads((results / f"table{table}.json").read_text())
        assert record["images"] == {"ksdd2": {"part": 8, "scored": 4}, "voc2012": {"part": 6, "scored": 6}}[name]
        assert record["recipe"]["seed"] == 0 and {"commit", "versions", "device", "source", "fingerprint"} <= record.keys()
        assert pd.read_csv(results / "data.csv")["class"].iloc[-1] == "all"
        for figure in ("samples", "areas", "fig1", f"fig{table - 1}"):
            assert (figures / f"{figure}.png").read_bytes()[:4] == b"\x89PNG" and (figures / f"{figure}.pdf").is_file()
    assert not list(output.rglob("*partial*"))
    before = {p: p.read_bytes() for p in output.rglob("*") if p.suffix in (".csv", ".gz", ".png", ".pdf")}
    reproduce.reproduce("paper", data="ksdd2", only="04", recipe=RECIPE)
    assert all(p.read_bytes() == content for p, content in before.items())


def test_a_failing_notebook_keeps_the_good_copy_and_is_named(data, output):
    good = paths.results("paper") / "notebooks" / "02_layer_cams.ksdd2.ipynb"
    good.parent.mkdir(parents=True)
    good.write_text("good")
    with pytest.raises(
        RuntimeError, match=r"02_layer_cams.ipynb failed in cell \d+: FileNotFoundError: no weights at .*failed.ipynb"
    ):
        reproduce.reproduce("paper", only="02", data="ksdd2", recipe=RECIPE)
    assert good.read_text() == "good" and good.with_name("02_layer_cams.ksdd2.failed.ipynb").is_file()


def test_missing_data_are_named_before_anything_runs(tmp_path, monkeypatch, output):
    monkeypatch.setenv("LTCAM_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="KSDD2's part 'train' is not at"):
        reproduce.reproduce("paper")
    assert not list(output.iterdir())


def test_unknown_profiles_and_empty_selections():
    with pytest.raises(ValueError, match=r"profile 'full' is unknown: expected one of \['demo', 'paper', 'real'\]"):
        reproduce.profile("full")
    with pytest.raises(ValueError, match="nothing to run: profile 'demo' has no data set 'ksdd2'"):
        reproduce.reproduce("demo", data="ksdd2")

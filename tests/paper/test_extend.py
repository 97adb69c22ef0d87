"""One of each is added on the fly, and works at once: a method, a reading of Eq. 9, a table, a data set, a claim."""

import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ltcam import data as datasets
from ltcam import explain, trace
from ltcam.data import Segmentation
from ltcam.data.base import Entry
from ltcam.engine import config as of_config
from ltcam.engine import methods
from ltcam.engine.config import Config
from ltcam.experiment.study import Study
from ltcam.paper import ablations, claims, registry, tables
from ltcam.paper.registry import RESULTS, Need, make, result
from tests.conftest import TINY, TOY


@pytest.fixture
def results(monkeypatch):
    """A registry that forgets what a test adds."""
    monkeypatch.setattr(registry, "RESULTS", dict(RESULTS))
    return registry.RESULTS


def test_a_method(study, results, monkeypatch):
    """Twice Grad-CAM's weights: another map, the same mask."""

    def double(activation, gradient):
        return 2 * methods.METHODS["gradcam"](activation, gradient)

    monkeypatch.setitem(methods.METHODS, "double", double)
    monkeypatch.setitem(methods.WEIGHTS, "double", lambda a, g: 2 * methods.WEIGHTS["gradcam"](a, g))
    assert Config.parse("double:S1-S5:20") == Config("double", "S1-S5", 20.0)
    traced = trace(study.trained.model, torch.rand(1, 3, 64, 64), 7)
    for delta in (None, 20.0):
        torch.testing.assert_close(explain(traced, "double", delta=delta), 2 * explain(traced, "gradcam", delta=delta))
    monkeypatch.setitem(tables.ROWS[1], "twice", Config("double", "S1-S5", 20.0))
    monkeypatch.setitem(tables.ROWS[1], "once", Config("gradcam", "S1-S5", 20.0))
    table = make("table1", study).set_index("row")
    assert table.loc["twice", "method"] == "double"
    assert table.loc["twice", "mIoU"] == pytest.approx(table.loc["once", "mIoU"], abs=0.5)  # of a pixel at the threshold


def test_a_reading_of_eq9(study, monkeypatch):
    monkeypatch.setitem(
        of_config.READINGS, "the largest half", lambda a, g, delta: g >= g.amax(dim=(1, 2, 3), keepdim=True) / 2
    )
    config = Config("gradcam", "S1-S5", 20.0, by="the largest half")
    assert Config.parse(str(config)) == config
    monkeypatch.setitem(ablations.EQ9, "the largest half", config)
    table = make("eq9", study).set_index("reading")
    assert 0 <= table.loc["the largest half", "value"] <= 100 and len(table) == 3 + len(of_config.READINGS)


def test_a_table(study, results):
    one = Config("hirescam", "S4-S5", 30.0)

    @result("HiResCAM alone", lambda study: [Need([one])], golden=("method", "mIoU"))
    def hires(study):
        """One row."""
        return registry.pd.DataFrame({"method": [one.method], "mIoU": study.counts([one]).iou().mean()})

    assert registry.names(study)[-1] == "hires" and make("hires", study)["method"][0] == "hirescam"
    assert (study.out / "hires.csv").is_file() and registry.check("hires", study).startswith("hires: 1 rows, ")
    assert make("hires", Study("toy", "voc2012", kept=True)).equals(make("hires", study))


def test_a_claim(study, monkeypatch):
    """One entry as in `claims.yaml`: its words, its place in the paper, and a margin. What it needs is measured."""
    entry = """{claim: S1 costs less than a point against S1, section: "3.2", quote: x, source: Table 1, low: -1,
                margins: {"one ": [hirescam:S1, hirescam:S1]}}"""
    monkeypatch.setattr(claims, "CLAIMS", [claims.Claim(**yaml.safe_load(entry))])
    (row,) = make("claims", study).to_dict("records")
    assert (row["verdict"], row["margin"], row["trainings"]) == ("holds", 1, "2 of 2")
    assert re.fullmatch(r"one (\d+\.\d\d) against \1 \(paper prints none\)", row["numbers"])


class Dots(Segmentation):
    """A dark dot in each image, left or right."""

    name, title, folder = "dots", "Dots", "dots"
    official, held_out, size, larger = {"train": 6, "test": 4}, "test", (64, 64), (96, 96)
    classes, compared, headline = ("defect",), (4,), "IoU"

    @classmethod
    def listed(cls, folder):
        entries = [Entry(path.stem, path, path.with_suffix(".png")) for path in sorted(folder.glob("*.jpg"))]
        return {"train": entries[:6], "test": entries[6:]}


def test_a_data_set(study, tmp_path, monkeypatch):
    folder = tmp_path / "data" / "dots"
    folder.mkdir(parents=True)
    for n in range(10):
        mask = np.zeros((40, 40), np.uint8)
        mask[10:20, 5 + 20 * (n % 2) : 15 + 20 * (n % 2)] = 255
        Image.fromarray(np.stack([200 - mask // 2] * 3, axis=2)).save(folder / f"{n}.jpg")
        Image.fromarray(mask).save(folder / f"{n}.png")
    monkeypatch.setenv("LTCAM_DATA", str(tmp_path / "data"))
    monkeypatch.setitem(datasets.SETS, "dots", Dots)
    settings = TOY | {"data": "dots", "seeds": [], "recipe": {**TINY, "epochs": 1}, "protocols": []}
    (tmp_path / "notebooks" / "profiles" / "toy.dots.yaml").write_text(yaml.safe_dump(settings))
    dots = Study("toy", "dots")
    dots.train()
    assert len(make("table4", dots)) == 7 and make("data", dots)["images"].tolist() == [6, 6, 4, 4]
    assert len(datasets.load("dots", "test").scored) == 4 and dots.title == "Dots" and "table4" in registry.names(dots)

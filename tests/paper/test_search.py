"""The search beyond the paper, on look-alike images: what is tried, on which images, and what an interruption leaves."""

import pandas as pd
import pytest

from ltcam.data.base import Segmentation
from ltcam.engine.refine import Refine
from ltcam.experiment import metrics, seed_scores
from ltcam.experiment.checkpoints import load_checkpoint
from ltcam.experiment.configs import Config, Protocol
from ltcam.experiment.evaluation import evaluate
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.training import train
from ltcam.paper import search
from tests import lookalikes
from tests.experiment.test_training import TINY
from tests.interrupts import at_call

MAPS = [Config("gradcam"), Config("layercam", "S1-S5", 0.0, normalize="tanh"), Config("hirescam", "S3-S5", None, fuse="prod")]
VIEWS = [Protocol(size=(96, 96)), Protocol(scales=(1.0, 1.5), flip=True)]


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    root = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTCAM_DATA", str(lookalikes.voc(root / "data")))
        made = {"fc": TINY, "gap": {**TINY, "hidden": None}}
        paths = [train(Recipe("voc2012", test="val", head=head, **fields), root / head) for head, fields in made.items()]
        yield [load_checkpoint(path) for path in paths]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(search, "maps", lambda: MAPS)
    for name, value in {"REFINES": ["S4-S5:8"], "VIEWS": VIEWS, "BEST": 2, "MORE": "train/6"}.items():
        monkeypatch.setattr(search, name, value)


def test_every_try_is_a_row_with_the_scores_of_its_protocol(heads, short, tmp_path, monkeypatch):
    opened = []
    load = Segmentation.mask
    monkeypatch.setattr(Segmentation, "mask", lambda data, index: opened.append(data.part) or load(data, index))
    table = search.search(heads, tmp_path)
    assert {part.split("/")[0] for part in opened} <= {"train"}  # nothing of the held-out part
    assert table["round"].drop_duplicates().tolist() == ["maps", "refine", "views", "head", "beside", "more"]
    assert (table["round"] == "maps").sum() == len(MAPS) and set(table["head"]) == {"fc", "gap"}
    assert not table.duplicated(["round", "head", "size", "scales", "flip", *metrics.of_config(table)]).any()
    tries = search._tries(table)
    for row, (head, protocol, config) in list(zip(table.to_dict("records"), tries, strict=True))[::3]:
        trained = heads[head == "gap"]
        assert trained.sha256.startswith(row["checkpoint"]) and len(row["checkpoint"]) == 12
        counts = evaluate(trained, row["part"], [config], tmp_path / "alone" / str(len(list(tmp_path.rglob("*")))), protocol)
        assert row["otsu"] == pytest.approx(metrics.scores(counts)["mIoU"][0], abs=0.02)  # a pixel at the threshold
        (tally,) = seed_scores.of_checkpoint(trained, row["part"], [config], protocol).values()
        assert (row["argmax"], row["t"]) == pytest.approx((tally.curve().max(), tally.curve().idxmax()))
    last = table[table["round"] == "more"]
    for score, (head, protocol, config) in search.chosen(table).items():
        row = last.loc[last[score].idxmax()]
        assert (head, config) == (row["head"], search._tries(last[last.index == row.name])[0][2])
        assert search._fields(protocol)["flip"] == row["flip"]
    assert set(search._tries(last)) == set(search._Log(tmp_path, {}).best("maps", "refine", "views", "head", "beside"))
    views = set(search._tries(table[table["round"] == "views"]))
    early = search._Log(tmp_path, {}).best("maps", "refine")
    assert views == {(head, view, config) for head, _, config in early for view in VIEWS}


def test_it_goes_on_where_it_stopped(heads, short, tmp_path, monkeypatch):
    whole = search.search(heads, tmp_path / "whole")
    calls, third = at_call(3, search._scored)
    monkeypatch.setattr(search, "_scored", third)
    with pytest.raises(KeyboardInterrupt):
        search.search(heads, tmp_path / "cut")
    search.search(heads, tmp_path / "cut")
    first, second = (pd.read_csv(tmp_path / name / "search.csv").drop(columns="cpu_seconds") for name in ("whole", "cut"))
    pd.testing.assert_frame_equal(first, second)
    before = len(calls)
    search.search(heads, tmp_path / "cut")
    assert len(calls) == before and len(whole) == len(second)


def test_what_lies_beside_a_refinement_differs_in_one_field():
    how = Refine.parse("S3-S5:28:4:2")
    found = [Refine.parse(text) for text in search.beside(str(how))]
    assert len(found) == len(set(found)) == 7 and how not in found
    assert all(sum(a != b for a, b in zip(how, other, strict=True)) == 1 for other in found)
    assert {other.power for other in found} == {2, 4, 8} and {other.steps for other in found} == {2, 3, 4}
    assert len(search.beside("S3-S5:28:4:1")) == 6  # one step more is twice as many


def test_the_grid_holds_only_what_can_differ():
    grid = search.maps()
    assert len(grid) == len(set(grid)) > 150 and {c.method for c in grid} >= {"gradcam", "fullgrad", "layercam", "sim"}
    for config in [*grid, *(grid[0]._replace(refine=how) for how in search.REFINES)]:
        config.options  # noqa: B018 - exists


def test_a_round_in_words():
    one = {"round": "maps", "part": "train/tune", "images": 9, "head": "fc", "size": 0, "scales": 1, "flip": False}
    tries = [
        one | Config("xgradcam", "S3-S5", 0.0)._asdict() | {"otsu": 1.0, "argmax": 4.0},
        one | Config("layercam", "S4-S5", None, fuse="prod")._asdict() | {"otsu": 2.0, "argmax": 3.0},
        one | Config("gradcam")._asdict() | {"round": "more", "part": "train/300", "images": 300, "otsu": 1.5, "argmax": 2.5},
        one
        | {"round": "views", "size": 448, "flip": True}
        | Config("gradcam", "S5", normalize="max", refine="S4-S5:8")._asdict()
        | {"otsu": 5.0, "argmax": 6.0},
    ]
    last = "gradcam S5, normalize=max, refine=S4-S5:8, input x 2, also mirrored"
    assert search.rounds(pd.DataFrame(tries).astype({"delta": float})) == [
        ["maps", "train/tune (9)", "2", "2.00: layercam S4-S5, fuse=prod", "4.00: xgradcam S3-S5 δ=0"],
        ["views", "train/tune (9)", "1", f"5.00: {last}", f"6.00: {last}"],
        ["more", "train/300 (300)", "1", "1.50: gradcam S5", "2.50: gradcam S5"],
    ]

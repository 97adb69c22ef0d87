"""Beyond the paper: the ladder of steps, what is measured, and the table that is made of it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from benchmarks import search
from ltcam import files
from ltcam.engine.config import Config
from ltcam.engine.refine import Refine
from ltcam.experiment import seeds
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.scores import scores
from ltcam.experiment.study import Study
from ltcam.paper import beyond, tables
from ltcam.paper.beyond import BEST, Best, label, steps, ways
from ltcam.paper.registry import make
from tests.conftest import FAR, NEAR

CHOSEN = dict(BEST)  # as the package has them


def test_each_step_changes_one_thing():
    found = steps(FAR)
    assert list(found.values()) == [
        Best(Config("gradcam")),
        Best(Config("hirescam", "S5", 0.0)),
        Best(Config("hirescam", "S4-S5", 0.0)),
        Best(replace(FAR.config, refine=None)),
        Best(FAR.config),
        FAR,
    ]
    assert list(steps(NEAR).values()) == [Best(Config("gradcam")), NEAR]  # what changes nothing is no step
    for best in (FAR, NEAR, *CHOSEN.values()):
        assert list(steps(best).values())[-1] == best and len(set(steps(best).values())) == len(steps(best))


def test_another_size_is_as_many_times_the_networks_own():
    assert beyond.enlarged(2, (224, 224)) == (448, 448) and beyond.enlarged(2, (640, 232)) == (1280, 464)
    assert beyond.enlarged(1, (640, 232)) is None
    assert [label(views) for views in (1.0, 2.0, 320 / 224)] == ["one view", "input x 2", "input x 1.43"]


def test_the_best_are_those_that_the_search_chose():
    table = search.read(files.ROOT / "results/paper/voc2012/search")
    for cut, (head, views, config) in search.chosen(table).items():
        assert (head, config) == ("fc", CHOSEN[cut].config) and views == Protocol(
            size=beyond.enlarged(CHOSEN[cut].views, (224, 224))
        )
    assert CHOSEN["argmax"].config.refine == Refine("S3-S5", 28, 4, 2, "floor")


def test_published_seeds_have_a_source():
    published = pd.read_csv(files.ROOT / "data/published_seeds.csv")
    assert list(published) == ["name", "network", "part", "mIoU", "source"] and not published.isna().any(axis=None)
    assert published["mIoU"].between(40, 80).all() and set(published["part"]) == {"train", "val"}


def test_the_table_is_made_of_the_counts(study):
    table = make("best", study)
    for cut, best in {"otsu": FAR, "argmax": NEAR}.items():
        own, views = table[table["cut"] == cut], list(dict.fromkeys([1, best.views]))
        assert own.loc[own["kind"] == "step", "name"].tolist() == list(steps(best))
        expected = [name for view in views for name in tables.SEVEN if view == 1 or name != "FullGrad"]
        rows, ladder = own[own["kind"] == "row"], own[own["kind"] == "step"]
        assert rows["name"].tolist() == expected
        last = ladder.iloc[-1]
        found = scores(study.counts([best.config], protocol=beyond.fitted(best.views, study), cut=cut))["mIoU"][0] \
            if cut == "otsu" else last["value"]  # fmt: skip
        assert last["value"] == pytest.approx(found, rel=1e-4) and last["views"] == label(best.views)
        np.testing.assert_allclose(rows["change"], last["value"] - rows["value"], atol=1e-3)
        assert ((rows["change_low"] <= rows["change"]) & (rows["change"] <= rows["change_high"])).all()
        np.testing.assert_allclose(ladder["change"].iloc[1:], np.diff(ladder["value"]), atol=1e-3)
        assert pd.isna(ladder["change"].iloc[0])


def test_t_is_the_best_of_the_training_images(study):
    found, configs = {name: beyond.curves(study, name, "chosen_on", ways()[1], 1) for name in study.names}, [NEAR.config]
    expected = seeds.of_checkpoint(study.load("seed0"), "train/4", configs, beyond.fitted(1, study))[NEAR.config].curve()
    assert found["seed0"][NEAR.config].to_list() == expected.to_list()
    t = {name: {NEAR.config: own[NEAR.config].idxmax()} for name, own in found.items()}
    counts = study.counts(configs, protocol=beyond.fitted(1, study), cut="argmax", t=t)
    counts = counts.where((counts.pairs["training"] == "seed0").to_numpy())
    on_val = seeds.of_checkpoint(study.load("seed0"), "val", configs, beyond.fitted(1, study))[NEAR.config].curve()
    assert scores(counts)["mIoU"][0] == pytest.approx(on_val[t["seed0"][NEAR.config]], rel=1e-6)


def test_a_larger_input_is_larger_than_the_networks_own(study):
    assert study.trained.size == (64, 64) and beyond.fitted(FAR.views, study).size == (128, 128)
    sizes = {row[0] for row in study.store.db.execute("SELECT json_extract(identity, '$.size') FROM passes")}
    assert "[128,128]" in sizes


def test_it_is_measured_once(study, monkeypatch):
    monkeypatch.setattr(beyond, "of_checkpoint", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr("ltcam.experiment.counting.count_batch", lambda *_: pytest.fail("counted again"))
    before = (study.out / "best.csv").read_bytes()
    (study.out / "best.csv").unlink()
    make("best", study)
    assert (study.out / "best.csv").read_bytes() == before
    changed = Study("toy", "voc2012")
    changed.settings["chosen_on"] = 3
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        beyond.best(changed)


def test_beside_has_both(study):
    lines = beyond.lines(study)
    found = beyond.beside(make("best", study), lines, study)
    ours = found[found["source"] == "here"]
    assert len(found) == len(ours) + len(pd.read_csv(files.ROOT / "data/published_seeds.csv"))
    assert ours["part"].tolist() == ["train/4", "train/4", "val", "val"] and ours["mIoU"].iloc[1] == lines["our best"].max()


@pytest.mark.parametrize(
    ("place", "number"), [("paper/voc2012", 3), ("real/ksdd", 4), ("real/magnetic_tile", 4)], ids=["voc2012", "ksdd", "tiles"]
)
def test_our_rows_are_those_of_the_committed_table(place, number):
    """The paper's protocol has one set of images, whichever notebook counts."""
    best, table = (pd.read_csv(files.ROOT / "results" / place / f"{name}.csv") for name in ("best", f"table{number}"))
    rows = best[(best["cut"] == "otsu") & (best["kind"] == "row") & (best["views"] == label(1))].set_index("name")["value"]
    expected = table.set_index("row")["mIoU" if number == 3 else "IoU"]
    assert len(rows) == 7 and (rows - expected[rows.index]).abs().max() < 1e-3

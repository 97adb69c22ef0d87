"""Beyond the paper: the ladder of steps, what is measured, and the table that is made of it."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from ltcam import files
from ltcam.data import Segmentation
from ltcam.errors import MissingError
from ltcam.experiment import metrics
from ltcam.experiment.configs import Config, Protocol, configurations
from ltcam.experiment.seed_scores import of_checkpoint
from ltcam.experiment.study import Study, planned
from ltcam.paper import beyond, search, tables
from ltcam.paper.beyond import ONE, Way, label, steps, ways
from tests import lookalikes
from tests.experiment.test_training import TINY

FAR = Way(Config("hirescam", "S4-S5", 0.0, fuse="prod", refine="S4-S5:8"), Protocol(size=(448, 448), flip=True))
NEAR = Way(Config("gradcam", "S3-S5"))


def test_each_step_changes_one_thing():
    found = steps(FAR)
    assert list(found.values()) == [
        Way(Config("gradcam")),
        Way(Config("hirescam", "S5", 0.0)),
        Way(Config("hirescam", "S4-S5", 0.0)),
        Way(FAR.config._replace(refine=None)),
        Way(FAR.config),
        FAR,
    ]
    assert list(steps(NEAR).values()) == [Way(Config("gradcam")), NEAR]  # what changes nothing is no step
    for best in (FAR, NEAR, *beyond.BEST.values()):
        assert list(steps(best).values())[-1] == best and len(set(steps(best).values())) == len(steps(best))


def test_a_view_has_a_name_of_its_own():
    views = [ONE, *search.VIEWS, Protocol(size=(320, 320), scales=(1.0, 1.5), flip=True)]
    names = [label(view) for view in views]
    assert len(set(names)) == len(views) and names[0] == "one view" and names[-1] == "input x 1.43, scales 1 1.5, also mirrored"


def test_another_size_is_as_many_times_the_networks_own():
    twice = Protocol(size=(448, 448), flip=True)
    assert beyond.fitted(twice, (224, 224)) == twice
    assert beyond.fitted(twice, (640, 232)) == Protocol(size=(1280, 464), flip=True)
    assert beyond.fitted(ONE, (640, 232)) == ONE


def test_the_best_are_those_that_the_search_chose():
    table = search.read(files.ROOT / "results/paper/voc2012/search")
    for cut, (head, views, config) in search.chosen(table).items():
        assert (head, Way(config, views)) == ("fc", beyond.BEST[cut])


def test_published_seeds_have_a_source():
    published = pd.read_csv(beyond.PUBLISHED)
    assert list(published) == ["name", "network", "part", "mIoU", "source"] and not published.isna().any(axis=None)
    assert published["mIoU"].between(40, 80).all() and set(published["part"]) == {"train", "val"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("beyond")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTCAM_DATA", str(lookalikes.voc(root / "data")))
        patch.setenv("LTCAM_OUTPUT", str(root))
        patch.setattr(beyond, "BEST", {"otsu": FAR, "argmax": NEAR})
        study = Study.train("paper", "voc2012", planned("voc2012", {"test": "val", **TINY}, [0, 1]))
        for name in study.names:
            beyond.measure(study.load(name), study.out / name / "beyond", "val", first=5)
        yield study


def test_the_table_is_made_of_the_counts(study):
    table = beyond.table(study.out, "voc2012")
    chosen = {"otsu": FAR, "argmax": NEAR}
    for cut, best in chosen.items():
        own, views = table[table["cut"] == cut], list(dict.fromkeys([ONE, best.views]))
        assert own.loc[own["kind"] == "step", "name"].tolist() == list(steps(best))
        expected = [name for view in views for name in tables.SEVEN if view == ONE or name != "FullGrad"]
        assert own.loc[own["kind"] == "row", "name"].tolist() == expected
        counts = beyond.counts(study.out, cut)
        score = metrics.scores(counts).set_index(pd.Index(configurations(metrics.scores(counts))))["mIoU"]
        rows = own[own["kind"] == "row"]
        last = own[own["kind"] == "step"].iloc[-1]
        assert last["value"] == pytest.approx(score[best.config]) and last["views"] == label(best.views)
        np.testing.assert_allclose(rows["change"], last["value"] - rows["value"], atol=1e-9)
        assert ((rows["change_low"] <= rows["change"]) & (rows["change"] <= rows["change_high"])).all()
        ladder = own[own["kind"] == "step"]
        np.testing.assert_allclose(ladder["change"].iloc[1:], np.diff(ladder["value"]), atol=1e-9)
        assert pd.isna(ladder["change"].iloc[0])


def test_seeds_that_were_not_counted_are_left_out(study, tmp_path):
    out = shutil.copytree(study.out, tmp_path / "copy")
    with (out / "trainings.csv").open("a") as file:
        file.write("seed2,seed2,,0.5,abc\n")
    shutil.copytree(out / "seed1" / "beyond" / label(ONE), out / "seed2" / "beyond" / label(ONE))  # in one view alone
    assert beyond.table(out, "voc2012").equals(beyond.table(study.out, "voc2012"))
    assert [t["name"] for t in beyond.record(out)["trainings"]] == ["seed0", "seed1"]
    with (out / "trainings.csv").open("a") as file:  # a fold of seed 1 that was not counted: seed 1 is not whole
        file.write("seed1/fold1,seed1,fold1,0.5,abc\n")
    assert beyond.measured(out)["name"].tolist() == ["seed0"]


def test_t_is_the_best_of_the_training_images(study):
    trained = study.load("seed0")
    folder = study.out / "seed0" / "beyond" / label(ONE)
    kept = beyond.kept_curves(folder)
    assert list(kept) == ways()[ONE]
    expected = of_checkpoint(trained, "train/5", [NEAR.config])[NEAR.config].curve()
    np.testing.assert_allclose(kept[NEAR.config], expected, atol=1e-4)
    counts = beyond.counts(study.out, "argmax")
    counts = counts[(counts["training"] == "seed0") & (pd.Series(configurations(counts), counts.index) == NEAR.config)]
    on_val = of_checkpoint(trained, "val", [NEAR.config])[NEAR.config].curve()
    assert metrics.scores(counts)["mIoU"][0] == pytest.approx(on_val[expected.idxmax()], rel=1e-6)


def test_a_larger_input_is_larger_than_the_networks_own(study):
    record = json.loads((study.out / "seed0" / "beyond" / label(FAR.views) / "counts.json").read_text())
    assert study.trained.size == (64, 64) and record["size"] == [128, 128]


def test_it_is_measured_once(study, monkeypatch):
    monkeypatch.setattr(beyond.seed_scores, "of_checkpoint", None)
    monkeypatch.setattr("ltcam.experiment.seed_counts.heatmaps", None)
    beyond.measure(study.load("seed0"), study.out / "seed0" / "beyond", "val", first=5)
    with pytest.raises(TypeError):
        beyond.measure(study.load("seed0"), study.out / "seed0" / "beyond", "val", first=4)
    monkeypatch.setattr(Segmentation, "fingerprint", "of other images")
    with pytest.raises(TypeError):
        beyond.curves(study.load("seed0"), ways()[ONE], study.out / "seed0" / "beyond" / label(ONE), first=5)


def test_beside_has_both(study):
    lines = beyond.lines(study, first=4)
    found = beyond.beside(beyond.table(study.out, "voc2012"), lines, study)
    ours = found[found["source"] == "here"]
    assert len(found) == len(ours) + len(pd.read_csv(beyond.PUBLISHED))
    assert ours["part"].tolist() == ["train/4", "train/4", "val", "val"]
    assert ours["mIoU"].iloc[1] == lines["our best"].max()
    folders = {path.parent.name for path in (study.out / "seed1" / "beyond").glob("*/curves.csv")}
    assert folders == {label(views) for views in ways()}  # drawn in the first training alone


def test_what_was_not_counted_is_named(tmp_path):
    pd.DataFrame({"name": ["seed0"], "seed": "seed0", "fold": ""}).to_csv(tmp_path / "trainings.csv", index=False)
    with pytest.raises(MissingError, match=r"no counts of seeds .*one view.*notebook 09"):
        beyond.counts(tmp_path, "otsu", ONE)


@pytest.mark.parametrize(
    ("place", "number"), [("paper/voc2012", 3), ("real/ksdd", 4), ("real/magnetic_tile", 4)], ids=["voc2012", "ksdd", "tiles"]
)
def test_our_rows_are_those_of_the_committed_table(place, number):
    """The paper's protocol has one set of images, whichever notebook counts."""
    best, table = (pd.read_csv(files.ROOT / "results" / place / f"{name}.csv") for name in ("best", f"table{number}"))
    rows = best[(best["cut"] == "otsu") & (best["kind"] == "row") & (best["views"] == label(ONE))].set_index("name")["value"]
    expected = table.set_index("row")["mIoU" if number == 3 else "IoU"]
    assert len(rows) == 7 and (rows - expected[rows.index]).abs().max() < 1e-3

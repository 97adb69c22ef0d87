"""The setting of the paper, a softmax and one class an image, beside that of the field: its tables, and how they are read."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.stats import kendalltau

from ltcam import files, paper
from ltcam.engine.config import Config
from ltcam.errors import InputError
from ltcam.experiment.scores import scores
from ltcam.experiment.study import AGAIN, Study
from ltcam.experiment.training import train
from ltcam.paper import RESULTS, claims, joint, make, shares, tables
from ltcam.paper.__main__ import main
from ltcam.paper.registry import names, stale
from ltcam.paper.tables import ROWS, published
from tests import lookalikes
from tests.conftest import TOY, toy
from tests.paper import made


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The setting of the paper with all its tables, and a training of the other beside."""
    root = tmp_path_factory.mktemp("settings")
    lookalikes.voc(root / "data")
    (root / "notebooks" / "profiles").mkdir(parents=True)
    settings = TOY | {"softmax": {"seeds": [0]}}
    (root / "notebooks" / "profiles" / "toy.voc2012.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        toy(patch, root, root)
        patch.setattr(shares, "SHARES", (0.2, 0.5))
        patch.setattr(joint, "PERMUTED", 100)
        field, paper = Study("toy", "voc2012").both
        field.train()
        train(field.planned["seed0"].recipe, field.runs / AGAIN)
        paper.train()
        for name in names(paper):
            make(name, paper)
        yield paper


def test_a_setting_has_a_place_and_a_recipe_of_its_own(both):
    assert both.out.name == "softmax" and both.out.parent.name == "voc2012" and both.loss == "softmax"
    assert both.trained.recipe.loss == "softmax" and both.protocol.labels == "top" and both.reference == "toy/softmax"
    assert both.trained.model.classifier[-1].out_features == len(both.trained.classes)  # every image has a class
    assert [s.loss for s in Study("toy", "voc2012").both] == ["sigmoid", "softmax"] and both.both == [both]
    assert {path.name for path in both.out.glob("*.csv*")} == {RESULTS[n].file for n in names(both)} | {"trainings.csv"}


def test_one_class_an_image_is_explained(both):
    counts = both.counts(ROWS[1].values())
    explained = counts.pairs[counts.values[..., :2].any(axis=(1, 2))]
    assert not explained["name"].duplicated().any() and len(counts.pairs) > len(explained)
    logits = both.store.logits(both.measured("seed0", []))
    assert (logits.loc[explained["name"]].to_numpy().argmax(axis=1) == explained["class"]).all()


def test_the_tables_are_made_again_from_kept_counts(both):
    kept = Study("toy", "voc2012", kept=True, loss="softmax")
    assert stale(kept) == {}
    (both.out / "counts.sqlite").rename(both.out / "gone")
    assert stale(Study("toy", "voc2012", kept=True, loss="softmax")) == {}
    (both.out / "gone").rename(both.out / "counts.sqlite")


def test_one_command_trains_and_measures_it(both, capsys, monkeypatch):
    monkeypatch.setattr("ltcam.experiment.counting.count_batch", lambda *_: pytest.fail("measured again"))
    assert main(["--softmax", "toy", "voc2012"]) == 0
    assert capsys.readouterr().out == f"toy voc2012, softmax: {len(names(both))} tables\n"


def test_the_nearest_reading_by_hand(both):
    table = make("joint", both)
    assert len(table) == len(joint.EVERY) == 36 and table["distance"].is_monotonic_increasing
    numbers = [published(number).loc[row, "mIoU"] for row, (number, _) in joint.PRINTED.items()]
    assert numbers[:7] == published(1)["mIoU"].tolist()
    for _, row in table.iloc[[0, 17, 35]].iterrows():
        ours = row[list(joint.PRINTED)].astype(float).to_numpy()
        off = np.abs(ours - numbers)
        assert row["distance"] == pytest.approx(off.mean(), abs=1e-3)
        assert row["distance12"] == pytest.approx(off[:10].mean(), abs=1e-3)
        assert row["distance3"] == pytest.approx(off[10:].mean(), abs=1e-3)
        assert row["gain"] == pytest.approx(row["LTGrad-CAM(l=5, δ=0)"] - row["S5"], abs=1e-3)
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]
        if len(np.unique(ours)) == len(ours):
            assert row["tau"] == pytest.approx(kendalltau(ours, numbers).statistic, abs=1e-3)
    usual = table[(table[["loss", "labels", "scale", "outputs"]] == ["softmax", "top", "none", "pool"]).all(axis=1)]
    assert usual["S3+S4+S5"].item() == pytest.approx(make("table1", both).set_index("row").loc["S3+S4+S5", "mIoU"], abs=1e-3)


def test_a_shuffled_paper_is_as_near_by_chance(monkeypatch):
    """Scores that are the printed numbers are nearer than any shuffle; scores that know nothing are not."""
    numbers = joint.printed()
    monkeypatch.setattr(joint, "PERMUTED", 200)
    for ours, sure in ((numbers, True), (np.full(14, numbers.mean()), False)):
        rows = [["softmax", "top", "none", "pool", 0.0, 0.0, 0.0, 1.0, *ours]] * 2
        columns = ["loss", "labels", "scale", "outputs", "distance", "distance12", "distance3", "tau", *joint.PRINTED]
        table = pd.DataFrame(rows, columns=columns)
        monkeypatch.setattr(joint, "make", lambda *_, table=table: table)
        found = joint.guards(None).set_index("what")
        assert (found.loc[["tau", "distance"], "beside"] < 0.01).all() == sure and set(found["tried"]) == {2}


def test_a_share_is_chosen_on_images_that_the_training_has_seen(both):
    rows = list(ROWS[3].values())
    chosen = shares.chosen(both, "seed0")
    for config in rows[:3]:
        tried = [replace(config, fraction=share) for share in shares.SHARES]
        own = scores(both.of_training("seed0", tried, "train", first=4))[both.metric]
        assert own[shares.SHARES.index(chosen[config])] == own.max()
    table = make("shares", both).set_index("row")
    for row, config in ROWS[3].items():
        cut = scores(both.of_training("seed0", [replace(config, fraction=chosen[config])]))[both.metric].item()
        assert table.loc[row, "value"] == pytest.approx(cut, abs=1e-3) and table.loc[row, "best"] >= cut - 1e-3
        assert table.loc[row, "otsu"] == pytest.approx(make("table3", both).set_index("row").loc[row, both.metric], abs=1e-3)


@pytest.mark.parametrize("name", ["seed0", ""])  # a single training has no name
def test_the_best_share_is_the_chosen_one_and_of_equals_the_smallest(name):
    best = {config: shares.SHARES[number % len(shares.SHARES)] for number, config in enumerate(shares.CUT)}
    known = {own: 60 if own.fraction == best[replace(own, fraction=None)] else 30 for own in shares.every(shares.CUT)}
    known |= {replace(shares.CUT[5], fraction=share): 40 for share in shares.SHARES}

    class Study(SimpleNamespace):
        __hash__ = object.__hash__

        def of_training(self, name, configs, role, first):
            return made.counts(known).pick(configs)

    study = Study(kept=True, settings={"chosen_on": 7}, metric="IoU", names=[name], loss="softmax", made={}, compared=())
    study.out = Path("nowhere")
    assert shares.chosen(study, name) == best | {shares.CUT[5]: shares.SHARES[0]}


def test_the_sums_of_folds_are_pooled():
    """Of two folds: 10 of 20 and 30 of 40 pixels of one class are 40 of 60."""
    rows = [["seed0/fold0", 10, 0, 10], ["seed0/fold1", 30, 0, 10]]
    sums = pd.DataFrame(rows, columns=["name", "tp", "fp", "fn"]).assign(**{"class": 0, "part": "test"})
    configs = [Config("gradcam", fraction=share) for share in (0.2, 0.3)]
    sums = pd.concat([sums.assign(config=str(config)) for config in configs]).sort_values("name", kind="stable")
    counts = shares._counts(sums)
    assert counts.configs == tuple(configs) and scores(counts)["IoU"].tolist() == pytest.approx([100 * 40 / 60] * 2)
    assert counts.pairs["training"].tolist() == ["seed0", "seed0"]


def test_the_claims_and_the_sweep_are_judged_at_the_chosen_share_too(both):
    sides = [config for need in claims.needs(both) for config in need.configs]
    assert {*sides} <= {*shares.CUT}
    table, sweep = make("claims_share", both), make("sweep_share", both)
    assert table["claim"].tolist() == make("claims", both)["claim"].tolist() and (table["verdict"] != "not measured").sum() > 10
    chosen, config = shares.chosen(both, "seed0"), Config("layercam", "S1-S5", 40.0)
    for part, how in (("test", {}), ("train", {"role": "train", "first": 4})):
        own = both.of_training("seed0", [replace(config, fraction=chosen[config])], **how)
        row = sweep[(sweep["part"] == part) & (sweep["method"] == "layercam") & (sweep["delta"] == 40)]
        assert row["mIoU"].item() == pytest.approx(scores(own)["mIoU"].item(), abs=1e-3)


def test_the_notebooks_show_the_second_cut_and_the_nearest_readings_where_they_are_measured(both):
    """The demo has neither."""
    drawn = []
    image = {"heatmap": torch.rand(1, 8, 8), "mask": torch.eye(8).bool(), "photo": None, "name": "", "plt": plt}
    grid = SimpleNamespace(grid=lambda images, rows, *_: drawn.extend(rows[0]))
    cut, verdicts = made.run("04", '"shares" in', study=both, paper=paper, heatmaps=grid, **image)
    assert cut["at the share"].tolist() == make("shares", both)["value"].tolist() and "gap" in cut and len(drawn) == 5
    judged = make("claims_share", both).query("section == '3.4'")
    assert verdicts["ours"].tolist() == judged["verdict"].tolist() and len(judged) > 5
    readings = pd.DataFrame({"tau": [0.5], "ci_low": 0.1, "ci_high": 0.7, "farthest": 9.0}, index=["the defaults"])
    first, nearest = made.run("08", '"joint" in', study=both, paper=paper, table=readings)
    assert [*first] == ["tau", "from", "to", "farthest"]
    assert nearest["distance"].tolist() == make("joint", both)["distance"].tolist()[:5]
    assert {*nearest["outputs"]} <= {"behind the pool", "before the pool"} and "none" not in {*nearest["scale"]}


def test_a_claim_can_turn_with_the_cut(monkeypatch):
    """LTGrad-CAM finds 40% of the object under Otsu and 60% at its share; all else finds half."""
    lt = ROWS[4]["LTGrad-CAM(l=5, δ=20)"]
    known = dict.fromkeys(shares.CUT, 50) | {lt: 40}
    known |= dict.fromkeys((replace(config, fraction=0.2) for config in shares.CUT), 50) | {replace(lt, fraction=0.4): 60}
    study = made.study(known, known, data="ksdd2")
    study.trainings = pd.DataFrame({"name": ["seed0"], "seed": ["seed0"], "fold": [""]})
    study.of_training = lambda name, configs, role, protocol, first: made.counts(known).pick(configs)
    monkeypatch.setattr(shares, "chosen", lambda study, name: dict.fromkeys(shares.CUT, 0.2) | {lt: 0.4})
    statement = "Defects: LTGrad-CAM with δ=20 beats Layer-CAM (l=5)"
    found = [make(study).set_index("claim").loc[statement] for make in (claims.claims, shares.claims_share)]
    assert [(own["verdict"], own["margin"]) for own in found] == [("fails", -10), ("holds", 10)]
    swept = shares.sweep_share(study).query("method == 'gradcam' and delta == 20")
    assert swept["IoU"].tolist() == [60, 60] and swept["part"].tolist() == ["test", "train"]


def test_git_gets_the_rows_of_chosen_shares_alone_and_all_tables_come_from_them(both):
    file = both.out / "seed0" / "counts.train-4,labels=every.csv.gz"
    before = {name: (both.out / RESULTS[name].file).read_bytes() for name in ("cuts", "shares", "claims_share", "sweep_share")}
    shares.thin(both)
    texts, chosen = {*pd.read_csv(file)["config"]}, shares.chosen(both, "seed0")
    assert {str(replace(c, fraction=share)) for c, share in chosen.items()} <= texts
    assert not {str(own) for own in shares.every(shares.CUT) if chosen[replace(own, fraction=None)] != own.fraction} & texts
    (both.out / "counts.sqlite").rename(both.out / "gone")
    kept = Study("toy", "voc2012", kept=True, loss="softmax")
    assert stale(kept) == {} and {name: kept.made[name] for name in before} == before
    (both.out / "cuts.csv.gz").rename(both.out / "away")  # then they cannot be made
    assert {"shares.csv", "claims_share.csv"} <= {*stale(Study("toy", "voc2012", kept=True, loss="softmax"))}
    (both.out / "away").rename(both.out / "cuts.csv.gz")
    (both.out / "gone").replace(both.out / "counts.sqlite")


def test_both_readings_of_delta_meet_at_zero(both):
    table = make("deltas", both)
    assert set(table["by"]) == {"percentile", "fraction of the maximum"} and table["delta"].max() == 99
    test = make("sweep", both).query("part == 'test'").set_index(["method", "delta"])["mIoU"]
    own = table[(table["part"] == "test") & (table["by"] == "percentile") & (table["delta"] <= 90)]
    assert own["value"].tolist() == pytest.approx([test[m, d] for m, d in own[["method", "delta"]].to_numpy()], abs=1e-3)
    assert (table[table["delta"].isna()]["change"] == 0).all()


def test_a_change_is_from_no_truncation():
    configs = [*tables.SWEEP, *tables.FURTHER]
    known = {role: {config: start + n for n, config in enumerate(configs)} for role, start in (("test", 5), ("train", 20))}
    study = made.study(**known)
    swept = tables.deltas(study)  # a sigmoid's, whose figures show what was swept
    assert len(swept) == 2 * len(tables.SWEEP) == 2 * 33 and set(swept["by"]) == {"percentile"} and swept["delta"].max() == 90
    study.loss = "softmax"
    table = tables.deltas(study)
    assert len(table) == 2 * len(configs) == 2 * 66 and len(swept.merge(table)) == len(swept)
    for _, row in table.iterrows():
        delta = None if np.isnan(row["delta"]) else row["delta"]
        own = Config(row["method"], tables.SWEPT[row["method"]], delta, by=row["by"])
        plain = Config(row["method"], tables.SWEPT[row["method"]])
        assert row["value"] == pytest.approx(known[row["part"]][own])
        assert row["change"] == pytest.approx(known[row["part"]][own] - known[row["part"]][plain])


def test_a_setting_that_a_profile_has_not(tmp_path, monkeypatch):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "toy.voc2012.yaml").write_text(yaml.safe_dump(TOY))
    monkeypatch.setattr(files, "NOTEBOOKS", tmp_path)
    with pytest.raises(InputError, match="profile 'toy' has no softmax of 'voc2012'"):
        Study("toy", "voc2012", loss="softmax")
    assert len(Study("toy", "voc2012").both) == 1


@pytest.mark.parametrize("again", [True, False])
def test_the_sigmoid_of_the_softmaxs_machine_is_read_where_there_is_one(monkeypatch, tmp_path, again):
    asked = []
    field = SimpleNamespace(out=tmp_path, runs=tmp_path, names=["seed0"], of_training=lambda name, *_, **__: asked.append(name))
    study = made.study()
    study.profile, study.of_training = "toy", lambda name, *_, **__: None
    monkeypatch.setattr(joint, "Study", lambda *_: field)
    monkeypatch.setattr(joint, "draws", lambda counts, metric: {config: np.zeros((1, 1)) for config in joint.CONFIGS})
    if again:
        files.write(tmp_path / AGAIN / "run.json", "{}")
    joint.scores(study)
    assert {*asked} == {AGAIN if again else "seed0"}

"""All trainings of a data set: two tiny ones, and folds of made-up counts."""

import shutil

import pandas as pd
import pytest

from ltcam import data as datasets
from ltcam.errors import InputError, MissingError
from ltcam.experiment import metrics
from ltcam.experiment.configs import Config, Protocol
from ltcam.experiment.study import Study, known, planned
from ltcam.paper import tables as paper
from tests import lookalikes
from tests.experiment.test_training import TINY

CONFIGS = [Config("gradcam"), Config("gradcam", "S1-S5", 20.0)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two trainings of the look-alike of VOC, with their checkpoints in another place than the results."""
    root = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LTCAM_DATA", str(lookalikes.voc(root / "data")))
        patched.setenv("LTCAM_OUTPUT", str(root / "output"))
        patched.setenv("LTCAM_RUNS", str(root / "runs"))
        yield Study.train("paper", "voc2012", planned("voc2012", {"test": "val", **TINY, "epochs": 1}, [0, 1]))


def test_a_profile_without_seeds_is_one_training_in_the_folder_itself():
    (alone,) = planned("demo", {"epochs": 2, "seed": 5})
    assert alone[:3] == ("", "", "") and (alone.recipe.epochs, alone.recipe.seed) == (2, 5)


def test_seeds_and_folds_have_folders_and_parts_of_their_own():
    seeds = planned("voc2012", {"test": "val"}, [3])
    assert [t[:3] for t in seeds] == [("seed3", "seed3", "")] and seeds[0].recipe.seed == 3
    folds = planned("ksdd", {"lr": 0.5}, [0, 1], 3)
    assert [t.name for t in folds] == [f"seed{s}/fold{f}" for s in (0, 1) for f in range(3)]
    assert [(t.recipe.seed, t.recipe.train, t.recipe.test, t.seed, t.fold) for t in folds][4] == (
        1,
        "train1",
        "test1",
        "seed1",
        "fold1",
    )
    assert {t.recipe.lr for t in folds} == {0.5}
    with pytest.raises(InputError, match="folds=3 without seeds"):
        planned("ksdd", {}, [], 3)


def test_checkpoints_and_results_have_places_of_their_own(two):
    assert two.trainings["name"].tolist() == two.seeds == ["seed0", "seed1"] and two.trainings["mAP"].between(0, 1).all()
    for name in two.names:
        assert (two.runs / name / "checkpoint.pt").is_file() and not list((two.out / name).glob("*.pt"))
        for file in ("train.csv", "train.json", "labels.csv", "labels.json"):
            assert (two.out / name / file).read_bytes() == (two.runs / name / file).read_bytes()
        assert two.trainings.set_index("name").loc[name, "checkpoint"] == two.load(name).sha256
    labels = two.read("labels.csv").groupby("name")["AP"].mean()
    assert labels.tolist() == pytest.approx(two.trainings["mAP"].tolist(), abs=1e-5)
    assert two.trained.recipe.seed == 0 and two.test.part == "val" and [t.recipe.seed for t in two.folds()] == [0]


def test_a_training_without_a_name_leaves_its_results_in_the_folder_itself(two, monkeypatch, tmp_path):
    monkeypatch.setenv("LTCAM_DATA", str(two.runs.parent.parent / "data"))
    monkeypatch.setenv("LTCAM_OUTPUT", str(tmp_path / "output"))
    monkeypatch.setenv("LTCAM_RUNS", str(tmp_path / "runs"))
    alone = Study.train("paper", "voc2012", planned("voc2012", {"test": "val", **TINY, "epochs": 1}))
    assert (alone.out / "train.csv").read_bytes() == (tmp_path / "runs" / "voc2012" / "train.csv").read_bytes()


def test_a_table_is_the_mean_and_the_standard_deviation_of_its_trainings(two):
    counts = two.together({"": (list(paper.TABLES[1].values()), Protocol(4))})[0]
    table = paper.table(1, counts)
    alone = [metrics.scores(pd.read_csv(two.out / name / "counts.csv.gz")) for name in two.names]
    for row, (_, ours) in enumerate(table.iterrows()):
        config = (ours["method"], ours["layers"])
        first, second = (t.set_index(["method", "layers"]).loc[config] for t in alone)
        for score in metrics.SCORES:
            assert ours[score] == pytest.approx((first[score] + second[score]) / 2), row
            assert ours[f"{score}_std"] == pytest.approx(abs(first[score] - second[score]) / 2**0.5)
    assert (table["mIoU_std"] > 0).any() and counts["training"].unique().tolist() == two.names
    assert (counts["group"] == counts["name"]).all()  # photographs stand alone


def test_committed_counts_are_read_without_data_and_checkpoints(two, monkeypatch, tmp_path):
    counts = {role: two.together({"": (CONFIGS, Protocol(4))}, role)[0] for role in ("test", "train")}
    monkeypatch.setenv("LTCAM_DATA", str(tmp_path))
    monkeypatch.setenv("LTCAM_RUNS", str(tmp_path))
    for role, measured in counts.items():
        kept = known(two.out, role)
        assert ("fold" in kept) == (role == "train") and set(kept["name"]) == set(measured["name"])
        wanted = kept.merge(pd.DataFrame(CONFIGS, columns=metrics.CONFIG).astype({"delta": float, "fraction": float}))
        keys = ["training", "name", "class", "layers"]
        assert wanted.sort_values(keys)["tp"].tolist() == measured.sort_values(keys)["tp"].tolist()
    assert known(tmp_path).empty


def test_the_first_seeds_alone_are_a_study_too(two):
    first = two.only(1)
    assert (first.names, first.seeds, two.only(None).names) == (["seed0"], ["seed0"], two.names)
    wanted = {"": (CONFIGS, Protocol(4))}
    counts = two.together(wanted)[0]
    assert first.known()["training"].unique().tolist() == ["seed0"] and set(two.known()["training"]) == {"seed0", "seed1"}
    assert first.together(wanted)[0].equals(counts[counts["training"] == "seed0"].reset_index(drop=True))
    assert [t["name"] for t in two.about["trainings"]] == two.names and len(two.only(1).about["trainings"]) == 1


def test_other_protocols_are_kept_below_each_training(two):
    two.together({"ablations/labels": (CONFIGS[:1], Protocol(4, labels="predicted"))})
    assert all((two.out / name / "ablations" / "labels" / "counts.csv.gz").is_file() for name in two.names)


def test_before_notebook_01_there_is_no_study(output):
    with pytest.raises(
        MissingError, match=r"trainings.csv is missing: run notebook 01 first, or ltcam reproduce --profile real"
    ):
        Study("real", "ksdd")


def test_folds_are_pooled_where_they_are_held_out_and_averaged_where_they_were_trained_on(tmp_path):
    """Two folds of one image each: 10 of 20 pixels found in one, 0 of 60 in the other."""
    (tmp_path / "trainings.csv").write_text("name,seed,fold\nseed0/fold0,seed0,fold0\nseed0/fold1,seed0,fold1\n")
    for fold, (tp, fn) in enumerate([(10, 10), (0, 60)]):
        row = [(f"i{fold}", f"g{fold}", 0, *CONFIGS[0], tp, 0, fn)]
        table = pd.DataFrame(row, columns=["name", "group", "class", *metrics.CONFIG, "tp", "fp", "fn"])
        for place in ("", "train"):
            folder = tmp_path / f"seed0/fold{fold}" / place
            folder.mkdir(parents=True, exist_ok=True)
            table.to_csv(folder / "counts.csv.gz", index=False)
    pooled, trained = known(tmp_path), known(tmp_path, "train")
    assert metrics.scores(pooled)["IoU"].item() == pytest.approx(100 * 10 / 80)
    assert metrics.scores(trained)["IoU"].item() == pytest.approx((50 + 0) / 2)


def test_every_defective_image_is_counted_once_in_the_pooled_folds(output, tmp_path, monkeypatch):
    """On a look-alike of twelve commutators, four of them twins."""
    data, some = lookalikes.ksdd(tmp_path / "data"), {1, 2, 3, 4, 5, 6, 26, 27, 34, 38, 39, 42}
    for n in set(range(1, 51)) - some:
        shutil.rmtree(data / "KolektorSDD" / f"kos{n:02}")
    monkeypatch.setenv("LTCAM_DATA", str(data))
    recipe = {**TINY, "frozen": 5, "augment": "none", "epochs": 1, "batch_size": 32}
    study = Study.train("real", "ksdd", planned("ksdd", recipe, [0], 3))
    counts, train = (study.together({"": (CONFIGS[:1], Protocol(16))}, role)[0] for role in ("test", "train"))
    whole = datasets.load("ksdd", "all")
    assert sorted(counts["name"]) == sorted(whole.entries[i].name for i in whole.scored) and len(counts) == 14
    assert counts["training"].unique().tolist() == ["seed0"] and "fold" not in counts
    groups = dict(zip((entry.name for entry in whole.entries), whole.groups, strict=True))
    assert counts["group"].tolist() == [groups[name] for name in counts["name"]]
    for trained in study.folds():
        seen, own = ({e.name for e in trained.load(p).entries} for p in (trained.recipe.train, trained.recipe.test))
        assert own and not seen & own and len(seen | own) == len(whole)
    assert train.groupby("name").size().eq(2).all() and sorted(train["fold"].unique()) == ["fold0", "fold1", "fold2"]

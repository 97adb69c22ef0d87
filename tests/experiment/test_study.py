"""All trainings of a data set: two tiny ones, folds, and studies of which only counts are left."""

import shutil
from types import SimpleNamespace

import pytest

from ltcam import data as datasets
from ltcam import files, paper
from ltcam.engine.config import Config
from ltcam.errors import InputError, MissingError
from ltcam.experiment import scores
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.study import Study
from ltcam.paper import registry
from tests import lookalikes, tiny
from tests.experiment.test_store import copy

CONFIGS = [Config("gradcam"), Config("gradcam", "S1-S5", 20.0)]


def places(patch, root, name, **settings):
    """The profile `tiny` of a data set, with its checkpoints in another place than its results."""
    patch.setattr(files, "NOTEBOOKS", tiny.profile(root / "notebooks", name, **settings))
    patch.setenv("LTCAM_OUTPUT", str(root / "output"))
    patch.setenv("LTCAM_RUNS", str(root / "runs"))


@pytest.fixture(scope="module")
def two(_trained, tmp_path_factory):
    """Two trainings of the look-alike of VOC."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTCAM_DATA", str(_trained[1]))
        places(patch, tmp_path_factory.mktemp("study"), "voc2012", recipe={"epochs": 1}, seeds=[0, 1], batch_size=4)
        study = Study("tiny", "voc2012")
        study.train()
        yield study


def test_checkpoints_and_results_have_places_of_their_own(two):
    assert two.trainings["name"].tolist() == two.seeds == ["seed0", "seed1"] and two.trainings["mAP"].between(0, 1).all()
    for name in two.names:
        assert (two.runs / name / "checkpoint.pt").is_file() and not list((two.out / name).glob("*.pt"))
        for file in ("train.csv", "labels.csv", "run.json"):
            assert (two.out / name / file).read_bytes() == (two.runs / name / file).read_bytes()
        assert two.trainings.set_index("name").loc[name, "checkpoint"] == two.load(name).sha256
    labels = two.read("labels.csv").groupby("name")["AP"].mean()
    assert labels.tolist() == pytest.approx(two.trainings["mAP"].tolist(), abs=1e-5)
    assert two.trained.recipe.seed == 0 and two.test.part == "val" and [t.recipe.seed for t in two.folds()] == [0]
    assert two.described.startswith("PASCAL VOC 2012 subset, part val: 6 images to score, seeds: 2, classes: aeroplane, ")


def test_counts_are_those_of_every_training_and_measured_once(two, monkeypatch):
    counts = two.counts(CONFIGS)
    assert counts.pairs["training"].unique().tolist() == two.names and counts.values.shape == (16, 2, 3)
    assert (counts.pairs["group"] == counts.pairs["name"]).all()  # photographs stand alone
    alone = [scores.scores(counts.where(counts.pairs["training"] == name)) for name in two.names]
    both = scores.scores(counts)
    for score in scores.SCORES:
        assert both[score].tolist() == pytest.approx(((alone[0][score] + alone[1][score]) / 2).tolist())
        assert both[f"{score}_std"].tolist() == pytest.approx(((alone[0][score] - alone[1][score]).abs() / 2**0.5).tolist())
    assert (both["mIoU_std"] > 0).any()
    train = two.counts(CONFIGS[:1], "train", first=5)
    assert set(train.pairs["name"]) == {f"2007_00000{i}" for i in range(5)}
    predicted, top = (two.counts(CONFIGS[:1], protocol=Protocol(4, labels=labels)) for labels in ("predicted", "top"))
    assert predicted.values.tolist() != counts.pick(CONFIGS[:1]).values.tolist()
    claimed = top.pairs[top.values[:, 0, :2].any(axis=1)]
    assert len(claimed) == claimed.groupby("training")["name"].nunique().sum()  # one class an image
    exports = {path.relative_to(two.out).as_posix() for path in two.out.rglob("counts*.gz")}
    assert exports == {f"{name}/counts.{rest}.csv.gz" for name in two.names for rest in ("train-5", "val", "val,labels=every")}
    at = {"seed0": {CONFIGS[0]: 0.3}, "seed1": {CONFIGS[0]: 0.4}}
    assert -1 in set(two.counts(CONFIGS[:1], cut="argmax", t=at).pairs["class"])
    monkeypatch.setattr("ltcam.experiment.study.measure", lambda *_: pytest.fail("measured again"))
    assert two.counts(reversed(CONFIGS)).values[:, ::-1].tolist() == counts.values.tolist()
    assert two.counts(CONFIGS[:1], cut="argmax", t=at).values.sum() > 0
    assert set(two.counts(CONFIGS, seeds=1).pairs["training"]) == {"seed0"}


@pytest.mark.parametrize("other", [{"tiles": 40}, {"border": "masked"}, {"flip": True}])
def test_a_pass_of_other_views_is_not_taken_for_the_plain_one(two, other):
    """Its identity has all that the plain one names, and more."""
    config = Config("hirescam", "S4", len(other) + float(len(str(other))))  # counted nowhere else
    views = two.of_training("seed0", [config], protocol=Protocol(4, **other))
    plain = two.of_training("seed0", [config])
    assert plain.values.tolist() != views.values.tolist()
    assert two.of_training("seed0", [config], protocol=Protocol(4, **other)).values.tolist() == views.values.tolist()


def test_kept_counts_are_read_without_data_and_checkpoints(two, monkeypatch, tmp_path):
    expected = two.counts(CONFIGS)
    (two.out / "counts.sqlite").rename(tmp_path / "gone")
    monkeypatch.setenv("LTCAM_DATA", str(tmp_path))
    monkeypatch.setenv("LTCAM_RUNS", str(tmp_path))
    kept = Study("tiny", "voc2012", kept=True)
    counts = kept.counts(CONFIGS)
    assert counts.values.tolist() == expected.values.tolist() and counts.pairs.equals(expected.pairs)
    assert kept.title == "PASCAL VOC 2012 subset" and kept.counted_only()
    for call, said in (
        (lambda: kept.counts([Config("sim")]), r"seed0 has no counts of sim:S5 on part val: run ltcam reproduce first"),
        (lambda: kept.counts(CONFIGS[:1], protocol=Protocol(4, flip=True)), r"seed0 has no counts of .* on part val: run"),
        (lambda: kept.load("seed0"), "no weights at .*seed0/checkpoint.pt"),
        (lambda: kept.recipe("gap"), r"no training 'gap' of voc2012: expected .*gap/run.json, see ltcam train --out"),
    ):
        with pytest.raises(MissingError, match=said):
            call()
    with pytest.raises(MissingError, match="no weights at"):
        Study("tiny", "voc2012").counts(CONFIGS)


def test_tables_of_committed_counts_need_no_data_and_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "NOTEBOOKS", files.ROOT / "notebooks")
    source = files.ROOT / "results" / "real" / "ksdd"
    out = copy(source, tmp_path / "results" / "real" / "ksdd")
    shutil.copyfile(source / "trainings.csv", out / "trainings.csv")
    for variable, folder in (("LTCAM_OUTPUT", tmp_path), ("LTCAM_RUNS", tmp_path / "runs"), ("LTCAM_DATA", tmp_path / "data")):
        monkeypatch.setenv(variable, str(folder))
    study = Study("real", "ksdd", kept=True)
    assert study.counted_only() and study.metric == "IoU"
    for name in ("table1", "table4", "sweep"):
        paper.make(name, study)
        assert study.made[name] == (source / f"{name}.csv").read_bytes() and not (out / f"{name}.csv").is_file()
    found = registry.stale(study)
    assert found["table1.csv"] == "stale" and "stages.csv.gz is missing: run ltcam reproduce first" in found["stages.csv.gz"]


def test_every_defective_image_is_counted_once_in_the_pooled_folds(tmp_path, monkeypatch):
    """On a look-alike of twelve commutators, four of them twins."""
    data, some = lookalikes.ksdd(tmp_path / "data"), {1, 2, 3, 4, 5, 6, 26, 27, 34, 38, 39, 42}
    for n in set(range(1, 51)) - some:
        shutil.rmtree(data / "KolektorSDD" / f"kos{n:02}")
    monkeypatch.setenv("LTCAM_DATA", str(data))
    recipe = {"frozen": 5, "augment": "none", "epochs": 1, "batch_size": 32, "size": [32, 32]}
    places(monkeypatch, tmp_path, "ksdd", recipe=recipe, seeds=[0], folds=3, batch_size=16)
    study = Study("tiny", "ksdd")
    study.train()
    counts, train = (study.counts(CONFIGS[:1], role).pairs for role in ("test", "train"))
    whole = datasets.load("ksdd", "all")
    assert sorted(counts["name"]) == sorted(whole.entries[i].name for i in whole.scored) and len(counts) == 14
    assert ", part test0 + test1 + test2: 14 images to score, seeds: 1, classes: defect" in study.described
    assert counts["training"].unique().tolist() == ["seed0"] and set(counts["fold"]) == {""}
    groups = dict(zip((entry.name for entry in whole.entries), whole.groups, strict=True))
    assert counts["group"].tolist() == [groups[name] for name in counts["name"]]
    for trained in study.folds():
        seen, own = ({e.name for e in trained.load(p).entries} for p in (trained.recipe.train, trained.recipe.test))
        assert own and not seen & own and len(seen | own) == len(whole)
    assert train.groupby("name").size().eq(2).all() and sorted(train["fold"].unique()) == ["fold0", "fold1", "fold2"]


def test_a_training_without_a_name_leaves_its_results_in_the_folder_itself(checkpoint, tmp_path, monkeypatch):
    places(monkeypatch, tmp_path, "voc2012")
    shutil.copytree(checkpoint.parent, tmp_path / "runs" / "voc2012")
    study = Study("tiny", "voc2012")
    study.train()  # it is trained already
    assert (study.out / "train.csv").read_bytes() == (study.runs / "train.csv").read_bytes() and study.names == [""]
    assert study.counts(CONFIGS[:1]).pairs["training"].unique().tolist() == [""]
    assert (study.out / "counts.val.csv.gz").is_file()


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "NOTEBOOKS", files.ROOT / "notebooks")
    with pytest.raises(InputError, match=r"profile 'real' has no data set 'demo': expected one of \['ksdd', 'magnetic_tile'\]"):
        Study("real", "demo")
    monkeypatch.setenv("LTCAM_OUTPUT", str(tmp_path))
    with pytest.raises(
        MissingError, match=r"trainings.csv is missing: run notebook 01 first, or ltcam reproduce --profile real"
    ):
        Study("real", "ksdd").trainings  # noqa: B018
    assert (
        Study("real", "ksdd", seeds=Study("real", "ksdd").settings["seeds"]).reference
        == "real"
        == Study("real", "ksdd").reference
    )
    assert Study("demo", "demo", seeds=[1]).reference == "demo with seeds [1]"  # has no golden values
    assert Study("real", "ksdd", seeds=[7]).settings["seeds"] == [7] and list(Study("real", "ksdd", seeds=[7]).planned) == [
        f"seed7/fold{f}" for f in range(3)
    ]


def test_another_checkpoint_does_not_stand_beside_the_tables_of_the_first(two, tmp_path, monkeypatch):
    output, runs = tmp_path / "output", tmp_path / "runs"
    shutil.copytree(two.out, output / "results" / "tiny" / "voc2012")
    shutil.copytree(two.runs, runs / "voc2012")
    monkeypatch.setenv("LTCAM_OUTPUT", str(output))
    monkeypatch.setenv("LTCAM_RUNS", str(runs))
    shutil.copy(runs / "voc2012" / "seed1" / "checkpoint.pt", runs / "voc2012" / "seed0" / "checkpoint.pt")
    study = Study("tiny", "voc2012")
    assert study.load("seed1").recipe.seed == 1
    for call in (lambda: study.trained, lambda: study.counts(CONFIGS), lambda: list(study.folds())):
        with pytest.raises(
            InputError, match=r"seed0/checkpoint.pt is not the checkpoint that .*trainings.csv names: restore it"
        ):
            call()


def test_pictures_are_of_a_training_made_again_where_checkpoints_are_gone(two, monkeypatch, tmp_path):
    """LTCAM_KEPT reads kept counts in every study, and trains nothing. Its heatmaps are of the training `again`."""
    expected, first = two.counts(CONFIGS).values.tolist(), two.load("seed0").sha256
    monkeypatch.setenv("LTCAM_KEPT", "1")
    monkeypatch.setenv("LTCAM_RUNS", str(tmp_path))
    (tmp_path / "voc2012" / "again").mkdir(parents=True)
    kept = Study("tiny", "voc2012")
    with pytest.raises(MissingError, match=r"no weights at .*seed0/checkpoint.pt"):
        kept.trained  # noqa: B018
    shutil.copyfile(two.runs / "seed1" / "checkpoint.pt", tmp_path / "voc2012" / "again" / "checkpoint.pt")
    kept = Study("tiny", "voc2012")
    before = sorted(path for path in two.out.rglob("*"))
    kept.train()
    assert before == sorted(path for path in two.out.rglob("*")) and kept.counts(CONFIGS).values.tolist() == expected
    again = "Heatmaps are of a repeated training: the checkpoints behind the tables are gone."
    assert kept.trained.sha256 != first and kept.described == f"{two.described}\n{again}"
    with pytest.raises(MissingError, match=r"no weights at .*seed0/checkpoint.pt"):
        kept.load("seed0")  # no other is measured in its name


@pytest.mark.parametrize(("there", "pictured"), [(["seed0", "again"], "seed0"), (["again"], "again"), ([], "seed0")])
def test_heatmaps_are_of_the_first_training_or_of_one_made_again(there, pictured, tmp_path):
    for name in there:
        files.write(tmp_path / name / "checkpoint.pt", "")
    assert Study.pictured.fget(SimpleNamespace(names=["seed0", "seed1"], runs=tmp_path)) == pictured

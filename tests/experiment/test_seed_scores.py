"""Seeds under the field's protocol: by hand, against IRN's evaluation written anew, and against scikit-learn."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from ltcam import data as datasets
from ltcam.__main__ import app
from ltcam.data import magnetic_tile
from ltcam.errors import InputError, MissingError
from ltcam.experiment import metrics, seed_counts, seed_scores, seeds
from ltcam.experiment.checkpoints import load_checkpoint
from ltcam.experiment.configs import Config, Protocol
from ltcam.experiment.evaluation import evaluate
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.seed_files import read
from ltcam.experiment.seed_scores import BINS, THRESHOLDS, Tally, of_checkpoint, of_folder
from ltcam.experiment.training import train
from tests import lookalikes
from tests.experiment.test_training import TINY

MASK = torch.tensor([[1, 1, 0, 255], [1, 2, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0]], dtype=torch.uint8)
MAPS = torch.tensor([
    [[1.0, 0.6, 0.2, 0.9], [0.4, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.7], [0.0, 0.0, 0.0, 0.0]],
    [[0.1, 0.6, 0.0, 0.8], [0.5, 1.0, 0.3, 0.0], [0.9, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.6]],
])  # fmt: skip
LT = "layercam:S1-S5,normalize=tanh,refine=S3-S5:8"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patched:
        root = lookalikes.voc(folder / "data")
        for path in root.rglob("2007_000001.*g"):
            Image.open(path).resize((61, 45), Image.Resampling.NEAREST).save(path)
        patched.setenv("LTCAM_DATA", str(root))
        yield train(Recipe(data="voc2012", test="val", **TINY), folder)


@pytest.fixture(scope="module")
def run(checkpoint):
    return load_checkpoint(checkpoint)


def test_by_hand():
    """At 0.5 a value of 0.5 is background, and of two values of 0.6 the first class wins. One pixel is void."""
    tally = Tally(2)
    tally.add(MAPS, torch.tensor([0, 1]), MASK)
    assert tally.confusion()[50].tolist() == [[7, 1, 1], [1, 2, 0], [1, 0, 2]]
    assert tally.ious()[50] == pytest.approx([100 * 7 / 11, 50, 50], rel=1e-12)
    assert tally.curve()[0.5] == pytest.approx(100 * 6 / 11, rel=1e-12)
    assert tally.confusion()[100].tolist() == [[9, 0, 0], [3, 0, 0], [3, 0, 0]]  # nothing is above 1
    # above 0: the second class claims two background pixels and one of the first; the first claims two
    assert tally.confusion()[0].tolist() == [[5, 2, 2], [0, 2, 1], [0, 0, 3]]


def test_otsus_class_mean_is_that_of_the_papers_protocol(run, tmp_path):
    """By hand: Otsu's thresholds are 0.20 and 0.30, and one of the pixels above them is void."""
    tally = Tally(3)
    tally.add(MAPS, torch.tensor([0, 2]), torch.where(MASK == 2, 3, MASK))
    assert tally.otsu.tolist() == [[3, 2, 0], [0, 0, 0], [3, 4, 0]]
    assert tally.class_mean() == pytest.approx(100 * (3 / 5 + 3 / 7) / 2, rel=1e-12)
    configs = [Config("gradcam"), Config("layercam", "S3-S5", 0.0, fuse="prod")]
    for config, found in of_checkpoint(run, "val", configs, Protocol(3)).items():
        counts = evaluate(run, "val", [config], tmp_path)
        assert found.class_mean() == pytest.approx(metrics.scores(counts)["mIoU"][0], abs=0.02)


def test_a_trace_keeps_only_what_is_asked_for(run, monkeypatch):
    """And gives the same counts as one of all stages."""
    traced, real = [], seeds.trace
    monkeypatch.setattr(seeds, "trace", lambda *a: traced.append(a[3]) or real(*a))
    config = Config.parse("layercam:S4-S5,refine=S3:8")
    (found,) = of_checkpoint(run, "val", [config]).values()
    both = of_checkpoint(run, "val", [config, Config("gradcam", "S1")])
    assert traced[0] == ["S3", "S4-S5"] and traced[-1] == ["S1", "S3", "S4-S5"] and torch.equal(found.joint, both[config].joint)
    for everything in (Config("layercam", "all"), Config("fullgrad", "S5")):
        of_checkpoint(run, "val", [everything])
        assert traced[-1] is None


def test_an_image_without_a_class_is_background_and_a_label_without_pixels_is_left_out():
    tally = Tally(3)
    tally.add(MAPS, torch.tensor([0, 1]), MASK)
    before = tally.curve()[0.5]
    assert np.isnan(tally.ious()[:, 3]).all() and before == pytest.approx(100 * 6 / 11, rel=1e-12)
    tally.add(torch.zeros(0, 2, 2), torch.zeros(0, dtype=torch.long), torch.tensor([[0, 0], [0, 255]], dtype=torch.uint8))
    assert tally.confusion()[50].tolist() == [[10, 1, 1, 0], [1, 2, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]] and tally.images == 2
    assert tally.curve()[0.5] == pytest.approx(100 * (10 / 14 + 1) / 3, rel=1e-12)


def by_irn(files, masks, labels, t):
    """IRN's evaluation of its seeds (its step eval_cam, and chainercv's confusion matrix that it calls), written anew."""
    confusion = np.zeros((labels, labels), dtype=np.int64)
    for found, mask in zip(files, masks, strict=True):
        maps = np.concatenate([np.full_like(found["high_res"][:1], t), found["high_res"]])
        claimed = np.concatenate([[0], found["keys"] + 1])[maps.argmax(axis=0)]
        for truth, guess in zip(mask[mask != 255].tolist(), claimed[mask != 255].tolist(), strict=True):
            confusion[truth, guess] += 1
    with np.errstate(invalid="ignore"):
        return np.nanmean(np.diag(confusion) / (confusion.sum(axis=0) + confusion.sum(axis=1) - np.diag(confusion)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_irns_own_evaluation_of_the_same_files(dtype):
    """Values at thresholds, and ties of two classes, among them. A threshold is in the maps' precision, as numpy pads."""
    rng, files, masks, tally = np.random.default_rng(0), [], [], Tally(20)
    for _ in range(6):
        keys = np.sort(rng.choice(20, rng.integers(1, 4), replace=False))
        maps = np.round(rng.random((len(keys), 23, 31)) ** 2, rng.integers(1, 4)).astype(dtype)
        masks.append(rng.choice([0, *(keys + 1), 255], (23, 31)).astype(np.uint8))
        files.append({"keys": keys, "high_res": maps})
        tally.add(torch.from_numpy(maps), torch.from_numpy(keys), torch.from_numpy(masks[-1]))
    for t in (0, 0.01, 0.1, 0.15, 0.3, 0.35, 0.7, 0.99, 1):
        assert tally.curve()[t] / 100 == pytest.approx(by_irn(files, masks, 21, t), abs=1e-12)


def test_average_precision_is_scikit_learns():
    rng = np.random.default_rng(0)
    tally, truths, values = Tally(2), [[], []], [[], []]
    for _ in range(4):
        mask = rng.choice([0, 1, 2, 255], (60, 80)).astype(np.uint8)
        maps = (rng.random((2, 60, 80)) * np.where(mask == [[[1]], [[2]]], 1, 0.8)).astype(np.float32)
        maps[:, 0, 0] = 1
        tally.add(torch.from_numpy(maps), torch.tensor([0, 1]), torch.from_numpy(mask))
        for c in (0, 1):
            truths[c].append(mask[mask != 255] == c + 1)
            values[c].append(maps[c][mask != 255])
    truths, values = [np.concatenate(t) for t in truths], [np.concatenate(v) for v in values]
    rounded = [np.minimum(np.floor(v * BINS), BINS - 1) for v in values]
    for found, tolerance in ((rounded, 1e-10), (values, 1e-2)):  # of percent
        pooled = 100 * average_precision_score(np.concatenate(truths), np.concatenate(found))
        mean = 100 * np.mean([average_precision_score(t, v) for t, v in zip(truths, found, strict=True)])
        assert tally.precision() == pytest.approx((pooled, mean), abs=tolerance)
    assert np.isnan(Tally(2).precision()).all()


@pytest.mark.parametrize(
    ("maps", "keys", "mask", "said"),
    [
        (MAPS[:, :3], [0, 1], MASK, r"2 classes with a torch.float32 tensor \(2, 3, 4\) for a mask \(4, 4\)"),
        (MAPS, [0], MASK, r"1 classes with .* expected \(n, H, W\) for \(H, W\)"),
        (MAPS, [0, 1], MASK * 2, "a mask has the label 4: expected at most 2, or 255"),
    ],
)
def test_what_does_not_fit_is_refused(maps, keys, mask, said):
    with pytest.raises(InputError, match=said):
        Tally(2).add(maps, torch.tensor(keys), torch.where(MASK == 255, 255, mask) if mask.shape == MASK.shape else mask)


def test_a_checkpoint_and_its_exported_files_get_the_same_counts(run, tmp_path):
    config = Config.parse(LT)
    seeds.export(run, "train", config, tmp_path, Protocol(3))
    others = [config, Config("gradcam", "S1-S5", 20.0, fuse="prod"), Config("fullgrad", "all")]
    found = of_checkpoint(run, "train", others, Protocol(3))
    folder = of_folder(tmp_path, datasets.load("voc2012", "train"))
    assert list(found) == others and folder.images == found[config].images == 8
    assert torch.equal(folder.joint, found[config].joint) and torch.equal(folder.ranked, found[config].ranked)
    for other in others[1:]:
        (alone,) = of_checkpoint(run, "train", [other]).values()
        assert (alone.joint - found[other].joint).abs().sum() <= 0.01 * alone.joint.sum()
        assert not torch.equal(folder.joint, alone.joint)


def test_images_without_a_class_are_scored_too(tmp_path, monkeypatch):
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.magnetic_tile(tmp_path / "data")))
    trained = load_checkpoint(train(Recipe(data="magnetic_tile", **{**TINY, "epochs": 1}), tmp_path / "run"))
    config, data = Config("layercam"), datasets.load("magnetic_tile", "test")
    (found,) = of_checkpoint(trained, "test", [config]).values()
    seeds.export(trained, "test", config, tmp_path / "seeds")
    folder = of_folder(tmp_path / "seeds", data)
    assert folder.images == found.images == len(data) > int(data.labels.any(dim=1).sum())
    assert torch.equal(folder.joint, found.joint)
    unclear = data.entries[data.scored[0]].name  # a defect whose mask is empty, as four tiles are
    monkeypatch.setattr(magnetic_tile, "EMPTY", {unclear})
    (fewer,) = of_checkpoint(trained, "test", [config]).values()
    folder = of_folder(tmp_path / "seeds", datasets.load("magnetic_tile", "test"))
    assert folder.images == fewer.images == found.images - 1 and torch.equal(folder.joint, fewer.joint)
    assert found.joint.sum() - fewer.joint.sum() == 40 * 30
    counts = seed_counts.count(trained, "test", {config: 0.3}, tmp_path / "counts", Protocol())
    assert unclear not in set(counts["name"]) and counts["name"].nunique() == len(data) - 1


class Harmful:
    def __reduce__(self):
        return print, ("harm",)


def written(path, content):
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    return path


def test_a_file_that_holds_code_or_no_seeds_is_refused(tmp_path, capsys):
    good = {"keys": np.array([0, 3]), "cam": np.zeros((2, 1, 1), np.float32), "high_res": np.ones((2, 3, 4), np.float32)}
    keys, maps = read(written(tmp_path / "good.npy", good), 4)
    assert keys.tolist() == [0, 3] and maps.shape == (2, 3, 4)
    tensors = good | {"keys": torch.tensor([0, 3]), "cam": torch.zeros(2, 1, 1)}  # as IRN writes them
    keys, maps = read(written(tmp_path / "irn.npy", tensors), 4)
    assert keys.tolist() == [0, 3] and maps.shape == (2, 3, 4)
    for wrong, said in (
        ({**good, "more": Harmful()}, r"builtins.print is not an array: refused"),
        ({**good, "keys": pd.Series([0, 3])}, "is not an array: refused"),
        ({"keys": good["keys"]}, "holds no seeds"),
        ([1, 2], "holds no seeds"),
        ({**good, "keys": np.array([0])}, r"has keys \(1,\) and high_res \(2, 3, 4\)"),
        ({**good, "keys": np.array([0.0, 3.0])}, r"has keys \(2,\)"),
        ({**good, "high_res": np.ones((2, 3, 4), int)}, r"expected \(n,\) and \(n, H, W\)"),
        ({**good, "keys": np.array([0, 4])}, r"has the keys \[0, 4\]: expected different classes from 0 to 3"),
        ({**good, "keys": np.array([-1, 3])}, "has the keys"),
        ({**good, "keys": np.array([3, 3])}, "has the keys"),
        ({**good, "high_res": np.full((2, 3, 4), 1.1, np.float32)}, r"values outside \[0, 1\]"),
        ({**good, "high_res": np.full((2, 3, 4), np.nan, np.float32)}, r"values outside \[0, 1\]"),
    ):
        with pytest.raises(InputError, match=said):
            read(written(tmp_path / "wrong.npy", wrong), 4)
    np.save(tmp_path / "plain.npy", np.ones(3))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-40])
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(good))
    for name in ("plain", "cut", "raw"):
        with pytest.raises(InputError, match=f"{name}.npy holds no seeds .*: expected a dict of arrays keys and high_res"):
            read(tmp_path / f"{name}.npy", 4)
    with pytest.raises(MissingError, match=r"none\.npy is missing: expected the seeds of an image"):
        read(tmp_path / "none.npy", 4)
    assert capsys.readouterr().out == ""


def test_a_tensor_whose_bytes_hold_code_is_refused(tmp_path, capsys):
    class Nested:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (pickle.dumps(Harmful()),)

    content = {"keys": Nested(), "high_res": np.ones((1, 2, 2), np.float32)}
    with pytest.raises(InputError, match="holds no seeds"):
        read(written(tmp_path / "nested.npy", content), 4)
    assert capsys.readouterr().out == ""


def test_the_command(checkpoint, run, tmp_path):
    def called(*arguments):
        done = CliRunner().invoke(app, ["eval-seeds", *map(str, arguments)], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    out = tmp_path / "out"
    said = called("--checkpoint", checkpoint, "--part", "val", "--choose-on", "train", "--config", LT, "--out", out)
    assert said.startswith("PASCAL VOC 2012 subset, part val: best_t is the best on val itself; t is the best on train\n")
    row = pd.read_csv(out / "seeds.csv").iloc[0]
    curves = {part: of_checkpoint(run, part, [Config.parse(LT)])[Config.parse(LT)].curve() for part in ("train", "val")}
    assert row["t"] == curves["train"].idxmax() and row["mIoU"] == pytest.approx(curves["val"][row["t"]], rel=1e-5)
    assert row["best_t"] == curves["val"].idxmax() and row["best_mIoU"] == pytest.approx(curves["val"].max(), rel=1e-5)
    assert row["mIoU"] <= row["best_mIoU"] and row["seeds"] == LT and row["images"] == 6
    table = pd.read_csv(out / "curves.csv")
    assert len(table) == len(THRESHOLDS) and table["mIoU"].max() == pytest.approx(row["best_mIoU"])
    seeds.export(run, "val", Config.parse(LT), tmp_path / "files")
    said = called("--folder", tmp_path / "files", "--data", "voc2012", "--part", "val")
    assert "best_t" in said and "mAP" in said and f"{row['best_mIoU']:.2f}" in said
    for wrong in ([], ["--checkpoint", checkpoint, "--folder", tmp_path], ["--folder", tmp_path]):
        with pytest.raises(
            InputError,
            match="expected --checkpoint PATH, or --folder PATH with --data NAME and without --config, --scale, --flip",
        ):
            called(*wrong)
    with pytest.raises(MissingError, match="is missing: expected the seeds of an image"):
        called("--folder", tmp_path, "--data", "voc2012", "--part", "val")


def test_maps_of_another_size_are_refused(run, tmp_path):
    seeds.export(run, "val", Config("layercam"), tmp_path)
    name = datasets.load("voc2012", "val").entries[0].name
    written(tmp_path / f"{name}.npy", {"keys": np.array([0]), "high_res": np.ones((1, 3, 4), np.float32)})
    with pytest.raises(InputError, match=r"has maps \(3, 4\), the mask is .*: export it again"):
        of_folder(tmp_path, datasets.load("voc2012", "val"))


def test_the_curve_is_chosen_on_one_part_and_scored_on_another():
    scored, chosen = Tally(2), Tally(2)
    scored.add(MAPS, torch.tensor([0, 1]), MASK)
    chosen.add(MAPS / 2, torch.tensor([0, 1]), MASK)
    (row,) = seed_scores.table({"a": scored}, {"a": chosen}).to_dict("records")
    assert row["t"] == chosen.curve().idxmax() < row["best_t"] == scored.curve().idxmax()
    assert row["mIoU"] == scored.curve()[row["t"]] < row["best_mIoU"]
    assert {"mIoU", "t"}.isdisjoint(seed_scores.table({"a": scored}))

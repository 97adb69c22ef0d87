"""Seeds under the field's protocol: by hand, and against IRN's evaluation written anew."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from ltcam import data as datasets
from ltcam.__main__ import app
from ltcam.engine.config import Config
from ltcam.errors import InputError, MissingError
from ltcam.experiment import counting, seeds
from ltcam.experiment.counting import count_batch
from ltcam.experiment.protocol import Protocol, Way
from ltcam.experiment.seeds import THRESHOLDS, Tally, of_checkpoint, of_folder
from tests.experiment.test_counting import MAPS, MASK, samples_of

LT = "layercam:S1-S5,normalize=tanh,refine=S3-S5:8"


def test_by_hand():
    """At 0.5 a value of 0.5 is background, and of two values of 0.6 the first class wins. One pixel is void."""
    tally = Tally(2)
    tally.add(MAPS, torch.tensor([0, 1]), MASK)
    assert tally.argmax[50].tolist() == [[7, 2, 2], [2, 1, 1], [2, 1, 1]]
    assert tally.curve()[0.5] == pytest.approx(100 * (7 / 11 + 1 / 2 + 1 / 2) / 3, rel=1e-12)
    assert tally.argmax[100].tolist() == [[9, 6, 0], [0, 0, 3], [0, 0, 3]]  # nothing is above 1
    # above 0: the second class claims two background pixels and one of the first; the first claims two
    assert tally.argmax[0].tolist() == [[5, 0, 4], [2, 2, 1], [3, 3, 0]]


def test_an_image_without_a_class_is_background_and_a_label_without_pixels_is_left_out():
    tally = Tally(3)
    tally.add(MAPS, torch.tensor([0, 1]), MASK)
    assert not tally.argmax[:, 3].any() and tally.curve()[0.5] == pytest.approx(100 * 6 / 11, rel=1e-12)
    tally.add(torch.zeros(0, 2, 2), torch.zeros(0, dtype=torch.long), torch.tensor([[0, 0], [0, 255]], dtype=torch.uint8))
    assert tally.argmax[50].tolist() == [[10, 2, 2], [2, 1, 1], [2, 1, 1], [0, 0, 0]] and tally.images == 2
    assert tally.curve()[0.5] == pytest.approx(100 * (10 / 14 + 1) / 3, rel=1e-12)


def by_irn(files, masks, labels, t):
    """IRN's evaluation of its seeds (its step eval_cam, and chainercv's confusion matrix that it calls), written anew."""
    confusion = np.zeros((labels, labels), dtype=np.int64)
    for found, mask in zip(files, masks, strict=True):
        maps = np.concatenate([np.full_like(found["high_res"][:1], t), found["high_res"]])
        claimed = np.concatenate([[0], found["keys"] + 1])[maps.argmax(axis=0)]
        np.add.at(confusion, (mask[mask != 255], claimed[mask != 255]), 1)
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


def test_otsus_class_mean_by_hand():
    """Otsu's thresholds are 0.20 and 0.30, and one of the pixels above them is void."""
    tally = Tally(3)
    tally.add(MAPS, torch.tensor([0, 2]), torch.where(MASK == 2, 3, MASK))
    assert tally.otsu.tolist() == [[3, 2, 0], [0, 0, 0], [3, 4, 0]]
    assert tally.class_mean() == pytest.approx(100 * (3 / 5 + 3 / 7) / 2, rel=1e-12)


@pytest.mark.parametrize("views", [Protocol(8), Protocol(8, size=(96, 64), flip=True)])
def test_the_sums_of_counts_are_the_scores_of_the_part(views, trained):
    """What the store keeps of an image at a background t, and Otsu's counts, which may differ in pixels at the threshold."""
    at = {Config("gradcam"): 0.4, Config.parse(LT): 0.35, Config("hirescam", "S1"): 0.65}  # the last depends on t most
    tallies = of_checkpoint(trained, "val", list(at), views)
    data, ways = trained.load("val"), [*map(Way, at), *(Way(config, "argmax", t) for config, t in at.items())]
    batches = (samples_of(data, views.size or trained.size, batch) for batch in counting.batches(data, views, annotated=True))
    rows = [row for samples in batches for row in count_batch(trained, samples, ways, views)[0]]
    table = pd.DataFrame([(str(r.way), r.label, r.tp, r.fp, r.fn) for r in rows], columns=["way", "class", "tp", "fp", "fn"])
    sums = table.groupby(["way", "class"]).sum()
    ious = 100 * sums["tp"] / sums.sum(axis=1)
    for config, t in at.items():
        assert ious[str(Way(config, "argmax", t))].mean() == pytest.approx(tallies[config].curve()[t], rel=1e-9)
        assert ious[str(Way(config))].mean() == pytest.approx(tallies[config].class_mean(), abs=0.05)
    assert {tally.images for tally in tallies.values()} == {6}


def test_a_trace_keeps_only_what_is_asked_for(trained, monkeypatch):
    """And gives the same counts as one of all stages."""
    config = Config.parse("layercam:S4-S5,refine=S3:8")
    (found,) = of_checkpoint(trained, "val", [config]).values()
    both = of_checkpoint(trained, "val", [config, Config("gradcam", "all")])
    assert (found.argmax == both[config].argmax).all()


def test_a_checkpoint_and_its_exported_files_get_the_same_counts(trained, tmp_path):
    config, protocol = Config.parse(LT), Protocol(3, scales=(1.0, 1.5), flip=True)
    seeds.export(trained, "train", config, tmp_path, protocol)
    others = [config, Config("gradcam", "S1-S5", 20.0, fuse="prod")]
    found = of_checkpoint(trained, "train", others, protocol)
    folder = of_folder(tmp_path, trained.load("train"))
    assert list(found) == others and folder.images == found[config].images == 8
    assert (folder.argmax == found[config].argmax).all() and not (folder.argmax == found[others[1]].argmax).all()
    name = trained.load("train").entries[0].name
    np.save(
        tmp_path / f"{name}.npy", np.array({"keys": np.array([0]), "high_res": np.ones((1, 3, 4), np.float32)}, dtype=object)
    )
    with pytest.raises(InputError, match=r"has maps \(3, 4\), the mask is .*: export it again"):
        of_folder(tmp_path, trained.load("train"))


def test_keys_that_an_image_lacks_are_counted_and_said(trained, tmp_path, caplog):
    """As of keys from 1, with background: every one is another class. They are false, as a map of any wrong class is."""
    data, config = trained.load("train"), Config.parse(LT)
    seeds.export(trained, "train", config, tmp_path)
    right = of_folder(tmp_path, data)
    assert not caplog.records
    names = [entry.name for entry in data.entries[:3]]
    for name in names:
        seed = np.load(tmp_path / f"{name}.npy", allow_pickle=True).item()
        np.save(tmp_path / f"{name}.npy", np.array(seed | {"keys": seed["keys"] + 1}, dtype=object))
    wrong = of_folder(tmp_path, data)
    (record,) = caplog.records
    said = "3 of 8 images have seeds of classes that they lack, first .*/2007_000000.npy: these count as false; keys are from 0"
    assert re.search(said, record.getMessage())
    shown = {c + 1 for i in range(3) for c in data.labels[i].nonzero().flatten().tolist()}
    assert (right.argmax[0, 1 + 8] == 0).all() and {9, 13} & {1 + c for c in shown}
    assert all(wrong.argmax[0, 1 + c, 0] == 0 < wrong.argmax[0, 1 + c, 1] for c in shown) and wrong.images == right.images


def test_images_without_a_class_are_scored_too_and_unclear_masks_are_not(tiles, tmp_path, monkeypatch):
    config, data = Config("layercam"), tiles.load("test")
    (found,) = of_checkpoint(tiles, "test", [config]).values()
    seeds.export(tiles, "test", config, tmp_path)
    folder = of_folder(tmp_path, data)
    assert folder.images == found.images == len(data) > int(data.labels.any(dim=1).sum())
    assert (folder.argmax == found.argmax).all()
    unclear = data.entries[data.scored[0]].name  # a defect whose mask is empty, as four tiles are
    monkeypatch.setattr("ltcam.data.sets.MagneticTile.empty", {unclear})
    (fewer,) = of_checkpoint(tiles, "test", [config]).values()
    folder = of_folder(tmp_path, tiles.load("test"))
    assert folder.images == fewer.images == found.images - 1 and (folder.argmax == fewer.argmax).all()
    assert found.argmax[0, :, [0, 2]].sum() - fewer.argmax[0, :, [0, 2]].sum() == 40 * 30  # tp and fn: its pixels
    counted = {i for batch in counting.batches(tiles.load("test"), Protocol(), annotated=True) for i in batch}
    assert len(counted) == len(data) - 1 and data.scored[0] not in counted


def test_the_threshold_is_chosen_on_one_part_and_scored_on_another():
    scored, chosen = Tally(2), Tally(2)
    scored.add(MAPS, torch.tensor([0, 1]), MASK)
    chosen.add(MAPS / 2, torch.tensor([0, 1]), MASK)
    (row,) = seeds.table({"a": scored}, {"a": chosen}).to_dict("records")
    assert row["t"] == chosen.curve().idxmax() < row["best_t"] == scored.curve().idxmax()
    assert row["mIoU"] == scored.curve()[row["t"]] < row["best_mIoU"]
    assert {"mIoU", "t"}.isdisjoint(seeds.table({"a": scored}))
    assert seeds.curves({"a": scored, "b": chosen}).shape == (2 * len(THRESHOLDS), 3)


def test_the_command(checkpoint, trained, tmp_path):
    def called(*arguments):
        done = CliRunner().invoke(app, ["eval-seeds", *map(str, arguments)], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    out, config = tmp_path / "out", Config.parse(LT)
    said = called("--checkpoint", checkpoint, "--part", "val", "--choose-on", "train", "--config", LT, "--out", out)
    assert said.startswith("PASCAL VOC 2012 subset, part val: best_t is the best on val itself; t is the best on train\n")
    row = pd.read_csv(out / "seeds.csv").iloc[0]
    curve = {part: of_checkpoint(trained, part, [config])[config].curve() for part in ("train", "val")}
    assert row["t"] == curve["train"].idxmax() and row["mIoU"] == pytest.approx(curve["val"][row["t"]], rel=1e-5)
    assert row["best_t"] == curve["val"].idxmax() and row["best_mIoU"] == pytest.approx(curve["val"].max(), rel=1e-5)
    assert row["mIoU"] <= row["best_mIoU"] and row["seeds"] == LT and row["images"] == 6
    table = pd.read_csv(out / "curves.csv")
    assert len(table) == len(THRESHOLDS) and table["mIoU"].max() == pytest.approx(row["best_mIoU"])
    seeds.export(trained, "val", config, tmp_path / "files")
    said = called("--folder", tmp_path / "files", "--data", "voc2012", "--part", "val")
    assert "best_t" in said and f"{row['best_mIoU']:.2f}" in said
    for wrong in ([], ["--checkpoint", checkpoint, "--folder", tmp_path], ["--folder", tmp_path],
                  ["--folder", tmp_path, "--data", "voc2012", "--flip"]):  # fmt: skip
        with pytest.raises(InputError, match="or --folder PATH with --data NAME and without --config, --scale, --flip"):
            called(*wrong)
    with pytest.raises(MissingError, match="is missing: expected the seeds of an image"):
        called("--folder", tmp_path, "--data", "voc2012", "--part", "val")
    assert datasets.load("voc2012", "val").part == "val"

import json
import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from ltcam import data as datasets
from ltcam.data import DataError, base
from ltcam.errors import InputError, UnavailableError
from ltcam.experiment import training, vgg16
from ltcam.experiment.losses import LOSSES, sigmoid
from ltcam.experiment.recipe import Recipe, tuning
from ltcam.experiment.trained import load_checkpoint
from ltcam.experiment.training import train
from tests import lookalikes
from tests.interrupts import at_call
from tests.tiny import TINY

VAL = "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"


@pytest.fixture
def voc(looks):
    return Recipe(data="voc2012", test="val", **TINY)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True))


def test_a_closed_folder_is_named_before_the_first_epoch(voc, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_fit_epoch", lambda *_: pytest.fail("an epoch was trained"))
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match=r"file/run cannot be written \(Not a directory\): name a place where"):
        train(voc, tmp_path / "file" / "run")


def test_held_out_images_in_the_training_part_are_counted_before_it_trains(voc, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "data"
    shutil.copytree(os.environ["LTCAM_DATA"], folder)
    monkeypatch.setenv("LTCAM_DATA", str(folder))
    lists = folder / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    names = [(lists / f"{part}.txt").read_text().split() for part in ("train", "val")]
    (lists / "train_aug.txt").write_text("\n".join([*names[0], *names[1][:2]]))
    monkeypatch.setattr(training, "_train", lambda *_: None)
    for part, said in (("train_aug", "2 of the 10"), ("trainval", "6 of the 14"), ("train", ""), ("train/fit", "")):
        caplog.clear()
        train(replace(voc, train=part, test="train/tune" if part == "train/fit" else "val"), tmp_path / "run")
        expected = f"voc2012: {said} images of part '{part}' are in part 'val' too, which is held out: take them off the list"
        assert [record.getMessage() for record in caplog.records] == ([expected] if said else [])


def test_a_run_leaves_checkpoint_tables_and_provenance(voc, checkpoint, trained):
    out = checkpoint.parent
    assert trained.recipe == voc and trained.size == (64, 64) and trained.classes == datasets.load("voc2012", "val").classes
    history = pd.read_csv(out / "train.csv")
    assert list(history) == ["epoch", "loss"] and history["epoch"].tolist() == [1, 2, 3]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert trained.record["last"] == {"epoch": 3, "loss": pytest.approx(history["loss"].iloc[-1], abs=1e-5)}
    labels = pd.read_csv(out / "labels.csv")
    assert labels["class"].tolist() == ["cat", "dog"] and labels["images"].tolist() == [4, 4]
    record = json.loads((out / "run.json").read_text())
    assert record["recipe"]["seed"] == 0 and record["images"] == {"train": 8, "test": 6} and record["processes"] == 1
    assert {"commit", "dirty", "versions", "device", "threads", "seconds", "source", "fingerprint"} <= record.keys()
    assert record["test"] == datasets.load("voc2012", "val").fingerprint and record["checkpoint"] == trained.sha256
    assert sorted(p.name for p in out.iterdir()) == ["checkpoint.pt", "labels.csv", "last.pt", "run.json", "train.csv"]


def test_the_last_epoch_is_kept_and_the_held_out_part_is_opened_only_then(voc, tmp_path, monkeypatch):
    """Nor is anything of it hashed before: of every file that is opened, which and whether the checkpoint was there."""
    held_out, opened = set(Path(os.environ["LTCAM_DATA"], VAL).read_text().split()), []
    kept, seen = tmp_path / "run" / "checkpoint.pt", base.opened

    def noted(path):
        opened.append((path.stem, kept.is_file()))
        return seen(path)

    read_bytes = Path.read_bytes
    monkeypatch.setattr(base, "opened", noted)
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append((path.stem, kept.is_file())) or read_bytes(path))
    path = train(replace(voc, epochs=2), tmp_path / "run")
    before, after = ({name for name, there in opened if there == late and name in held_out} for late in (False, True))
    assert not before and after == held_out and {name for name, there in opened if not there} - held_out
    models = training.load(path)["model"]
    fewer = training.load(train(replace(voc, epochs=1), tmp_path / "fewer"))["model"]
    assert not torch.equal(models["classifier.6.bias"], fewer["classifier.6.bias"])


def test_features_of_frozen_stages_are_the_networks_own_of_every_mirror_image(voc):
    recipe = replace(voc, frozen=4, augment="flips")
    data, model = datasets.load("voc2012", "train"), training.vgg16(20, "fc", None, 16, 16).eval()
    inputs, trainable = training.prepare(model, data, recipe, torch.device("cpu"))
    image = datasets.preprocess(data.image(3), (64, 64))
    with torch.no_grad():
        expected = [model.features[:24](x[None])[0] for x in (image, image.flip(-1))]
        torch.manual_seed(0)
        seen = [inputs[3][0] for _ in range(12)]
        choices = [[torch.allclose(s, e, atol=1e-5) for e in expected] for s in seen]
        assert all(sum(choice) == 1 for choice in choices) and 0 < sum(choice[1] for choice in choices) < 12
        assert torch.allclose(trainable.eval()(expected[0][None]), model(image[None]), atol=1e-5)
    tiles = replace(recipe, augment="none")
    alone, _ = training.prepare(model, data, tiles, torch.device("cpu"))
    assert all(torch.allclose(alone[3][0], expected[0], atol=1e-5) for _ in range(5))


def test_features_are_computed_once_for_seeds_and_hold_outs(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.magnetic_tile(tmp_path / "data")))
    recipe = Recipe(data="magnetic_tile", **TINY | {"frozen": 4, "augment": "flips", "epochs": 1})
    torch.manual_seed(0)
    weights = training.vgg16(1, "fc", None, 16, 16).state_dict()
    torch.save({"model": weights}, tmp_path / "vgg.pt")
    data, recipe = datasets.load("magnetic_tile", "train"), replace(recipe, weights=str(tmp_path / "vgg.pt"))
    for shade, entry in enumerate(data.entries):
        Image.new("L", (20, 30), 7 * shade).save(entry.image)
    with pytest.raises(DataError, match="no image with a class in part 'train/tune'"):  # it is one free tile
        train(tuning(recipe), tmp_path / "try")
    for seed in (0, 1):
        train(replace(recipe, seed=seed), tmp_path / f"seed{seed}")
    said = [record.getMessage() for record in caplog.records if "computed once" in record.getMessage()]
    numbers = [int(re.search(r"of (\d+) images", line)[1]) for line in said]
    assert len(numbers) == 2 and sum(numbers) == len(data)  # those of the hold-out came to those it was fitted on
    model = training.vgg16(1, "fc", str(tmp_path / "vgg.pt"), 16, 16)
    kept, _ = training.prepare(model, data, recipe, torch.device("cpu"))
    with torch.no_grad():
        upside_down = model.features[:24](datasets.preprocess(data.image(3), recipe.size).flip(-2)[None])[0]
    assert torch.allclose(kept.features[3][2], upside_down, atol=1e-5) and len(kept.features[3]) == 4


def test_training_on_features_is_training_with_frozen_stages(voc, tmp_path, monkeypatch):
    """Without dropout and flips, so that both see the same."""
    monkeypatch.setattr(training, "augmentation", lambda *arguments: None)
    recipe = replace(voc, head="gap", hidden=None, frozen=3, epochs=2)
    whole, behind = (
        load_checkpoint(train(replace(recipe, augment=augment), tmp_path / augment)) for augment in ("light", "none")
    )
    torch.testing.assert_close(whole.model.state_dict(), behind.model.state_dict(), rtol=0, atol=1e-5)


def test_an_interrupted_run_ends_as_an_undisturbed_one(voc, checkpoint, trained, tmp_path, monkeypatch):
    calls, third = at_call(3, training._fit_epoch)
    monkeypatch.setattr(training, "_fit_epoch", third)
    with pytest.raises(KeyboardInterrupt):
        train(voc, tmp_path)
    assert (tmp_path / "last.pt").is_file() and not (tmp_path / "checkpoint.pt").exists()
    again = load_checkpoint(train(voc, tmp_path))
    assert len(calls) == 4  # the first two epochs were not repeated
    assert (tmp_path / "train.csv").read_bytes() == (checkpoint.parent / "train.csv").read_bytes()
    for one, other in zip(again.model.state_dict().values(), trained.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_finished_run_is_returned_and_another_recipe_is_refused(voc, checkpoint, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = shutil.copytree(checkpoint.parent, tmp_path / "run") / "checkpoint.pt"
    written = path.stat().st_mtime_ns
    assert train(voc, path.parent) == path and path.stat().st_mtime_ns == written and "trained already" in caplog.text
    last = path.with_name("last.pt")
    state = torch.load(last, weights_only=True)
    del state["identity"]["recipe"]["balance"]  # of a version that did not know this field: it has its default
    torch.save(state, last)
    assert train(voc, path.parent) == path and path.stat().st_mtime_ns == written
    begun = {**state, "identity": {**state["identity"], "fingerprint": "f"}, "model": {}}  # of other data, and not finished
    for left, recipe in ((state, replace(voc, seed=1)), ({**state, "identity": {}}, voc), (begun, voc), (None, voc)):
        torch.save(left, last) if left else last.unlink()
        with pytest.raises(
            InputError, match=rf"^{path.parent} has a training of another recipe or data, or no last\.pt: name another"
        ):
            train(recipe, path.parent)
    assert path.stat().st_mtime_ns == written


@pytest.mark.parametrize("record", ["kept", "zero bytes", "of another"])
def test_a_checkpoint_that_was_cut_off_is_not_passed_over(voc, checkpoint, tmp_path, record):
    """Without it the run is done again, to the same end."""
    path = shutil.copytree(checkpoint.parent, tmp_path / "run") / "checkpoint.pt"
    about, content = path.with_name("run.json"), path.read_bytes()
    if record == "kept":
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match=r"checkpoint\.pt is damaged or holds more than tensors"):
            load_checkpoint(path)
    else:
        about.write_text("" if record == "zero bytes" else json.dumps({"checkpoint": "f" * 64}))
    said = (
        "run.json is damaged" if record == "zero bytes" else "checkpoint.pt is damaged .run.json has another SHA-256.: restore"
    )
    with pytest.raises(InputError, match=said):
        train(voc, path.parent)
    path.unlink()
    assert train(voc, path.parent) == path and same(load_checkpoint(path), load_checkpoint(checkpoint))


def test_frozen_stages_stay(voc, tmp_path):
    torch.manual_seed(voc.seed)
    before = training.vgg16(20, "fc", None, 16, 16).state_dict()
    recipe = replace(voc, frozen=2, epochs=1)
    after = load_checkpoint(train(recipe, tmp_path)).model.state_dict()
    assert torch.equal(before["features.7.weight"], after["features.7.weight"])
    assert not torch.equal(before["features.10.weight"], after["features.10.weight"])


def test_the_convolutions_learn_slower_than_the_head(voc):
    model = training.vgg16(20, "fc", None, 16, 16)
    optimizer, schedule = training._optimizer(model, Recipe(lr=1e-2, slow=0.01, epochs=2), steps=5)
    rates = {id(p): group["max_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.classifier[0].weight)] == 1e-2 and rates[id(model.features[0].weight)] == 1e-4
    assert len(rates) == 32 and schedule.total_steps == 10


def test_training_images_are_flipped_and_scaled_and_test_images_are_not(voc):
    data = datasets.load("voc2012", "train")
    model = training.vgg16(20, "fc", None, 16, 16)
    train_set, _ = training.prepare(model, data, voc, torch.device("cpu"))
    test_set = training.Inputs(data, (64, 64))
    torch.manual_seed(0)
    seen = torch.stack([train_set[0][0] for _ in range(12)])
    plain = datasets.preprocess(data.image(0), (64, 64))
    assert all(torch.equal(test_set[0][0], plain) for _ in range(3))
    assert len({float(x.std()) for x in seen}) > 6  # scales differ
    flipped = [(x - plain.flip(-1)).abs().mean() < (x - plain).abs().mean() for x in seen]
    assert 0 < sum(flipped) < 12


def test_labels_are_scored_by_the_model_that_is_kept(checkpoint, trained):
    val = datasets.load("voc2012", "val")
    inputs = torch.stack([datasets.preprocess(val.image(i), (64, 64)) for i in range(len(val))])
    with torch.no_grad():
        expected = training.label_scores(torch.cat([trained.model(batch) for batch in inputs.split(4)]), val)
    pd.testing.assert_frame_equal(pd.read_csv(checkpoint.parent / "labels.csv"), expected, atol=1e-5)


def test_label_scores_are_average_precision_of_the_classes_that_occur():
    scores, labels = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    (row,) = training.label_scores(scores, SimpleNamespace(classes=("cat", "dog"), labels=labels)).to_dict("records")
    assert row == {"class": "cat", "images": 2, "AP": average_precision_score([1, 1, 0], [3, 1, 2])}


def test_a_loss_that_is_not_a_number_stops_the_run(voc, tmp_path):
    recipe = Recipe(data="voc2012", test="val", **{**TINY, "lr": 1e30})
    with pytest.raises(FloatingPointError, match=r"the loss of batch 2 of 2 \(2007_.*\) is .* at lr=1e\+30: look at"):
        train(recipe, tmp_path)


def test_bfloat16_is_computed_in_but_kept_is_float32(voc, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setitem(LOSSES, "sigmoid", lambda *given: seen.append(given[0].dtype) or sigmoid(*given))
    paths = [
        train(Recipe(data="voc2012", test="val", bfloat16=b, **TINY | {"epochs": 1}), tmp_path / str(b)) for b in (False, True)
    ]
    assert set(seen[: len(seen) // 2]) == {torch.float32} and set(seen[len(seen) // 2 :]) == {torch.bfloat16}
    weights = [load_checkpoint(path).model.classifier[0].weight for path in paths]
    assert weights[1].dtype == torch.float32
    torch.testing.assert_close(*weights, rtol=0, atol=0.01)


@pytest.mark.parametrize(("steps", "expected"), [(1, [1]), (2, [0.04, 1]), (5, [0.04, 1, 0.75, 0.25, 0])])
def test_a_schedule_of_few_steps_rises_first(steps, expected):
    """As parts of the rate, worked out by hand: 1/25, the whole rate, then half a cosine down to its end."""
    model = vgg16.vgg16(2, weights=None, hidden=4, width=16)
    optimizer, schedule = training._optimizer(model, Recipe(epochs=1, lr=0.5, frozen=0), steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"] / 0.5)
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("steps", [10, 40, 1464])
def test_the_rates_of_longer_trainings_are_torchs_own(steps):
    model = vgg16.vgg16(2, weights=None, hidden=4, width=16)
    optimizer, schedule = training._optimizer(model, Recipe(epochs=1, frozen=0), steps)
    other = torch.optim.SGD([{"params": [p]} for p in list(model.parameters())[:2]])
    plain = torch.optim.lr_scheduler.OneCycleLR(other, [3e-4, 3e-4 * 0.1], steps, pct_start=0.2)
    for _ in range(steps - 1):
        assert schedule.get_last_lr() == plain.get_last_lr()
        for part in (optimizer, other, schedule, plain):
            part.step()

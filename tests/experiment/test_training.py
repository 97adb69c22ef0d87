import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from ltcam import data as datasets
from ltcam import files
from ltcam.data import base
from ltcam.errors import InputError, UnavailableError
from ltcam.experiment import features, training
from ltcam.experiment.checkpoints import load_checkpoint
from ltcam.experiment.recipe import Recipe, settings, tried, tuning
from ltcam.experiment.training import train
from tests import lookalikes

TINY = {"weights": None, "width": 16, "hidden": 16, "size": (64, 64), "frozen": 0, "epochs": 3, "batch_size": 4, "lr": 1e-3}
VAL = "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"


@pytest.fixture
def voc(tmp_path, monkeypatch):
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.voc(tmp_path / "data")))
    return Recipe(data="voc2012", test="val", **TINY)


def quiet_recipes():
    """Without dropout, for runs without flips and scales; the second's last batch is one image, which both processes take."""
    settings = {"data": "voc2012", "test": "val", **TINY, "head": "gap", "hidden": None}
    convolutions, head = {"frozen": 2, "batch_size": 3}, {"frozen": 5, "augment": "none", "batch_size": 7}
    return {"convolutions": Recipe(**settings | convolutions), "head": Recipe(**settings | head)}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True))


def test_a_closed_folder_is_named_before_the_first_epoch(voc, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_fit_epoch", lambda *_: pytest.fail("an epoch was trained"))
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match=r"file/run cannot be written \(Not a directory\): name a place where"):
        train(voc, tmp_path / "file" / "run")


def test_a_run_leaves_checkpoint_tables_and_provenance(voc, tmp_path):
    trained = load_checkpoint(train(voc, tmp_path / "run"))
    assert trained.recipe == voc and trained.size == (64, 64) and trained.classes == datasets.load("voc2012", "val").classes
    history = pd.read_csv(tmp_path / "run" / "train.csv")
    assert list(history) == ["epoch", "loss"] and history["epoch"].tolist() == [1, 2, 3]
    assert trained.record["last"] == {"epoch": 3, "loss": pytest.approx(history["loss"].iloc[-1], abs=1e-5)}
    labels = pd.read_csv(tmp_path / "run" / "labels.csv")
    assert labels["class"].tolist() == ["cat", "dog"] and labels["images"].tolist() == [4, 4]
    record = json.loads((tmp_path / "run" / "labels.json").read_text())
    assert record["recipe"]["seed"] == 0 and record["images"] == {"train": 8, "test": 6}
    assert {"commit", "dirty", "versions", "device", "threads", "seconds", "source", "fingerprint"} <= record.keys()
    assert record["test"] == datasets.load("voc2012", "val").fingerprint and record["checkpoint"] == trained.sha256
    assert not [p for p in (tmp_path / "run").iterdir() if "partial" in p.name]


def test_the_last_epoch_is_kept_and_the_held_out_part_is_opened_only_then(voc, tmp_path, monkeypatch):
    """Nor is anything of it hashed before: of every file that is opened, which and whether the checkpoint was there."""
    held_out, opened = set(Path(os.environ["LTCAM_DATA"], VAL).read_text().split()), []
    kept, seen = tmp_path / "run" / "checkpoint.pt", base._opened

    def noted(path):
        opened.append((path.stem, kept.is_file()))
        return seen(path)

    read_bytes = Path.read_bytes
    monkeypatch.setattr(base, "_opened", noted)
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append((path.stem, kept.is_file())) or read_bytes(path))
    path = train(voc, tmp_path / "run")
    before, after = ({name for name, there in opened if there == late and name in held_out} for late in (False, True))
    assert not before and after == held_out and {name for name, there in opened if not there} - held_out
    models = training.load(path)["model"]
    recipe = replace(voc, epochs=2)
    fewer = training.load(train(recipe, tmp_path / "fewer"))["model"]
    assert not torch.equal(models["classifier.6.bias"], fewer["classifier.6.bias"])


def test_a_recipe_is_tried_on_a_hold_out_of_the_training_part(voc, tmp_path):
    whole, fit, tune = (datasets.load("voc2012", part) for part in ("train", "train/fit", "train/tune"))
    names = [{entry.name for entry in data.entries} for data in (whole, fit, tune)]
    assert names[1] | names[2] == names[0] and not names[1] & names[2] and len(names[2]) == 1  # a tenth of eight
    assert (fit.part, tune.part) == ("train/fit", "train/tune")
    for lr in (1e-3, 1e-4):
        train(tuning(replace(voc, lr=lr, epochs=1)), tmp_path / "tries" / f"lr={lr}")
    train(replace(voc, epochs=1), tmp_path / "seed0")  # is no try
    table = tried(tmp_path, tmp_path / "results")
    assert table["try"].tolist() == ["lr=0.0001", "lr=0.001"] and table["lr"].tolist() == [1e-4, 1e-3]
    expected = pd.read_csv(tmp_path / "tries" / "lr=0.001" / "labels.csv")["AP"].mean()
    assert table["mAP"][1] == pytest.approx(expected) and len(pd.read_csv(tmp_path / "results" / "tries.csv")) == 2


def test_groups_stay_on_one_side_of_a_hold_out(tmp_path, monkeypatch):
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.magnetic_tile(tmp_path)))
    fit, tune = (datasets.load("magnetic_tile", f"train/{side}") for side in ("fit", "tune"))
    assert len(tune) == 6 and not set(fit.groups) & set(tune.groups)  # one tile of six exposures
    with pytest.raises(datasets.DataError, match="part 'train/test' is unknown: expected 'train', 'train/fit' or 'train/tune'"):
        datasets.load("magnetic_tile", "train/test")


def test_the_first_images_of_a_part():
    whole, few = datasets.load("demo", "train"), datasets.load("demo", "train/36")
    assert (few.part, len(few)) == ("train/36", 36) and few.entries == whole.entries[:36]
    assert few.scored == [i for i in whole.scored if i < 36] and torch.equal(few[35].image, whole[35].image)
    assert few.fingerprint not in (whole.fingerprint, datasets.load("demo", "train/35").fingerprint)


def test_the_demo_has_a_hold_out_too():
    whole, tune = datasets.load("demo", "train"), datasets.load("demo", "train/tune")
    names = [entry.name for entry in whole.entries]
    assert len(tune) == 14 and torch.equal(tune[3].mask, whole[names.index(tune[3].name)].mask)


def test_settings_are_read_as_in_a_profile():
    found = settings(["epochs=8", "slow=0.3", "head=gap", "size=[64, 32]", "balance=true"])
    assert found == {"epochs": 8, "slow": 0.3, "head": "gap", "size": [64, 32], "balance": True}
    with pytest.raises(InputError, match=r"'epoch' is not a setting of a recipe: expected NAME=VALUE with a name of data, "):
        settings(["epoch=8"])


def test_features_of_frozen_stages_are_the_networks_own_of_every_mirror_image(voc):
    recipe = replace(voc, frozen=4, augment="flips")
    data, model = datasets.load("voc2012", "train"), training.vgg16(20, "fc", None, 16, 16).eval()
    inputs, trainable = features.prepare(model, data, (64, 64), recipe, torch.device("cpu"))
    image = datasets.preprocess(data.image(3), (64, 64))
    with torch.no_grad():
        expected = [model.features[:24](x[None])[0] for x in (image, image.flip(-1))]
        torch.manual_seed(0)
        seen = [inputs[3][0] for _ in range(12)]
        choices = [[torch.allclose(s, e, atol=1e-5) for e in expected] for s in seen]
        assert all(sum(choice) == 1 for choice in choices) and 0 < sum(choice[1] for choice in choices) < 12
        assert torch.allclose(trainable.eval()(expected[0][None]), model(image[None]), atol=1e-5)
    tiles = replace(recipe, augment="none")
    alone, _ = features.prepare(model, data, (64, 64), tiles, torch.device("cpu"))
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
    train(tuning(recipe), tmp_path / "try")
    for seed in (0, 1):
        train(replace(recipe, seed=seed), tmp_path / f"seed{seed}")
    said = [record.getMessage() for record in caplog.records if "computed once" in record.getMessage()]
    numbers = [int(re.search(r"of (\d+) images", line)[1]) for line in said]
    assert len(numbers) == 2 and sum(numbers) == len(data)  # those of the hold-out came to those it was fitted on
    model = training.vgg16(1, "fc", str(tmp_path / "vgg.pt"), 16, 16)
    kept, _ = features.prepare(model, data, data.size, recipe, torch.device("cpu"))
    with torch.no_grad():
        upside_down = model.features[:24](datasets.preprocess(data.image(3), data.size).flip(-2)[None])[0]
    assert torch.allclose(kept.features[3][2], upside_down, atol=1e-5) and len(kept.features[3]) == 4


def test_training_on_features_is_training_with_frozen_stages(voc, tmp_path, monkeypatch):
    """Without dropout and flips, so that both see the same."""
    monkeypatch.setattr(features, "augmentation", lambda *arguments: None)
    recipe = replace(voc, head="gap", hidden=None, frozen=3)
    whole, behind = (
        load_checkpoint(train(replace(recipe, augment=augment), tmp_path / augment)) for augment in ("light", "none")
    )
    torch.testing.assert_close(whole.model.state_dict(), behind.model.state_dict(), rtol=0, atol=1e-5)


def test_rare_classes_weigh_as_much_as_common_ones(voc, tmp_path, monkeypatch):
    labels = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]])
    assert training._rarity(labels).tolist() == [3, pytest.approx(1 / 3), 1]
    seen, loss = [], torch.nn.functional.binary_cross_entropy_with_logits
    noted = lambda *a, pos_weight: seen.append(pos_weight) or loss(*a, pos_weight=pos_weight)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "binary_cross_entropy_with_logits", noted)
    for balance in (False, True):
        train(replace(voc, epochs=1, balance=balance), tmp_path / str(balance))
    expected = training._rarity(datasets.load("voc2012", "train").labels)
    assert seen[0] is None and torch.equal(seen[-1], expected) and expected.min() < 1


def test_an_unknown_augmentation_is_refused(voc):
    with pytest.raises(InputError, match="augment='bold'"):
        replace(voc, augment="bold")


def test_training_learns(tmp_path):
    recipe = Recipe(data="demo", **{**TINY, "epochs": 6, "batch_size": 20, "lr": 3e-3, "frozen": 5, "augment": "none"})
    train(recipe, tmp_path)
    loss = pd.read_csv(tmp_path / "train.csv")["loss"]
    assert loss.iloc[-1] < loss.iloc[0]


def test_an_interrupted_run_ends_as_an_undisturbed_one(voc, tmp_path, monkeypatch):
    train(voc, tmp_path / "whole")
    fit, calls = training._fit_epoch, []

    def interrupted(*arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return fit(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(training, "_fit_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(voc, tmp_path / "cut")
    monkeypatch.setattr(training, "_fit_epoch", lambda *a: calls.append(1) or fit(*a))
    train(voc, tmp_path / "cut")
    assert len(calls) == 3  # the first two epochs were not repeated
    assert (tmp_path / "cut" / "train.csv").read_bytes() == (tmp_path / "whole" / "train.csv").read_bytes()
    assert same(*(load_checkpoint(tmp_path / run / "checkpoint.pt") for run in ("cut", "whole")))


def test_two_processes_train_what_one_trains(voc, tmp_path, monkeypatch):
    """gloo on a CPU; the two are interrupted and go on. What one process alone finds to be no number stops both."""
    monkeypatch.setattr(features, "augmentation", lambda *arguments: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "tests.two_processes", tmp_path], capture_output=True, text=True, timeout=300, cwd=files.ROOT
    )
    assert done.returncode == 0, done.stderr
    for name, recipe in quiet_recipes().items():
        alone, shared = (load_checkpoint(train(recipe, tmp_path / run)) for run in (f"{name}-alone", name))
        torch.testing.assert_close(shared.model.state_dict(), alone.model.state_dict(), rtol=0, atol=1e-5)
        assert shared.record["last"] == pytest.approx(alone.record["last"], rel=1e-5 if name == "convolutions" else 1e-2)
        assert json.loads((tmp_path / name / "train.json").read_text())["processes"] == 2
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["saves"] and not second["saves"]  # one writes
    assert first["seed"] != second["seed"]  # flips, scales and dropout of its own
    assert first["error"] == second["error"] and re.match(r"the loss of batch 1 of 2 \(2007_.*\) is nan at lr", first["error"])


def test_a_finished_run_is_returned_and_another_recipe_trains_anew(voc, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = train(voc, tmp_path)
    written = path.stat().st_mtime_ns
    assert train(voc, tmp_path) == path and path.stat().st_mtime_ns == written
    assert "trained already" in caplog.text
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    del state["identity"]["recipe"]["balance"]  # of a version that did not know this field: it has its default
    torch.save(state, tmp_path / "last.pt")
    assert train(voc, tmp_path) == path and path.stat().st_mtime_ns == written and "another recipe" not in caplog.text
    other = Recipe(data="voc2012", test="val", **{**TINY, "seed": 1})
    assert load_checkpoint(train(other, tmp_path)).recipe.seed == 1
    assert "another recipe or other data" in caplog.text
    torch.save({**state, "identity": {}}, tmp_path / "last.pt")  # it does not say what began it
    caplog.clear()
    assert load_checkpoint(train(other, tmp_path)).recipe.seed == 1 and "another recipe or other data" in caplog.text


def test_fit_trains_any_classifier(voc):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 5, 4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(16, 20)
    )
    before = model[0].weight.clone()
    ap = training.fit(model, voc)
    assert [datasets.load("voc2012", "val").classes[c] for c in ap.index] == ["cat", "dog"] and ap.between(0, 1).all()
    assert not torch.equal(model[0].weight, before)
    held_out = datasets.load("voc2012", "val")
    inputs = torch.stack([datasets.preprocess(held_out[i].image, (64, 64)) for i in range(len(held_out))])
    with torch.no_grad():
        assert training.label_scores(model.eval()(inputs), held_out.labels).to_dict() == pytest.approx(ap.to_dict())


def test_frozen_stages_stay(voc, tmp_path):
    torch.manual_seed(voc.seed)
    before = training.vgg16(20, "fc", None, 16, 16).state_dict()
    recipe = Recipe(data="voc2012", test="val", **{**TINY, "frozen": 2})
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
    train_set, _ = features.prepare(model, data, (64, 64), voc, torch.device("cpu"))
    test_set = features.Labelled(data, (64, 64))
    torch.manual_seed(0)
    seen = torch.stack([train_set[0][0] for _ in range(12)])
    plain = datasets.preprocess(data.image(0), (64, 64))
    assert all(torch.equal(test_set[0][0], plain) for _ in range(3))
    assert len({float(x.std()) for x in seen}) > 6  # scales differ
    flipped = [(x - plain.flip(-1)).abs().mean() < (x - plain).abs().mean() for x in seen]
    assert 0 < sum(flipped) < 12


def test_labels_are_scored_by_the_model_that_is_kept(voc, tmp_path):
    recipe = Recipe(data="voc2012", test="val", **{**TINY, "frozen": 5, "augment": "none"})
    trained = load_checkpoint(train(recipe, tmp_path))
    val = datasets.load("voc2012", "val")
    inputs = torch.stack([datasets.preprocess(val[i].image, (64, 64)) for i in range(len(val))])
    with torch.no_grad():
        ap = training.label_scores(trained.model(inputs), val.labels)
    assert pd.read_csv(tmp_path / "labels.csv")["AP"].tolist() == pytest.approx(ap.tolist(), abs=1e-5)


def test_label_scores_are_average_precision_of_the_classes_that_occur():
    scores, labels = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert training.label_scores(scores, labels).to_dict() == {0: average_precision_score([1, 1, 0], [3, 1, 2])}


def test_a_loss_that_is_not_a_number_stops_the_run(voc, tmp_path):
    recipe = Recipe(data="voc2012", test="val", **{**TINY, "lr": 1e30})
    with pytest.raises(FloatingPointError, match=r"the loss of batch 2 of 2 \(2007_.*\) is .* at lr=1e\+30: look at"):
        train(recipe, tmp_path)


def test_bfloat16_is_computed_in_but_kept_is_float32(voc, tmp_path, monkeypatch):
    seen = []
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    noted = lambda logits, *rest, **named: seen.append(logits.dtype) or loss(logits, *rest, **named)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "binary_cross_entropy_with_logits", noted)
    paths = [
        train(Recipe(data="voc2012", test="val", bfloat16=b, **TINY | {"epochs": 1}), tmp_path / str(b)) for b in (False, True)
    ]
    assert set(seen[: len(seen) // 2]) == {torch.float32} and set(seen[len(seen) // 2 :]) == {torch.bfloat16}
    weights = [load_checkpoint(path).model.classifier[0].weight for path in paths]
    assert weights[1].dtype == torch.float32
    torch.testing.assert_close(*weights, rtol=0, atol=0.01)


def test_wrong_recipes():
    with pytest.raises(InputError, match="frozen=7: VGG16 has 5 stages"):
        Recipe(frozen=7)
    for name in ("epochs", "batch_size"):
        with pytest.raises(InputError, match=f"{name}=0: expected a whole number, at least 1"):
            Recipe(**{name: 0})
    with pytest.raises(TypeError, match="momentum"):
        Recipe(momentum=0.9)

import json
import logging
import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score

from ltcam import datasets, paths, training
from ltcam.errors import InputError
from ltcam.training import Recipe, load_checkpoint, train
from tests import lookalikes

TINY = {"weights": None, "width": 16, "hidden": 16, "size": (64, 64), "frozen": 0, "epochs": 3, "batch_size": 4, "lr": 1e-3}


@pytest.fixture
def voc(tmp_path, monkeypatch):
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.voc(tmp_path / "data")))
    return Recipe(data="voc2012", test="val", **TINY)


def quiet_recipes():
    """Without dropout, for runs without flips and scales; the second's last batch is one image, which both processes take."""
    settings = {"data": "voc2012", "test": "val", **TINY, "head": "gap", "hidden": None}
    convolutions, head = {"frozen": 2, "batch_size": 3}, {"frozen": 5, "batch_size": 7}
    return {"convolutions": Recipe(**settings | convolutions), "head": Recipe(**settings | head)}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True))


def test_a_run_leaves_checkpoint_tables_and_provenance(voc, tmp_path):
    trained = load_checkpoint(train(voc, tmp_path / "run"))
    assert trained.recipe == voc and trained.size == (64, 64) and trained.classes == datasets.load("voc2012", "val").classes
    history = pd.read_csv(tmp_path / "run" / "train.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    assert trained.record["best"]["mAP"] == pytest.approx(history["mAP"].max(), abs=1e-6)
    labels = pd.read_csv(tmp_path / "run" / "labels.csv")
    assert labels["class"].tolist() == ["cat", "dog"] and labels["images"].tolist() == [4, 4]
    record = json.loads((tmp_path / "run" / "labels.json").read_text())
    assert record["recipe"]["seed"] == 0 and record["images"] == {"train": 8, "test": 6}
    assert {"commit", "dirty", "versions", "device", "threads", "seconds", "source", "data"} <= record.keys()
    assert not [p for p in (tmp_path / "run").iterdir() if "partial" in p.name]


def test_training_learns(tmp_path):
    recipe = Recipe(data="demo", **{**TINY, "epochs": 6, "batch_size": 20, "lr": 3e-3, "frozen": 5})
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
    monkeypatch.setattr(training, "_augment", lambda data: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "tests.two_processes", tmp_path], capture_output=True, text=True, timeout=300, cwd=paths.ROOT
    )
    assert done.returncode == 0, done.stderr
    for name, recipe in quiet_recipes().items():
        alone, shared = (load_checkpoint(train(recipe, tmp_path / run)) for run in (f"{name}-alone", name))
        torch.testing.assert_close(shared.model.state_dict(), alone.model.state_dict(), rtol=0, atol=1e-5)
        assert shared.record["best"] == pytest.approx(alone.record["best"], rel=1e-5 if name == "convolutions" else 1e-2)
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
    other = Recipe(data="voc2012", test="val", **{**TINY, "seed": 1})
    assert load_checkpoint(train(other, tmp_path)).recipe.seed == 1
    assert "another recipe or other data" in caplog.text


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
    train_set, test_set, _ = training._prepare(
        training.vgg16(20, "fc", None, 16, 16), data, data, (64, 64), voc, torch.device("cpu")
    )
    torch.manual_seed(0)
    seen = torch.stack([train_set[0][0] for _ in range(12)])
    plain = datasets.preprocess(data.image(0), (64, 64))
    assert all(torch.equal(test_set[0][0], plain) for _ in range(3))
    assert len({float(x.std()) for x in seen}) > 6  # scales differ
    flipped = [(x - plain.flip(-1)).abs().mean() < (x - plain).abs().mean() for x in seen]
    assert 0 < sum(flipped) < 12


def test_cached_features_are_the_models_own(voc, tmp_path):
    recipe = Recipe(data="voc2012", test="val", **{**TINY, "frozen": 5})
    trained = load_checkpoint(train(recipe, tmp_path))
    val = datasets.load("voc2012", "val")
    inputs = torch.stack([datasets.preprocess(val[i].image, (64, 64)) for i in range(len(val))])
    with torch.no_grad():
        ap = training.label_scores(trained.model(inputs), val.labels)
    assert ap.mean() == pytest.approx(trained.record["best"]["mAP"], abs=1e-6)


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
    noted = lambda logits, labels: seen.append(logits.dtype) or loss(logits, labels)  # noqa: E731
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

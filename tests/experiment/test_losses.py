"""The losses by hand, and what a training with each of them leaves."""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import average_precision_score

from ltcam import data as datasets
from ltcam.errors import InputError
from ltcam.experiment import losses, training
from ltcam.experiment.losses import outputs, rarity, sigmoid, softmax
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.trained import load_checkpoint
from ltcam.experiment.training import train
from tests.tiny import TINY

LOGITS = torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, 3.0]])


def test_a_softmax_is_shared_by_the_classes_of_an_image():
    """By hand: half of each class's logarithm for two classes, all of "none" for an image without one."""
    p = LOGITS.exp() / LOGITS.exp().sum(dim=1, keepdim=True)
    labels = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    shared = -(0.5 * p[0, 0].log() + 0.5 * p[0, 1].log())
    assert softmax(LOGITS, labels).item() == pytest.approx(float(shared - p[1, 2].log()) / 2)
    weighed = -(0.5 * 3 * p[0, 0].log() + 0.5 * 5 * p[0, 1].log()) - p[1, 2].log()
    assert softmax(LOGITS, labels, torch.tensor([3.0, 5.0])).item() == pytest.approx(float(weighed) / 2)
    one = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])  # without a logit for "none"
    expected = -(p[0, 1].log() + 0.5 * p[1, 0].log() + 0.5 * p[1, 2].log()) / 2
    assert softmax(LOGITS, one).item() == pytest.approx(float(expected))


def test_a_sigmoid_by_hand():
    labels, p = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]), LOGITS.sigmoid()
    terms = labels * p.log() + (1 - labels) * (1 - p).log()
    assert sigmoid(LOGITS, labels).item() == pytest.approx(float(-terms.mean()))
    weighed = torch.tensor([2.0, 1.0, 4.0]) * labels * p.log() + (1 - labels) * (1 - p).log()
    assert sigmoid(LOGITS, labels, torch.tensor([2.0, 1.0, 4.0])).item() == pytest.approx(float(-weighed.mean()))


def test_rare_classes_weigh_as_much_as_common_ones(looks, tmp_path, monkeypatch):
    labels = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]])
    assert rarity(labels).tolist() == [3, pytest.approx(1 / 3), 1]
    recipe, seen = Recipe(data="voc2012", test="val", **TINY), []
    monkeypatch.setitem(losses.LOSSES, "sigmoid", lambda *given: seen.append(given[2]) or sigmoid(*given))
    for balance in (False, True):
        train(replace(recipe, epochs=1, balance=balance), tmp_path / str(balance))
    expected = rarity(datasets.load("voc2012", "train").labels)
    assert seen[0] is None and torch.equal(seen[-1], expected) and expected.min() < 1


def test_a_model_has_a_logit_for_none_where_images_have_no_class(looks, tmp_path, monkeypatch):
    assert [outputs(torch.tensor(labels), "softmax") for labels in ([[1, 0], [0, 1]], [[1, 0], [0, 0]])] == [2, 3]
    assert outputs(torch.tensor([[1, 0], [0, 0]]), "sigmoid") == 2
    recipe, seen, real = Recipe(data="magnetic_tile", loss="softmax", **TINY), [], training.label_scores
    monkeypatch.setattr(training, "label_scores", lambda scores, data: seen.append(scores) or real(scores, data))
    trained = load_checkpoint(train(recipe, tmp_path))
    assert trained.model.classifier[-1].out_features == 2 and trained.classes == ("defect",)
    (scores,) = seen  # the logarithms of probabilities, which can be compared from image to image
    assert scores.dtype == torch.float64 and scores.exp().sum(dim=1).tolist() == pytest.approx([1] * len(scores))
    ranked = average_precision_score(trained.load("test").labels[:, 0], scores[:, 0])
    assert (tmp_path / "labels.csv").read_text().splitlines()[1:] == [f"defect,12,{ranked:.6g}"]


def test_a_loss_that_does_not_exist():
    with pytest.raises(InputError, match="loss='hinge' is unknown: expected 'sigmoid' or 'softmax'"):
        Recipe(loss="hinge")

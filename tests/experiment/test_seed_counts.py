"""Seeds counted image by image: their sums are the scores of whole parts, and an interrupted count goes on."""

import pytest
import torch

from ltcam.experiment import metrics, seed_counts
from ltcam.experiment.configs import Config, Protocol, configurations
from ltcam.experiment.evaluation import evaluate
from ltcam.experiment.seed_counts import count
from ltcam.experiment.seed_scores import of_checkpoint
from tests.experiment.test_seed_scores import LT, checkpoint, run  # noqa: F401 - fixtures
from tests.interrupts import at_call

AT = {Config("gradcam"): 0.4, Config.parse(LT): 0.35, Config("hirescam", "S1"): 0.65}  # the last depends on t most
ONE = Protocol(3)


@pytest.mark.parametrize("views", [ONE, Protocol(3, size=(64, 64), flip=True)])
def test_the_sums_are_the_scores_of_the_part(run, tmp_path, views):  # noqa: F811
    counts = count(run, "val", AT, tmp_path / "seeds", views)
    tallies = of_checkpoint(run, "val", list(AT), views)
    for cut, rows in counts.groupby("cut"):
        scored = metrics.scores(rows)
        for config, score in zip(configurations(scored), scored["mIoU"], strict=True):
            expected = tallies[config].class_mean() if cut == "otsu" else tallies[config].curve()[AT[config]]
            assert score == pytest.approx(expected, rel=1e-9)
    assert set(configurations(counts)) == set(AT) and counts["name"].nunique() == tallies[Config("gradcam")].images
    argmax = counts[counts["cut"] == "argmax"]
    assert (argmax.groupby(["name", "method"])["class"].min() == -1).all()  # background is in every image


def test_otsus_rows_are_those_of_evaluate(run, tmp_path):  # noqa: F811
    """But for pixels at the threshold, since seeds are over their maximum."""
    counts = count(run, "val", AT, tmp_path / "seeds", ONE)
    ours = counts[counts["cut"] == "otsu"].drop(columns="cut")
    theirs = evaluate(run, "val", list(AT), tmp_path / "counts", ONE)
    keys = ["name", "class", "method"]
    both = ours.merge(theirs, on=keys, suffixes=("", "_of"))
    assert len(both) == len(ours) == len(theirs) and (both["group"] == both["group_of"]).all()
    for part in ("tp", "fp", "fn"):
        assert (both[part] - both[f"{part}_of"]).abs().max() <= 5


def test_it_goes_on_after_its_last_image_and_keeps_what_is_there(run, tmp_path, monkeypatch):  # noqa: F811
    whole, (traced, third) = count(run, "val", AT, tmp_path / "whole", ONE), at_call(3, seed_counts._rows)
    monkeypatch.setattr(seed_counts, "_rows", third)
    with pytest.raises(KeyboardInterrupt):
        count(run, "val", AT, tmp_path / "cut", ONE)
    found = count(run, "val", AT, tmp_path / "cut", ONE)
    keys = ["name", "class", "cut", "method"]
    both = found.merge(whole, on=keys, suffixes=("", "_of"))
    assert len(both) == len(whole) == len(found) and len(traced) == 1 + whole["name"].nunique()
    assert max((both[part] - both[f"{part}_of"]).abs().max() for part in ("tp", "fp", "fn")) <= 5  # other batches
    assert not list((tmp_path / "cut").glob("*.partial*"))
    before = len(traced)
    assert count(run, "val", AT, tmp_path / "cut", ONE).equals(found) and len(traced) == before
    for other in ({**AT, Config("gradcam"): 0.41}, {Config("gradcam"): 0.4}):
        before = len(traced)
        count(run, "val", other, tmp_path / "cut", ONE)
        assert len(traced) > before


def test_an_image_without_a_class_is_background(run, tmp_path, monkeypatch):  # noqa: F811
    data = run.load("val")
    monkeypatch.setattr(type(run), "load", lambda trained, part: data)
    data.labels = torch.zeros_like(data.labels)
    counts = count(run, "val", AT, tmp_path, ONE)
    assert set(counts["cut"]) == {"argmax"} and counts["name"].nunique() == len(data)
    background = counts[counts["class"] == -1]
    assert (background["fn"] == 0).all() and (background["tp"] > 0).all()

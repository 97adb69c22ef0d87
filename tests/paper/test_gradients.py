"""One pass for signs, stages and other readings of Eq. 9: which pairs it has, that it is kept, and that it goes on."""

import inspect
import json
from types import SimpleNamespace

import pandas as pd
import pytest

from ltcam import data as datasets
from ltcam.experiment import provenance
from ltcam.experiment.configs import Config
from ltcam.experiment.evaluation import evaluate
from ltcam.paper import anatomy, eq9, gradients
from tests.experiment.test_evaluation import checkpoint, folder, run  # noqa: F401 - fixtures


@pytest.fixture
def study(run, tmp_path):  # noqa: F811
    """One training, whose folder is `tmp_path`."""

    def save(table, name, started, **about):
        provenance.save(table, tmp_path / name, started, **about)

    test = datasets.load("voc2012", "val")
    return SimpleNamespace(out=tmp_path, folds=lambda: iter([run]), save=save, test=test, trained=run)


def pairs(data, images=None):
    return {(data.entries[i].name, c) for i in data.scored[:images] for c in data.labels[i].nonzero().flatten().tolist()}


def test_the_pairs_are_the_scored_ones(study):
    found, expected = gradients.of(study, batch_size=2), pairs(study.test)
    for name, times in {"signs": 5, "stages": 5 * len(anatomy.DELTAS), "eq9_counts": 1 + len(eq9.READINGS)}.items():
        assert set(zip(found[name]["name"], found[name]["class"], strict=True)) == expected
        assert len(found[name]) == times * len(expected)
    assert found["signs"]["name"].is_monotonic_increasing and found["stages"]["delta"].isna()[0]
    assert found["dropped"]["share"].between(0, 100).all() and len(found["dropped"]) == 5 * len(eq9.SHARES)
    alone = gradients.of(study, batch_size=1)["stages"]
    pd.testing.assert_frame_equal(alone, found["stages"], rtol=1e-3)
    few = gradients.of(study, images=2)
    assert set(zip(few["signs"]["name"], few["signs"]["class"], strict=True)) == pairs(study.test, 2)


def test_the_counts_are_those_of_evaluate(study, run, tmp_path):  # noqa: F811
    counts = gradients.of(study, batch_size=3)["eq9_counts"]
    theirs = evaluate(run, "val", [Config("gradcam", "S1-S5", delta) for delta in (0.0, 20.0)], tmp_path / "counts")
    for delta, reading in ((0.0, eq9.NONE), (20.0, eq9.EQ9)):
        own, other = counts[counts["reading"] == reading], theirs[theirs["delta"] == delta]
        both = own.merge(other, on=["name", "group", "class"], suffixes=("", "_of"))
        assert len(both) == len(theirs) / 2
        assert max((both[part] - both[f"{part}_of"]).abs().max() for part in ("tp", "fp", "fn")) <= 5  # pixels at the threshold


def test_what_is_kept_is_not_measured_again(study, monkeypatch):
    first = gradients.of(study, batch_size=2)
    made = json.loads((study.out / "signs.json").read_text())["gradients"]
    left = study.out / f"gradients.0.{made[:12]}.0.partial.jsonl"
    left.touch()  # by a run that was killed right before its end
    gradients.of(study, batch_size=2)
    assert not [*study.out.glob("*.partial*")] and json.loads((study.out / "signs.json").read_text())["gradients"]
    with monkeypatch.context() as patch:
        patch.setattr(gradients, "trace", lambda *_: pytest.fail("measured again"))
        for name, table in gradients.of(study, batch_size=2).items():
            pd.testing.assert_frame_equal(table, first[name])
        for changed in (lambda: gradients.of(study, batch_size=1), lambda: gradients.of(study, 2, images=1)):
            with pytest.raises(pytest.fail.Exception):
                changed()
        (study.out / "eq9_counts.csv.gz").unlink()
        with pytest.raises(pytest.fail.Exception):
            gradients.of(study, 2)
    source = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda module: source(module) + "# changed" * (module is eq9))
    monkeypatch.setattr(gradients, "trace", lambda *_: pytest.fail("measured again"))
    with pytest.raises(pytest.fail.Exception):
        gradients.of(study, 2)


def test_an_interrupted_pass_goes_on_after_its_last_batch(study, monkeypatch):
    expected, traced = gradients.of(study, batch_size=1), gradients.trace
    (study.out / "signs.csv.gz").unlink()
    seen = []

    def until(last):
        def trace(*arguments):
            seen.append(1)
            if len(seen) == last:
                raise KeyboardInterrupt
            return traced(*arguments)

        return trace

    monkeypatch.setattr(gradients, "trace", until(3))
    with pytest.raises(KeyboardInterrupt):
        gradients.of(study, 1)
    assert len([*study.out.glob("gradients.*.partial.jsonl")]) == 1 and not (study.out / "signs.csv.gz").is_file()
    seen.clear()
    monkeypatch.setattr(gradients, "trace", until(None))
    for name, table in gradients.of(study, batch_size=1).items():
        pd.testing.assert_frame_equal(table, expected[name])
    assert len(seen) == len(study.test.scored) - 2 and not [*study.out.glob("*.partial*")]


def test_progress_is_said_every_ten_batches(study, monkeypatch, caplog):
    data = study.test
    data.entries = (data.entries * 25)[:25]
    monkeypatch.setattr(type(study.trained), "load", lambda *_: data)
    monkeypatch.setattr(gradients, "_looked_into", lambda *_: [])
    caplog.set_level("INFO", "ltcam.paper.gradients")
    gradients.of(study, batch_size=1)
    number = len(data.scored)
    assert number >= 20
    assert caplog.messages == [f"{data.title} val: {step} of {number} batches" for step in range(10, number + 1, 10)]

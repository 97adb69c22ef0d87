"""Which counts a notebook asks for, alone and as part of the series."""

import pytest

from ltcam.experiment.configs import Config, Protocol
from ltcam.experiment.study import Study
from ltcam.paper import ablations, sweep, tables
from ltcam.paper.run import Run, wanted

ASKED = [Config("gradcam")]
VARIED = {"deltas": [20.0], "varied": ["LTGrad-CAM"]}


@pytest.fixture
def measured(monkeypatch):
    """(role, folder, configurations) of every call that measures."""
    calls = []
    monkeypatch.setattr(Study, "__init__", lambda self, profile, data: setattr(self, "data", data))
    monkeypatch.setattr(Study, "counts", lambda self, c, protocol, role="test", below="": calls.append((role, below, list(c))))
    return calls


def test_a_notebook_alone_measures_what_it_reads(measured):
    run = Run("paper", "voc2012")
    run.counts(ASKED)
    run.counts(ASKED, role="train")
    assert measured == [("test", "", ASKED), ("train", "", ASKED)]


def test_in_the_series_the_first_to_score_a_part_measures_all_of_it(measured):
    run = Run("paper", "voc2012", 4, VARIED)
    run.counts(ASKED, Protocol(4, labels="predicted"), below="ablations/labels")
    run.counts(ASKED)
    run.counts(ASKED, Protocol(4))
    run.counts(ASKED, role="train")
    everything = wanted("voc2012", "test", **VARIED)
    assert measured == [
        ("test", "ablations/labels", ASKED), ("test", "", everything), ("test", "", ASKED), ("test", "", ASKED),
        ("train", "", sweep.CONFIGS), ("train", "", ASKED),
    ]  # fmt: skip
    rows = [config for number in (1, 2, 3) for config in tables.TABLES[number].values()]
    assert {*rows, *sweep.CONFIGS, *ablations.cross([20.0])} < set(everything) and len(set(everything)) == len(everything)
    assert Config("gradcam", "S1-S5", 20.0, fuse="max") in everything

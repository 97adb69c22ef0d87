"""Which counts a notebook asks for, alone and as part of the series."""

import pytest

from ltcam.experiment.configs import Config, Protocol
from ltcam.experiment.study import Study
from ltcam.paper import ablations, sweep, tables
from ltcam.paper.run import Run, wanted

ASKED = [Config("gradcam")]
VARIED = {"deltas": [20.0], "varied": ["LTGrad-CAM"], "protocols": ["labels", "size"]}


@pytest.fixture
def measured(monkeypatch):
    """(role, {folder: configurations}) of every call that measures."""
    calls = []

    def together(self, wanted, role="test"):
        calls.append((role, {below: list(configs) for below, (configs, _) in wanted.items()}))
        return [None] * len(wanted)

    monkeypatch.setattr(Study, "__init__", lambda self, profile, data: setattr(self, "data", data))
    monkeypatch.setattr(Study, "together", together)
    return calls


def test_a_notebook_alone_measures_what_it_reads(measured):
    run = Run("paper", "voc2012")
    run.counts(ASKED)
    run.counts(ASKED, role="train")
    assert measured == [("test", {"": ASKED}), ("train", {"": ASKED})]


def test_in_the_series_the_first_to_score_a_part_measures_all_of_it(measured):
    run = Run("paper", "voc2012", 4, VARIED)
    run.counts(ASKED, Protocol(4, labels="predicted"), below="ablations/labels")
    run.counts(ASKED)
    run.counts(ASKED, Protocol(4))
    run.counts(ASKED, role="train")
    everything = measured[1][1]
    assert [(role, [*wanted]) for role, wanted in measured] == [
        ("test", ["ablations/labels"]), ("test", ["", "ablations/labels", "ablations/size"]), ("test", [""]), ("test", [""]),
        ("train", [""]), ("train", [""]),
    ]  # fmt: skip
    assert [measured[i][1][""] for i in (2, 3, 4, 5)] == [ASKED, ASKED, sweep.CONFIGS, ASKED]
    rows = [config for number in (1, 2, 3) for config in tables.TABLES[number].values()]
    assert {*rows, *sweep.CONFIGS, *ablations.cross([20.0])} < {*everything[""]}
    assert len({*everything[""]}) == len(everything[""]) and Config("gradcam", "S1-S5", 20.0, fuse="max") in everything[""]
    assert everything["ablations/size"] == ablations.COMPARED
    assert wanted("voc2012", "test", Protocol(4), **VARIED)["ablations/labels"][1] == Protocol(4, labels="predicted")

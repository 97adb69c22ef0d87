"""Which counts a notebook asks for, alone and as part of the series."""

import pandas as pd
import pytest

from ltcam.experiment.configs import Config, Protocol
from ltcam.experiment.study import Study
from ltcam.paper import ablations, sweep, tables
from ltcam.paper.run import Run, wanted

ASKED = [Config("gradcam")]
VARIED = {"deltas": [20.0], "varied": ["LTGrad-CAM"], "protocols": ["labels", "size"]}


@pytest.fixture
def measured(monkeypatch):
    """(seeds, role, {folder: configurations}) of every call that measures."""
    calls = []

    def init(self, profile, data):
        self.data, self.trainings = data, pd.DataFrame({"seed": ["seed0", "seed1"]})

    def together(self, wanted, role="test", first=None):
        assert {protocol.batch_size for _, protocol in wanted.values()} == {self.protocol.batch_size}
        calls.append((self.seeds, role, {below: list(configs) for below, (configs, _) in wanted.items()}))
        return [None] * len(wanted)

    monkeypatch.setattr(Study, "__init__", init)
    monkeypatch.setattr(Study, "together", together)
    return calls


def test_a_notebook_alone_measures_what_it_reads(measured):
    run = Run("paper", "voc2012")
    run.counts(ASKED)
    run.counts(ASKED, role="train")
    run.only(1).counts(ASKED)
    both = ["seed0", "seed1"]
    assert measured == [(both, "test", {"": ASKED}), (both, "train", {"": ASKED}), (["seed0"], "test", {"": ASKED})]


def test_in_the_series_the_first_to_score_a_part_measures_all_of_it(measured):
    run = Run("paper", "voc2012", 4, VARIED)
    run.counts(ASKED)
    run.counts(ASKED)
    run.counts(ASKED, role="train")
    both, everything, of_all = ["seed0", "seed1"], measured[0][2], measured[1][2]
    assert [(seeds, role, [*wanted]) for seeds, role, wanted in measured] == [
        (both, "test", ["", "ablations/labels", "ablations/size"]), (both, "test", [""]), (both, "test", [""]),
        (both, "test", [""]), (both, "train", [""]), (both, "train", [""]), (both, "train", [""]),
    ]  # fmt: skip
    assert [measured[i][2][""] for i in (2, 3, 4, 5, 6)] == [ASKED, ASKED, sweep.CONFIGS, sweep.CONFIGS, ASKED]
    rows = [config for number in (1, 2, 3) for config in tables.TABLES[number].values()]
    assert {*of_all[""]} == {*rows, *sweep.CONFIGS}
    assert {*rows, *sweep.CONFIGS, *ablations.cross([20.0])} < {*everything[""]}
    assert len({*everything[""]}) == len(everything[""]) and Config("gradcam", "S1-S5", 20.0, fuse="max") in everything[""]
    assert everything["ablations/size"] == ablations.COMPARED
    assert wanted("voc2012", "test", Protocol(4), **VARIED)["ablations/labels"][1] == Protocol(4, labels="predicted")


def test_seeds_that_notebook_08_leaves_out_are_measured_for_the_tables_alone(measured):
    Run("paper", "voc2012", 4, VARIED | {"ablated": 1}).counts(ASKED)
    assert [(seeds, [*wanted]) for seeds, _, wanted in measured] == [
        (["seed0"], ["", "ablations/labels", "ablations/size"]), (["seed0", "seed1"], [""]), (["seed0", "seed1"], [""]),
    ]  # fmt: skip
    assert len(measured[0][2][""]) > len(measured[1][2][""]) > len(measured[2][2][""]) == 1

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ltcam.engine.config import READINGS, Config
from ltcam.errors import InputError
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.recipe import DEFAULTS as SETTINGS
from ltcam.experiment.scores import Counts, scores
from ltcam.experiment.study import Study
from ltcam.experiment.training import train
from ltcam.paper import ablations
from ltcam.paper import tables as paper
from ltcam.paper.ablations import DEFAULTS, EQ9, OPTIONS, ROWS
from ltcam.paper.registry import make
from tests.paper import made

pytestmark = pytest.mark.usefixtures("few")
LT = ROWS["LTGrad-CAM"]
RELU = Protocol(outputs="relu")


def test_an_option_is_changed_wherever_it_can_change_a_mask():
    options = {name: {run for run, _ in ablations.variants(config)} for name, config in ROWS.items()}
    of = {name: {factor for factor, _ in found} for name, found in options.items()}
    assert of["Grad-CAM"] == {"fraction"} and of["Grad-CAM, truncated"] == {"per", "compare", "fraction"}
    assert of["Grad-CAM, fused"] == {"fuse", "normalize", "fraction"}
    assert of["LTGrad-CAM"] == of["Layer-CAM"] == {"per", "compare", "fuse", "normalize", "fraction"}
    assert of["FullGrad"] == {"fuse", "fraction", "align_corners"}
    assert of["LTFullGrad"] == {"per", "compare", "fuse", "fraction", "align_corners"}
    for config in ROWS.values():
        for (option, level), changed in ablations.variants(config):
            assert changed != config and str(getattr(changed, option)) == level
            assert replace(changed, **{option: getattr(config, option)}) == config


def test_the_cross_is_full():
    crossed = ablations.crossings(SETTINGS["deltas"])
    assert len(crossed) == len(set(crossed)) == 4 * (1 + 2 * 10) and LT in crossed
    scales = ("none", "max", "minmax", "tanh")
    full = {(delta, per, scale) for delta in paper.DELTAS for per in ("layer", "channel") for scale in scales}
    assert {(c.delta, c.per, c.normalize) for c in crossed if c.delta is not None} == full


def varied(others):
    """The scores 10, 20, ... of `ROWS`, and those of their variants by `others`."""
    base = dict(zip(ROWS.values(), range(10, 90, 10), strict=True))
    return base, {changed: others(base[config]) for config in ROWS.values() for _, changed in ablations.variants(config)}


def test_changes_are_against_the_same_row_by_the_defaults():
    base, others = varied(lambda score: score + 3)
    relu = {config: value - 2 for config, value in base.items()}
    study = made.study(base | others, others={RELU: relu}, varied=[*ROWS], protocols=["outputs"])
    table = ablations.ablations(study).set_index(["factor", "level", "row"]).sort_index()
    assert table.loc[DEFAULTS, "value"].to_dict() == pytest.approx(dict(zip(ROWS, base.values(), strict=True)))
    relu_rows = table.loc[("outputs", "relu")]
    assert relu_rows["change"].to_numpy() == pytest.approx(-2) and set(relu_rows["verdict"]) == {"worse"}
    options = table[table.index.get_level_values("factor").isin(OPTIONS)]
    assert options[["change", "change_low", "change_high"]].to_numpy() == pytest.approx(3)
    assert set(options["verdict"]) == {"better"} and len(options) == len(list(others))
    assert table.loc[("trick", "both", "LTGrad-CAM"), "change"] == pytest.approx(30)
    assert table.loc[("trick", "fusion of S1 to S5", "Grad-CAM, fused"), "change"] == pytest.approx(20)
    assert set(table["data"]) == {"toy"} and set(table["metric"]) == {"IoU"}


def test_a_trick_is_worth_something_in_every_run():
    base, others = varied(int)
    relu = {c: v // 2 for c, v in base.items()}
    table = ablations.ablations(made.study(base | others, others={RELU: relu}, varied=[*ROWS], protocols=["outputs"]))
    tricks = table[table["factor"] == "trick"].set_index("level")["change"]
    assert len(tricks) == 2 * len(ablations.TRICKS)
    assert tricks["truncation at S5"] == pytest.approx(10) and tricks["truncation at S5, outputs = relu"] == pytest.approx(5)


def test_readings_are_in_order_of_kendalls_tau():
    """With the paper's own scores it is 1; an option turns some methods round, and another run all."""
    printed = paper.published(4)["mIoU"]
    own = {config: round(printed[name]) + 6 * n for n, (name, config) in enumerate(paper.SEVEN.items())}
    changed = {c: 90 - own[config] for config in own for (option, _), c in ablations.variants(config) if option == "per"}
    others = {c: own[config] for config in own for (option, _), c in ablations.variants(config) if option != "per"}
    exact = made.counts(own)
    exact.values[:, :, 0] = [round(100 * printed[name]) for name in paper.SEVEN]  # of 10,000 pixels
    exact.values[:, :, 2] = 10_000 - exact.values[:, :, 0]
    study = made.study(own | changed | others, others={RELU: exact}, protocols=["outputs"])
    table = ablations.readings(study).set_index(["factor", "level"])
    assert table.index[0] == ("outputs", "relu") and table["tau"].iloc[0] == 1 and table["tau"].is_monotonic_decreasing
    assert len(table) == 3 + sum(len(levels) for levels in OPTIONS.values())
    assert table.loc[("mean", "over objects"), list(paper.SEVEN)].tolist() == pytest.approx([*own.values()])  # all alike here
    far = [abs(score - printed[name]) for name, score in zip(paper.SEVEN, own.values(), strict=True)]
    assert table.loc[DEFAULTS, "farthest"] == pytest.approx(max(far))
    for reading in [DEFAULTS, ("per", "channel")]:
        ours = table.loc[reading, list(paper.SEVEN)].to_numpy(dtype=float)
        assert table.loc[reading, "tau"] == pytest.approx(stats.kendalltau(ours, printed[list(paper.SEVEN)]).statistic)
    assert table.loc[("per", "channel"), "tau"] != table.loc[DEFAULTS, "tau"]
    assert table.loc[DEFAULTS, list(paper.SEVEN)].tolist() == pytest.approx([*own.values()])


def test_the_cross_is_against_no_truncation_at_its_scale():
    whole = {"none": 10, "max": 20, "minmax": 30, "tanh": 40}
    found = {c: whole[c.normalize] + int(c.delta or 0) // 10 for c in ablations.crossings([0.0, 20.0])}
    table = ablations.cross(made.study(found, deltas=[0.0, 20.0]))
    assert len(table) == len(found) and table["change"].to_numpy() == pytest.approx(table["delta"].fillna(0) / 10)


def test_what_the_training_part_chooses_meets_every_method_on_the_test_part():
    layercam = Config("layercam", "S1-S5", 40.0)
    test = dict.fromkeys([*paper.SEVEN.values(), *paper.SWEEP], 30) | {layercam: 50, paper.SEVEN["FullGrad"]: 60, LT: 55}
    train = dict.fromkeys(paper.SWEEP, 10) | {layercam: 80, LT: 70}
    table = ablations.beyond(made.study(test, train)).set_index("row")
    assert list(table.index) == ["chosen", *paper.SEVEN]
    assert table.loc["chosen", ["method", "delta"]].tolist() == ["layercam", 40] and set(table["chosen_on"]) == {80}
    rows = table.loc[["chosen", "FullGrad", "LTGrad-CAM(l=5, δ=20)", "Grad-CAM"]]
    assert rows["value"].tolist() == pytest.approx([50, 60, 55, 30])
    assert rows["change"].tolist() == pytest.approx([0, -10, -5, 20])
    assert rows["verdict"].tolist() == ["equal", "worse", "worse", "better"]


def test_eq9_has_the_score_of_each_reading_and_its_difference_from_delta_0():
    rng = np.random.default_rng(0)
    counts = made.counts(dict.fromkeys(EQ9.values(), 1), 9)
    counts = Counts(counts.pairs, counts.configs, rng.integers(1, 99, counts.values.shape))
    table = ablations.eq9(made.study(counts, metric="mIoU")).set_index("reading")
    assert (
        list(table.index) == ["δ = 0", "positive values (Eq. 9)", *READINGS, "fraction of the maximum"]
        and table["change"].iloc[0] == 0
    )
    expected = scores(counts)["mIoU"]
    assert table["value"].to_numpy() == pytest.approx(expected.to_numpy())
    assert table["change"].to_numpy() == pytest.approx((expected - expected[0]).to_numpy())
    assert table.loc["positive values (Eq. 9)", "value"] == pytest.approx(scores(counts.pick([LT]))["mIoU"][0])


def test_what_the_profile_asks_for_is_measured_under_its_protocol(study):
    runs = ablations.protocols(study)
    assert {*runs} == {("labels", "predicted"), ("outputs", "relu"), ("size", "96 x 96")}
    table = make("ablations", study)
    relu = table[table["factor"] == "outputs"]
    own = study.counts(ROWS.values(), protocol=runs["outputs", "relu"], seeds=1)
    assert relu["value"].to_numpy() == pytest.approx(scores(own)["mIoU"].to_numpy(), abs=1e-3)
    assert set(paper.SEVEN.values()) - set(ROWS.values())  # the rows are not just the paper's
    study.settings["protocols"] = ["sizes"]
    with pytest.raises((InputError, KeyError), match="sizes"):
        ablations.protocols(study)


def test_another_training_is_a_run_and_its_counts_are_enough(study):
    train(replace(study.recipe("seed0"), seed=1, epochs=1), study.runs / "other")
    study.settings["others"] = ["other"]
    found, _ = ablations.measured(study, list(ROWS.values()))
    assert [*found][-1] == ("seed, epochs", "1, 1") or [*found][-1] == ("epochs, seed", "1, 1")
    (study.runs / "other" / "checkpoint.pt").unlink()
    again = Study("toy", "voc2012", kept=True)
    again.settings["others"] = ["other"]
    kept, _ = ablations.measured(again, list(ROWS.values()))
    assert [*kept] == [*found] and all(np.array_equal(kept[run].values, found[run].values) for run in found)

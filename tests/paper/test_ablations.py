import json
from dataclasses import replace

import pandas as pd
import pytest
from scipy import stats

from ltcam.errors import InputError
from ltcam.experiment import metrics
from ltcam.experiment.configs import Config
from ltcam.experiment.study import Study
from ltcam.experiment.training import train
from ltcam.paper import ablations, sweep
from ltcam.paper import tables as paper
from ltcam.paper.ablations import DEFAULTS, ROWS
from tests.experiment.test_evaluation import checkpoint, folder, study  # noqa: F401 - fixtures

LT = ROWS["LTGrad-CAM"]


def counts(scores):
    """{configuration: percent of a 100-pixel object found in each of 8 images, without a false pixel} as counts."""
    rows = [(f"i{n}", 0, *config, value, 0, 100 - value) for config, value in scores.items() for n in range(8)]
    return pd.DataFrame(rows, columns=["name", "class", *metrics.CONFIG, "tp", "fp", "fn"])


def test_an_option_is_changed_wherever_it_can_change_a_mask():
    options = {name: {changed for changed, _ in ablations.variants(config)} for name, config in ROWS.items()}
    of = {name: {factor for factor, _ in found} for name, found in options.items()}
    assert of["Grad-CAM"] == {"fraction"} and of["Grad-CAM, truncated"] == {"per", "compare", "fraction"}
    assert of["Grad-CAM, fused"] == {"fuse", "normalize", "fraction"}
    assert of["LTGrad-CAM"] == of["Layer-CAM"] == {"per", "compare", "fuse", "normalize", "fraction"}
    assert of["FullGrad"] == {"fuse", "fraction", "align_corners"}
    assert of["LTFullGrad"] == {"per", "compare", "fuse", "fraction", "align_corners"}
    for config in ROWS.values():
        for (option, level), changed in ablations.variants(config):
            changed.options  # noqa: B018 - exists
            assert changed != config and str(getattr(changed, option)) == level
            assert changed._replace(**{option: getattr(config, option)}) == config


def test_the_cross_is_full():
    crossed = ablations.cross()
    assert len(crossed) == len(set(crossed)) == 4 * (1 + 2 * 10)
    assert {(c.delta, c.per, c.normalize) for c in crossed if c.delta is not None} == {
        (delta, per, scale)
        for delta in sweep.DELTAS
        for per in ("layer", "channel")
        for scale in ("none", "max", "minmax", "tanh")
    }
    assert LT in crossed


def test_changes_are_against_the_same_row_by_the_defaults():
    base = dict(zip(ROWS.values(), range(10, 90, 10), strict=True))
    others = {changed: base[config] + 3 for config in ROWS.values() for _, changed in ablations.variants(config)}
    relu = {config: value - 2 for config, value in base.items()}
    measured = {DEFAULTS: counts(base | others), ("outputs", "relu"): counts(relu)}
    table = ablations.table(measured, "IoU", number=20).set_index(["factor", "level", "row"]).sort_index()
    assert table.loc[DEFAULTS, "value"].to_dict() == pytest.approx(dict(zip(ROWS, base.values(), strict=True)))
    relu_rows = table.loc[("outputs", "relu")]
    assert relu_rows["change"].to_numpy() == pytest.approx(-2) and set(relu_rows["verdict"]) == {"worse"}
    options = table[table.index.get_level_values("factor").isin(ablations.OPTIONS)]
    assert options[["change", "change_low", "change_high"]].to_numpy() == pytest.approx(3) and set(options["verdict"]) == {
        "better"
    }
    assert table.loc[("trick", "both", "LTGrad-CAM"), "change"] == pytest.approx(30)
    assert table.loc[("trick", "fusion of S1 to S5", "Grad-CAM, fused"), "change"] == pytest.approx(20)


def test_a_trick_is_worth_something_in_every_run():
    base = dict(zip(ROWS.values(), range(10, 90, 10), strict=True))
    relu = {config: value / 2 for config, value in base.items()}
    table = ablations.table({DEFAULTS: counts(base), ("outputs", "relu"): counts(relu)}, "IoU", number=5)
    tricks = table[table["factor"] == "trick"].set_index("level")["change"]
    assert len(tricks) == 2 * len(ablations.TRICKS)
    assert tricks["truncation at S5"] == pytest.approx(10) and tricks["truncation at S5, outputs = relu"] == pytest.approx(5)


def test_readings_are_in_order_of_kendalls_tau():
    """With the paper's own scores it is 1; an option that turns some methods round, and a run that turns all."""
    printed = paper.published(3)["mIoU"]
    own = {config: round(printed[name]) + 10 * n for n, (name, config) in enumerate(paper.SEVEN.items())}
    exact = {config: round(100 * printed[name] / 40) for name, config in paper.SEVEN.items()}
    changed = {c: 90 - own[config] for config in own for (option, _), c in ablations.variants(config) if option == "per"}
    others = {c: own[config] for config in own for (option, _), c in ablations.variants(config) if option != "per"}
    measured = {DEFAULTS: counts(own | changed | others), ("head", "gap"): counts(exact)}
    table = ablations.readings(measured, 3, "IoU", draw=5).set_index(["factor", "level"])
    assert table.index[0] == ("head", "gap") and table["tau"].iloc[0] == 1 and table["tau"].is_monotonic_decreasing
    assert len(table) == 3 + sum(len(levels) for levels in ablations.OPTIONS.values())
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
    scores = {c: whole[c.normalize] + (c.delta or 0) / 10 for c in ablations.cross([0.0, 20.0])}
    table = ablations.crossed(counts({c: round(10 * v) / 10 for c, v in scores.items()}), "IoU", [0.0, 20.0], number=5)
    assert len(table) == len(scores) and table["change"].to_numpy() == pytest.approx(table["delta"].fillna(0) / 10)


def test_what_the_training_part_chooses_meets_every_baseline_on_the_test_part():
    layercam, fullgrad, only_test = Config("layercam", "S1-S5", 40.0), Config("fullgrad", "all"), Config("hirescam")
    test, train = {layercam: 50, fullgrad: 60, LT: 55, only_test: 99}, {layercam: 80, fullgrad: 70, LT: 60}
    table = ablations.beyond(counts(test), counts(train), {"FullGrad": fullgrad, "LT": LT}, "IoU", number=20)
    assert (
        table["row"].tolist() == ["chosen", "FullGrad", "LT"] and table["method"][0] == "layercam" and table["delta"][0] == 40
    )
    assert table["value"].tolist() == [50, 60, 55] and table["change"].tolist() == pytest.approx([0, -10, -5])
    assert table["verdict"].tolist() == ["tie", "worse", "worse"] and set(table["chosen_on"]) == {80}


@pytest.mark.parametrize("asked", [{"protocols": ["sizes"]}, {"varied": ["sizes"]}])
def test_what_does_not_exist_is_refused_before_anything_runs(study, asked):  # noqa: F811
    with pytest.raises(InputError, match=r"'sizes' cannot be changed: expected protocols of \('labels'"):
        ablations.measure(study, **asked)
    assert [path.name for path in study.out.iterdir()] == ["trainings.csv"]


def test_measured_runs_are_kept_and_found_again(study, monkeypatch):  # noqa: F811
    monkeypatch.setitem(ablations.LARGER, "voc2012", (48, 64))
    train(replace(study.trained.recipe, seed=1, epochs=1), study.runs / "other")
    measured = ablations.measure(study, [20.0], others=["other"])
    assert [*measured] == [
        DEFAULTS,
        ("labels", "predicted"),
        ("outputs", "relu"),
        ("size", "64 x 48"),
        ("epochs, seed", "1, 1"),
    ]
    size = json.loads((study.out / "ablations" / "size" / "counts.json").read_text())["size"]
    assert size == [48, 64]
    kept = {path: path.stat().st_mtime_ns for path in study.out.rglob("counts.csv.gz")}
    (study.runs / "other" / "checkpoint.pt").unlink()  # its counts are enough
    again = ablations.measure(Study("paper", "voc2012"), [20.0], others=["other"])
    assert {path: path.stat().st_mtime_ns for path in study.out.rglob("counts.csv.gz")} == kept and [*again] == [*measured]
    table = ablations.table(again, "mIoU", number=5)
    scores = metrics.scores(measured["outputs", "relu"]).set_index(metrics.ALWAYS)["mIoU"]
    relu = table[(table["factor"] == "outputs")].set_index(metrics.ALWAYS)["value"]
    assert relu.to_numpy() == pytest.approx(scores.loc[relu.index].to_numpy())
    assert set(paper.SEVEN.values()) - set(ROWS.values())  # the rows are not just the paper's

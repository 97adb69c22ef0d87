import math

import pandas as pd
import pytest

from ltcam.paper import breakdown, findings
from ltcam.paper.findings import Finding


def change(factor, level, row, value):
    return {"factor": factor, "level": level, "row": row, "change": value, "change_low": value - 1, "change_high": value + 1,
            "verdict": "tie" if abs(value) < 1 else "better" if value > 0 else "worse"}  # fmt: skip


def test_a_finding_is_the_number_of_its_row_and_its_table():
    table = pd.DataFrame([
        {"factor": "defaults", "level": "", "row": "Grad-CAM"},
        change("trick", "truncation at S5", "Grad-CAM, truncated", 8.449),
        change("per", "channel", "LTGrad-CAM", -0.4), change("per", "channel", "Layer-CAM", 7.0),
        change("size", "320 x 320", "LTGrad-CAM", -2.0), change("bfloat16", "True", "Layer-CAM", 4.0),
    ])  # fmt: skip
    found = findings.listed(findings.collect({"ablations.csv": table}))
    assert [(f.finding, f.number) for f in found] == [
        ("Truncation alone (δ=0) changes Grad-CAM at S5 by", "+8.45 points (+7.45 to +9.45)"),
        ("Percentiles per channel instead of per layer change LTGrad-CAM by", "-0.40 points (-1.40 to +0.60), a tie"),
        ("A larger input changes LTGrad-CAM by", "-2.00 points (-3.00 to -1.00)"),
        ("Another training (bfloat16: True) changes Layer-CAM by", "+4.00 points (+3.00 to +5.00)"),
    ]
    assert {f.table for f in found} == {"ablations.csv"}


def test_of_a_cross_the_best_delta_of_plain_sums():
    rows = [
        ("layer", "none", 20.0, 30.0),
        ("layer", "none", 40.0, 31.0),
        ("layer", "max", 0.0, 99.0),
        ("channel", "none", 0.0, 5.0),
    ]
    table = pd.DataFrame([
        {"per": per, "normalize": scale, "delta": delta, "value": value} | change("cross", "", "LTGrad-CAM", value - 29)
        for per, scale, delta, value in rows
    ])  # fmt: skip
    (layer, channel) = findings.listed(findings.collect({"cross.csv": table}))
    assert (
        layer.finding == "The best δ of LTGrad-CAM with percentiles per layer, 40, differs from no truncation by"
        and layer.value == 2
    )
    assert channel.value == -24 and channel.table == "cross.csv"


def test_what_a_trick_is_worth_under_another_run():
    table = pd.DataFrame([
        change("trick", "truncation at S5, head = gap", "Grad-CAM, truncated", 2.0),
        change("trick", "both, head = gap", "LTGrad-CAM", 9.0),
    ])  # fmt: skip
    (found,) = findings.listed(findings.collect({"ablations.csv": table}))
    assert found.finding == "With head = gap, truncation alone (δ=0) changes Grad-CAM at S5 by" and found.value == 2


def test_correlations_have_a_sign_and_no_unit():
    row = {"gain": "truncation at S5", "amount": "classes", "value": 0.25, "ci_low": -0.1, "ci_high": 0.5, "verdict": "tie"}
    reading = {"level": "x", "tau": -0.5, "ci_low": -0.6, "ci_high": 0.1}
    found = findings.listed(findings.collect({
        "correlations.csv": pd.DataFrame([row, row | {"gain": "both"}]),
        "readings.csv": pd.DataFrame([reading | {"factor": f, "tau": t} for f, t in
            (("training", 1.0), ("head", 0.9), ("defaults", -0.5), ("size", -0.7))]),
    }))  # fmt: skip
    assert [(f.finding, f.number) for f in found] == [
        ("On single objects, the gain of truncation at S5 and the number of classes in the image have a rank correlation of",
         "+0.25 (-0.10 to +0.50), a tie"),
        ("By the defaults the order of the seven methods agrees with the paper's by a rank correlation of",
         "-0.50 (-0.60 to +0.10)"),
        ("Of all that was changed, head = x comes nearest to that order, by a rank correlation of", "+0.90 (-0.60 to +0.10)"),
    ]  # fmt: skip


def test_medians_of_signs_have_intervals():
    table = pd.DataFrame(
        {"stage": ["S5"] * 9, "positive": [2.0] * 9, "negative": [0.5, 0.5, 0.5, 1, 1, 1.5, 1.5, 1.5, math.nan]}
    )
    negative, positive = findings.listed(findings.collect({"signs.csv.gz": table}))
    assert positive.number == "2.00 times (2.00 to 2.00)" and negative.value == 1 and negative.verdict == "tie"
    assert 0.5 <= negative.ci_low < 1 < negative.ci_high <= 1.5


def test_a_number_without_an_interval_stands_alone():
    assert Finding("x", 1.25, math.nan, math.nan, "points", "", "t").number == "+1.25 points"


def test_what_the_summary_names_can_be_found():
    """Each of its sentences is one that some table gives."""
    tables = {
        "ablations.csv": pd.DataFrame([
            change("trick", "truncation at S5", "Grad-CAM, truncated", 1),
            change("trick", "LTGrad-CAM instead of Layer-CAM", "LTGrad-CAM", 1),
            change("trick", "LTGrad-CAM instead of Layer-CAM, outputs = relu", "LTGrad-CAM", 1),
            change("trick", "both", "LTGrad-CAM", 1), change("trick", "truncation at S5, head = gap", "Grad-CAM, truncated", 1),
            change("normalize", "max", "LTGrad-CAM", 1),
        ]),
        "correlations.csv": pd.DataFrame([
            {"gain": "truncation at S5", "amount": amount, "value": 0, "ci_low": 0, "ci_high": 0, "verdict": "tie"}
            for amount in ("overlap", breakdown.BY_CLASS)
        ]),
        "readings.csv": pd.DataFrame([{"factor": "defaults", "level": "", "tau": 0.1, "ci_low": 0, "ci_high": 1}]),
        "delta_choice.csv": pd.DataFrame([{"method": "gradcam", "regret": 1.0}]),
        "beyond.csv": pd.DataFrame([change("beyond", "", "chosen", 0), change("beyond", "", "LTGrad-CAM(l=5, δ=20)", 1)]),
    }  # fmt: skip
    assert set(findings.SUMMARY) <= set(findings.collect(tables)["finding"])


def test_only_tables_that_are_there_are_read(tmp_path):
    pd.DataFrame([change("size", "8 x 8", "LTGrad-CAM", 1.0)]).to_csv(tmp_path / "ablations.csv")
    assert [*findings.read(tmp_path)] == ["ablations.csv"]
    pd.DataFrame([{"method": "gradcam", "regret": 2.0}]).to_csv(tmp_path / "delta_choice.csv")
    found = findings.collect(findings.read(tmp_path))
    assert found["table"].tolist() == ["ablations.csv", "delta_choice.csv"] and found["value"].tolist() == [1, 2]
    with pytest.raises(KeyError):
        findings.collect({"unknown.csv": pd.DataFrame()})

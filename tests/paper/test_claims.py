"""Each claim on tables made by hand: the paper's own numbers, and the smallest change that turns the verdict."""

import re

import numpy as np
import pandas as pd
import pytest

from ltcam.engine.config import Config
from ltcam.experiment.scores import columns, configurations
from ltcam.paper import claims, judging
from ltcam.paper import tables as paper
from ltcam.paper.tables import SWEEP
from tests.paper import made
from tests.paper.test_tables import text  # noqa: F401

BY_NAME = {claim.statement: claim for claim in claims.CLAIMS}
METRICS = [*paper.CLASS_MEANS.values(), *paper.POOLED.values()]


def frame(scores, part="test"):
    """A table of {configuration: score}: class means and pooled scores are alike."""
    return columns(scores).assign(part=part, **{metric: list(scores.values()) for metric in METRICS})


def hill(config):
    """No truncation 20; over delta 21, 22, 23, 24, 25, 24 ... 20."""
    return 20.0 if config.delta is None else 25 - abs(config.delta - 40) / 10


@pytest.fixture(scope="module")
def tables():
    """The paper's mIoU as if measured, and a sweep whose curves rise and fall."""
    found = {}
    for number, rows in paper.ROWS.items():
        printed = paper.published(number)["mIoU"]
        found[f"table{number}"] = frame({config: printed[row] for row, config in rows.items()})
    curves = {config: hill(config) for config in SWEEP}
    found["sweep"] = pd.concat([frame(curves), frame({c: 2 * score for c, score in curves.items()}, "train")])
    return found


def changed(tables, name, config, score, part="test"):
    table = tables[name].copy()
    same = (table["part"] == part) & np.array([c == config for c in configurations(table)])
    assert same.sum() == 1
    table.loc[same, METRICS] = score
    return {**tables, name: table}


def drawn(tables, claim, spread=lambda config: 0.0):
    """Draws of two trainings around what the tables that a claim reads have: (1 + 50, 2); `spread` of a configuration."""
    found = {"test": {}, "train": {}}
    for name in sorted(tables, key=lambda name: name in claim.needs):
        table = tables[name]
        for part, config, score in zip(table["part"], configurations(table), table["mIoU"], strict=True):
            noise = spread(config) * np.array([0.0, *np.linspace(-1, 1, 50)])
            found[part][config] = np.stack([score + noise, score + noise], axis=1)
    return {part: dict.fromkeys(("mIoU", "IoU", "mF1", "F1"), scores) for part, scores in found.items()}


@pytest.fixture
def judge(tables, monkeypatch):
    """The row of a claim, on the data set whose table it reads, of changed tables and of draws around them."""

    def row(statement, some=tables, data="", draws=None):
        claim = BY_NAME[statement]
        data = data or ("ksdd2" if "table4" in claim.needs else "voc2012")
        monkeypatch.setattr(judging, "make", lambda name, study: some[name])
        monkeypatch.setattr(judging, "_drawn", lambda study: draws or drawn(some, claim))
        return judging.claims(made.study(data=data)).set_index("claim").loc[statement]

    return row


FLIPS = [
    ("Fusing all stages beats each of S1 to S4", "table1", claims.S4, 21.58),
    ("Fusing all stages costs against S5 alone", "table1", claims.S5, 21.56),
    ("The score rises with depth, S1 to S5", "table1", claims.S2, 10.12),
    ("The score rises with depth, S1 to S5", "table1", claims.S4, 25.32),
    ("Truncation alone (S5, δ=0) helps Grad-CAM", "table2", claims.TRUNCATED, 25.3),
    ("Truncation with δ=0 leaves FullGrad almost the same: within 0.5 points", "table2", claims.LTFULLGRAD, 27.69),
    ("Truncation with δ=0 leaves FullGrad almost the same: within 0.5 points", "table2", claims.LTFULLGRAD, 28.71),
    ("Truncation (δ=0) gains more on the fused stages than on S5", "table3", claims.LT0, 22.48),
    ("Truncation (δ=0) gains more on the fused stages than on S5", "table1", claims.FUSED, 25.96),
    ("Truncation (δ=0) gains more on the fused stages than on S5", "table2", claims.TRUNCATED, 30.62),
    ("Objects: LTGrad-CAM (l=5) beats Grad-CAM", "table3", claims.LT0, 25.3),
    ("Objects: LTGrad-CAM (l=5) beats Grad-CAM", "table3", claims.LT20, 25.3),
    ("Objects: LTGrad-CAM with δ=20 exceeds FullGrad", "table3", claims.LT20, 28.19),
    ("Objects: LTGrad-CAM with δ=0 exceeds FullGrad", "table3", claims.LT0, 28.21),
    (
        "Objects: LTGrad-CAM (δ=20) is comparable to Layer-CAM (l=5): at most 2.5 points below, as in the paper", "table3",
        claims.LT20, 28.32,
    ),
    ("Objects: δ=20 beats δ=0", "table3", claims.LT20, 26.86),
    ("Defects: LTGrad-CAM (l=5) beats Grad-CAM", "table4", claims.GRADCAM, 33.02),
    ("Defects: LTGrad-CAM with δ=0 beats Layer-CAM (l=5)", "table4", claims.LT0, 28.91),
    ("Defects: LTGrad-CAM with δ=20 beats Layer-CAM (l=5)", "table4", claims.LT20, 28.91),
    ("Defects: LTGrad-CAM with δ=20 beats Layer-CAM (l=5) in micro-F1", "table4", claims.LT20, 28.91),
    ("Defects: δ=20 beats δ=0", "table4", claims.LT20, 33.0),
    ("Defects: LTGrad-CAM (δ=20) beats every other method", "table4", Config("gradcam++"), 35.38),
    ("Over δ the score rises, then falls: the best lies inside 0 to 90", "sweep", Config("gradcam", "S1-S5", 0.0), 25.01),
    ("Over δ the score rises, then falls: the best lies inside 0 to 90", "sweep", Config("fullgrad", "all", 90.0), 25.0),
    ("Over δ from 0 to 40 the mean score is above that without truncation", "sweep", Config("layercam", "S1-S5"), 23.01),
]  # fmt: skip
AGREE = "The curves of both parts agree: rank correlation above 0.5"
ALONE = "Truncation alone (S5, δ=0) helps Grad-CAM"  # by 0.92 points


@pytest.mark.parametrize(("claim", "name", "config", "score"), FLIPS)
def test_a_claim_turns_where_its_numbers_cross(tables, judge, claim, name, config, score):
    """In the tables and in the draws alike. A margin of zero, and what float leaves of it, is no verdict in the draws."""
    before = judge(claim)["verdict"]
    other = changed(tables, name, config, score)
    assert before == ("does not hold" if claim.endswith("δ=0 exceeds FullGrad") else "holds")
    decided, _ = judging._decide(BY_NAME[claim], judging._measured(BY_NAME[claim], other, made.study(data=(
        "ksdd2" if "table4" in BY_NAME[claim].needs else "voc2012"))))  # fmt: skip
    assert {before, decided} == {"holds", "does not hold"}
    assert judge(claim, other)["verdict"] in (decided, "tie")


def test_curves_of_both_parts_agree_or_not(tables, judge):
    assert judge(AGREE)["verdict"] == "holds"
    upside_down, flat = tables, tables
    for delta in range(0, 100, 10):
        config = Config("fullgrad", "all", float(delta))
        upside_down = changed(upside_down, "sweep", config, -hill(config), "train")
        flat = changed(flat, "sweep", config, 7.0, "train")
    said = judge(AGREE, upside_down)[["verdict", "numbers"]].tolist()
    assert said == ["does not hold", "2 of 3, least fullgrad -1.00 (paper prints none)"]
    assert judge(AGREE, flat)["verdict"] == "does not hold"


def test_every_claim_is_flipped_above():
    assert set(BY_NAME) == {name for name, *_ in FLIPS} | {AGREE}


def test_what_a_data_set_has_no_table_of_is_not_measured(tables, monkeypatch):
    monkeypatch.setattr(judging, "make", lambda name, study: tables[name])
    monkeypatch.setattr(judging, "_drawn", lambda study: drawn(tables, claims.CLAIMS[0]))
    for data, other in (("voc2012", "Defects: "), ("ksdd2", "Objects: ")):
        judged = judging.claims(made.study(data=data)).set_index("claim")
        left = judged.index[judged["verdict"] == "not measured"]
        assert [*left] == [name for name in BY_NAME if name.startswith(other)] and judged.loc[left, "margin"].isna().all()
    one = {**tables, "sweep": tables["sweep"][tables["sweep"]["delta"] != 90]}
    said = [judging._decide(claim, judging._measured(claim, one, made.study(data="ksdd2")))[0] for claim in claims.CLAIMS[-3:]]
    assert said == ["not measured", "holds", "not measured"]


def test_the_papers_own_numbers_fulfil_all_claims_but_one(tables, monkeypatch):
    monkeypatch.setattr(judging, "make", lambda name, study: tables[name])
    monkeypatch.setattr(judging, "_drawn", lambda study: drawn(tables, claims.CLAIMS[0]))
    judged = judging.claims(made.study(data="demo")).set_index("claim")
    assert judged.index[judged["paper"] == "does not hold"].tolist() == ["Objects: LTGrad-CAM with δ=0 exceeds FullGrad"]
    assert judged.index[judged["paper"] == "no numbers"].tolist() == judged.index[-3:].tolist()  # Figs. 4 and 5
    assert (judged["paper"] == "holds").sum() == 16 and len(judged) == 20
    numbers = judged["numbers"].str.split(" (", regex=False).str[1]
    assert numbers["Objects: LTGrad-CAM with δ=20 exceeds FullGrad"] == "paper 28.34 against 28.20)"
    assert numbers["Truncation (δ=0) gains more on the fused stages than on S5"] == "paper gain 5.30 against 0.92)"
    assert numbers.iloc[0] == "paper 4 of 4, least S4: 21.57 against 14.03)"
    assert judged["numbers"].iloc[1] == "25.31 against 21.57 (paper 25.31 against 21.57)"
    gaps = {  # the text's own differences are those of its tables
        "it outperforms the mIoU score of the state-of-the-art Layer-CAM by 4.09%": 4.09,
        "this gap further expands to 6.45%": 6.45,
        "In terms of the micro-F1 metric, our method improves by 7.4%": 7.4,
        "results in a 0.92% improvement in mIoU": 0.92,
        "the mIoU remains almost the same, with a slight decrease of 0.09%": -0.09,
    }
    by_quote = judged.set_index("quote")["numbers"].groupby(level=0).first()
    for quote, gap in gaps.items():
        left, right = map(float, re.search(r"paper ([\d.]+) against ([\d.]+)", by_quote[quote]).groups())
        assert left - right == pytest.approx(gap)


def test_objects_are_scored_by_class_means_and_defects_by_pooled_pixels(tables):
    pooled = {name: table.assign(IoU=-table["IoU"], F1=-table["F1"]) for name, table in tables.items()}

    def verdict(statement, data):
        study, claim = made.study(data=data), BY_NAME[statement]
        here = {f"table{n}" for n in (1, 2, *study.compared)} | {"sweep"}
        own = {name: table for name, table in pooled.items() if name in here}
        return judging._decide(claim, judging._measured(claim, own, study))[0]

    for data, everywhere, objects, defects in (
        ("voc2012", "holds", "holds", "not measured"),
        ("magnetic_tile", "does not hold", "not measured", "does not hold"),
        ("demo", "holds", "holds", "does not hold"),
    ):
        assert verdict("Fusing all stages costs against S5 alone", data) == everywhere
        assert verdict("Truncation (δ=0) gains more on the fused stages than on S5", data) == everywhere
        assert verdict("Objects: δ=20 beats δ=0", data) == objects
        assert verdict("Defects: LTGrad-CAM with δ=20 beats Layer-CAM (l=5) in micro-F1", data) == defects


def test_each_quote_is_in_its_section(text):  # noqa: F811
    sections = re.split(r"\n#+ (?=\d)", text)[1:]
    flat = {s.split(" ")[0]: re.sub(r"\s+", " ", s) for s in sections}
    assert set(flat) >= {"1", "2.2", "3.2", "3.3", "3.4", "3.5", "4"}
    for claim in claims.CLAIMS:
        assert claim.quote in flat[claim.section], claim.quote


def test_a_margin_whose_interval_spans_zero_is_a_tie(tables, judge):
    rows = {
        n: judge(ALONE, draws=drawn(tables, BY_NAME[ALONE], lambda c, n=n: n * (c == claims.TRUNCATED))) for n in (0.5, 2.0)
    }
    assert [row["verdict"] for row in rows.values()] == ["holds", "tie"]
    assert rows[2.0][["margin", "ci_low", "ci_high"]].tolist() == pytest.approx([0.92, 0.92 - 1.9, 0.92 + 1.9], abs=0.01)
    assert judge(ALONE)[["ci_low", "ci_high"]].tolist() == pytest.approx([0.92, 0.92])


def test_what_holds_in_one_training_and_fails_in_the_other_is_a_tie(tables, judge):
    draws = drawn(tables, BY_NAME[ALONE], lambda config: 0.1 * (config == claims.TRUNCATED))
    draws["test"]["mIoU"][claims.TRUNCATED][:, 1] -= 1.5
    row = judge(ALONE, draws=draws)
    assert row["verdict"] == "tie" and row["trainings"] == "1 of 2" and judge(ALONE)["trainings"] == "2 of 2"
    assert row["margin"] == pytest.approx(0.92 - 0.75) and row["ci_low"] > 0  # the mean alone would hold


def test_the_claims_of_a_study_are_shown_by_section(study):
    whole, some = (judging.judged(study, *sections).data for sections in ((), ("3.2", "2.2")))
    assert len(whole) == 20 and len(some) == 3 and list(whole) == [*judging.TITLES.values()]
    styled = judging.judged(study, "3.3")
    assert styled.caption.startswith("The paper's claims on PASCAL VOC 2012 subset: ours") and "<table" in styled.to_html()
    table = pd.read_csv(study.out / "claims.csv")
    objects = table[~table["claim"].str.startswith("Defects")]
    assert set(table["verdict"]) <= {"holds", "does not hold", "tie", "not measured"}
    assert objects["margin"].notna().all() and objects["trainings"].str.fullmatch(r"[012] of 2").all()

"""Each claim on scores made by hand: the paper's own numbers, and the smallest change that turns the verdict."""

import re

import numpy as np
import pandas as pd
import pytest

from ltcam.engine.config import Config
from ltcam.files import ROOT
from ltcam.paper import claims
from ltcam.paper import tables as paper
from ltcam.paper.tables import SWEEP
from tests.paper import made
from tests.paper.test_tables import text  # noqa: F401

BY_NAME = {claim.claim: claim for claim in claims.CLAIMS}


def hill(config):
    """No truncation 20; over delta 21, 22, 23, 24, 25, 24 ... 20."""
    return 20.0 if config.delta is None else 25 - abs(config.delta - 40) / 10


def scores(claim):
    """What decides a claim, as if measured: the paper's mIoU, or curves that rise and fall."""
    if claim.source.startswith("Fig"):
        return {"test": {c: hill(c) for c in SWEEP}, "train": {c: 2 * hill(c) for c in SWEEP}}
    numbers = (4,) if claim.table == 4 else (1, 2, 3)
    return {"test": {c: paper.published(n)["mIoU"][row] for n in numbers for row, c in paper.ROWS[n].items()}, "train": {}}


def changed(known, named, score, part="test"):
    config = Config.parse(named)
    assert config in known[part]
    return {**known, part: {**known[part], config: score}}


def drawn(known, spread=lambda config: 0.0):
    """Draws of two trainings around scores: (1 + 50, 2). spread: of a configuration."""
    noise = np.array([0.0, *np.linspace(-1, 1, 50)])[:, None] * np.ones(2)
    return {part: {c: score + spread(c) * noise for c, score in own.items()} for part, own in known.items()}


def table(monkeypatch, data, draws, pooled=None):
    """The claims on a data set. pooled: the draws of pooled scores, if they are not those of class means."""
    monkeypatch.setattr(claims, "draws", lambda part, metric: (draws if metric[0] == "m" else pooled or draws)[part])
    study = made.study(data=data)
    study.counts = lambda configs, part: part
    return claims.claims(study).set_index("claim", drop=False)


@pytest.fixture
def judge(monkeypatch):
    """The row of a claim, on the data set whose table it reads, from its own scores or from other draws."""

    def row(statement, known=None, data="", draws=None, pooled=None):
        claim = BY_NAME[statement]
        monkeypatch.setattr(claims, "CLAIMS", [claim])
        draws = draws or drawn(known or scores(claim))
        return table(monkeypatch, data or ("ksdd2" if claim.table == 4 else "voc2012"), draws, pooled).iloc[0]

    return row


FLIPS = [
    ("Fusing all stages beats each of S1 to S4", "gradcam:S4", 21.58),
    ("Fusing all stages costs against S5 alone", "gradcam:S5", 21.56),
    ("The score rises with depth, S1 to S5", "gradcam:S2", 10.12),
    ("The score rises with depth, S1 to S5", "gradcam:S4", 25.32),
    ("Truncation alone (S5, δ=0) helps Grad-CAM", "gradcam:S5:0", 25.3),
    ("Truncation with δ=0 leaves FullGrad almost the same: within 0.5 points", "fullgrad:all:0", 27.69),
    ("Truncation with δ=0 leaves FullGrad almost the same: within 0.5 points", "fullgrad:all:0", 28.71),
    ("Truncation (δ=0) gains more on the fused stages than on S5", "gradcam:S1-S5:0", 22.48),
    ("Truncation (δ=0) gains more on the fused stages than on S5", "gradcam:S1-S5", 25.96),
    ("Truncation (δ=0) gains more on the fused stages than on S5", "gradcam:S5:0", 30.62),
    ("Objects: LTGrad-CAM (l=5) beats Grad-CAM", "gradcam:S1-S5:0", 25.3),
    ("Objects: LTGrad-CAM (l=5) beats Grad-CAM", "gradcam:S1-S5:20", 25.3),
    ("Objects: LTGrad-CAM with δ=20 exceeds FullGrad", "gradcam:S1-S5:20", 28.19),
    ("Objects: FullGrad beats Grad-CAM", "fullgrad:all", 25.3),
    ("Objects: Grad-CAM beats Grad-CAM++", "gradcam++", 25.32),
    ("Objects: Layer-CAM (l=1) beats Grad-CAM", "layercam:S5:0", 25.3),
    (
        "Objects: LTGrad-CAM (δ=20) is comparable to Layer-CAM (l=5): at most 2.5 points below, a bound made from its 2.49",
        "gradcam:S1-S5:20", 28.32,
    ),
    ("Objects: δ=20 beats δ=0", "gradcam:S1-S5:20", 26.86),
    ("Defects: LTGrad-CAM (l=5) beats Grad-CAM", "gradcam:S5", 33.02),
    ("Defects: LTGrad-CAM with δ=0 beats Layer-CAM (l=5)", "gradcam:S1-S5:0", 28.91),
    ("Defects: LTGrad-CAM with δ=20 beats Layer-CAM (l=5)", "gradcam:S1-S5:20", 28.91),
    ("Defects: LTGrad-CAM with δ=20 beats Layer-CAM (l=5) in micro-F1", "gradcam:S1-S5:20", 28.91),
    ("Defects: δ=20 beats δ=0", "gradcam:S1-S5:20", 33.0),
    ("Defects: LTGrad-CAM (δ=20) beats every other method", "gradcam++", 35.38),
    ("Over δ the score rises, then falls: the best lies inside 0 to 90", "gradcam:S1-S5:0", 25.01),
    ("Over δ the score rises, then falls: the best lies inside 0 to 90", "fullgrad:all:90", 25.0),
    ("Over δ from 0 to 40 the mean score is above that without truncation", "layercam:S1-S5", 23.01),
]  # fmt: skip
AGREE = "The curves of both parts agree: rank correlation above 0.5"
ALONE = "Truncation alone (S5, δ=0) helps Grad-CAM"  # by 0.92 points


@pytest.mark.parametrize(("claim", "config", "score"), FLIPS)
def test_a_claim_turns_where_its_numbers_cross(judge, claim, config, score):
    """In the scores and in the draws alike, where a margin of zero, and what float leaves of it, is no difference."""
    assert judge(claim)["verdict"].split(",")[0] == judge(claim)["paper"].replace("no numbers", "holds") == "holds"
    other = changed(scores(BY_NAME[claim]), config, score)
    assert claims._decide(BY_NAME[claim], other)[0] == "fails"
    assert judge(claim, other)["verdict"].split(",")[0] in ("fails", "equal", "open")


def test_curves_of_both_parts_agree_or_not(judge):
    assert judge(AGREE)["verdict"] == "holds"
    upside_down = flat = scores(BY_NAME[AGREE])
    for delta in range(0, 100, 10):
        config = Config("fullgrad", "all", float(delta))
        upside_down = changed(upside_down, str(config), -hill(config), "train")
        flat = changed(flat, str(config), 7.0, "train")
    said = judge(AGREE, upside_down)[["verdict", "numbers"]].tolist()
    assert said == ["fails", "2 of 3, fullgrad -1.00 (paper prints none)"]
    assert judge(AGREE, flat)["verdict"] == "fails"


def test_every_claim_is_flipped_above():
    assert set(BY_NAME) == {name for name, *_ in FLIPS} | {AGREE}


HILLS = {part: {c: hill(c) for need in claims.needs(None) for c in need.configs} for part in ("test", "train")}


@pytest.mark.parametrize(("data", "other"), [("voc2012", "Defects: "), ("ksdd2", "Objects: ")])
def test_what_a_data_set_has_no_table_of_is_not_measured(data, other, monkeypatch):
    judged = table(monkeypatch, data, drawn(HILLS))
    left = judged.index[judged["verdict"] == "not measured"]
    assert [*left] == [name for name in BY_NAME if name.startswith(other)] and judged.loc[left, "margin"].isna().all()
    assert judged.loc[left, "numbers"].str.startswith("not measured (paper ").all()


def test_the_papers_own_numbers_fulfil_all_claims(judge, monkeypatch):
    judged = table(monkeypatch, "demo", drawn(HILLS))
    assert judged.index[judged["paper"] == "no numbers"].tolist() == judged.index[-3:].tolist()  # Figs. 4 and 5
    assert (judged["paper"] == "holds").sum() == 19 and len(judged) == 22
    numbers = judged["numbers"].str.split(" (", regex=False).str[1]
    assert numbers["Objects: LTGrad-CAM with δ=20 exceeds FullGrad"] == "paper 28.34 against 28.20)"
    assert numbers["Truncation (δ=0) gains more on the fused stages than on S5"] == "paper gain 5.30 against 0.92)"
    assert numbers.iloc[0] == "paper 4 of 4, S1: 21.57 against 10.13)"  # all are equal here
    assert judged["numbers"].iloc[-3].startswith("3 of 3, gradcam 25.00 at δ=40 against 21.00 at δ=0 (paper prints")
    assert judge("Fusing all stages costs against S5 alone")["numbers"] == "25.31 against 21.57 (paper 25.31 against 21.57)"
    gaps = {  # the text's own differences are those of its tables
        "it outperforms the mIoU score of the state-of-the-art Layer-CAM by 4.09%": 4.09,
        "this gap further expands to 6.45%": 6.45,
        "In terms of the micro-F1 metric, our method improves by 7.4%": 7.4,
        "results in a 0.92% improvement in mIoU": 0.92,
        "the mIoU remains almost the same, with a slight decrease of 0.09%": -0.09,
    }
    by_quote = judged.set_index("quote")["numbers"].groupby(level=0).first()
    for quote, gap in gaps.items():
        left, right = map(float, re.search(r"paper (?:\d of \d, )?([\d.]+) against ([\d.]+)", by_quote[quote]).groups())
        assert left - right == pytest.approx(gap)


@pytest.mark.parametrize(
    ("data", "everywhere", "objects", "defects"),
    [
        ("voc2012", "holds", "holds", "not measured"),
        ("magnetic_tile", "fails", "not measured", "fails"),
        ("demo", "holds", "holds", "fails"),
    ],
)
def test_objects_are_scored_by_class_means_and_defects_by_pooled_pixels(judge, data, everywhere, objects, defects):
    for statement, expected in {
        "Fusing all stages costs against S5 alone": everywhere,
        "Truncation (δ=0) gains more on the fused stages than on S5": everywhere,
        "Objects: δ=20 beats δ=0": objects,
        "Defects: LTGrad-CAM with δ=20 beats Layer-CAM (l=5) in micro-F1": defects,
    }.items():
        own = drawn(scores(BY_NAME[statement]))
        pooled = {part: {c: -values for c, values in known.items()} for part, known in own.items()}
        assert judge(statement, data=data, draws=own, pooled=pooled)["verdict"] == expected


def test_each_quote_is_in_its_section(text):  # noqa: F811
    sections = re.split(r"\n#+ (?=\d)", text)[1:]
    flat = {s.split(" ")[0]: re.sub(r"\s+", " ", s) for s in sections}
    assert set(flat) >= {"1", "2.2", "3.2", "3.3", "3.4", "3.5", "4"}
    for claim in claims.CLAIMS:
        assert claim.quote in flat[claim.section], claim.quote


def test_a_margin_whose_interval_spans_zero_is_open(judge):
    own, truncated = scores(BY_NAME[ALONE]), Config("gradcam", "S5", 0.0)
    rows = {n: judge(ALONE, draws=drawn(own, lambda c, n=n: n * (c == truncated))) for n in (0.5, 2.0)}
    assert [row["verdict"] for row in rows.values()] == ["holds", "open"]
    assert rows[2.0][["margin", "ci_low", "ci_high"]].tolist() == pytest.approx([0.92, 0.92 - 1.9, 0.92 + 1.9], abs=0.01)
    assert judge(ALONE)[["ci_low", "ci_high"]].tolist() == pytest.approx([0.92, 0.92])


def test_a_training_that_disagrees_is_shown_beside_the_verdict_on_the_mean(judge):
    truncated = Config("gradcam", "S5", 0.0)
    draws = drawn(scores(BY_NAME[ALONE]), lambda config: 0.1 * (config == truncated))
    draws["test"][truncated][:, 1] -= 1.5
    row = judge(ALONE, draws=draws)
    assert row["trainings"] == "1 of 2" and judge(ALONE)["trainings"] == "2 of 2"
    assert row["margin"] == pytest.approx(0.92 - 0.75) and row["ci_low"] > 0 and row["verdict"] == "holds, negligible"


DEPTH = "The score rises with depth, S1 to S5"


def test_the_pair_that_decides_is_named_with_its_own_interval(judge):
    """S2 over S1 has the smallest margin, and S4 over S3 the lowest lower end. Then S3 over S2 surely turns."""
    own = scores(BY_NAME[DEPTH])
    row = judge(DEPTH, draws=drawn(own, lambda c: 4 * (c == Config("gradcam", "S4"))))
    assert row["verdict"] == "open" and row["numbers"].startswith("4 of 4, S4 over S3: 14.03 against 11.68 (paper 4 of 4, S4 ")
    assert row[["margin", "ci_low", "ci_high"]].tolist() == pytest.approx([2.35, 2.35 - 3.8, 2.35 + 3.8], abs=0.01)
    turned = changed(own, "gradcam:S3", 10.0)
    row = judge(DEPTH, draws=drawn(turned, lambda c: 4 * (c == Config("gradcam", "S4"))))
    assert row["verdict"] == "fails" and row["numbers"].startswith("3 of 4, S3 over S2: 10.00 against 10.87 (paper 4 of 4, S3 ")
    assert row[["margin", "ci_low", "ci_high"]].tolist() == pytest.approx([-0.87] * 3)


def test_a_bound_has_two_sides_and_nothing_near_it_is_negligible(judge):
    within, plain = "Truncation with δ=0 leaves FullGrad almost the same: within 0.5 points", scores(BY_NAME[ALONE])
    for score, verdict, margin in ((28.5, "holds", 0.2), (28.0, "holds", 0.3), (28.9, "fails", -0.2), (27.5, "fails", -0.2)):
        row = judge(within, changed(plain, "fullgrad:all:0", score))
        assert row["verdict"] == verdict and row["margin"] == pytest.approx(margin)


def test_holm_is_over_all_claims_of_a_data_set(monkeypatch):
    """Three draws of 50 speak against a claim: enough alone, and too many among the others."""
    known = drawn(HILLS, lambda c: 1.1 * (c == Config("gradcam", "S5")))
    whole = table(monkeypatch, "demo", known)
    monkeypatch.setattr(claims, "CLAIMS", [BY_NAME[ALONE]])
    alone = table(monkeypatch, "demo", known)
    assert whole.loc[ALONE, "verdict"] == alone.loc[ALONE, "verdict"] and (alone["p"] > 0.01).all()
    assert set(whole["holm"]) == {"open"}  # 1 of 51 is not below 0.025 / 22


COMMITTED = [pd.read_csv(path) for path in sorted(ROOT.glob("results/[!d]*/*/claims.csv"))]


@pytest.mark.parametrize("page", COMMITTED)
def test_no_pair_is_judged_in_two_ways_on_a_page(page):
    """Wherever a claim names the same two numbers, in whatever words."""
    known = page.dropna(subset="margin")
    named = known["numbers"].str.extract(r"([\d.]+ against [\d.]+)(?: \(|$)")[0]
    named = named.where(~known["claim"].str.contains("within|at most|gains more")).dropna()
    columns = ["margin", "ci_low", "ci_high", "verdict", "holm"]
    assert (known.loc[named.index, columns].astype(str).groupby(named).nunique() == 1).all(axis=None)


def test_the_claims_of_a_study_are_shown_by_section(study):
    whole, some = (claims.judged(study, *sections).data for sections in ((), ("3.2", "2.2")))
    assert len(whole) == 22 and len(some) == 3 and list(whole) == [*claims.TITLES.values()]
    styled = claims.judged(study, "3.3")
    assert styled.caption.startswith("The paper's claims on PASCAL VOC 2012 subset: ours") and "<table" in styled.to_html()
    table = pd.read_csv(study.out / "claims.csv")
    objects = table[~table["claim"].str.startswith("Defects")]
    words = {"holds", "holds, negligible", "fails", "fails, negligible", "equal", "open", "not measured"}
    assert set(table["verdict"]) | set(table["holm"]) <= words
    assert objects["margin"].notna().all() and objects["trainings"].str.fullmatch(r"[012] of 2").all()

"""Every table of the registry: made of a small study, in order, and those that are committed to the byte."""

import ast
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ltcam import files
from ltcam.engine.config import Config
from ltcam.errors import InputError, MissingError
from ltcam.experiment import provenance
from ltcam.experiment.protocol import Way
from ltcam.experiment.study import Study
from ltcam.paper import registry, shares
from ltcam.paper.__main__ import main
from ltcam.paper.registry import RESULTS, Need, Result, make, names, shown, stale
from tests.paper import made

GOLDEN = files.ROOT / "data" / "golden" / "demo"


def test_every_table_has_a_caption_and_words_and_is_made(study):
    for name in names(study):
        own, path = RESULTS[name], study.out / RESULTS[name].file
        assert own.caption and own.caption[0].isupper() and not own.caption.endswith(".") and own.name == name
        assert own.make.__doc__ or re.fullmatch(r"table\d", name), name  # those are of one kind: `tables._scored` has the words
        table = pd.read_csv(path)
        assert len(table) and set(own.golden) <= set(table), name
    known = {need.role for name in names(study) for need in RESULTS[name].needs(study)}
    other = {name for name, own in RESULTS.items() if study.loss not in own.losses}
    cropped = {"border", "crops", "defects", "gain_by_share"}  # of sets of defects whose profile has `tiles`
    assert cropped == {name for name, own in RESULTS.items() if own.setting == "tiles"}
    assert known == {"test", "train"} and {*RESULTS} - {*names(study)} == {"table4", "clean", *cropped, *other}


def test_a_table_comes_after_those_that_it_is_made_of(study, monkeypatch):
    """`names` is an order in which each can be made: what a maker asks for is there, or is next to nothing."""
    order, asked = names(study), {}
    for name in order:
        with monkeypatch.context() as patch:
            heard = asked.setdefault(name, [])
            for module in (m for key, m in sys.modules.items() if key.startswith("ltcam.paper") and hasattr(m, "make")):
                patch.setattr(module, "make", lambda other, own, heard=heard: heard.append(other) or make(other, own))
            kept = Study("toy", "voc2012", kept=True)
            RESULTS[name].make(kept) if not RESULTS[name].measured else None
    assert asked["comparison"] == ["table1", "table2", "table3"] and asked["correlations"] == ["pairs"]
    assert {*asked["shares"]} == {"cuts"}
    for name, others in asked.items():
        assert all(order.index(other) < order.index(name) for other in others), name


def test_the_first_table_measures_what_all_read(study):
    """One pass a part and protocol: what is asked for later is there already."""
    asked = [need for name in names(study) for need in RESULTS[name].needs(study)]
    for need in asked:
        for name in study.names[: need.seeds]:
            ways = [Way(config) for config in (*need.configs, *need.own(name))]
            study.measured(name, ways, need.role, need.protocol, need.first)  # or it would open images
    passes = study.store.db.execute("SELECT COUNT(*) FROM passes").fetchone()[0]
    # of each seed: val and train, and the images of train that shares are chosen on; of the first the three other protocols; of
    # each seed the larger view; the rest is one view
    assert passes == 3 * 2 + 3 + 2


def test_needs_that_name_the_defaults_are_measured_in_the_same_pass(study, monkeypatch):
    one, two, calls = Config("gradcam"), Config("layercam"), []
    needs = [Need([one]), Need([two], protocol=study.protocol), Need([one], "train"), Need([two], "train", first=5)]
    monkeypatch.setitem(study.settings, "first", 5)
    monkeypatch.setattr(registry, "names", lambda study: ["only"])
    monkeypatch.setitem(RESULTS, "only", Result("only", "", pytest.fail, lambda study: needs))
    monkeypatch.setattr(study, "measured", lambda name, ways, *rest: calls.append((name, [way.config for way in ways], *rest)))
    registry.measure(study, needs[:3])
    expected = [("test", study.protocol, None), ("train", study.protocol, 5)]
    assert calls == [(name, [one, two], *key) for key in expected for name in study.names]


def test_all_is_made_again_from_counts_alone(study, monkeypatch):
    monkeypatch.setenv("LTCAM_DATA", str(study.out / "nowhere"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a checkpoint was opened"))
    (study.out / "counts.sqlite").unlink()
    assert stale(Study("toy", "voc2012", kept=True)) == {}


def test_what_a_study_has_not_is_named(study):
    with pytest.raises(InputError, match=r"voc2012 has no table 'table4': expected one of table1, table2, table3, sweep"):
        make("table4", study)
    kept = Study("toy", "voc2012", kept=True)
    (study.out / "signs.csv.gz").unlink()
    with pytest.raises(MissingError, match=r"signs\.csv\.gz is missing: run ltcam reproduce first"):
        make("signs", kept)


def test_a_table_is_read_as_it_was_written(study):
    table = make("table3", study)
    pd.testing.assert_frame_equal(make("table3", Study("toy", "voc2012", kept=True)), table)
    assert table["mIoU"].astype(str).str.replace(".", "").str.len().max() <= 6  # as its file has it
    assert list(table["row"]) == list(registry.pd.read_csv(study.out / "table3.csv")["row"])


def test_what_was_not_measured_is_not_stale_and_what_was_published_is(study):
    """Counts of before there was a second cut have no shares, and no table of them."""
    second = [name for name in names(study) if RESULTS[name].needs is shares.needs]
    assert second == ["cuts", "shares", "sweep_share", "claims_share"]
    for name in study.names:
        (study.out / name / "counts.train-4.csv.gz").unlink()
    entries = provenance.read(study.out)
    kept = {file: entry for file, entry in entries.items() if "train-4" not in file}
    (study.out / provenance.NAME).write_text(json.dumps(kept))
    (study.out / "counts.sqlite").unlink()
    for name in second:
        (study.out / RESULTS[name].file).unlink()
    old = Study("toy", "voc2012", kept=True)
    assert stale(old) == {} and shown(study) == names(study) and {*names(study)} - {*shown(old)} == {*second}
    (study.out / "shares.csv").write_text("row\n")
    assert [*stale(Study("toy", "voc2012", kept=True))] == ["shares.csv"]


@pytest.fixture
def ksdd(tmp_path, monkeypatch):
    """The committed counts and tables of KolektorSDD; no data, and no checkpoint is opened."""
    shutil.copytree(
        files.ROOT / "results" / "real" / "ksdd",
        tmp_path / "results" / "real" / "ksdd",
        ignore=shutil.ignore_patterns("*.sqlite*"),
    )
    monkeypatch.setenv("LTCAM_OUTPUT", str(tmp_path))
    monkeypatch.setenv("LTCAM_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a checkpoint was opened"))
    return tmp_path / "results" / "real" / "ksdd"


def few(monkeypatch, *wanted):
    monkeypatch.setattr("ltcam.paper.registry.names", lambda study: list(wanted))


def test_the_committed_tables_come_out_to_the_byte_and_a_changed_digit_is_stale(ksdd, capsys, monkeypatch):
    """Three of them here; `make tables` compares all."""
    few(monkeypatch, "table1", "table4", "claims")
    path, expected = ksdd / "table1.csv", (ksdd / "table1.csv").read_bytes()
    changed = expected[:-2] + (b"8\n" if expected.endswith(b"9\n") else b"9\n")  # the last digit
    path.write_bytes(changed)
    assert main(["--check", "real", "ksdd"]) == 1
    assert capsys.readouterr().out.splitlines() == [f"{path}: stale", "real ksdd, sigmoid: 3 tables"]
    assert path.read_bytes() == changed
    assert main(["real", "ksdd"]) == 0 and path.read_bytes() == expected
    assert capsys.readouterr().out.splitlines() == [f"{path}: written", "real ksdd, sigmoid: 3 tables"]
    assert main(["real", "ksdd", "--check"]) == 0


def test_counts_that_are_gone_are_an_error_and_no_skip(ksdd, capsys, monkeypatch):
    few(monkeypatch, "table1")
    there, record = ksdd / "seed0/fold1/counts.csv.gz", ksdd / "provenance.json"
    content = there.read_bytes()
    assert main(["--check", "real", "ksdd"]) == 0  # counts are now in SQLite, and their exports are still looked at
    for change in (there.unlink, lambda: there.write_bytes(content[:-1])):
        change()
        assert main(["--check", "real", "ksdd"]) == 1
        assert "seed0/fold1/counts.csv.gz: these counts are missing or changed: restore them" in capsys.readouterr().out
    (ksdd / "counts.sqlite").unlink()
    with pytest.raises(InputError, match=r"fold1/counts\.csv\.gz is missing or not the file that provenance\.json names"):
        main(["--check", "real", "ksdd"])
    entries = json.loads(record.read_text())
    del entries["seed0/fold1/counts.csv.gz"]
    record.write_text(json.dumps(entries))
    (ksdd / "counts.sqlite").unlink()
    assert main(["--check", "real", "ksdd"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"table1\.csv: .*seed0/fold1 has no counts of gradcam.* on part test1: run ltcam reproduce", said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--check", "real"], "real is not pairs of a profile and a data set; give e.g. paper voc2012"),
        ([], "the following arguments are required: PROFILE DATA"),
        (["real", "voc"], "profile 'real' has no data set 'voc': expected one of"),
        (["full", "ksdd"], "profile 'full' is unknown: expected one of"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ltcam.paper", *arguments])
    monkeypatch.delitem(sys.modules, "ltcam.paper.__main__")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("ltcam.paper", run_name="__main__")
    assert said in f"{ended.value.code} {capsys.readouterr().err}"


def test_golden_values_are_compared_within_a_tolerance():
    table = pd.read_csv(GOLDEN / "table1.csv")
    assert registry.golden("table1", table, "demo") == "table1: within tolerance"
    assert registry.golden("table1", table.assign(mIoU=table["mIoU"] + 0.49), "demo") == "table1: within tolerance"
    assert registry.golden("table1", table[["row", "mIoU"]], "demo") == "table1: within tolerance"  # of what was asked
    wrong = {
        "mIoU is": table.assign(mIoU=table["mIoU"] + 0.51), "row is x in row 0, expected S1": table.assign(row="x"),
        "row is nan in row 3, expected S4": table.iloc[:3], "unknown is 1.0 in row 0": table.assign(unknown=1.0),
        "row is S1 in row 7, expected nan": pd.concat([table, table]),
    }  # fmt: skip
    for said, changed in wrong.items():
        with pytest.raises(InputError, match=rf"(?s)table1 is not what .*demo/table1\.csv expects: .*{said}"):
            registry.golden("table1", changed, "demo")
    with pytest.raises(InputError):
        registry.golden("table1", table.assign(mIoU=table["mIoU"].where(table.index > 0, np.nan)), "demo")
    assert registry.golden("table1", table, "real") == f"table1: {len(table)} rows, and nothing to compare them with"


def test_check_compares_the_golden_columns_within_the_tables_own_tolerance(monkeypatch):
    table = pd.read_csv(GOLDEN / "best.csv")
    study = made.study(data="demo")
    study.reference = "demo"
    monkeypatch.setattr(registry, "make", lambda name, study: table.assign(value=table["value"] + off, ci_low=0.0))
    off = 2.9
    assert registry.check("best", study) == "best: within tolerance"
    off = 3.1
    with pytest.raises(InputError, match="best is not what"):
        registry.check("best", study)


def test_golden_values_are_compared_under_python_o_too():
    """There asserts, also those inside of pandas.testing, do nothing."""
    tree = ast.parse(Path(registry.__file__).read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)] and "testing" not in ast.unparse(tree)


def test_a_table_is_where_its_table_of_the_paper_is_compared(monkeypatch):
    three, packed = (Result(name, "X", lambda study: None, lambda study: []) for name in ("three", "packed"))
    monkeypatch.setattr(registry, "RESULTS", {"three": three._replace(tables=(3,)), "packed": packed._replace(packed=True)})
    assert [len(names(made.study(data=name))) for name in ("voc2012", "ksdd", "demo")] == [2, 1, 2]
    assert [own.file for own in registry.RESULTS.values()] == ["three.csv", "packed.csv.gz"]

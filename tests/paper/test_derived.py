"""Tables made anew from counts alone: those committed to the byte, and those of a study as its notebooks make them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from ltcam import files
from ltcam.__main__ import app
from ltcam.errors import InputError, MissingError
from ltcam.experiment import metrics
from ltcam.experiment.configs import FLOATS, pick
from ltcam.paper import ablations, breakdown, derived, eq9, sweep
from ltcam.paper import tables as paper
from ltcam.paper.kept import Kept

RESULTS = files.ROOT / "results"
COLUMNS = ["name", "class", *metrics.CONFIG, "tp", "fp", "fn"]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """No data, and no checkpoint is opened."""
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("LTCAM_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a checkpoint was opened"))


@pytest.fixture
def voc(tmp_path, alone) -> Path:
    return Path(shutil.copytree(RESULTS / "paper" / "voc2012", tmp_path / "voc"))


@pytest.fixture
def ksdd(tmp_path, alone) -> Path:
    """Much smaller."""
    return Path(shutil.copytree(RESULTS / "real" / "ksdd", tmp_path / "ksdd"))


def tables(*arguments):
    return CliRunner().invoke(app, ["tables", *map(str, arguments)], catch_exceptions=False)


def counts(configs, images, seed=0):
    """Made-up counts of two classes in each image, in the order in which they are kept."""
    generator = torch.Generator().manual_seed(seed)
    keys = [(name, c, *config) for name in images for c in (0, 1) for config in configs]
    numbers = torch.randint(1, 1000, (len(keys), 3), generator=generator).tolist()
    rows = [(*key, *number) for key, number in zip(keys, numbers, strict=True)]
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(COLUMNS[:-3], ignore_index=True, na_position="first")


def keep(found, place, **recipe):
    place.mkdir(parents=True)
    found.to_csv(place / "counts.csv.gz", index=False)
    (place / "counts.json").write_text(json.dumps({"data": "KolektorSDD", "recipe": {"data": "ksdd", **recipe}}))


def test_the_committed_tables_come_out_to_the_byte_where_they_are_gone(voc):
    before = {path.name: path.read_bytes() for path in voc.iterdir() if path.is_file()}
    gone = [name for name in derived.makers("voc2012") if name in before]
    for name in gone:
        (voc / name).unlink()
        (voc / name).with_suffix(".json").unlink()
    done = tables(voc)
    assert done.exit_code == 0 and sorted(done.output.splitlines()) == sorted(f"{voc / name}: written" for name in gone)
    after = {path.name: path.read_bytes() for path in voc.iterdir() if path.is_file()}
    assert {name for name in after if name.endswith(".csv")} == {name for name in before if name.endswith(".csv")}
    assert {"table1.csv", "table2.csv", "table3.csv", "comparison.csv", "claims.csv"} <= set(gone)
    assert all(after[name] == before[name] for name in before if name.endswith(".csv"))
    for name in gone:
        record, expected = (json.loads(some[Path(name).with_suffix(".json").name]) for some in (after, before))
        differ = {"commit", "dirty", "python", "versions", "device", "cpus", "threads", "finished", "seconds"}
        assert {k: v for k, v in record.items() if k not in differ} == {k: v for k, v in expected.items() if k not in differ}


def test_a_changed_number_is_named_stale_and_mended(ksdd):
    path, expected = ksdd / "table1.csv", (ksdd / "table1.csv").read_bytes()
    changed = expected[:-2] + (b"8\n" if expected.endswith(b"9\n") else b"9\n")  # the last digit
    path.write_bytes(changed)
    kept = {file: file.stat().st_mtime_ns for file in ksdd.rglob("*") if file.is_file()}
    checked = tables(ksdd, "--check")
    stale = [line for line in checked.output.splitlines() if "unchanged" not in line]
    assert checked.exit_code == 1 and stale == [f"{path}: stale, run ltcam tables {ksdd}"] and path.read_bytes() == changed
    assert {file: file.stat().st_mtime_ns for file in ksdd.rglob("*") if file.is_file()} == kept
    mended = tables(ksdd)
    assert mended.exit_code == 0 and path.read_bytes() == expected
    assert [line for line in mended.output.splitlines() if "unchanged" not in line] == [f"{path}: written"]
    assert json.loads(path.with_suffix(".json").read_text())["sha256"] == files.sha256(path)
    written = {file.name for file, time in kept.items() if file.stat().st_mtime_ns != time}
    assert written == {"table1.csv", "table1.json"} and {*kept} == {file for file in ksdd.rglob("*") if file.is_file()}


def test_a_folder_without_counts_is_one_clear_error(tmp_path, alone):
    (tmp_path / "results").mkdir()
    for folder in (tmp_path / "results", tmp_path / "nowhere"):
        with pytest.raises(MissingError, match=rf"^{folder} has no counts: expected counts.csv.gz in it\. Run ltcam reproduce"):
            tables(folder)
    (tmp_path / "results" / "trainings.csv").write_text("name,seed,fold,mAP,checkpoint\nseed0,seed0,,0.5,abc\n")
    with pytest.raises(MissingError, match=r"results has no counts: expected seed0/counts\.csv\.gz in it"):
        tables(tmp_path / "results", "--check")
    (tmp_path / "results" / "trainings.csv").write_text("name,seed,fold,mAP,checkpoint\n")
    with pytest.raises(InputError, match=r"trainings\.csv names no training"):
        tables(tmp_path / "results")


def test_counts_that_do_not_say_what_they_are_of_are_refused(tmp_path, alone):
    keep(counts(paper.SEVEN.values(), ["a"]), tmp_path / "results")
    (tmp_path / "results" / "counts.json").write_text('{"data": ')
    with pytest.raises(InputError, match=r"counts\.json does not say what .*results was measured on: expected data and recipe"):
        tables(tmp_path / "results")


def test_folds_are_pooled_and_what_was_not_counted_is_left_out(tmp_path, alone):
    out, parts = tmp_path / "ksdd", []
    rows = [f"seed{s}/fold{f},seed{s},fold{f},0.5,abc" for s in (0, 1) for f in (0, 1)]
    for number, row in enumerate(rows):
        name, seed = row.split(",")[:2]
        found = counts(paper.SEVEN.values(), [f"{name[-1]}{image}" for image in range(5)], number)
        keep(found, out / name)
        parts.append(pick(found, paper.SEVEN.values()).assign(training=seed))  # as they are evaluated
    (out / "trainings.csv").write_text("\n".join(["name,seed,fold,mAP,checkpoint", *rows]) + "\n")
    assert [*derived.rebuild(out)] == ["table4.csv", "comparison.csv", "claims.csv"]
    pd.testing.assert_frame_equal(derived.table(Kept(out), 4), paper.table(4, pd.concat(parts, ignore_index=True)))
    assert "IoU_std" in (out / "table4.csv").read_text() and derived.rebuild(out, check=True) == {
        "table4.csv": False, "comparison.csv": False, "claims.csv": False
    }  # fmt: skip


def test_what_notebooks_5_and_8_make_is_what_the_counts_give(tmp_path, alone):
    """Two trainings on defects, under another protocol too, and another training; only delta 20 is counted in full."""
    rows = [*ablations.ROWS.values(), *paper.SEVEN.values()]
    asked = [
        *rows,
        *(config for row in rows for _, config in ablations.variants(row)),
        *ablations.cross([20.0]),
        *sweep.CONFIGS,
    ]
    out, images = tmp_path / "ksdd", [f"i{n}" for n in range(6)]
    places = {"": asked, "train": sweep.CONFIGS, "ablations/size": rows}
    found = {place: [] for place in places}
    for seed, name in enumerate(("seed0", "seed1")):
        for place, configs in places.items():
            kept = counts(dict.fromkeys(configs), images, 10 * seed + len(place))
            keep(kept, out / name / place, seed=seed)
            told = {"training": name} | ({"fold": ""} if place == "train" else {})
            found[place].append(pick(kept, configs).assign(**told))
    test, train, size = (pd.concat(parts, ignore_index=True) for parts in found.values())
    keep(counts(dict.fromkeys(rows), images, 7), out / "trainings" / "gap", head="gap", seed=0)
    keep(counts(rows[:1], images, 7), out / "half", seed=5)  # not measured in full
    lines = ["name,seed,fold,mAP,checkpoint", "seed0,seed0,,0.5,abc", "seed1,seed1,,0.5,abc"]
    (out / "trainings.csv").write_text("\n".join(lines) + "\n")
    pairs = pd.DataFrame({"name": [n for n in images for _ in (0, 1)], "class": [0, 1] * len(images), "kind": ["a", "b"] * 6})
    pairs = pairs.assign(area=1 + np.arange(12.0), classes=2, overlap=np.arange(12) % 5 / 4)
    eq9_counts = pairs[["name", "class"]].merge(pd.DataFrame({"reading": [eq9.NONE, "all values"]}), how="cross")
    eq9_counts = eq9_counts.assign(group=eq9_counts["name"], tp=1 + np.arange(24), fp=3, fn=5)
    for name, table in {"pairs": pairs, "eq9_counts": eq9_counts}.items():
        table.assign(data="KolektorSDD").to_csv(out / f"{name}.csv.gz", index=False)
    other = pd.read_csv(out / "trainings" / "gap" / "counts.csv.gz", dtype=FLOATS)
    measured = {ablations.DEFAULTS: test, ("size", "344 x 960"): size, ("head", "gap"): other}
    swept = sweep.scores({"test": pick(test, sweep.CONFIGS), "train": train})
    expected = {
        "sweep.csv": swept,
        "delta_choice.csv": sweep.chosen(swept, "IoU"),
        "ablations.csv": ablations.table(measured, "IoU"),
        "readings.csv": ablations.readings(measured, 4, "IoU"),
        "cross.csv": ablations.crossed(test, "IoU", [20.0]),
        "eq9.csv": eq9.table(eq9_counts, "IoU"),
        "breakdown.csv": breakdown.table(test, pairs, ablations.ROWS, ablations.GAINS),
        "correlations.csv": breakdown.correlations(breakdown.each(test, pairs, ablations.GAINS), breakdown.SHOWN),
        "beyond.csv": ablations.beyond(test, train, paper.SEVEN, "IoU"),
    }
    kept = Kept(out)
    assert [*derived.measured(kept)] == [*measured]
    for name, table in expected.items():
        ours = derived.makers("ksdd")[name](kept)
        pd.testing.assert_frame_equal(ours[table.columns], table)
        assert [*ours.columns[len(table.columns) :]] in ([], ["data", "metric"])
    with pytest.raises(MissingError, match=r"ablations\.csv is not in"):
        derived.found(kept)
    # a third seed, counted for the tables alone, is in them, and in none of notebook 08
    for place, configs in {"": [*paper.SEVEN.values(), *sweep.CONFIGS], "train": sweep.CONFIGS}.items():
        keep(counts(dict.fromkeys(configs), images, 30), out / "seed2" / place, seed=2)
    (out / "trainings.csv").write_text("\n".join([*lines, "seed2,seed2,,0.5,abc"]) + "\n")
    more = Kept(out)
    assert not derived.sweep(more).equals(derived.sweep(kept)) and [*derived.measured(more)] == [*measured]
    for name in ("ablations.csv", "readings.csv", "cross.csv", "breakdown.csv", "correlations.csv", "beyond.csv"):
        pd.testing.assert_frame_equal(derived.makers("ksdd")[name](more), derived.makers("ksdd")[name](kept))
        assert [t["name"] for t in derived.about(more, name)["trainings"]] == ["seed0", "seed1"]
    assert len(derived.about(more, "sweep.csv")["trainings"]) == 3

"""The store: committed files to the byte, batches that are whole or not there, counts that agree, and what is made again."""

import gc
import gzip
import json
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pandas as pd
import pytest

from ltcam import files
from ltcam.engine.config import Config
from ltcam.errors import InputError, MissingError, UnavailableError
from ltcam.experiment import provenance, scores
from ltcam.experiment.protocol import Way
from ltcam.experiment.store import FIELDS, Row, Store
from tests.interrupts import at_call

A, B = Config("gradcam"), Config("layercam", "S1-S5", 100 / 3, refine=Config.parse("gradcam,refine=S3-S5:8").refine)
OTSU, ARGMAX, OTHER = Way(A), Way(A, "argmax", 0.35), Way(B)
IDENTITY = {"checkpoint": "abc", "data": "d", "part": "test", "counts": 4, "size": [64, 64]}
GROUPS = {"a": "g1", "b": "g1", "c": "g2"}
ROWS = [
    Row("b", 0, OTSU, 1, 2, 3), Row("a", 1, OTSU, 4, 5, 6), Row("a", 0, OTSU, 7, 8, 9),
    Row("a", -1, ARGMAX, 10, 11, 12), Row("a", 0, OTHER, 13, 14, 15), Row("a", 1, OTHER, 0, 0, 1), Row("b", 0, OTHER, 2, 2, 2),
]  # fmt: skip
LOGITS = {"a": [0.5, -1.25], "b": [1e-7, 3.0]}


@pytest.fixture
def kept(tmp_path):
    """A store with a finished pass, and its number."""
    store = Store(tmp_path)
    number = store.open(IDENTITY, "seed0/counts.test.csv.gz")
    store.add(number, ROWS, GROUPS, LOGITS)
    store.finish(number, [OTSU, ARGMAX, OTHER], 0.0, images={"part": 3, "scored": 2})
    return store, number


def copy(source, folder, only=None):
    """The committed counts of a data set, or one file of them, as a folder of their own."""
    records = {name: r for name, r in provenance.read(source).items() if "identity" in r and only in (None, name)}
    for name in records:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    (folder / provenance.NAME).write_text(json.dumps(records))
    return folder


def as_before(table, header):
    """A pass in the columns of its file, from before there was a store."""
    if "config" in header:
        return table.sort_values(["name", "class", "config", "cut", "t"], ignore_index=True)[header]
    places, texts = pd.factorize(table["config"])
    fields = scores.columns(map(Config.parse, texts)).iloc[places].reset_index(drop=True)
    return table.drop(columns=["config", "t"]).join(fields).reindex(columns=header)


@pytest.mark.parametrize(
    ("place", "only"), [("real/magnetic_tile", None), ("real/ksdd", None), ("paper/voc2012", "gap/counts.csv.gz")]
)
def test_committed_counts_are_written_again_to_the_byte(place, only, tmp_path):
    store = Store(copy(files.ROOT / "results" / place, tmp_path, only))
    passes = dict(store.db.execute("SELECT file, id FROM passes"))
    assert passes and passes.keys() == provenance.read(tmp_path).keys()
    for file, number in passes.items():
        content = (tmp_path / file).read_bytes()
        text = gzip.decompress(content).decode()
        header = text.partition("\n")[0].split(",")
        made = as_before(store.frame(number), header).to_csv(
            index=False, float_format="%.6g" if "config" in header else None, lineterminator="\n"
        )
        assert made == text, file
        assert gzip.compress(made.encode(), 6, mtime=0)[10:] == content[10:], file  # but for the header's byte of the system


def test_what_is_kept_is_read_sorted(kept):
    store, number = kept
    counts = store.read(number, [B, A])
    assert counts.configs == (B, A) and counts.pairs[["name", "group", "class"]].values.tolist() == [
        ["a", "g1", 0],
        ["a", "g1", 1],
        ["b", "g1", 0],
    ]
    assert counts.values.tolist() == [[[13, 14, 15], [7, 8, 9]], [[0, 0, 1], [4, 5, 6]], [[2, 2, 2], [1, 2, 3]]]
    assert store.read(number, [A], "argmax").values.tolist() == [[[10, 11, 12]]]
    assert store.done(number) == {OTSU, ARGMAX, OTHER} and store.begun(number) == {}
    assert list(store.frame(number)) == FIELDS and store.frame(number)["name"].tolist() == [row.name for row in ROWS]
    with pytest.raises(MissingError, match=r"^hirescam:S5 was not counted in .*: run ltcam reproduce first$"):
        store.read(number, [A, Config("hirescam")])
    store.add(number, [ROWS[3]._replace(way=Way(A, "argmax", 0.5))], GROUPS, {})
    store.finish(number, [Way(A, "argmax", 0.5)], 0.0)
    with pytest.raises(InputError, match=r"^gradcam:S5 was counted at 2 backgrounds t in .*: expected one$"):
        store.read(number, [A], "argmax")


def test_logits_are_kept_and_exported(kept, tmp_path):
    store, number = kept
    expected = pd.DataFrame(LOGITS.values(), index=["a", "b"])
    np.testing.assert_array_equal(store.logits(number), expected)
    exported = pd.read_csv(tmp_path / "seed0" / "logits.test.csv.gz", index_col="name")
    np.testing.assert_allclose(exported, expected, rtol=1e-5)


def test_an_export_has_every_count_and_says_what_made_it(kept, tmp_path):
    table = pd.read_csv(tmp_path / "seed0" / "counts.test.csv.gz")
    assert list(table) == FIELDS and len(table) == len(ROWS)
    assert table["config"].tolist()[:3] == ["gradcam:S5", "gradcam:S5", "layercam:S1-S5:33.333333333333336,refine=S3-S5:8:8:1"]
    record = provenance.read(tmp_path)["seed0/counts.test.csv.gz"]
    assert record["identity"] == IDENTITY and record["images"] == {"part": 3, "scored": 2}
    assert (
        record["sha256"] == files.sha256(tmp_path / "seed0" / "counts.test.csv.gz") and {"commit", "versions"} <= record.keys()
    )


def test_a_count_that_differs_is_refused_with_its_whole_batch(kept):
    store, number = kept
    before = store.frame(number)
    batch = [Row("c", 0, OTSU, 1, 1, 1), *ROWS[:1], Row("a", 0, OTSU, 7, 8, 10), Row("c", 1, OTSU, 2, 2, 2)]
    said = r"has \(7, 8, 9\) for a, class 0: gradcam:S5; now it is \(7, 8, 10\)\. Other code or another machine\?"
    with pytest.raises(InputError, match=said):
        store.add(number, batch, GROUPS, {"c": [1.0, 1.0]})
    assert store.frame(number).equals(before) and "c" not in store.logits(number).index
    store.add(number, ROWS, GROUPS, LOGITS)  # equal counts are no conflict, and kept once
    assert store.frame(number).equals(before)


@pytest.mark.parametrize(
    "change", [{"checkpoint": "x"}, {"data": "x"}, {"part": "x"}, {"counts": 5}, {"size": [96, 96]}, {"flip": True}]
)
def test_counts_of_another_identity_are_kept_beside(kept, change):
    store, number = kept
    before, other = store.frame(number), store.open({**IDENTITY, **change}, "counts.other.csv.gz")
    assert other != number and store.done(other) == set()
    store.add(other, [row._replace(tp=99) for row in ROWS], GROUPS, {})
    store.finish(other, [OTSU], 0.0)
    assert store.frame(number).equals(before) and set(store.frame(other)["tp"]) == {99}
    assert store.open(IDENTITY, "ignored") == number and store.find(**change) == [other] and store.find() == [number, other]
    assert len(provenance.read(store.folder)) == 2


def test_a_trainings_own_pass_comes_first(tmp_path):
    store = Store(tmp_path)
    named = store.open({**IDENTITY, "pass": "beyond/one view"}, "a.csv.gz")
    own = store.open({**IDENTITY, "pass": ""}, "b.csv.gz")
    assert store.find(part="test") == [own, named]


def test_a_batch_that_is_cut_off_leaves_nothing(kept):
    store, number = kept

    def cut_off():
        yield Row("c", 0, OTSU, 1, 1, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.add(number, cut_off(), GROUPS, {})
    assert len(store.frame(number)) == len(ROWS) and store.begun(number) == {}


@pytest.mark.parametrize("at", ["clear", "sha256", "provenance.record"])
def test_a_finish_that_is_cut_off_is_done_again(at, kept, tmp_path, monkeypatch):
    """Also where the export is there and its record is not, or both are and the mark is not."""
    store, number = kept
    way, before = Way(A, "argmax", 0.5), (tmp_path / "seed0" / "counts.test.csv.gz").read_bytes()
    store.add(number, [Row("a", 0, way, 5, 5, 5), Row("a", 0, Way(Config("sim")), 5, 5, 5)], GROUPS, {})
    store.db.close()
    with monkeypatch.context() as patch, closing(Store(tmp_path).db), pytest.raises(KeyboardInterrupt):
        patch.setattr(f"ltcam.experiment.store.{at}", at_call(1, None)[1])
        Store(tmp_path).finish(number, [way], 0.0)
    again = Store(tmp_path)
    assert (way in again.done(number)) == (at == "sha256") and (way in again.begun(number)["a"]) == (at != "sha256")
    again.finish(number, [way], 0.0)
    assert way in Store(tmp_path).done(number)
    table = pd.read_csv(tmp_path / "seed0" / "counts.test.csv.gz")
    assert len(table) == len(ROWS) + 1 and "sim:S5" not in set(table["config"])  # whose other images were not counted
    assert (tmp_path / "seed0" / "counts.test.csv.gz").read_bytes() != before


def test_a_store_that_is_gone_is_made_again_from_its_exports(kept, tmp_path):
    store, number = kept
    before, logits = store.frame(number), store.logits(number)
    counts = store.read(number, [A, B])
    store.db.close()
    (tmp_path / "counts.sqlite").unlink()
    again = Store(tmp_path)
    (number,) = again.find(**IDENTITY)
    same = again.frame(number).merge(before)
    assert len(same) == len(before) and again.done(number) == {OTSU, ARGMAX, OTHER}
    assert again.read(number, [A, B]).values.tolist() == counts.values.tolist()
    np.testing.assert_allclose(again.logits(number), logits, rtol=1e-5)
    again.finish(number, [OTSU], 0.0)  # and exports the same bytes
    assert provenance.read(tmp_path) == json.loads((tmp_path / provenance.NAME).read_text())
    assert len(pd.read_csv(tmp_path / "seed0" / "counts.test.csv.gz")) == len(ROWS)


def test_a_part_without_a_class_has_an_export_without_rows(tmp_path):
    store = Store(tmp_path)
    store.finish(store.open(IDENTITY, "counts.csv.gz"), [OTSU], 0.0)
    assert pd.read_csv(tmp_path / "counts.csv.gz").columns.tolist() == FIELDS and len(Store(tmp_path).frame(1)) == 0
    with pytest.raises(MissingError, match="gradcam:S5 was not counted"):
        store.read(1, [A])


def test_a_folder_that_cannot_be_written_is_read(kept, tmp_path):
    """A folder in the place of the file stands for a disk that is read-only, also for those who may write everywhere."""
    kept[0].db.close()
    (tmp_path / "counts.sqlite").unlink()
    (tmp_path / "counts.sqlite").mkdir()
    store = Store(tmp_path)
    assert store.read(store.find(part="test")[0], [A, B]).values.shape == (3, 2, 3)
    assert not any((tmp_path / "counts.sqlite").iterdir())


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b""), lambda p: p.write_bytes(p.read_bytes()[:-9])]
)
def test_an_export_that_is_damaged_is_named(kept, tmp_path, damage):
    kept[0].db.close()
    (tmp_path / "counts.sqlite").unlink()
    damage(tmp_path / "seed0" / "counts.test.csv.gz")
    said = r"seed0/counts.test.csv.gz is missing or not the file that provenance.json names: restore it, or remove its entry"
    with pytest.raises(InputError, match=said):
        Store(tmp_path)


def test_a_store_that_is_gone_has_closed_its_file(tmp_path):
    """Also one that could not be made. Python 3.13 warns of open ones."""
    opened, connect = [], sqlite3.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", lambda *a, **b: opened.append(connect(*a, **b)) or opened[-1])
        Store(tmp_path)
        (tmp_path / "counts.sqlite").write_bytes(b"no database, but as long as one has to be" * 99)
        with pytest.raises(InputError, match="is damaged"):
            Store(tmp_path)
        Store(tmp_path / "nowhere")
    gc.collect()
    assert len(opened) == 3  # a file, a damaged one, and memory
    for db in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
            db.execute("SELECT 1")


def test_a_store_that_is_damaged_is_named(kept, tmp_path):
    kept[0].db.close()
    (tmp_path / "counts.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(
        InputError, match=r"counts.sqlite is damaged \(file is not a database\): delete it; it is made again from"
    ):
        Store(tmp_path)
    (tmp_path / "counts.sqlite").write_bytes(b"")  # as when power fails
    assert Store(tmp_path).find(**IDENTITY) == [1]


def test_an_export_that_others_changed_has_to_agree(kept, tmp_path):
    """As when git brings the counts of another machine."""
    path, record = tmp_path / "seed0" / "counts.test.csv.gz", provenance.read(tmp_path)
    table = pd.read_csv(path)
    for tp, said in ((13, ""), (14, r"for a, class 0: layercam:.*; now it is")):
        table.loc[table["tp"].isin([13, 14]), "tp"] = tp
        more = pd.concat([table, table[:1].assign(name="z", group="z")])
        more.to_csv(path, index=False)
        record["seed0/counts.test.csv.gz"]["sha256"] = files.sha256(path)
        (tmp_path / provenance.NAME).write_text(json.dumps(record))
        if said:
            with pytest.raises(InputError, match=said):
                Store(tmp_path)
        else:
            assert len(Store(tmp_path).frame(1)) == len(ROWS) + 1


def test_another_that_writes_is_waited_for_and_named(kept, tmp_path):
    store, number = kept
    store.db.execute("PRAGMA busy_timeout = 1")
    with closing(sqlite3.connect(tmp_path / "counts.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match=r"counts.sqlite: database is locked; make room or wait, and run again"):
            store.add(number, [Row("c", 0, OTSU, 1, 1, 1)], GROUPS, {})
        other.rollback()
    store.add(number, [Row("c", 0, Way(A, "argmax", 0.5), 1, 1, 1)], GROUPS, {})
    assert store.begun(number) == {"c": {Way(A, "argmax", 0.5)}}


def test_notes_are_kept_by_key_and_batch(tmp_path):
    store = Store(tmp_path)
    for batch in (0, 2):
        store.note({"of": "stages", "checkpoint": "abc"}, batch, {"pairs": [batch]})
    store.note({"of": "stages", "checkpoint": "abc"}, 2, "new")
    assert Store(tmp_path).notes({"checkpoint": "abc", "of": "stages"}) == {0: {"pairs": [0]}, 2: "new"}
    assert store.notes({"of": "stages"}) == {}


def test_rows_that_are_left_out_stay_here_and_the_rest_is_as_it_was(kept, tmp_path):
    store, number = kept
    file, before = "seed0/counts.test.csv.gz", provenance.read(tmp_path)
    whole = (tmp_path / file).read_bytes()
    store.leave_out(number, [OTSU])
    left, after = pd.read_csv(tmp_path / file), provenance.read(tmp_path)
    assert len(left) == len(ROWS) - 3 and not ((left["config"] == str(A)) & (left["cut"] == "otsu")).any()
    assert {**after[file], "sha256": ""} == {**before[file], "sha256": ""} and after[file]["sha256"] != before[file]["sha256"]
    assert store.done(number) == Store(tmp_path).done(number) == {OTSU, ARGMAX, OTHER}
    (tmp_path / "counts.sqlite").unlink()
    other = Store(tmp_path)
    assert other.done(1) == {ARGMAX, OTHER} and other.logits(1).equals(store.logits(number))
    store.leave_out(number, [])
    assert (tmp_path / file).read_bytes() == whole

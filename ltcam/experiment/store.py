"""All counts of one profile and data set: an SQLite file, `counts.sqlite`, beside the results that are made from them.

A *pass* is one checkpoint on one part of a data set under one protocol. Its identity names all that a count depends on. Each
batch is one transaction, so a killed run loses at most its last batch, and nothing is counted twice. Counts of another identity
are kept. A count that differs from a kept one of the same identity is an error.

Git keeps exports: a packed CSV file for each pass. `provenance.json` has the pass of each file and what made it. Where the
SQLite file is missing, it is made from them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ltcam.engine.config import Config
from ltcam.errors import InputError, MissingError, UnavailableError
from ltcam.experiment import provenance
from ltcam.experiment.protocol import Way
from ltcam.experiment.scores import Counts, configurations
from ltcam.files import AnyPath, atomic, clear, sha256

SCHEMA = """
CREATE TABLE IF NOT EXISTS passes (id INTEGER PRIMARY KEY, identity TEXT UNIQUE, file TEXT);
CREATE TABLE IF NOT EXISTS images (id INTEGER PRIMARY KEY, name TEXT UNIQUE, "group" TEXT);
CREATE TABLE IF NOT EXISTS configs (id INTEGER PRIMARY KEY, text TEXT UNIQUE);
CREATE TABLE IF NOT EXISTS counts (pass INTEGER, image INTEGER, class INTEGER, config INTEGER, cut TEXT, t REAL,
    tp INTEGER, fp INTEGER, fn INTEGER, UNIQUE (pass, config, cut, t, image, class));
CREATE TABLE IF NOT EXISTS done (pass INTEGER, config INTEGER, cut TEXT, t REAL, UNIQUE (pass, config, cut, t));
CREATE TABLE IF NOT EXISTS logits (pass INTEGER, image INTEGER, class INTEGER, logit REAL, UNIQUE (pass, image, class));
CREATE TABLE IF NOT EXISTS notes (key TEXT, batch INTEGER, value TEXT, UNIQUE (key, batch));
CREATE TABLE IF NOT EXISTS imported (sha256 TEXT UNIQUE);
"""
FIELDS = ["name", "group", "class", "config", "cut", "t", "tp", "fp", "fn"]


class Row(NamedTuple):
    """The counts of one image and class."""

    name: str
    label: int
    way: Way
    tp: int
    fp: int
    fn: int


class Store:
    """The counts in `folder`. Raises InputError if `counts.sqlite` is damaged or an export is not as `provenance.json` says."""

    def __init__(self, folder: AnyPath) -> None:
        self.folder = Path(folder)
        try:
            self.db = sqlite3.connect(self.folder / "counts.sqlite", timeout=60)
            self.db.executescript(SCHEMA)
        except sqlite3.OperationalError as error:  # a folder that cannot be written can still be read
            if "locked" in str(error):
                raise UnavailableError(
                    f"{self.folder / 'counts.sqlite'} is in use: wait for the other run, and try again"
                ) from error
            self.db = sqlite3.connect(":memory:")
            self.db.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            path = self.folder / "counts.sqlite"
            raise InputError(f"{path} is damaged ({error}): delete it; it is made again from the exports") from error
        for file, record in provenance.read(self.folder).items():
            if "identity" in record and not self._one("SELECT 1 FROM imported WHERE sha256 = ?", record["sha256"]):
                self._import(file, record)

    def find(self, **identity: Any) -> list[int]:
        """The passes whose identity has these values. A training's own pass comes before others under the same protocol."""
        rows = self.db.execute("SELECT id, identity FROM passes ORDER BY id").fetchall()
        known = [(number, json.loads(text)) for number, text in rows]
        found = [(n, its) for n, its in known if all(its.get(name) == value for name, value in identity.items())]
        return [number for number, its in sorted(found, key=lambda item: (item[1].get("pass", ""), item[0]))]

    def open(self, identity: Mapping[str, Any], file: str) -> int:
        """The number of the pass of `identity`, which is new or known. file: of its export, in the folder."""
        text = json.dumps(identity, sort_keys=True)
        if self._one("SELECT 1 FROM passes WHERE file = ? AND identity <> ?", file, text):  # another pass keeps its file
            file = file.replace(".csv", f".{hashlib.sha256(text.encode()).hexdigest()[:8]}.csv")
        with self._writing():
            self.db.execute("INSERT OR IGNORE INTO passes (identity, file) VALUES (?, ?)", (text, file))
        return int(self._one("SELECT id FROM passes WHERE identity = ?", text))

    def done(self, number: int) -> set[Way]:
        """The ways that were counted on every image of a pass."""
        query = "SELECT text, cut, t FROM done JOIN configs ON config = configs.id WHERE pass = ?"
        return {Way(Config.parse(text), cut, t) for text, cut, t in self.db.execute(query, (number,))}

    def begun(self, number: int) -> bool:
        """Whether an interrupted run has counted some way on some images of a pass."""
        ways = "SELECT DISTINCT config, cut, t FROM {} WHERE pass = ?1"
        return bool(self._one(f"SELECT 1 FROM ({ways.format('counts')} EXCEPT {ways.format('done')})", number))

    def counted(self, number: int, name: str) -> set[Way]:
        """The ways that were counted on one image of a pass."""
        query = """SELECT DISTINCT text, cut, t FROM counts JOIN configs ON config = configs.id JOIN images ON image = images.id
                   WHERE pass = ? AND name = ?"""
        return {Way(Config.parse(text), cut, t) for text, cut, t in self.db.execute(query, (number, name))}

    def add(self, number: int, rows: Iterable[Row], groups: Mapping[str, str], logits: Mapping[str, Sequence[float]]) -> None:
        """Keep the counts and logits of a batch, all or none. Raises InputError if a kept count differs."""
        table = pd.DataFrame(
            [(r.name, groups[r.name], r.label, str(r.way.config), *r.way[1:], *r[3:]) for r in rows], columns=FIELDS
        )
        with self._writing():
            self._insert(number, table)
            self._insert_logits(number, logits)

    def finish(self, number: int, ways: Iterable[Way], started: float, **record: Any) -> None:
        """Mark `ways` as counted on every image, and export the pass. started, record: as `provenance.record` takes them."""
        (identity, file) = self.db.execute("SELECT identity, file FROM passes WHERE id = ?", (number,)).fetchone()
        clear((self.folder / file).parent)
        with self._writing():  # a run that is killed in here finishes again
            self._mark(number, ((str(way.config), way.cut, way.t) for way in ways))
            self._export(number, file)
            provenance.record(self.folder, file, started, identity=json.loads(identity), **record)
            self.db.execute("INSERT OR IGNORE INTO imported VALUES (?)", (sha256(self.folder / file),))

    def read(self, number: int, configs: Sequence[Config], cut: str = "otsu") -> Counts:
        """The counts of `configs` under a cut, sorted by image and class, of a training and a fold that have no name.

        Raises MissingError if one was not counted on all images, and InputError if it was counted at several t.
        """
        known = [way for way in self.done(number) if way.cut == cut]
        for config in configs:
            found = sum(way.config == config for way in known)
            if not found:
                raise MissingError(f"{config} was not counted in {self.folder}: run ltcam reproduce first")
            if found > 1:
                raise InputError(f"{config} was counted at {found} backgrounds t in {self.folder}: expected one")
        place = {str(config): n for n, config in enumerate(configs)}
        marks = ",".join("?" * len(place))
        query = f"""SELECT image, class, text, tp, fp, fn FROM counts JOIN configs ON config = configs.id
                    WHERE pass = ? AND cut = ? AND config IN (SELECT id FROM configs WHERE text IN ({marks}))"""
        rows = self.db.execute(query, (number, cut, *place))
        table = np.array([(i, c, place[text], *rest) for i, c, text, *rest in rows], dtype=np.int64).reshape(-1, 6)
        names = pd.read_sql('SELECT id, name, "group" FROM images', self.db, index_col="id")
        keys, where = np.unique(table[:, :2], axis=0, return_inverse=True)
        values = np.zeros((len(keys), len(place), 3), dtype=np.int64)
        values[where, table[:, 2]] = table[:, 3:]
        pairs = names.loc[keys[:, 0]].reset_index(drop=True).assign(training="", fold="", **{"class": keys[:, 1]})
        order = pairs.sort_values(["name", "class"]).index
        return Counts(pairs.loc[order].reset_index(drop=True), tuple(configs), values[order])

    def logits(self, number: int) -> pd.DataFrame:
        """The logits of every image of a pass: a row for each image by its name, a column for each class."""
        query = "SELECT name, class, logit FROM logits JOIN images ON image = images.id WHERE pass = ?"
        return pd.read_sql(query, self.db, params=(number,)).pivot(index="name", columns="class", values="logit")

    def frame(self, number: int) -> pd.DataFrame:
        """Every count of a pass, in the order in which it was kept: the columns `FIELDS`."""
        query = f"""SELECT {", ".join(f'"{f}"' if f != "config" else "text AS config" for f in FIELDS)} FROM counts
                    JOIN configs ON config = configs.id JOIN images ON image = images.id WHERE pass = ? ORDER BY counts.rowid"""
        return pd.read_sql(query, self.db, params=(number,))

    def notes(self, key: Mapping[str, Any]) -> dict[int, Any]:
        """What `note` kept under a key, by batch."""
        rows = self.db.execute("SELECT batch, value FROM notes WHERE key = ?", (json.dumps(key, sort_keys=True),))
        return {batch: json.loads(value) for batch, value in rows}

    def note(self, key: Mapping[str, Any], batch: int, value: Any) -> None:
        """Keep plain values of a batch that are no counts, so that an interrupted measurement goes on after it."""
        with self._writing():
            self.db.execute(
                "INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", (json.dumps(key, sort_keys=True), batch, json.dumps(value))
            )

    def _export(self, number: int, file: str) -> None:
        query = "SELECT text AS config, cut, t FROM done JOIN configs ON config = configs.id WHERE pass = ?"
        done = pd.read_sql(query, self.db, params=(number,))  # of others an interrupted run has counted some images
        table = self.frame(number).merge(done).sort_values(["name", "class", "config", "cut", "t"], ignore_index=True)
        for path, content in {file: table, file.replace("counts", "logits", 1): self.logits(number).reset_index()}.items():
            if content.empty and path != file:
                continue
            text = content.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode()
            with atomic(self.folder / path) as temporary:
                temporary.write_bytes(gzip.compress(text, 6, mtime=0))

    def _import(self, file: str, record: Mapping[str, Any]) -> None:
        path = self.folder / file
        if not path.is_file() or sha256(path) != record["sha256"]:
            raise InputError(f"{path} is missing or not the file that provenance.json names: restore it, or remove its entry")
        table = pd.read_csv(path, dtype={"name": str, "group": str})
        table["config"] = _texts(table)
        table["cut"] = table.get("cut", "otsu")
        if "t" not in table:  # an older export has the background of each configuration in its record
            table["t"] = table["config"].map(record.get("at", {})).where(table["cut"] == "argmax", 0.0).fillna(0.0)
        beside = self.folder / file.replace("counts", "logits", 1)
        logits = pd.read_csv(beside, dtype={"name": str}) if beside.is_file() else pd.DataFrame()
        number = self.open(record["identity"], file)
        with self._writing():
            self._insert(number, table[FIELDS])
            self._insert_logits(number, {name: own for name, *own in logits.itertuples(index=False)})
            self._mark(number, table[["config", "cut", "t"]].drop_duplicates().itertuples(index=False))
            self.db.execute("INSERT OR IGNORE INTO imported VALUES (?)", (record["sha256"],))

    def _insert(self, number: int, table: pd.DataFrame) -> None:
        """Keep the rows of a table with the columns `FIELDS`. Raises InputError if a kept row differs."""
        images = table[["name", "group"]].drop_duplicates().itertuples(index=False)
        self.db.executemany('INSERT OR IGNORE INTO images (name, "group") VALUES (?, ?)', images)
        self.db.executemany("INSERT OR IGNORE INTO configs (text) VALUES (?)", [(text,) for text in table["config"].unique()])
        numbers = {
            name: dict(self.db.execute(f"SELECT {key}, id FROM {name}"))
            for name, key in (("images", "name"), ("configs", "text"))
        }
        columns = table.assign(name=table["name"].map(numbers["images"]), config=table["config"].map(numbers["configs"]))
        rows = list(zip(*(columns[field].tolist() for field in FIELDS if field != "group"), strict=True))
        before = self.db.total_changes
        self.db.executemany(f"INSERT OR IGNORE INTO counts VALUES ({number}, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        if self.db.total_changes - before == len(rows):
            return
        where = f"pass = {number} AND image = ? AND class = ? AND config = ? AND cut = ? AND t = ?"
        for index, row in enumerate(rows):  # some were kept already: they must be the same
            kept = self.db.execute(f"SELECT tp, fp, fn FROM counts WHERE {where}", row[:5]).fetchone()
            if kept != row[5:]:
                what = "{name}, class {class}: {config}".format(**table.iloc[index])
                raise InputError(f"{self.folder} has {kept} for {what}; now it is {row[5:]}. Other code or another machine?")

    def _insert_logits(self, number: int, logits: Mapping[str, Sequence[float]]) -> None:
        keys = [(number, c, logit, name) for name, own in logits.items() for c, logit in enumerate(own)]
        self.db.executemany("INSERT OR IGNORE INTO logits SELECT ?, id, ?, ? FROM images WHERE name = ?", keys)

    def _mark(self, number: int, ways: Iterable[Sequence[Any]]) -> None:
        """Ways are (config, cut, t)."""
        keys = [(number, cut, t, text) for text, cut, t in ways]
        self.db.executemany("INSERT OR IGNORE INTO done SELECT ?, id, ?, ? FROM configs WHERE text = ?", keys)

    def _one(self, query: str, *values: Any) -> Any:
        return next((row[0] for row in self.db.execute(query, values)), None)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction. Raises UnavailableError if the disk is full or the file cannot be written."""
        try:
            with self.db:
                yield
        except sqlite3.OperationalError as error:
            raise UnavailableError(f"{self.folder / 'counts.sqlite'}: {error}; make room or wait, and run again") from error


def _texts(table: pd.DataFrame) -> pd.Series[str]:
    """The text of each row's configuration; an older export has its fields as columns."""
    if "config" in table:
        return table["config"]
    fields = table.drop(columns=[name for name in ("name", "group", "class", "cut", "tp", "fp", "fn") if name in table])
    number = fields.groupby(list(fields), sort=False, dropna=False).ngroup()
    texts = [str(config) for config in configurations(fields.loc[number.drop_duplicates().index])]
    return number.map(dict(enumerate(texts)))

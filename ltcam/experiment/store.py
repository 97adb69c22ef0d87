"""All counts of one profile and data set: an SQLite file, `counts.sqlite`, beside the results that are made from them.

A *pass* is one checkpoint on one part of a data set under one protocol. Its identity names all that a count depends on. Each
batch is one transaction, so a killed run loses at most its last batch. Counts of another identity are kept. A count that
differs from a kept one of the same identity is an error.

Git keeps exports: a packed CSV file for each pass, which `provenance.json` names. A missing SQLite file is made from them.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from weakref import finalize

import numpy as np
import pandas as pd

from ltcam.engine.config import Config
from ltcam.errors import InputError, MissingError, UnavailableError
from ltcam.experiment import provenance
from ltcam.experiment.protocol import Way
from ltcam.experiment.scores import Counts, configurations
from ltcam.files import AnyPath, clear, sha256

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
EVERY = """SELECT name, "group", class, text AS config, cut, t, tp, fp, fn FROM counts
           JOIN configs ON config = configs.id JOIN images ON image = images.id WHERE pass = ?"""
DONE = "SELECT text AS config, cut, t FROM done JOIN configs ON config = configs.id WHERE pass = ?"


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
        path = self.folder / "counts.sqlite"
        try:
            self._connect(path)
        except sqlite3.OperationalError as error:  # a folder that cannot be written can still be read
            if "locked" in str(error):
                raise UnavailableError(f"{path} is in use: wait for the other run, and try again") from error
            self._connect(":memory:")
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path} is damaged ({error}): delete it; it is made again from the exports") from error
        for file, record in provenance.read(self.folder).items():
            if "identity" in record and not self._one("SELECT 1 FROM imported WHERE sha256 = ?", record["sha256"]):
                self._import(file, record)

    def _connect(self, path: AnyPath) -> None:
        self.db = sqlite3.connect(path, timeout=60)
        finalize(self, self.db.close)  # Python 3.13 warns of what is not
        self.db.executescript(SCHEMA)

    def find(self, **identity: Any) -> list[int]:
        """The passes whose identity has these values. A training's own pass comes before others under the same protocol."""
        known = [(n, json.loads(text)) for n, text in self.db.execute("SELECT id, identity FROM passes ORDER BY id")]
        found = [(its.get("pass", ""), n) for n, its in known if all(its.get(name) == own for name, own in identity.items())]
        return [number for _, number in sorted(found)]

    def open(self, identity: Mapping[str, Any], file: str) -> int:
        """The number of the pass of `identity`, which is new or known. file: of its export, in the folder."""
        text = json.dumps(identity, sort_keys=True)
        if self._one("SELECT 1 FROM passes WHERE file = ? AND identity <> ?", file, text):  # another pass keeps its file
            file = file.replace(".csv", f".{hashlib.sha256(text.encode()).hexdigest()[:8]}.csv")
        with self._writing():
            self.db.execute("INSERT OR IGNORE INTO passes (identity, file) VALUES (?, ?)", (text, file))
        return int(self._one("SELECT id FROM passes WHERE identity = ?", text))

    def about(self, number: int) -> tuple[dict[str, Any], str]:
        """What the counts of a pass depend on, and the file of its export, in the folder."""
        ((identity, file),) = self.db.execute("SELECT identity, file FROM passes WHERE id = ?", (number,))
        return json.loads(identity), file

    def done(self, number: int) -> set[Way]:
        """The ways that were counted on every image of a pass."""
        return {Way(Config.parse(text), cut, t) for text, cut, t in self.db.execute(DONE, (number,))}

    def begun(self, number: int) -> dict[str, set[Way]]:
        """{image: ways} that an interrupted run has counted on some images of a pass and not on all."""
        query = f"""SELECT DISTINCT name, config, cut, t FROM ({EVERY}) WHERE (config, cut, t) NOT IN ({DONE})"""
        found: dict[str, set[Way]] = {}
        for name, text, cut, t in self.db.execute(query, (number, number)):
            found.setdefault(name, set()).add(Way(Config.parse(text), cut, t))
        return found

    def add(self, number: int, rows: Iterable[Row], groups: Mapping[str, str], logits: Mapping[str, Sequence[float]]) -> None:
        """Keep the counts and logits of a batch, all or none. Raises InputError if a kept count differs."""
        listed = [(r.name, groups[r.name], r.label, str(r.way.config), r.way.cut, r.way.t, r.tp, r.fp, r.fn) for r in rows]
        with self._writing():
            self._insert(number, listed, logits)

    def finish(self, number: int, ways: Iterable[Way], started: float, without: Iterable[Way] = (), **record: Any) -> None:
        """Mark `ways` as counted on every image, and export the pass, but for the rows of `without`. started, record: as
        `provenance.record` takes them."""
        identity, file = self.about(number)
        clear((self.folder / file).parent)
        with self._writing():  # a run that is killed in here finishes again
            self._mark(number, ((str(way.config), way.cut, way.t) for way in ways))
            self._export(number, file, without)
            provenance.record(self.folder, file, started, identity=identity, **record)
            self.db.execute("INSERT OR IGNORE INTO imported VALUES (?)", (sha256(self.folder / file),))

    def leave_out(self, number: int, ways: Iterable[Way]) -> None:
        """Export a pass again without the rows of `ways`, which stay here. What made it is known, and stays its record."""
        record = provenance.read(self.folder)[self.about(number)[1]]
        self.finish(number, (), 0.0, ways, **{name: own for name, own in record.items() if name not in ("sha256", "identity")})

    def read(self, number: int, configs: Sequence[Config], cut: str = "otsu") -> Counts:
        """The counts of `configs` under a cut, sorted by image and class, of a training and a fold that have no name.

        Raises MissingError if one was not counted on all images, and InputError if it was counted at several t.
        """
        known = [way.config for way in self.done(number) if way.cut == cut]
        for config in configs:
            if config not in known:
                raise MissingError(f"{config} was not counted in {self.folder}: run ltcam reproduce first")
            if (found := known.count(config)) > 1:
                raise InputError(f"{config} was counted at {found} backgrounds t in {self.folder}: expected one")
        texts = [str(config) for config in configs]
        query = f"{EVERY} AND cut = ? AND text IN ({','.join('?' * len(texts))})"
        table = pd.read_sql(query, self.db, params=(number, cut, *texts))
        wide = table.pivot(index=["name", "class", "group"], columns="config", values=["tp", "fp", "fn"]).fillna(0).astype(int)
        kinds = [[(kind, text) for text in texts] for kind in ("tp", "fp", "fn")]
        values = np.stack([wide.reindex(columns=own).to_numpy() for own in kinds], axis=-1)
        pairs = wide.index.to_frame(index=False).assign(training="", fold="")
        return Counts(pairs, tuple(configs), values)

    def logits(self, number: int) -> pd.DataFrame:
        """The logits of every image of a pass: a row for each image by its name, a column for each class."""
        query = "SELECT name, class, logit FROM logits JOIN images ON image = images.id WHERE pass = ?"
        return pd.read_sql(query, self.db, params=(number,)).pivot(index="name", columns="class", values="logit")

    def frame(self, number: int) -> pd.DataFrame:
        """Every count of a pass, in the order in which it was kept: the columns `FIELDS`."""
        return pd.read_sql(f"{EVERY} ORDER BY counts.rowid", self.db, params=(number,))

    def notes(self, key: Mapping[str, Any]) -> dict[int, Any]:
        """What `note` kept under a key, by batch."""
        rows = self.db.execute("SELECT batch, value FROM notes WHERE key = ?", (json.dumps(key, sort_keys=True),))
        return {batch: json.loads(value) for batch, value in rows}

    def note(self, key: Mapping[str, Any], batch: int, value: Any) -> None:
        """Keep plain values of a batch that are no counts, so that an interrupted measurement goes on after it."""
        row = json.dumps(key, sort_keys=True), batch, json.dumps(value)
        with self._writing():
            self.db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", row)

    def _export(self, number: int, file: str, without: Iterable[Way]) -> None:
        done = pd.read_sql(DONE, self.db, params=(number,))  # of others an interrupted run has counted some images
        done = done[~done.apply(tuple, axis=1).isin([(str(way.config), way.cut, way.t) for way in without])]
        table = self.frame(number).merge(done).sort_values(["name", "class", "config", "cut", "t"])
        provenance.save(table, self.folder / file)
        if len(logits := self.logits(number)):
            provenance.save(logits.reset_index(), self.folder / file.replace("counts", "logits", 1))

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
        logits = provenance.load(beside, dtype={"name": str}).itertuples(index=False) if beside.is_file() else ()
        number = self.open(record["identity"], file)
        with self._writing():
            self._insert(number, list(table[FIELDS].itertuples(index=False, name=None)), {name: own for name, *own in logits})
            self._mark(number, table[["config", "cut", "t"]].drop_duplicates().itertuples(index=False))
            self.db.execute("INSERT OR IGNORE INTO imported VALUES (?)", (record["sha256"],))

    def _insert(self, number: int, rows: Sequence[tuple[Any, ...]], logits: Mapping[str, Sequence[float]]) -> None:
        """Keep rows of `FIELDS`, and logits. Raises InputError if a kept row differs."""
        images, texts = dict.fromkeys(row[:2] for row in rows), dict.fromkeys((row[3],) for row in rows)
        self.db.executemany('INSERT OR IGNORE INTO images (name, "group") VALUES (?, ?)', images)
        self.db.executemany("INSERT OR IGNORE INTO configs (text) VALUES (?)", texts)
        image = dict(self.db.execute("SELECT name, id FROM images"))
        config = dict(self.db.execute("SELECT text, id FROM configs"))
        keyed = [(number, image[name], label, config[text], *rest) for name, _, label, text, *rest in rows]
        before = self.db.total_changes
        self.db.executemany("INSERT OR IGNORE INTO counts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", keyed)
        if self.db.total_changes - before < len(rows):  # some were kept already: they must be the same
            query = """SELECT tp, fp, fn FROM counts
                       WHERE pass = ? AND image = ? AND class = ? AND config = ? AND cut = ? AND t = ?"""
            for row, own in zip(rows, keyed, strict=True):
                if (kept := self.db.execute(query, own[:6]).fetchone()) != own[6:]:
                    said = f"{self.folder} has {kept} for {row[0]}, class {row[2]}: {row[3]}"
                    raise InputError(f"{said}; now it is {own[6:]}. Other code or another machine?")
        values = [(number, image[name], c, logit) for name, own in logits.items() for c, logit in enumerate(own)]
        self.db.executemany("INSERT OR IGNORE INTO logits VALUES (?, ?, ?, ?)", values)

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
            do = "name a folder of your own" if "readonly" in str(error) else "make room or wait, and run again"
            raise UnavailableError(f"{self.folder / 'counts.sqlite'}: {error}; {do}") from error


def _texts(table: pd.DataFrame) -> pd.Series[str]:
    """The text of each row's configuration; an older export has its fields as columns."""
    if "config" in table:
        return table["config"]
    fields = table.drop(columns=[name for name in FIELDS if name in table])
    number = fields.groupby(list(fields), sort=False, dropna=False).ngroup()
    texts = [str(config) for config in configurations(fields.loc[number.drop_duplicates().index])]
    return number.map(dict(enumerate(texts)))

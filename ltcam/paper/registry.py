"""Every table, once: its name, caption, maker, the counts that it needs, and its golden columns.

Notebooks, `make tables`, the generated docs, the book and the golden check all read `RESULTS`. A table is a function of a
study, and may be made from other tables. `python -m ltcam.paper --check PROFILE DATA` makes every table of committed counts
again, and compares the bytes.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from typing import NamedTuple

import pandas as pd

from ltcam import files
from ltcam.engine.config import Config
from ltcam.errors import InputError, MissingError
from ltcam.experiment import provenance
from ltcam.experiment.protocol import Protocol, Way
from ltcam.experiment.study import Role, Study

TOLERANCE = 0.5  # points: trained numbers differ a little between machines
TEXTS = {"section": str, "level": str, "group": str, "verdict": str, "name": str, "fold": str}


class Need(NamedTuple):
    """Configurations to count on a part, in the first `seeds` seeds (None: all), under a protocol (None: the default)."""

    configs: Sequence[Config]
    role: Role = "test"
    protocol: Protocol | None = None
    seeds: int | None = None


class Result(NamedTuple):
    """A table. tables: of the paper, that it is compared with; without them it belongs to every data set."""

    name: str
    caption: str
    make: Callable[[Study], pd.DataFrame]
    needs: Callable[[Study], list[Need]]
    golden: Sequence[str] = ()
    tolerance: float = TOLERANCE
    tables: tuple[int, ...] = ()
    packed: bool = False
    measured: bool = False  # made of images or models, so never made again from counts

    @property
    def file(self) -> str:
        return f"{self.name}.csv{'.gz' * self.packed}"

    def belongs(self, study: Study) -> bool:
        return not self.tables or bool(set(self.tables) & set(study.compared))


RESULTS: dict[str, Result] = {}


def result(
    caption: str, needs: Callable[[Study], list[Need]] = lambda study: [], **about: object
) -> Callable[[Callable[[Study], pd.DataFrame]], Callable[[Study], pd.DataFrame]]:
    """Registers a function of a study as the table of its own name. about: other fields of `Result`."""

    def register(make: Callable[[Study], pd.DataFrame]) -> Callable[[Study], pd.DataFrame]:
        name = make.__name__
        RESULTS[name] = Result(name, caption, make, needs, **about)  # type: ignore[arg-type]
        return make

    return register


def make(name: str, study: Study) -> pd.DataFrame:
    """Table `name` of `study` as its file has it. The counts of the whole series are measured with the first that needs them.

    The file is written unless the study is `kept`. Raises MissingError if something is missing and cannot be measured.
    """
    if name not in RESULTS or not RESULTS[name].belongs(study):
        raise InputError(f"{study.data} has no table {name!r}: expected one of {', '.join(names(study))}")
    if name not in study.made:
        own, path = RESULTS[name], study.out / RESULTS[name].file
        if study.kept and own.measured:
            if not path.is_file():
                raise MissingError(f"{path} is missing: run ltcam reproduce first")
            study.made[name] = path.read_bytes()
        else:
            if not study.kept:
                prepare(study, own.needs(study))
            study.made[name] = packed(own.make(study), own.packed)
            if not study.kept:
                with files.atomic(path) as temporary:
                    temporary.write_bytes(study.made[name])
    return pd.read_csv(BytesIO(study.made[name]), compression="infer" if not RESULTS[name].packed else "gzip", dtype=TEXTS)


def packed(table: pd.DataFrame, small: bool) -> bytes:
    """The bytes of a table's file. A packed one keeps every digit, since other tables are computed from it."""
    text = table.to_csv(index=False, float_format=None if small else "%.6g", lineterminator="\n").encode()
    return gzip.compress(text, 6, mtime=0) if small else text


def names(study: Study) -> list[str]:
    """The tables of a study, each after those that it is made from."""
    return [name for name, own in RESULTS.items() if own.belongs(study)]


def prepare(study: Study, needs: Iterable[Need]) -> None:
    """Measure all that any table reads on the same part under the same protocol, in one pass for each training."""
    every = [need for name in names(study) for need in RESULTS[name].needs(study)]
    for role, protocol in dict.fromkeys((need.role, need.protocol) for need in needs):
        same = [need for need in every if (need.role, need.protocol) == (role, protocol)]
        for name, seed in zip(study.names, study.trainings["seed"].to_list(), strict=True):
            number = study.seeds.index(seed)
            asked = (config for need in same if need.seeds is None or number < need.seeds for config in need.configs)
            if ways := [*map(Way, dict.fromkeys(asked))]:
                study.measured(name, ways, role, protocol)


def check(name: str, study: Study) -> str:
    """`golden` for table `name` of a study: its golden columns, within its tolerance."""
    own = RESULTS[name]
    table = make(name, study)
    return golden(name, table[list(own.golden or table.columns)], study.profile, own.tolerance)


def golden(name: str, table: pd.DataFrame, profile: str, tolerance: float = TOLERANCE) -> str:
    """Whether a table is within `tolerance` (points) of `data/golden/<profile>/<name>.csv`, in words; all else must be equal.

    Raises InputError that names what is off.
    """
    path = files.ROOT / "data" / "golden" / profile / f"{name}.csv"
    if not path.is_file():
        return f"{name}: profile {profile} has no golden values"
    expected = pd.read_csv(path, dtype=TEXTS).reindex(columns=table.columns)
    if len(table) != len(expected):
        raise InputError(f"{name} is not what {path} expects: {len(table)} rows, expected {len(expected)}")
    for column in map(str, table):  # pandas' own comparison says nothing under python -O
        ours, theirs = table[column].reset_index(drop=True), expected[column]
        numbers = all(map(pd.api.types.is_numeric_dtype, (ours, theirs)))
        same = (ours - theirs).abs().le(tolerance) if numbers else ours.eq(theirs)
        if not (same | (ours.isna() & theirs.isna())).all():
            row = int(same.to_numpy().argmin())
            raise InputError(f"{name} is not what {path} expects: {column} is {ours[row]} in row {row}, expected {theirs[row]}")
    return f"{name}: within tolerance"


def stale(study: Study) -> dict[str, str]:
    """{file: "stale", or why it cannot be made} for each table of a kept study whose bytes are not those of its file."""
    counted = {study.out / file: entry["sha256"] for file, entry in provenance.read(study.out).items() if "identity" in entry}
    gone = [path for path, digest in counted.items() if not path.is_file() or files.sha256(path) != digest]
    found = {path.relative_to(study.out).as_posix(): "these counts are missing or changed: restore them" for path in gone}
    for name in names(study):
        own = RESULTS[name]
        path = study.out / own.file
        try:
            make(name, study)
            if not path.is_file() or path.read_bytes() != study.made[name]:
                found[own.file] = "stale"
        except MissingError as error:
            found[own.file] = str(error)
    return found


def main(arguments: Sequence[str]) -> int:
    """`[--check] PROFILE DATA ...`: make the tables of kept counts again; with --check only say which differ."""
    parser = argparse.ArgumentParser(prog="python -m ltcam.paper", description="Make the tables of kept counts again.")
    parser.add_argument("--check", action="store_true", help="write nothing; name the tables that differ, and fail if any does")
    parser.add_argument("pairs", nargs="+", metavar="PROFILE DATA", help="which results, e.g. paper voc2012")
    given = parser.parse_args(arguments)
    if len(given.pairs) % 2:
        parser.error(f"{' '.join(given.pairs)} is not pairs of a profile and a data set; give e.g. paper voc2012 real ksdd")
    checking, failed = given.check, False
    for profile, data in zip(given.pairs[::2], given.pairs[1::2], strict=True):
        study = Study(profile, data, kept=True)
        for file, reason in stale(study).items():
            failed |= checking or reason != "stale"
            if not checking and reason == "stale":
                with files.atomic(study.out / file) as temporary:
                    temporary.write_bytes(study.made[file.split(".")[0]])
            sys.stdout.write(f"{study.out / file}: {reason if checking or reason != 'stale' else 'written'}\n")
        sys.stdout.write(f"{profile} {data}: {len(names(study))} tables\n")
    return int(failed)

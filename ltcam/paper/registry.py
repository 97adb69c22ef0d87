"""Every table, once: its name, caption, maker, the counts that it needs, and its golden columns.

Notebooks, `make tables`, the generated docs, the book and the golden check all read `RESULTS`. A table is a function of a
study, and may be made from other tables.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ltcam import files
from ltcam.engine.config import Config
from ltcam.errors import InputError, MissingError
from ltcam.experiment import provenance
from ltcam.experiment.protocol import Loss, Protocol, Way
from ltcam.experiment.study import Role, Study

TOLERANCE = 0.5  # points: trained numbers differ a little between machines
TEXTS = {"section": str, "level": str, "group": str, "verdict": str, "name": str, "fold": str}


class Need(NamedTuple):
    """Configurations to count on a part, in the first `seeds` seeds (None: all), under a protocol (None: the default).

    first: on the first images of the part alone, as in `Study.counts`; own: more configurations of each training, by its name;
    ways: more that are cut otherwise
    """

    configs: Sequence[Config]
    role: Role = "test"
    protocol: Protocol | None = None
    seeds: int | None = None
    first: int | None = None
    own: Callable[[str], Sequence[Config]] = lambda name: ()
    ways: Sequence[Way] = ()


class Result(NamedTuple):
    """A table. tables: of the paper, that it is compared with; without them it belongs to every data set. losses: the settings
    that have it; setting: of the profile, without which a data set does not have it."""

    name: str
    caption: str
    make: Callable[[Study], pd.DataFrame]
    needs: Callable[[Study], list[Need]]
    golden: Sequence[str] = ()
    tolerance: float = TOLERANCE
    tables: tuple[int, ...] = ()
    packed: bool = False  # with every digit, since other tables are computed from it
    losses: Sequence[Loss] = ("sigmoid",)
    setting: str = ""
    measured: bool = False  # made of images or models, so never made again from counts

    @property
    def file(self) -> str:
        return f"{self.name}.csv{'.gz' * self.packed}"


RESULTS: dict[str, Result] = {}


def result(
    caption: str, needs: Callable[[Study], list[Need]] = lambda study: [], **about: object
) -> Callable[[Callable[[Study], pd.DataFrame]], Callable[[Study], pd.DataFrame]]:
    """Registers a function of a study as the table of its own name. about: other fields of `Result`."""

    def register(make: Callable[[Study], pd.DataFrame]) -> Callable[[Study], pd.DataFrame]:
        RESULTS[make.__name__] = Result(make.__name__, caption, make, needs, **about)  # type: ignore[arg-type]
        return make

    return register


def names(study: Study) -> list[str]:
    """The tables of a study, each after those that it is made from."""
    mine = {name: own for name, own in RESULTS.items() if study.loss in own.losses and study.settings.get(own.setting, True)}
    return [name for name, own in mine.items() if not own.tables or set(own.tables) & set(study.compared)]


def shown(study: Study) -> list[str]:
    """The `names` that a notebook can show: of a kept study those that have a file."""
    return [name for name in names(study) if not study.kept or (study.out / RESULTS[name].file).is_file()]


def make(name: str, study: Study) -> pd.DataFrame:
    """Table `name` of `study` as its file has it. The counts of the whole series are measured with the first that needs them.

    The file is written unless the study is `kept`. Raises MissingError if something is missing and cannot be measured.
    """
    if name not in names(study):
        raise InputError(f"{study.data} has no table {name!r}: expected one of {', '.join(names(study))}")
    own = RESULTS[name]
    if name not in study.made:
        study.made[name] = _made(own, study)
    return pd.read_csv(BytesIO(study.made[name]), compression="gzip" if own.packed else None, dtype=TEXTS)


def _made(own: Result, study: Study) -> bytes:
    path = study.out / own.file
    if study.kept and own.measured:
        if not path.is_file():
            raise MissingError(f"{path} is missing: run ltcam reproduce first")
        provenance.load(path)  # raises if it was cut off
        return path.read_bytes()
    if not study.kept:
        measure(study, own.needs(study))
    digits = None if own.packed else "%.6g"
    content = own.make(study).to_csv(index=False, float_format=digits, lineterminator="\n").encode()
    content = gzip.compress(content, 6, mtime=0) if own.packed else content
    if not study.kept:
        _write(path, content)
    return content


def _write(path: Path, content: bytes) -> None:
    with files.atomic(path) as temporary:
        temporary.write_bytes(content)


def measure(study: Study, needs: Iterable[Need]) -> None:
    """Measure all that any table reads on the same part under the same protocol, in one pass for each training."""

    def key(need: Need) -> tuple[Role, Protocol, int | None]:
        usual = study.settings["first"] if need.role == "train" else None
        return need.role, need.protocol or study.protocol, need.first or usual

    every = [need for name in names(study) for need in RESULTS[name].needs(study)]
    for own in dict.fromkeys(map(key, needs)):
        same = [need for need in every if key(need) == own]
        for name, seed in zip(study.names, study.trainings["seed"], strict=True):
            mine = [n for n in same if seed in study.seeds[: n.seeds]]
            if ways := dict.fromkeys(way for n in mine for way in (*map(Way, n.configs), *map(Way, n.own(name)), *n.ways)):
                study.measured(name, [*ways], *own)


def check(name: str, study: Study) -> str:
    """`golden` for table `name` of a study: its golden columns, within its tolerance."""
    own, table = RESULTS[name], make(name, study)
    return golden(name, table[list(own.golden or table.columns)], study.reference, own.tolerance)


def golden(name: str, table: pd.DataFrame, profile: str, tolerance: float = TOLERANCE) -> str:
    """Whether a table is within `tolerance` (points) of `data/golden/<profile>/<name>.csv`, in words; all else must be equal.

    Without such a file it gives the number of rows. Raises InputError that names what is off.
    """
    path = files.ROOT / "data" / "golden" / profile / f"{name}.csv"
    if not path.is_file():
        return f"{name}: {len(table)} rows, and nothing to compare them with"
    expected = provenance.load(path, dtype=TEXTS).reindex(columns=table.columns)
    ours, theirs = table.reset_index(drop=True).align(expected)  # a row that is missing is not equal
    near = (ours.select_dtypes("number") - theirs.select_dtypes("number")).abs().le(tolerance)
    off = ~(near.reindex(columns=ours.columns, fill_value=False) | ours.eq(theirs) | (ours.isna() & theirs.isna()))
    if off.any(axis=None):  # pandas' own check says nothing under python -O
        place: Any = off.stack().idxmax()
        row, column = place
        said = f"{column} is {ours[column][row]} in row {row}, expected {theirs[column][row]}"
        raise InputError(f"{name} is not what {path} expects: {said}")
    return f"{name}: within tolerance"


def stale(study: Study, write: bool = False) -> dict[str, str]:
    """{file: what is wrong} for each table of a kept study whose bytes are not those of its file: "stale", or "written" if
    `write` renewed it, or why it cannot be made. So too for each export of counts that is gone or changed. A table that has no
    file, and no counts, was not measured: nothing is wrong."""
    exports = {file: entry["sha256"] for file, entry in provenance.read(study.out).items() if "identity" in entry}
    wrong = [file for file, digest in exports.items() if not unchanged(study.out / file, digest)]
    found = dict.fromkeys(wrong, "these counts are missing or changed: restore them")
    for name in names(study):
        path = study.out / RESULTS[name].file
        try:
            make(name, study)
        except MissingError as error:
            found |= {path.name: str(error)} if path.is_file() or RESULTS[name].measured else {}
            continue
        if not path.is_file() or path.read_bytes() != study.made[name]:
            found[path.name] = "written" if write else "stale"
            if write:
                _write(path, study.made[name])
    return found


def unchanged(path: files.AnyPath, digest: str) -> bool:
    """Whether a file is there and has this SHA-256."""
    return Path(path).is_file() and files.sha256(path) == digest

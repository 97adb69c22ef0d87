"""Every table that is made from counts alone, one function each. `makers` lists them; `ltcam tables FOLDER` makes them again.

The functions give what notebooks 02 to 06, 08 and 09 save, to the byte. A table whose counts are missing is skipped, and its
file stays as it is. Files that need images always stay: data.csv, train.csv, labels.csv, trainings.csv and tries.csv
(of training), curves.csv (of seeds), signs.csv.gz, stages.csv.gz, eq9_counts.csv.gz and dropped.csv (of gradients), and
pairs.csv.gz (of masks: how much of an image an object covers).
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast, get_args

import pandas as pd

from ltcam.errors import MissingError
from ltcam.experiment import provenance
from ltcam.experiment.configs import counted
from ltcam.experiment.locks import alone
from ltcam.experiment.study import Role, known
from ltcam.files import AnyPath, atomic, sha256
from ltcam.paper import ablations, breakdown, eq9, findings, gradients, judging
from ltcam.paper import beyond as beyond_the_paper
from ltcam.paper import sweep as over_delta
from ltcam.paper import tables as paper
from ltcam.paper.kept import Kept

OF_08 = [f"{name}.csv" for name in ["ablations", "readings", "cross", "eq9", "breakdown", "correlations", "beyond", "findings"]]
Maker = Callable[[Kept], pd.DataFrame]  # raises MissingError if its sources are missing


def makers(data: str) -> dict[str, Maker]:
    """Every table of the data set `data` by its file. A table comes after the tables it is made from."""
    numbers = (1, 2, *paper.COMPARED[data])
    return {f"table{number}.csv": partial(table, number=number) for number in numbers} | {
        "sweep.csv": sweep,
        "delta_choice.csv": delta_choice,
        "comparison.csv": comparison,
        "claims.csv": judged,
        "ablations.csv": ablated,
        "readings.csv": readings,
        "cross.csv": crossed,
        "eq9.csv": read_otherwise,
        "breakdown.csv": broken_down,
        "correlations.csv": correlated,
        "beyond.csv": beyond,
        "best.csv": best,
        "findings.csv": found,
    }


def table(kept: Kept, number: int) -> pd.DataFrame:
    """The paper's table `number`: notebooks 02, 03 and 04."""
    return paper.table(number, kept.counts(paper.TABLES[number].values()))


def sweep(kept: Kept) -> pd.DataFrame:
    """Figs. 4 and 5: notebook 05."""
    return over_delta.scores({role: kept.counts(over_delta.CONFIGS, role) for role in get_args(Role)})


def delta_choice(kept: Kept) -> pd.DataFrame:
    """What choosing delta on the training part is worth: notebook 05."""
    return over_delta.chosen(sweep(kept), over_delta.headline(kept.data))


def comparison(kept: Kept) -> pd.DataFrame:
    """Every number that the paper prints, and ours: notebook 06. It is made from the other tables."""
    return judging.numbers(judging.read(kept.tables, kept.data), kept.folder)


def judged(kept: Kept) -> pd.DataFrame:
    """The paper's claims: notebook 06."""
    return judging.judge(judging.read(kept.tables, kept.data), kept.data, judging.resample(kept.folder, kept.data))


def whole(kept: Kept, role: Role = "test") -> pd.DataFrame:
    """The counts of the seeds that notebook 08 ablates: those whose held-out part has them in full. Raises MissingError."""
    changed = [config for row in paper.SEVEN.values() for _, config in ablations.variants(row)]
    needed = {*ablations.COMPARED, *ablations.cross([]), *changed}
    seeds = [seed for seed, own in kept.test.groupby("training", sort=False) if needed <= set(counted(own))]
    if not seeds:
        raise MissingError(f"{kept.folder} has no seed that notebook 08 measured in full. Run ltcam reproduce first")
    counts = kept.test if role == "test" else kept.train
    return counts[counts["training"].isin(seeds)]


def measured(kept: Kept) -> dict[ablations.Run, pd.DataFrame]:
    """`ablations.measure` from the kept counts: every run that was measured in full, other trainings in order of their folders.

    Raises MissingError if the defaults were not measured in full.
    """
    found = {ablations.DEFAULTS: whole(kept)}
    seeds = found[ablations.DEFAULTS]["training"].unique()
    for factor in ablations.PROTOCOLS:
        below = cast(Role, f"ablations/{factor}")  # a subfolder of each training, like those of roles
        found[ablations.changed_by(factor, kept.data)] = known(kept.folder, below, seeds)
    paths = [path for pattern in ("*", "trainings/*") for path in kept.folder.glob(f"{pattern}/counts.csv.gz")]
    for folder in sorted(path.parent for path in paths):
        if not re.fullmatch(r"train|seed\d+", folder.name):
            found |= ablations.another(folder, kept.recipe)
    return {run: counts for run, counts in found.items() if set(ablations.COMPARED) <= set(counted(counts))}


def ablated(kept: Kept) -> pd.DataFrame:
    """One choice at a time: notebook 08."""
    return _labelled(kept, ablations.table(measured(kept), over_delta.headline(kept.data)))


def readings(kept: Kept) -> pd.DataFrame:
    """How well each reading agrees with the paper's order of methods: notebook 08."""
    number, metric = paper.COMPARED[kept.data][-1], over_delta.headline(kept.data)
    return _labelled(kept, ablations.readings(measured(kept), number, metric))


def crossed(kept: Kept) -> pd.DataFrame:
    """Percentile scope, scale and delta, for every delta that was counted in full: notebook 08."""
    there = set(counted(counts := whole(kept)))
    deltas = [
        delta for delta in sorted({c.delta for c in there if c.delta is not None}) if there >= {*ablations.cross([delta])}
    ]
    return _labelled(kept, ablations.crossed(counts, over_delta.headline(kept.data), deltas))


def beyond(kept: Kept) -> pd.DataFrame:
    """The best configuration on the training part, on the test part: notebook 08."""
    kept.counts(paper.SEVEN.values())
    kept.counts(over_delta.CONFIGS, "train")
    return _labelled(kept, ablations.beyond(whole(kept), whole(kept, "train"), paper.SEVEN, over_delta.headline(kept.data)))


def read_otherwise(kept: Kept) -> pd.DataFrame:
    """Other readings of Eq. 9: notebook 08."""
    return _labelled(kept, eq9.table(_of_images(kept, "eq9_counts"), over_delta.headline(kept.data)))


def broken_down(kept: Kept) -> pd.DataFrame:
    """Scores by class, size, overlap and number of classes: notebook 08."""
    pairs = _of_images(kept, "pairs")
    return _labelled(kept, breakdown.table(whole(kept), pairs, ablations.ROWS, ablations.GAINS), "IoU")


def correlated(kept: Kept) -> pd.DataFrame:
    """What the gains of the tricks go with: notebook 08."""
    each = breakdown.each(whole(kept), _of_images(kept, "pairs"), ablations.GAINS)
    return _labelled(kept, breakdown.correlations(each, breakdown.SHOWN), "IoU")


def best(kept: Kept) -> pd.DataFrame:
    """What goes beyond the paper, step by step: notebook 09."""
    return beyond_the_paper.table(kept.folder, kept.data)


def found(kept: Kept) -> pd.DataFrame:
    """The findings, from the tables of notebooks 05 and 08: notebook 08."""
    tables = findings.read(kept.tables)
    if "ablations.csv" not in tables:
        raise MissingError(f"ablations.csv is not in {kept.tables}. Run notebook 08 first")
    return _labelled(kept, findings.collect(tables))


def about(kept: Kept, name: str) -> dict[str, Any]:
    """What the table in file `name` was made from, in the form of its .json."""
    if name in ("comparison.csv", "claims.csv"):
        files = [f"{table}.csv" for table in judging.read(kept.tables, kept.data)]
        return {"data": kept.title, "sources": {file: sha256(kept.tables / file) for file in files}}
    if name == "best.csv":
        return kept.about | beyond_the_paper.record(kept.folder)
    if name in OF_08:
        seeds = whole(kept)["training"].unique()
        return kept.about | {"trainings": [t for t in kept.about.get("trainings", []) if t["seed"] in seeds]}
    return kept.about | ({"metric": over_delta.headline(kept.data)} if name == "delta_choice.csv" else {})


def rebuild(folder: AnyPath, check: bool = False) -> dict[str, bool]:
    """Make every table of `folder` again; returns {file: whether the present file differs or is missing}.

    Unless `check`, a file that differs is written, with its .json. Raises MissingError if there are no counts, InputError if
    their record cannot be read, and UnavailableError if another run writes there.
    """
    folder = Path(folder)
    Kept(folder)
    with TemporaryDirectory() as name, nullcontext() if check else alone(folder, "run"):
        new = Path(name)
        for path in folder.iterdir():  # files that are not made again are read from there too
            if path.is_file() and not path.name.startswith("."):
                (new / path.name).symlink_to(path.resolve())
        kept, made = Kept(folder, new), []
        for file, make in makers(kept.data).items():
            started = time.time()
            with suppress(MissingError):
                provenance.save(make(kept), new / file, started, **about(kept, file))
                made.append(file)
        stale = {f: not (folder / f).is_file() or (folder / f).read_bytes() != (new / f).read_bytes() for f in made}
        for file in (file for file in made if stale[file] and not check):
            for target in (folder / file, (folder / file).with_suffix(".json")):
                with atomic(target) as temporary:
                    shutil.copyfile(new / target.name, temporary)
    return stale


def _of_images(kept: Kept, name: str) -> pd.DataFrame:
    """<name>.csv.gz, which notebook 08 made of images. Raises MissingError if it is missing."""
    path = kept.tables / f"{name}.csv.gz"
    if not path.is_file():
        raise MissingError(f"{path} is missing. Run notebook 08 first")
    return gradients.read(path)


def _labelled(kept: Kept, table: pd.DataFrame, metric: str = "") -> pd.DataFrame:
    """`table` with the columns that end every table of notebook 08. metric: default the data set's headline score."""
    return table.assign(data=kept.title, metric=metric or over_delta.headline(kept.data))

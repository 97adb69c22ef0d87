"""All trainings of one data set in a profile, measured alike.

A profile names `seeds` and, for cross-validation, a number of `folds`. The results of a training are in
`results/<profile>/<data>/seed<k>[/fold<f>]`. Its checkpoint is in the same place below `ltcam.files.runs`. A profile without
seeds has one training, whose files are in `results/<profile>/<data>` itself.

The counts on the held-out parts of a seed's folds are pooled, since together these parts hold every image once. Scores on the
training parts are computed fold by fold and averaged.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import pandas as pd

from ltcam import files
from ltcam.data import Segmentation, load
from ltcam.errors import InputError, MissingError
from ltcam.experiment import provenance
from ltcam.experiment.checkpoints import Trained, load_checkpoint
from ltcam.experiment.configs import FLOATS
from ltcam.experiment.counting import Reading
from ltcam.experiment.evaluation import Wanted, together
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.training import train
from ltcam.files import AnyPath, sha256

log = logging.getLogger(__name__)
Role = Literal["test", "train"]


class Training(NamedTuple):
    """name: its folder in those of the study; seed: the name of its training, which all folds share."""

    name: str
    seed: str
    fold: str
    recipe: Recipe


def planned(data: str, recipe: Mapping[str, Any], seeds: Sequence[int] = (), folds: int = 0) -> list[Training]:
    """Every training of a profile. recipe: fields of `Recipe`. Fold f trains on `train<f>` and holds out `test<f>`."""
    base = Recipe(data=data, **recipe)
    if folds and not seeds:
        raise InputError(f"folds={folds} without seeds: expected seeds too, e.g. [0]")
    seeded = [Training(f"seed{seed}", f"seed{seed}", "", replace(base, seed=seed)) for seed in seeds]
    if not folds:
        return seeded or [Training("", "", "", base)]
    return [
        Training(f"{name}/fold{f}", name, f"fold{f}", replace(own, train=f"{base.train}{f}", test=f"{base.test}{f}"))
        for name, _, _, own in seeded
        for f in range(folds)
    ]


def parts(trainings: Sequence[Training]) -> dict[str, Segmentation]:
    """The training part and the held-out part of the first training, by name."""
    recipe = trainings[0].recipe
    return {part: load(recipe.data, part) for part in (recipe.train, recipe.test)}


class Study:
    """The trainings that notebook 01 left for data set `data` in `profile`. Raises MissingError if there are none."""

    def __init__(self, profile: str, data: str) -> None:
        self.profile, self.data = profile, data
        self.out, self.runs, self.figures = (f(profile, data) for f in (files.results, files.runs, files.figures))
        path = self.out / "trainings.csv"
        if not path.is_file():
            raise MissingError(f"{path} is missing: run notebook 01 first, or ltcam reproduce --profile {profile}")
        self.trainings = pd.read_csv(path, keep_default_na=False, dtype={"name": str, "seed": str, "fold": str})

    @classmethod
    def train(cls, profile: str, data: str, trainings: Sequence[Training]) -> Study:
        """Train what is not trained yet, one by one. Writes `trainings.csv`, and losses and label scores of each training."""
        started, rows = time.time(), []
        out, runs = files.results(profile, data), files.runs(profile, data)
        for training in trainings:
            checkpoint = train(training.recipe, runs / training.name)
            for file in ("train", "labels"):
                for name in (Path(training.name, f"{file}.csv"), Path(training.name, f"{file}.json")):
                    if runs != out:
                        with files.atomic(out / name) as temporary:
                            shutil.copyfile(runs / name, temporary)
            score = pd.read_csv(out / training.name / "labels.csv")["AP"].mean()
            rows.append([*training[:3], score, sha256(checkpoint)])
        table = pd.DataFrame(rows, columns=["name", "seed", "fold", "mAP", "checkpoint"])
        provenance.save(table, out / "trainings.csv", started, recipe=asdict(trainings[0].recipe))
        return cls(profile, data)

    def only(self, seeds: int | None) -> Self:
        """The same study with the trainings of its first `seeds` seeds alone; None: all."""
        fewer = copy(self)
        fewer.trainings = self.trainings[self.trainings["seed"].isin(self.seeds[:seeds])]
        fewer.__dict__.pop("about", None)
        return fewer

    @cached_property
    def trained(self) -> Trained:
        """The first training. Figures show its heatmaps, on images that it has not seen."""
        return self.load(self.names[0])

    @cached_property
    def test(self) -> Segmentation:
        """The held-out part of the first training."""
        return self.trained.load(self.trained.recipe.test)

    @property
    def names(self) -> list[str]:
        return self.trainings["name"].to_list()

    @property
    def seeds(self) -> list[str]:
        return list(dict.fromkeys(self.trainings["seed"]))

    def load(self, name: str) -> Trained:
        return load_checkpoint(self.runs / name / "checkpoint.pt")

    def read(self, file: str) -> pd.DataFrame:
        """The table `file` of every training, one below the other. Column `name` has the training."""
        tables = {name: pd.read_csv(self.out / name / file) for name in self.names}
        return pd.concat(tables, names=["name", None]).reset_index("name").reset_index(drop=True)

    def folds(self) -> Iterator[Trained]:
        """The trainings of the first seed. Together they hold out every image once."""
        for name in self.trainings.loc[self.trainings["seed"] == self.seeds[0], "name"]:
            yield self.trained if name == self.names[0] else self.load(name)

    def together(self, wanted: Mapping[str, Reading], role: Role = "test", first: int | None = None) -> list[pd.DataFrame]:
        """Pixel counts for every training, as `metrics` reads them, one table for each reading. Missing ones are measured.

        wanted  configurations and their protocol, by the folder for their counts in that of the training. Protocols that can
                share their passes over the images do so
        role    count on the held-out part or on the training part; first: on its first images only, None: on all
        """
        found: list[list[pd.DataFrame]] = []
        for row in self.trainings.itertuples(index=False):
            trained = self.trained if row.name == self.names[0] else self.load(str(row.name))
            part = getattr(trained.recipe, role) + ("" if first is None else f"/{first}")
            place = _place(self.out / str(row.name), role)
            each = [Wanted(configs, place / below, protocol) for below, (configs, protocol) in wanted.items()]
            found.append([_named(counts, row, role) for counts in together(trained, part, each)])
        return [pd.concat(counts, ignore_index=True) for counts in zip(*found, strict=True)]

    def known(self, role: Role = "test") -> pd.DataFrame:
        """All counts that are kept."""
        return known(self.out, role, self.seeds)

    def save(self, table: pd.DataFrame, name: str, started: float, **parameters: Any) -> None:
        """Save `table` as `name` (.csv or .csv.gz) in the folder of the study, with its provenance."""
        provenance.save(table, self.out / name, started, **{**self.about, **parameters})

    @cached_property
    def about(self) -> dict[str, Any]:
        trainings = self.trainings.to_dict("records")
        return {**self.trained.about(self.test), "trainings": trainings}


def known(folder: AnyPath, role: Role = "test", seeds: Collection[str] | None = None) -> pd.DataFrame:
    """`Study.known` of `seeds` (None: all) from the files in `folder` alone. Empty if one of their trainings has no counts."""
    folder, table, found = Path(folder), trainings_in(folder), []
    for row in table[table["seed"].isin(table["seed"] if seeds is None else seeds)].itertuples(index=False):
        counts = _place(folder / str(row.name), role) / "counts.csv.gz"
        if not counts.is_file():
            return pd.DataFrame()
        found.append(_named(pd.read_csv(counts, dtype=FLOATS), row, role))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def trainings_in(folder: AnyPath) -> pd.DataFrame:
    """Name, seed and fold of each training in `folder`. Without trainings.csv the folder itself is the one training."""
    path = Path(folder) / "trainings.csv"
    alone = pd.DataFrame({"name": [""], "seed": "", "fold": ""})
    return pd.read_csv(path, keep_default_na=False, dtype=str) if path.is_file() else alone


def _named(counts: pd.DataFrame, row: Any, role: Role) -> pd.DataFrame:
    """Held-out parts of folds are pooled, so only training parts get a column `fold`."""
    return counts.assign(training=row.seed, **({"fold": row.fold} if role == "train" else {}))


def _place(folder: Path, role: Role) -> Path:
    return folder if role == "test" else folder / role

"""All trainings of one data set in a profile, measured alike.

A profile names `seeds` and, for cross-validation, a number of `folds`. The results of a training are in
`results/<profile>/<data>/seed<k>[/fold<f>]`. Its checkpoint is in the same place below `ltcam.files.runs`. A profile without
seeds has one training, whose files are in `results/<profile>/<data>` itself.

There are two settings. "sigmoid" is what the field does: a sigmoid a class, and every labelled class is explained. "softmax" is
how we read the paper: a softmax, and the class of the largest logit alone is explained. Its files are in a folder `softmax`.

The counts on the held-out parts of a seed's folds are pooled, since together these parts hold every image once. Scores on the
training parts are computed fold by fold and averaged.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import pandas as pd

from ltcam import data as datasets
from ltcam import files
from ltcam.data import Segmentation
from ltcam.data.sets import known
from ltcam.engine.config import Config
from ltcam.errors import InputError, MissingError
from ltcam.experiment import provenance
from ltcam.experiment.counting import identity, measure
from ltcam.experiment.protocol import LATER, Loss, Protocol, Way
from ltcam.experiment.recipe import DEFAULTS, Recipe, Training, planned, profile
from ltcam.experiment.scores import Counts
from ltcam.experiment.store import Store
from ltcam.experiment.trained import Trained, load_checkpoint
from ltcam.experiment.training import train
from ltcam.files import sha256

Role = Literal["test", "train"]
AGAIN = "again"  # a training made where the checkpoints of the kept counts are gone


class Study:
    """The trainings of data set `data` in `profile`. Raises InputError for an unknown profile or data set of it.

    kept: read what is kept, and measure and train nothing: what is missing is an error. The variable LTCAM_KEPT sets it for
    every study. seeds: to train instead of the profile's. loss: the setting.
    """

    def __init__(
        self, name: str, data: str, kept: bool = False, seeds: Sequence[int] = (), loss: Loss = "sigmoid"
    ) -> None:  # fmt: skip
        if data not in (sets := profile(name)):
            raise InputError(f"profile {name!r} has no data set {data!r}: expected one of {list(sets)}")
        self.profile, self.data, self.given, self.loss = name, data, seeds, loss
        self.kept, own, softmax = kept or bool(os.environ.get("LTCAM_KEPT")), DEFAULTS | sets[data], loss == "softmax"
        if softmax:
            if own["softmax"] is None:
                raise InputError(f"profile {name!r} has no softmax of {data!r}: expected `softmax: {{}}` in its file")
            own |= own["softmax"] | {"recipe": {**own["recipe"], "loss": loss}, "others": []}
        self.settings = own | ({"seeds": list(seeds)} if seeds else {})
        place, suffix = data + "/softmax" * softmax, "" if self.settings == own else f" with seeds {list(seeds)}"
        self.reference = name + "/softmax" * softmax + suffix  # whose golden values are compared
        self.out, self.runs, self.figures = (f(name, place) for f in (files.results, files.runs, files.figures))
        self.dataset = known(data)
        self.metric, self.compared = self.dataset.headline, self.dataset.compared
        self.protocol = Protocol(self.settings["batch_size"], "top" if softmax else "true")
        self.made: dict[str, bytes] = {}  # tables, by `ltcam.paper.registry`

    @cached_property
    def both(self) -> list[Study]:
        """The settings: this study, and beside that of the sigmoid the softmax's. A kept one was trained."""
        if self.loss == "softmax" or self.settings["softmax"] is None:
            return [self]
        other = Study(self.profile, self.data, self.kept, self.given, "softmax")
        return [self, other] if not self.kept or (other.out / "trainings.csv").is_file() else [self]

    @cached_property
    def planned(self) -> dict[str, Training]:
        """Every training that the profile names, by name."""
        every = planned(self.data, self.settings["recipe"], self.settings["seeds"], self.settings["folds"])
        return {training.name: training for training in every}

    @cached_property
    def trainings(self) -> pd.DataFrame:
        """What was trained: name, seed, fold, mAP and the checkpoint's SHA-256. Raises MissingError if nothing was."""
        path = self.out / "trainings.csv"
        if not path.is_file():
            raise MissingError(f"{path} is missing: run notebook 01 first, or ltcam reproduce --profile {self.profile}")
        return pd.DataFrame(provenance.load(path, keep_default_na=False, dtype={"name": str, "seed": str, "fold": str}))

    @cached_property
    def store(self) -> Store:
        return Store(self.out)

    def train(self) -> None:
        """Train what is not trained yet, unless the study is `kept`. Writes `trainings.csv`, and losses and label scores."""
        if self.kept:
            return
        self.complete()
        rows = []
        for training in self.planned.values():
            checkpoint = train(training.recipe, self.runs / training.name)
            for name in ("train.csv", "labels.csv", "run.json"):
                if self.runs != self.out:
                    with files.atomic(self.out / training.name / name) as temporary:
                        shutil.copyfile(checkpoint.with_name(name), temporary)
            score = provenance.load(checkpoint.with_name("labels.csv"))["AP"].mean()
            rows.append([*training[:3], score, sha256(checkpoint)])
        provenance.save(pd.DataFrame(rows, columns=["name", "seed", "fold", "mAP", "checkpoint"]), self.out / "trainings.csv")
        self.__dict__.pop("trainings", None)

    def complete(self) -> None:
        """Raises InputError if the tables here are of trainings that this study would leave out of them."""
        there = self.names if (self.out / "trainings.csv").is_file() else []
        if lost := [name or "its one training" for name in there if name not in self.planned]:
            do = "set LTCAM_OUTPUT to another folder, or move them away"
            raise InputError(f"{self.out} has tables of {', '.join(lost)}, which would be lost: {do}")

    @property
    def names(self) -> list[str]:
        return self.trainings["name"].to_list()

    @property
    def seeds(self) -> list[str]:
        return list(dict.fromkeys(self.trainings["seed"]))

    @cached_property
    def trained(self) -> Trained:
        """The training whose heatmaps figures show, on images that it has not seen."""
        return self._load(self.pictured)

    @property
    def pictured(self) -> str:
        """The name of that training: the first, or `AGAIN` if only that has a checkpoint."""
        return next((n for n in (self.names[0], AGAIN) if (self.runs / n / "checkpoint.pt").is_file()), self.names[0])

    @cached_property
    def test(self) -> Segmentation:
        """The held-out part of the first training."""
        return datasets.load(self.data, next(iter(self.planned.values())).recipe.test)

    @cached_property
    def title(self) -> str:
        """The data set's title, from what was counted if anything was."""
        counted = (entry["identity"]["data"] for entry in provenance.read(self.out).values() if "identity" in entry)
        return next(counted, "") or self.test.title

    @property
    def described(self) -> str:
        """One line: the data set, its held-out parts, how many images are scored, for how many seeds, and the classes."""
        sets = [datasets.load(self.data, part) for part in sorted({own.recipe.test for own in self.planned.values()})]
        scored, classes = sum(len(data.scored) for data in sets), ", ".join(sets[0].classes)
        about = f"{self.title}, part {' + '.join(data.part for data in sets)}: {scored} images to score"
        again = "\nHeatmaps are of a repeated training: the checkpoints behind the tables are gone."
        return f"{about}, seeds: {len(self.seeds)}, classes: {classes}{again * (self.pictured == AGAIN)}"

    def parameters(self) -> dict[str, Any]:
        """Of its notebooks."""
        return {"profile": self.profile, "data": self.data, "seeds": self.settings["seeds"]}

    def counted_only(self) -> bool:
        """Whether counts are kept and no checkpoint of them is left."""
        counted = any("identity" in entry for entry in provenance.read(self.out).values())
        return counted and not any((self.runs / name / "checkpoint.pt").is_file() for name in self.planned)

    def load(self, name: str) -> Trained:
        """Raises InputError for another checkpoint than the one whose tables are there."""
        return self.trained if name == self.pictured else self._load(name)

    def _load(self, name: str) -> Trained:
        path, known = self.runs / name / "checkpoint.pt", dict(self.trainings[["name", "checkpoint"]].to_numpy())
        if (found := load_checkpoint(path)).sha256 != known.get(name, found.sha256):
            do = "restore it, or make all tables of this one by ltcam reproduce"
            raise InputError(f"{path} is not the checkpoint that {self.out / 'trainings.csv'} names: {do}")
        return found

    def folds(self) -> Iterator[Trained]:
        """The trainings of the first seed. Together they hold out every image once."""
        yield from map(self.load, self.trainings.loc[self.trainings["seed"] == self.seeds[0], "name"])

    def read(self, file: str) -> pd.DataFrame:
        """The table `file` of every training, one below the other. Column `name` has the training."""
        tables: dict[str, pd.DataFrame] = {name: provenance.load(self.out / name / file) for name in self.names}
        return pd.concat(tables, names=["name", None]).reset_index("name").reset_index(drop=True)

    def counts(
        self, configs: Iterable[Config], role: Role = "test", protocol: Protocol | None = None, cut: str = "otsu",
        t: Mapping[str, Mapping[Config, float]] | None = None, seeds: int | None = None, first: int | None = None,
    ) -> Counts:  # fmt: skip
        """The counts of `configs` in every training. What is missing is measured first, unless the study is `kept`.

        role   the held-out part or the training part; first: its first images alone, None: all
        cut    as in `Way`; t: for "argmax", the background of each configuration by training
        seeds  the first so many alone; None: all

        Raises MissingError if something is missing and cannot be measured.
        """
        configs, parts = tuple(dict.fromkeys(configs)), []
        chosen = self.trainings[self.trainings["seed"].isin(self.seeds[:seeds])]
        for name, seed, fold in chosen[["name", "seed", "fold"]].itertuples(index=False):
            found = self.of_training(name, configs, role, protocol, cut, (t or {}).get(name, {}), first)
            pairs = found.pairs.assign(training=seed, fold=fold if role == "train" else "")
            parts.append(Counts(pairs, configs, found.values))
        return Counts.join(parts)

    def of_training(
        self, name: str, configs: Sequence[Config], role: Role = "test", protocol: Protocol | None = None, cut: str = "otsu",
        t: Mapping[Config, float] = MappingProxyType({}), first: int | None = None,
    ) -> Counts:  # fmt: skip
        """`counts` of one training, which may be one that the profile does not name."""
        number = self.measured(name, [Way(c, cut, t.get(c, 0.0)) for c in configs], role, protocol, first)
        found = self.store.read(number, configs, cut)
        if self.store.about(number)[0]["labels"] != "every":
            return found
        return found.explained(self.store.logits(number), (protocol or self.protocol).labels, self.recipe(name).loss)

    def measured(
        self, name: str, ways: Sequence[Way], role: Role = "test", protocol: Protocol | None = None, first: int | None = None
    ) -> int:
        """The pass of the store that has all `ways` in the training `name`. What is missing is measured, unless `kept`."""
        protocol, recipe = protocol or self.protocol, self.recipe(name)
        first = self.settings["first"] if role == "train" and first is None else first
        part = getattr(recipe, role) + (f"/{first}" if first else "")
        checkpoint = dict(self.trainings[["name", "checkpoint"]].to_numpy()).get(name) or self._run(name)["checkpoint"]
        wanted = {"checkpoint": checkpoint, "part": part}
        wider = protocol if protocol.labels == "all" else replace(protocol, labels="every")
        about = [LATER | own.identity(recipe.size or self.dataset.size) for own in (protocol, wider)]
        if not self.kept:
            trained = self.load(name)
            data = trained.load(part)
            wanted |= identity(trained, data, protocol)
        for number in (number for own in about for number in self.store.find(**{**wanted, **own})):
            done = self.store.done(number)
            if self.kept:  # there any background serves, since each was counted at one
                done |= {way._replace(t=0.0) for way in done}
            if done.issuperset(ways):
                return number
        if self.kept:
            raise MissingError(f"{self.out / name} has no counts of {ways[0].config} on part {part}: run ltcam reproduce first")
        protocol = protocol.measured
        named = ",".join(filter(None, [f"counts.{part.replace('/', '-')}", protocol.name]))
        own = {**identity(trained, data, protocol), "pass": ""}
        number = self.store.open(own, f"{name}/{named}.csv.gz".lstrip("/"))
        measure(self.store, number, trained, data, ways, protocol)
        return number

    def recipe(self, name: str) -> Recipe:
        """Of a training that the profile names, or of another, whose folder has a `run.json`."""
        return self.planned[name].recipe if name in self.planned else Recipe(**self._run(name)["recipe"])

    def _run(self, name: str) -> dict[str, Any]:
        paths = [folder / name / "run.json" for folder in (self.out, self.runs)]
        if there := [path for path in paths if path.is_file()]:
            return dict(provenance.load(there[0]))
        raise MissingError(f"no training {name!r} of {self.data}: expected {paths[1]}, see ltcam train --out")

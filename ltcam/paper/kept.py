"""What a results folder keeps: the pixel counts of its trainings and their record. No data and no checkpoint are opened."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ltcam.errors import InputError, MissingError
from ltcam.experiment.configs import Config, counted, pick
from ltcam.experiment.study import Role, known
from ltcam.files import AnyPath

# The fields of `Study.about` that come from a checkpoint.
ABOUT = ("data", "part", "fingerprint", "images", "tf32", "recipe", "source", "trained")


class Kept:
    """The counts in `folder`, of each training in trainings.csv. Without that file the folder itself is the one training.

    tables: the folder with the tables that other tables are made from; default: `folder`
    data, title: the data set's name, as in `ltcam.data.NAMES`, and its title
    about: what `Study.save` writes beside a table

    Raises MissingError if a training has no counts, and InputError if the record beside them cannot be read.
    """

    def __init__(self, folder: AnyPath, tables: AnyPath | None = None) -> None:
        self.folder, self.tables = (folder := Path(folder)), Path(tables or folder)
        path = folder / "trainings.csv"
        dated = not path.is_file()  # an older version left no trainings.csv
        listed = pd.DataFrame({"name": [""]}) if dated else pd.read_csv(path, keep_default_na=False, dtype={"name": str})
        if listed.empty:
            raise InputError(f"{path} names no training: expected a row for each. Restore it, or run ltcam reproduce")
        for name in listed["name"]:
            if not (folder / name / "counts.csv.gz").is_file():
                expected = f"expected {Path(name) / 'counts.csv.gz'} in it"
                raise MissingError(f"{folder} has no counts: {expected}. Run ltcam reproduce, or name another folder")
        record = folder / listed["name"].iloc[0] / "counts.json"
        try:
            read = json.loads(record.read_text())
            self.title, self.recipe = str(read["data"]), dict(read["recipe"])
            self.data = str(self.recipe["data"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{record} does not say what {folder} was measured on: expected data and recipe"
            raise InputError(f"{reason}. Restore it, or run ltcam reproduce") from error
        self.about: dict[str, Any] = {name: read[name] for name in ABOUT if name in read}
        self.about |= {} if dated else {"trainings": listed.to_dict("records")}

    @cached_property
    def test(self) -> pd.DataFrame:
        """All counts of held-out parts."""
        return known(self.folder)

    @cached_property
    def train(self) -> pd.DataFrame:
        """All counts of training parts; empty if a training has none."""
        return known(self.folder, "train")

    def counts(self, configs: Iterable[Config], role: Role = "test") -> pd.DataFrame:
        """What `Run.counts` gives for `configs`. Raises MissingError if one of them was not counted."""
        counts = self.test if role == "test" else self.train
        configs, there = list(configs), counted(counts)
        lacking = [config for config in configs if config not in there]
        if lacking:
            raise MissingError(f"{self.folder} has no counts of {lacking[0]}, part {role}. Run ltcam reproduce first")
        return pick(counts, configs)

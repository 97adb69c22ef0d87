"""What a notebook calls: `run = paper.open(profile, data)`, then `run.table(1)`, `run.check(...)`, `run.found("layers")`."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from IPython.display import Markdown

from ltcam.experiment import provenance
from ltcam.experiment.configs import Config, Protocol
from ltcam.experiment.counting import Reading
from ltcam.experiment.study import Role, Study, Training
from ltcam.files import sha256
from ltcam.paper import ablations, beyond, golden, judging, sentences, sweep, tables

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler


def open(profile: str, data: str, batch_size: int = 8, series: Mapping[str, Any] | None = None) -> Run:
    """The trainings of data set `data` that notebook 01 left for `profile`. Measurements are logged on stderr.

    series: what notebook 08 varies, {"deltas": [...], "varied": [...], "protocols": [...], "ablated": in how many seeds}. With
    it, the first notebook that scores a part measures what the whole series reads there. Without it, each notebook measures its
    own.

    Raises MissingError if there are none.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return Run(profile, data, batch_size, series)


def train(profile: str, data: str, trainings: Sequence[Training]) -> Run:
    """Train what is not trained yet, then `open` it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    Study.train(profile, data, trainings)
    return Run(profile, data)


def wanted(data: str, role: Role, protocol: Protocol, **varied: Sequence[Any]) -> dict[str, Reading]:
    """All that the notebooks read on a part of `data`, by folder; varied: as `ltcam.paper.ablations.readings_of` takes it, or
    nothing without notebook 08."""
    if role == "train":
        return {"": (sweep.CONFIGS, protocol)}
    rows = [config for number in {1, 2, *tables.COMPARED[data]} for config in tables.TABLES[number].values()]
    found = ablations.readings_of(data, protocol, **varied) if varied else {"": ([], protocol)}
    return {**found, "": (list(dict.fromkeys([*rows, *sweep.CONFIGS, *found[""][0]])), protocol)}


class Run(Study):
    """A `Study` with its tables of the paper, their golden values, and the sentences about them."""

    def __init__(self, profile: str, data: str, batch_size: int = 8, series: Mapping[str, Any] | None = None) -> None:
        super().__init__(profile, data)
        self.started, self.protocol, self.series = time.time(), Protocol(batch_size), series
        self.metric = sweep.headline(data)  # the headline score: "mIoU" (class means) or "IoU" (pooled)
        self.compared = tables.COMPARED[data]  # the tables of the paper: 3 for photographs, 4 for defects
        self.passed: set[Role] = set()  # the parts on which the whole series is measured
        self.made: dict[str, pd.DataFrame] = {}

    @cached_property
    def title(self) -> str:
        """The data set's title, read from a result, so no image and no model is opened."""
        records = (json.loads(path.read_text()) for path in sorted(self.out.glob("*.json")))
        return next((record["data"] for record in records if isinstance(record.get("data"), str)), "") or self.test.title

    @property
    def described(self) -> str:
        """One line: the data set, its held-out part, how many images are scored, for how many seeds, and the classes."""
        scored, classes = f"{len(self.test.scored)} images to score, seeds: {len(self.seeds)}", ", ".join(self.trained.classes)
        return f"{self.title}, part {self.test.part}: {scored}, classes: {classes}"

    @cached_property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.trained.model.parameters()).device
        return device

    @property
    def labelled(self) -> dict[str, str]:
        """The columns that end every table of notebook 08."""
        return {"data": self.title, "metric": self.metric}

    @property
    def pooled(self) -> dict[str, str]:
        """`labelled` for a table of pooled scores."""
        return {**self.labelled, "metric": "IoU"}

    def counts(self, configs: Sequence[Config], role: Role = "test", first: int | None = None) -> pd.DataFrame:
        """Pixel counts of `configs` under the run's own protocol; role and first as in `Study.together`."""
        if self.series and role not in self.passed:
            self.passed.add(role)
            varied = {name: value for name, value in self.series.items() if name != "ablated"}
            for study, also in ((self.only(self.series.get("ablated")), varied), (self, {})):
                study.together(wanted(self.data, role, self.protocol, **also), role, first)
        return self.together({"": (configs, self.protocol)}, role, first)[0]

    def table(self, number: int) -> pd.DataFrame:
        """Our table `number`, kept as table<number>.csv. What is missing is measured first."""
        counts = self.counts(list(tables.TABLES[number].values()))
        return self.keep(f"table{number}", tables.table(number, counts))

    def sweep(self, first: int | None = None) -> pd.DataFrame:
        """The scores of every delta on both parts, kept as sweep.csv. first: of the training part's images; None: all."""
        counts = {"test": self.counts(sweep.CONFIGS), "train": self.counts(sweep.CONFIGS, role="train", first=first)}
        return self.keep("sweep", sweep.scores(counts))

    def beyond(self, chosen_on: int | None = None, scored_on: int | None = None) -> pd.DataFrame:
        """What goes beyond the paper, kept as best.csv. t is chosen on the first images of the training part, and the first of
        the held-out part are scored; None: all."""
        for name in self.names:
            trained = self.trained if name == self.names[0] else self.load(name)
            part = trained.recipe.test + (f"/{scored_on}" if scored_on else "")
            beyond.measure(trained, self.out / name / "beyond", part, self.protocol.batch_size, chosen_on)
        return self.keep("best", beyond.table(self.out, self.data), **beyond.record(self.out))

    def keep(self, name: str, table: pd.DataFrame, packed: bool = False, **about: Any) -> pd.DataFrame:
        """Save `table` as <name>.csv (packed: <name>.csv.gz) with its provenance, and return it."""
        self.save(table, f"{name}.csv{'.gz' * packed}", self.started, **about)
        self.made[name] = table
        return table

    def beside(self, number: int) -> Styler:
        """Table `number` for display: the paper's columns beside ours, with the best and second best of each marked."""
        both = tables.beside(number, self.made[f"table{number}"])
        printed_on = "KSDD2" if number == 4 else "VOC 2012"
        caption = f"Table {number}: the paper's on {printed_on}, ours on {self.title}"
        return both.style.format("{:.2f}").set_caption(caption).apply(tables.mark)

    def numbers(self) -> pd.DataFrame:
        """Every number of the paper beside ours, from the tables that earlier notebooks left; kept as comparison.csv."""
        return self._read("comparison", judging.numbers(judging.read(self.out, self.data), self.out))

    def claims(self) -> pd.DataFrame:
        """The paper's claims, judged on what earlier notebooks left; kept as claims.csv."""
        return self._read(
            "claims", judging.judge(judging.read(self.out, self.data), self.data, judging.resample(self.out, self.data))
        )

    @cached_property
    def left(self) -> dict[int, pd.DataFrame]:
        """The tables of the paper, by number, that earlier notebooks left."""
        found = judging.read(self.out, self.data)
        return {number: found[f"table{number}"] for number in tables.TABLES if f"table{number}" in found}

    def _read(self, name: str, table: pd.DataFrame) -> pd.DataFrame:
        """Keep a table that was made from other tables, with their checksums."""
        sources = {f"{source}.csv": sha256(self.out / f"{source}.csv") for source in judging.read(self.out, self.data)}
        provenance.save(table, self.out / f"{name}.csv", self.started, data=self.title, sources=sources)
        self.made[name] = table
        return table

    def check(self, name: str, columns: list[str] | None = None, tolerance: float = golden.TOLERANCE) -> str:
        """Whether the table kept as `name` is within `tolerance` (points) of its golden values."""
        table = self.made[name]
        return f"{name}: {golden.check(table[columns] if columns else table, name, self.profile, tolerance)}"

    def found(self, topic: str, *measured: Any) -> Markdown:
        """The paragraph "Found" about `topic`, computed by `ltcam.paper.sentences` from the tables kept and `measured`."""
        said = getattr(sentences, topic)(self.made, *measured)
        return Markdown(f"**Found** on {self.title}. {said}")  # type: ignore[no-untyped-call]

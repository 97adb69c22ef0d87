"""What is measured and how: a way to make a mask (`Config`), and a way to run a data set (`Protocol`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from ltcam.engine.cam import Options
from ltcam.engine.refine import Refine
from ltcam.engine.scales import check
from ltcam.engine.stages import Outputs
from ltcam.engine.tricks import Compare, Fuse, Normalize, Scope, one_of, whole
from ltcam.errors import InputError
from ltcam.experiment import metrics

Labels = Literal["true", "predicted"]
Layout = Literal["channels_last", "contiguous"]
FLOATS = {"delta": float, "fraction": float}  # an empty field is None
UNSCALED = {"scales": None, "flip": None}  # of results that name no views


class Config(NamedTuple):
    """One way to make a mask: a method, the layers it fuses (a stage label, a range, or "all"), the options of `ltcam.explain`,
    and the cut of the heatmap: above `fraction` of its maximum, or at Otsu's threshold (None). refine is the text of an
    `ltcam.Refine`, align_corners True or None. Tables have these two columns only if a row has a value."""

    method: str
    layers: str = "S5"
    delta: float | None = None
    per: Scope = "layer"
    compare: Compare = "ge"
    fuse: Fuse = "sum"
    normalize: Normalize = "none"
    fraction: float | None = None
    refine: str | None = None
    align_corners: bool | None = None

    @property
    def options(self) -> Options:
        if self.fraction is not None and not 0 <= self.fraction < 1:
            raise InputError(f"fraction={self.fraction} is no part of the maximum: expected None (Otsu) or a number in [0, 1)")
        how = None if self.refine is None else Refine.parse(self.refine)
        corners = bool(self.align_corners)
        return Options(
            self.method, self.delta, self.per, self.compare, self.fuse, self.normalize, align_corners=corners, refine=how
        )

    @property
    def selection(self) -> str | None:
        return None if self.layers == "all" else self.layers

    @classmethod
    def parse(cls, text: str) -> Config:
        """ "METHOD[:LAYERS[:DELTA]][,NAME=VALUE...]", the names being further fields. Raises InputError for anything else."""
        head, *pairs = text.split(",")
        parts = head.split(":")
        try:
            name, layers, delta = (*parts, *("", "S5", "")[len(parts) :])
            fields: dict[str, Any] = dict(pair.split("=") for pair in pairs)
            if not name or not layers or fields.keys() - set(cls._fields[3:]):
                raise InputError("an empty part, or an unknown name")
            if "fraction" in fields:
                fields["fraction"] = float(fields["fraction"])
            if "align_corners" in fields:
                fields["align_corners"] = bool(("False", "True").index(fields["align_corners"])) or None
            return cls(name, layers, float(delta) if delta else None, **fields)
        except ValueError as error:
            raise InputError(
                f"{text!r} is not a configuration: expected METHOD[:LAYERS[:DELTA]], e.g. gradcam:S1-S5:20 or "
                "layercam:S1-S5:0,normalize=tanh,refine=S3-S5"
            ) from error


@dataclass(frozen=True)
class Protocol:
    """How a data set is run, for every configuration alike. Each field is kept with the counts.

    labels    "true": heatmaps of the classes that are present. "predicted": of the classes with a logit above 0, or else of
              the largest logit. A predicted class that is absent has only false positives, a missed one only false negatives
    outputs   where the stages S1 to S5 are read, as in `ltcam.engine.stages.stages`
    size      (height, width) of the input; None: the size that the model was trained at
    bfloat16  autocast of the forward and the backward; the maps are still summed in float32
    layout    how the network holds its images in memory. channels_last is quicker in the network and slower in the thresholds
    scales, flip  maps are averaged over the input at each scale, and mirrored too; as in `ltcam.explain_scales`
    """

    batch_size: int = 8
    labels: Labels = "true"
    outputs: Outputs = "pool"
    size: tuple[int, int] | None = None
    bfloat16: bool = False
    layout: Layout = "contiguous"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        whole("batch_size", self.batch_size)
        one_of("labels", self.labels, Labels)
        one_of("outputs", self.outputs, Outputs)
        one_of("layout", self.layout, Layout)
        check(self.scales, self.flip)
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))

    @property
    def forward(self) -> Protocol:
        """What the forward pass depends on. Protocols that agree in it share their passes: labels are targets of one forward,
        and outputs are layers of it."""
        return replace(self, labels="true", outputs="pool")

    @property
    def several(self) -> bool:
        """Whether maps are means over views, which are fused already."""
        return len(self.scales) > 1 or self.flip

    @property
    def views(self) -> dict[str, Any]:
        """Scales and flip as results keep them: nothing for the default, as in results that are older than them."""
        return {} if (self.scales, self.flip) == ((1.0,), False) else {"scales": self.scales, "flip": self.flip}

    @property
    def identity(self) -> dict[str, Any]:
        """What kept counts depend on."""
        return {name: value for name, value in asdict(self).items() if name not in UNSCALED} | self.views


def plain(value: Any) -> Any:
    """`value` as JSON and checkpoints can hold it: numpy's scalars become Python's, sequences tuples."""
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    return value.item() if isinstance(value, np.generic) else value


def configurations(table: pd.DataFrame) -> list[Config]:
    """The configuration of each row of a table with the columns `ltcam.experiment.metrics.CONFIG`."""
    columns = [table[name] if name in table else [None] * len(table) for name in metrics.CONFIG]
    rows = zip(*columns, strict=True)
    return [Config(*(None if pd.isna(value) else value for value in row)) for row in rows]  # type: ignore[arg-type]


def counted(counts: pd.DataFrame) -> dict[Config, int]:
    """Every configuration in `counts` and its number, in order of appearance."""
    first = counts.drop_duplicates(metrics.of_config(counts)) if len(counts) else pd.DataFrame(columns=metrics.CONFIG)
    return {config: number for number, config in enumerate(configurations(first))}


def pick(counts: pd.DataFrame, configs: Iterable[Config]) -> pd.DataFrame:
    """The rows of the `configs` that were counted, in that order, each once."""
    if counts.empty:
        return metrics.compact(counts)
    numbers = counted(counts)
    of_row = counts.groupby(metrics.of_config(counts), sort=False, dropna=False).ngroup().to_numpy()
    rows = [np.flatnonzero(of_row == numbers[config]) for config in dict.fromkeys(configs) if config in numbers]
    return metrics.compact(counts.iloc[np.concatenate([np.array([], dtype=int), *rows])].reset_index(drop=True))

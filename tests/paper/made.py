"""Counts and studies that are made by hand."""

from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd

from ltcam import data as datasets
from ltcam import files
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.recipe import DEFAULTS, Recipe
from ltcam.experiment.scores import Counts


def counts(scores, images=8, training="seed0"):
    """{configuration: percent of a 100-pixel object that is found in every image, without a false pixel} as counts."""
    names = [f"i{n}" for n in range(images)]
    pairs = pd.DataFrame({"training": training, "fold": "", "name": names, "group": names, "class": 0})
    row = [[score, 0, 100 - score] for score in scores.values()]
    return Counts(pairs, tuple(scores), np.array([row] * images, dtype=np.int64))


def run(number, word, **names):
    """Execute the one cell of a notebook that has a word in it; returns the tables that it displays."""
    (path,) = (files.ROOT / "notebooks").glob(f"{number}_*.ipynb")
    (source,) = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code" and word in c.source]
    shown = []
    exec(source, {**names, "display": lambda styled: shown.append(styled.data)})
    return shown


def study(test=None, train=None, others=None, data="ksdd", metric="IoU", **settings):
    """A study whose counts are `test`, `train` and, by protocol, `others`: Counts, or scores for `counts`."""
    known = {"test": test, "train": train, **(others or {})}
    known = {key: own if isinstance(own, Counts | None) else counts(own) for key, own in known.items()}
    kind = type(datasets.load("demo", "test"))
    made = SimpleNamespace(
        data=data, dataset=kind, metric=metric, title="toy", settings={**DEFAULTS, "protocols": [], **settings}, kept=True,
        compared={"voc2012": (3,), "demo": (3, 4)}.get(data, (4,)), protocol=Protocol(), names=[""], loss="sigmoid",
        recipe=lambda name: Recipe(),
    )  # fmt: skip
    made.both = [made]
    made.counts = lambda configs, role="test", protocol=None, **_: known[protocol or role].pick(configs)
    return made

"""What the gradients of all held-out images carry: one pass for `ltcam.paper.anatomy` and `ltcam.paper.eq9`, which is kept."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import BatchSampler
from tqdm import tqdm

from ltcam import data as datasets
from ltcam.data import Segmentation
from ltcam.data.base import VOID
from ltcam.engine.tracing import trace
from ltcam.experiment import journals, metrics, provenance
from ltcam.experiment.checkpoints import Trained
from ltcam.experiment.locks import alone
from ltcam.experiment.probe import behaviour
from ltcam.experiment.study import Study
from ltcam.files import AnyPath, writing
from ltcam.paper import anatomy, eq9

log = logging.getLogger(__name__)
Rows = dict[str, list[list[Any]]]  # of each table
COLUMNS = {  # after name and class, which identify a pair
    "signs": ["stage", "positive", "negative", "weight"],
    "stages": ["stage", "delta", "energy", "half", "kept"],
    "eq9_counts": ["group", "reading", "tp", "fp", "fn"],
    "dropped": ["stage", "delta", "share"],
}
FILES = {name: f"{name}.csv{'.gz' * (name != 'dropped')}" for name in COLUMNS}


def of(study: Study, batch_size: int = 8, images: int | None = None) -> dict[str, pd.DataFrame]:
    """The tables of `COLUMNS` for every scored pair of the first seed's held-out parts; of `dropped` the medians over pairs.

    images: use only the first so many of each part. The tables are kept in the folder of the study, and measured again only if
    something that they depend on has changed. An interrupted call goes on after its last batch.

    Raises DataError if the data are missing or not those of the training, and UnavailableError if another run writes there.
    """
    started, folds = time.time(), list(study.folds())
    known = [[trained.sha256, trained.load(trained.recipe.test).fingerprint] for trained in folds]
    code = [behaviour(), *(inspect.getsource(module) for module in (anatomy, eq9))]
    identity = {"gradients": hashlib.sha256(json.dumps([known, batch_size, images, code]).encode()).hexdigest()}
    stems = [study.out / f"gradients.{fold}.{identity['gradients'][:12]}" for fold in range(len(folds))]
    with alone(study.out, "write"):
        if not all(provenance.made_by(study.out / file, identity) for file in FILES.values()):
            rows = [_measure(*each, batch_size, images) for each in zip(folds, stems, strict=True)]
            for name, columns in COLUMNS.items():
                table = pd.DataFrame([row for own in rows for row in own[name]], columns=["name", "class", *columns])
                keys = ["name", "class", *(key for key in ("stage", "delta") if key in columns)]
                table = table.sort_values(keys, kind="stable", ignore_index=True, na_position="first")
                if name == "dropped":
                    table = table.groupby(["stage", "delta"], as_index=False).agg({"share": "median"})
                study.save(table.assign(data=study.test.title), FILES[name], started, **identity)
        for stem in stems:
            journals.place(stem, 0).unlink(missing_ok=True)  # also that of a run killed after the tables were kept
    return {name: read(study.out / file) for name, file in FILES.items()}


def read(path: AnyPath) -> pd.DataFrame:
    """A table that was kept with the title of its data, without that."""
    return pd.read_csv(path).drop(columns="data")


def _measure(trained: Trained, stem: Path, batch_size: int, images: int | None) -> Rows:
    """The rows of one training. Each batch goes into the journal at `stem` as it is done."""
    data, path = trained.load(trained.recipe.test), journals.place(stem, 0)
    scored = sorted(data.scored[:images], key=lambda i: int(data.labels[i].sum()))
    batches, done = [*BatchSampler(scored, batch_size, False)], journals.read(stem)
    with writing(path), path.open("a") as file:
        for number, batch in enumerate(tqdm(batches, data.title, disable=None, leave=False)):
            if number not in done:
                done[number] = list(_looked_into(trained, data, batch))
                file.write(journals.line(number, done[number]))
                file.flush()
                if (number + 1) % 10 == 0:
                    log.info("%s %s: %d of %d batches", data.title, data.part, number + 1, len(batches))
    return {name: [row for n in range(len(batches)) for own, row in done[n] if own == name] for name in COLUMNS}


def _looked_into(trained: Trained, data: Segmentation, batch: Sequence[int]) -> Iterator[tuple[str, list[Any]]]:
    """(table, row) for every row of a batch."""
    inputs = torch.stack([datasets.preprocess(data.image(i), trained.size) for i in batch])
    traced = trace(trained.model, inputs.to(next(trained.model.parameters())), data.labels[batch])
    pairs, device = [(batch[image], c) for image, c in traced.pairs.tolist()], traced.logits.device
    masks = {i: torch.from_numpy(data.mask(i)).to(device) for i in batch}
    objects = [(masks[i] == c + 1).float().where(masks[i] != VOID, torch.nan) for i, c in pairs]
    rows = {
        "signs": anatomy.signs(traced, objects),
        "stages": anatomy.stages(traced),
        "eq9_counts": eq9.counts(traced, [metrics.regions(masks[i], c) for i, c in pairs]),
        "dropped": eq9.dropped(traced),
    }
    for name, found in rows.items():
        for pair, *values in found:
            i, c = pairs[pair]
            yield name, [data.entries[i].name, c, *([data.groups[i]] * (name == "eq9_counts")), *values]

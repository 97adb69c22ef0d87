"""Pixel counts of seeds, image by image, so that their scores get intervals.

A table has the rows of `ltcam.experiment.metrics` under two cuts of the same maps, named in the column `cut`.

otsu    the mask of a class at Otsu's threshold, as `evaluate` counts it: the paper's protocol
argmax  the largest of the image's classes and a background of t, as in `ltcam.experiment.seed_scores`. Class -1 is background,
        so the class mean of the IoU is the mIoU of weakly-supervised segmentation
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ltcam.data import Sample
from ltcam.experiment import journals, metrics, provenance
from ltcam.experiment.checkpoints import Trained
from ltcam.experiment.configs import FLOATS, Config, Protocol
from ltcam.experiment.evaluation import kept_counts
from ltcam.experiment.locks import alone
from ltcam.experiment.probe import behaviour
from ltcam.experiment.seed_scores import Tally, heatmaps
from ltcam.files import AnyPath, writing

log = logging.getLogger(__name__)
COLUMNS = ["name", "group", "class", "cut", *metrics.CONFIG, "tp", "fp", "fn"]


def count(trained: Trained, part: str, at: Mapping[Config, float], out: AnyPath, protocol: Protocol) -> pd.DataFrame:
    """The counts of both cuts on part `part`. One trace of a view serves all configurations.

    at  each configuration and its t, a multiple of 0.01 in [0, 1]

    They are kept as `out/counts.csv.gz` and measured again only if something that they depend on has changed. An interrupted
    call goes on after its last image.
    """
    started, out, data = time.time(), Path(out), trained.load(part)
    identity = {
        "data": data.title, "part": data.part, "fingerprint": data.fingerprint, **protocol.identity,
        "checkpoint": trained.sha256, "probe": behaviour(), "at": [[*config, t] for config, t in at.items()],
    }  # fmt: skip
    path = out / "counts.csv.gz"
    with alone(out, "write"):
        if not len(kept_counts(path, identity)):
            stem = out / f"counts.{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]}"
            done = journals.read(stem)
            left = [i for i in data.annotated if data.entries[i].name not in done]
            group = dict(zip((entry.name for entry in data.entries), data.groups, strict=True))
            with writing(journals.place(stem, 0)), journals.place(stem, 0).open("a") as file:
                images = groupby(heatmaps(trained, data, list(at), protocol, left), key=lambda found: found[0].name)
                for number, (name, found) in enumerate(images, len(done) + 1):
                    done[name] = [[name, group[name], *row] for row in _rows(found, at, len(data.classes))]
                    file.write(journals.line(name, done[name]))
                    file.flush()
                    if number % 80 == 0:
                        log.info("%s %s: %d of %d images", data.title, data.part, number, len(data.annotated))
            rows = [row for name in sorted(done) for row in done[name]]
            table = metrics.compact(pd.DataFrame(rows, columns=COLUMNS).astype(FLOATS))
            provenance.save(table, path, started, **{**trained.about(data), **identity})
            journals.place(stem, 0).unlink()
        return pd.read_csv(path, dtype=FLOATS)


def _rows(
    found: Iterable[tuple[Sample, Config, Tensor, Tensor]], at: Mapping[Config, float], classes: int
) -> Iterator[list[Any]]:
    """Class, cut, configuration and counts of one image."""
    for sample, config, maps, keys in found:
        tally = Tally(classes)
        tally.add(maps, keys, sample.mask.to(keys.device))
        for key in keys.tolist():
            yield [key, "otsu", *config, *tally.otsu[key].tolist()]
        joint = torch.from_numpy(tally.confusion()[round(100 * at[config])])
        both = joint.diag()
        argmax = torch.stack([both, joint.sum(dim=0) - both, joint.sum(dim=1) - both], dim=1)
        for label in argmax.any(dim=1).nonzero().flatten().tolist():
            yield [label - 1, "argmax", *config, *argmax[label].tolist()]

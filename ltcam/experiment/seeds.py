"""CAM seeds, the files that weakly-supervised segmentation starts from, and how good they are.

The layout is that of IRN (Ahn, Cho, Kwak, CVPR 2019). `<image name>.npy` is a dictionary of arrays for the n classes that the
image's labels name.

keys      (n,) int64, ascending, from 0; background is not a class
cam       (n, ceil(H/4), ceil(W/4)) float32 in [0, 1]
high_res  (n, H, W) float32 in [0, 1]; (H, W) is the image's own size

Each map is divided by its maximum (IRN adds 1e-5 to it). A map without evidence is all zero. An image without a class has no
file, since IRN's labelling divides by the number of classes. `seeds.json` beside the files says what made them.

Such a file is a pickle. `np.load(path, allow_pickle=True).item()` reads it, and would run any code inside; `read` rebuilds
arrays alone. `cam` is an array here and a tensor in IRN: where IRN calls `.cuda()` on it, call `torch.from_numpy` first. Files
written under numpy 2 need numpy 1.26 or later to be read.

Seeds are scored as IRN does, for every background value t at once: `argmax_counts`, summed over a part. mIoU is the mean over
labels, background among them (21 on VOC 2012); a label without a pixel and without a claim is left out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import BatchSampler
from tqdm import tqdm

from ltcam.data import Segmentation
from ltcam.engine.config import Config
from ltcam.engine.targets import describe
from ltcam.errors import InputError, MissingError
from ltcam.experiment import provenance
from ltcam.experiment.counting import batches, each, identity, image_loader, maps_of_batch
from ltcam.experiment.otsu import argmax_counts, otsu_counts, regions
from ltcam.experiment.protocol import LATER, Protocol
from ltcam.experiment.trained import Trained
from ltcam.experiment.vgg16 import unpickle
from ltcam.files import AnyPath, atomic, write

log = logging.getLogger(__name__)
STRIDE = 4  # of "cam"
THRESHOLDS = np.arange(101) / 100


def export(trained: Trained, part: str, config: Config, out: AnyPath, protocol: Protocol | None = None) -> int:
    """Write the seeds of every image with a class in part `part` of the model's data set; returns the number of images.

    protocol  its batch size, input size, scales, flip and tiles; None: the defaults

    A file gets its name only when it is complete, so an interrupted call goes on with the batches that lack a file. Raises
    InputError if the folder has seeds of other settings.
    """
    protocol, data, out = protocol or Protocol(), trained.load(part), Path(out)
    settings = {**identity(trained, data, protocol), "config": str(config)}
    del settings["batch_size"]  # where memory was short, a smaller one goes on
    record = out / "seeds.json"
    known = provenance.load(record) if record.is_file() else {}
    wanted = json.loads(json.dumps(settings))
    others = [name for name in settings | LATER if known.get(name) != wanted.get(name)]
    if others and any(out.rglob("*.npy")):
        raise InputError(f"{out} has .npy files of another {', '.join(others)}: pass another --out, or delete them")
    images, there = sorted(data.labels.any(dim=1).nonzero().flatten().tolist(), key=lambda i: data.labels[i].sum()), set[int]()
    for i in images:
        with suppress(MissingError, InputError):  # it is not there, or was cut off
            read(out / f"{data.entries[i].name}.npy", len(data.classes))
            there.add(i)
    step = 1 if protocol.tiles else protocol.batch_size
    missing = [batch for batch in BatchSampler(images, step, False) if not there.issuperset(batch)]
    if missing or "finished" not in known:
        write(record, json.dumps(settings, indent=2) + "\n")
        for samples in tqdm(image_loader(data, trained, protocol, missing), f"{data.title} {part}", disable=None, leave=False):
            maps = maps_of_batch(trained, samples, torch.stack([s.label for s in samples]), [config], protocol)
            for (sample, _, keys, small), (*_, large) in zip(each(maps, samples, STRIDE), each(maps, samples), strict=True):
                seeds = {name: value.cpu().numpy() for name, value in (("keys", keys), ("cam", small), ("high_res", large))}
                with atomic(out / f"{sample.name}.npy") as temporary:
                    np.save(temporary, np.array(seeds, dtype=object), allow_pickle=True)
        write(record, json.dumps({**provenance.environment(), **settings, "files": len(images)}, indent=2) + "\n")
    return len(images)


def read(path: AnyPath, classes: int) -> tuple[Tensor, Tensor]:
    """keys (n,) int64, from 0, and high_res (n, H, W) float32 or float64, of the seeds in `path`, of this library or of IRN.

    Raises MissingError if there is no such file. Raises InputError if it is damaged or holds anything but arrays, and for other
    shapes, classes outside [0, classes) and values outside [0, 1].
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"{path} is missing: expected the seeds of an image; run ltcam export-seeds, or name another folder")
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            if np.lib.format.read_array_header_1_0(file)[2] != np.dtype(object):  # the header of a dictionary
                raise InputError("it is a plain array")
            seeds = unpickle(file).item()
        keys, maps = (torch.as_tensor(seeds[name]) for name in ("keys", "high_res"))
    except Exception as error:  # other bytes fail in many ways: EOFError, KeyError, AttributeError, UnpicklingError ...
        expected = "expected a dict of arrays keys and high_res; export it again"
        raise InputError(f"{path} holds no seeds ({error}): {expected}") from error
    if keys.ndim != 1 or keys.is_floating_point() or maps.ndim != 3 or len(keys) != len(maps) or not maps.is_floating_point():
        said = f"{path} has keys {describe(keys)} and high_res {describe(maps)}"
        raise InputError(f"{said}: expected ints (n,) and floats (n, H, W), uint8 divided by 255")
    if any(not 0 <= key < classes for key in keys.tolist()) or len({*keys.tolist()}) < len(keys):
        raise InputError(f"{path} has the keys {keys.tolist()}: expected different classes from 0 to {classes - 1}")
    if not ((maps >= 0) & (maps <= 1)).all():
        raise InputError(f"{path} has values outside [0, 1]: expected each map over its maximum; export it again")
    return keys.long(), maps


class Tally:
    """The counts of a part, image after image. No map is kept.

    argmax  (T, 1 + classes, 3): tp, fp, fn by t and label, background first; otsu: (classes, 3) at Otsu's thresholds
    """

    def __init__(self, classes: int) -> None:
        self.images = 0
        self.argmax = np.zeros((len(THRESHOLDS), 1 + classes, 3), dtype=np.int64)
        self.otsu = np.zeros((classes, 3), dtype=np.int64)

    def add(self, maps: Tensor, keys: Tensor, mask: Tensor) -> None:
        """Count an image: maps (n, H, W) in [0, 1] of its classes `keys` (n,), from 0, and its mask (H, W), as in `Sample`."""
        found = argmax_counts(maps, keys, mask, THRESHOLDS.tolist()).cpu().numpy()
        self.argmax[:, : found.shape[1]] += found
        if len(keys):
            region = torch.stack([regions(mask, c) for c in keys.tolist()])
            self.otsu[keys.tolist()] += otsu_counts(maps[None], region)[0].cpu().numpy()
        self.images += 1

    def curve(self) -> pd.Series[float]:
        """mIoU in percent by threshold t."""
        union = self.argmax.sum(axis=2)
        mean = (100 * self.argmax[..., 0] / union.clip(min=1)).sum(axis=1) / (union > 0).sum(axis=1).clip(min=1)
        return pd.Series(mean, pd.Index(THRESHOLDS, name="t"), name="mIoU")

    def class_mean(self) -> float:
        """The class mean of the IoU at Otsu's threshold, in percent: the paper's protocol."""
        own = self.otsu[self.otsu.any(axis=1)]
        return float(100 * (own[:, 0] / own.sum(axis=1)).mean())


def of_folder(folder: AnyPath, data: Segmentation) -> Tally:
    """Seeds in `folder`, one `<image name>.npy` for each image of `data` that has a class. IRN's files are read as they are.

    Raises MissingError if a file is missing, and InputError as `read` does.
    """
    tally, strange = Tally(len(data.classes)), []
    for index in tqdm(data.annotated, f"{data.title} {data.part}", disable=None, leave=False):
        mask, path = torch.from_numpy(data.mask(index)), Path(folder) / f"{data.entries[index].name}.npy"
        keys, maps = torch.zeros(0, dtype=torch.long), torch.zeros(0, *mask.shape)
        if data.labels[index].any() or path.is_file():
            keys, maps = read(path, len(data.classes))
        if maps.shape[1:] != mask.shape:
            raise InputError(f"{path} has maps {tuple(maps.shape[1:])}, the mask is {tuple(mask.shape)}: export it again")
        tally.add(maps, keys, mask)
        strange += [] if data.labels[index, keys].all() else [path]
    if strange:
        said = "%d of %d images have seeds of classes that they lack, first %s: these count as false; keys are from 0"
        log.warning(said, len(strange), tally.images, strange[0])
    return tally


def of_checkpoint(
    trained: Trained, part: str, configs: Sequence[Config], protocol: Protocol | None = None
) -> dict[Config, Tally]:
    """What `export` would write for each configuration, scored without files: one trace of a view serves all of them."""
    data, protocol = trained.load(part), protocol or Protocol()
    tallies = {config: Tally(len(data.classes)) for config in configs}
    loaded = image_loader(data, trained, protocol, batches(data, protocol, annotated=True))
    for samples in tqdm(loaded, f"{data.title} {part}", disable=None, leave=False):
        maps = maps_of_batch(trained, samples, torch.stack([s.label for s in samples]), list(tallies), protocol)
        for sample, config, keys, heats in each(maps, samples):
            tallies[config].add(heats, keys, sample.mask.to(keys.device))
    return tallies


def table(scored: Mapping[str, Tally], chosen: Mapping[str, Tally] | None = None) -> pd.DataFrame:
    """One row for each of the `scored` seeds, in percent.

    best_mIoU, best_t  of the best threshold of the scored part itself, as the field reports
    mIoU, t            at the best threshold of `chosen`, the tallies of the same seeds on another part, if given
    """
    rows = []
    for name, tally in scored.items():
        curve = tally.curve()
        row = {"seeds": name, "images": tally.images, "best_mIoU": curve.max(), "best_t": curve.idxmax()}
        if chosen is not None:
            place = int(chosen[name].curve().argmax())
            row |= {"mIoU": curve.iloc[place], "t": THRESHOLDS[place]}
        rows.append(row | {"Otsu_mIoU": tally.class_mean()})
    return pd.DataFrame(rows)


def curves(scored: Mapping[str, Tally]) -> pd.DataFrame:
    """The mIoU of every threshold in percent: columns seeds, t, mIoU."""
    return pd.concat({name: tally.curve() for name, tally in scored.items()}, names=["seeds"]).reset_index()

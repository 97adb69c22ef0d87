"""How good seeds are, under the protocol of weakly-supervised segmentation: `ltcam eval-seeds`.

Each map is over its maximum. Background is a constant t, the threshold. A pixel gets the class of the largest value among
background and the image's classes; the image's labels say which these are. One confusion matrix counts the pixels of a whole
part, without void ones (255). mIoU is the mean over its rows, background among them (21 on VOC 2012); a row without a pixel and
without a claim is left out. This is IRN's evaluation (Ahn, Cho, Kwak 2019) for every t at once.

The field reports the best t of the part that is scored. `table` gives it, and beside it the score at the t that is best on
another part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler
from tqdm import tqdm

from ltcam.data import Sample, Segmentation
from ltcam.data.base import VOID
from ltcam.engine.config import Config
from ltcam.engine.targets import describe
from ltcam.engine.tricks import normalized
from ltcam.errors import InputError
from ltcam.experiment.counting import image_loader, maps_of_batch
from ltcam.experiment.otsu import otsu_counts, regions
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.seeds import read
from ltcam.experiment.trained import Trained
from ltcam.files import AnyPath

THRESHOLDS = np.arange(101) / 100


class Tally:
    """The counts of a part from which every score is derived. Add image after image; no map is kept.

    classes: without background. On VOC 2012 the counts take 6 MB, for any number of images.
    """

    def __init__(self, classes: int) -> None:
        self.classes, self.images = classes, 0
        self.joint = torch.zeros(classes + 1, classes + 1, len(THRESHOLDS) + 1, dtype=torch.long)
        self.otsu = torch.zeros(classes, 3, dtype=torch.long)  # tp, fp, fn

    def add(self, maps: Tensor, keys: Tensor, mask: Tensor) -> None:
        """Count an image: maps (n, H, W) in [0, 1] of its classes `keys` (n,), from 0, and its mask (H, W), as in `Sample`.

        An image without a class is background. Raises InputError for shapes or labels that do not fit.
        """
        void = mask == VOID
        if (most := int(mask.masked_fill(void, 0).max())) > self.classes:
            raise InputError(f"a mask has the label {most}: expected at most {self.classes}, or {VOID}")
        if maps.ndim != 3 or maps.shape[1:] != mask.shape or len(keys) != len(maps):
            raise InputError(
                f"{len(keys)} classes with {describe(maps)} for a mask {tuple(mask.shape)}: expected (n, H, W) for (H, W)"
            )
        steps = len(THRESHOLDS) + 1
        index = mask.int().masked_fill(void, self.classes + 1).flatten() * ((self.classes + 1) * steps)
        if len(keys):
            largest, place = maps.flatten(1).max(dim=0)  # of equal values the first, as numpy does
            # A class wins if it is above t. IRN's t is in the maps' precision.
            below = torch.searchsorted(torch.from_numpy(THRESHOLDS).to(largest), largest, out_int32=True)
            index = index + (keys[place] + 1).int() * steps + below
            self.otsu[keys.cpu()] += otsu_counts(maps[None], torch.stack([regions(mask, k) for k in keys.tolist()]))[0].cpu()
        counts = torch.bincount(index, minlength=(self.classes + 2) * self.joint[0].numel()).cpu()
        self.joint += counts[: self.joint.numel()].view(self.joint.shape)
        self.images += 1

    def confusion(self) -> NDArray[np.int64]:
        """(T, C + 1, C + 1): pixels by threshold, true label and claimed label; 0 is background."""
        above = self.joint.flip(2).cumsum(dim=2).flip(2)[:, :, 1:].permute(2, 0, 1).clone()
        above[:, :, 0] = self.joint.sum(dim=(1, 2)) - above[:, :, 1:].sum(dim=2)
        return above.numpy()

    def ious(self) -> NDArray[np.float64]:
        """(T, C + 1) in percent, background first. NaN for a label that is neither true nor claimed."""
        counts = self.confusion()
        both = np.diagonal(counts, axis1=1, axis2=2)
        union = counts.sum(axis=1) + counts.sum(axis=2) - both
        ious: NDArray[np.float64] = 100 * np.divide(both, union, out=np.full(union.shape, np.nan), where=union > 0)
        return ious

    def curve(self) -> pd.Series[float]:
        """mIoU in percent by threshold t."""
        ious = self.ious()
        known = ~np.isnan(ious)
        mean = np.where(known, ious, 0).sum(axis=1) / known.sum(axis=1).clip(min=1)
        return pd.Series(mean, pd.Index(THRESHOLDS, name="t"), name="mIoU")

    def class_mean(self) -> float:
        """The class mean of the IoU at Otsu's threshold, in percent: the paper's protocol."""
        tp, fp, fn = self.otsu[self.otsu.any(dim=1)].double().unbind(dim=1)
        return 100 * float((tp / (tp + fp + fn)).mean())


def of_folder(folder: AnyPath, data: Segmentation) -> Tally:
    """Seeds in `folder`, one `<image name>.npy` for each image of `data` that has a class. IRN's files are read as they are.

    Raises MissingError if a file is missing, and InputError as `seeds.read` does.
    """
    tally = Tally(len(data.classes))
    for index in tqdm(data.annotated, f"{data.title} {data.part}", disable=None, leave=False):
        mask, path = torch.from_numpy(data.mask(index)), Path(folder) / f"{data.entries[index].name}.npy"
        keys, maps = torch.zeros(0, dtype=torch.long), torch.zeros(0, *mask.shape)
        if data.labels[index].any() or path.is_file():
            keys, maps = read(path, len(data.classes))
        if maps.shape[1:] != mask.shape:
            raise InputError(f"{path} has maps {tuple(maps.shape[1:])}, the mask is {tuple(mask.shape)}: export it again")
        tally.add(maps, keys, mask)
    return tally


def of_checkpoint(
    trained: Trained, part: str, configs: Sequence[Config], protocol: Protocol | None = None
) -> dict[Config, Tally]:
    """What `export-seeds` would write for each configuration, scored without files: one trace of a view serves all of them."""
    data = trained.load(part)
    tallies = {config: Tally(len(data.classes)) for config in configs}
    for sample, config, maps, keys in heatmaps(trained, data, list(tallies), protocol or Protocol()):
        tallies[config].add(maps, keys, sample.mask.to(keys.device))
    return tallies


def heatmaps(
    trained: Trained, data: Segmentation, configs: Sequence[Config], protocol: Protocol, images: Sequence[int] | None = None
) -> Iterator[tuple[Sample, Config, Tensor, Tensor]]:
    """Images of `data` with each configuration, its maps (n, H, W) and classes (n,), as `Tally.add` takes them.

    images  their numbers; None: all that are annotated. Those with equally many classes come together
    """
    chosen = sorted(data.annotated if images is None else images, key=lambda i: data.labels[i].sum())
    loaded = image_loader(data, trained, protocol, [*BatchSampler(chosen, protocol.batch_size, False)])
    for samples in tqdm(loaded, f"{data.title} {data.part}", disable=None, leave=False):
        for sample in (s for s in samples if not s.label.any()):
            for config in configs:
                yield sample, config, torch.zeros(0, *sample.mask.shape), torch.zeros(0, dtype=torch.long)
        if not (labelled := [s for s in samples if s.label.any()]):
            continue
        inputs = torch.stack([s.image for s in labelled]).to(next(trained.model.parameters()))
        maps = maps_of_batch(trained, inputs, torch.stack([s.label for s in labelled]), configs, protocol)
        for number, sample in enumerate(labelled):
            own = torch.nonzero(maps.pairs[:, 0] == number).flatten()
            for group, heat in maps.heatmaps(own.tolist(), (sample.mask.shape[0], sample.mask.shape[1])):
                for config, heats in zip(group, heat, strict=True):
                    yield sample, config, normalized([heats], "max")[0], maps.pairs[own, 1]


def table(scored: Mapping[str, Tally], chosen: Mapping[str, Tally] | None = None) -> pd.DataFrame:
    """One row for each of the `scored` seeds, in percent.

    best_mIoU, best_t  of the best threshold of the scored part itself, as the field reports
    mIoU, t            at the best threshold of `chosen`, the tallies of the same seeds on another part, if given
    Otsu_mIoU          as in `Tally.class_mean`
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

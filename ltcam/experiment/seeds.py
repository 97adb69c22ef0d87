"""CAM seeds, the files that weakly-supervised segmentation starts from: `ltcam export-seeds --checkpoint PATH --out FOLDER`.

The layout is that of IRN (Ahn, Cho, Kwak, CVPR 2019). `<image name>.npy` is a dictionary of arrays for the n classes that the
image's labels name.

keys      (n,) int64, ascending, from 0; background is not a class
cam       (n, ceil(H/4), ceil(W/4)) float32 in [0, 1]
high_res  (n, H, W) float32 in [0, 1]; (H, W) is the image's own size

Each map is divided by its maximum (IRN adds 1e-5 to it). A map without evidence is all zero. An image without a class has no
file, since IRN's labelling divides by the number of classes. `seeds.json` beside the files says what made them.

Such a file is a pickle. `np.load(path, allow_pickle=True).item()` reads it, and would run any code inside, so load only your
own files; `read` rebuilds arrays alone. `cam` is an array here and a tensor in IRN. Where IRN calls `.cuda()` on it, call
`torch.from_numpy` first. Files written under numpy 2 need numpy 1.26 or later to be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler
from tqdm import tqdm

from ltcam.data import Sample
from ltcam.engine.config import Config
from ltcam.engine.tricks import normalized
from ltcam.errors import InputError, MissingError
from ltcam.experiment import provenance
from ltcam.experiment.counting import identity, image_loader, maps_of_batch
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.trained import Trained
from ltcam.experiment.vgg16 import unpickle
from ltcam.files import AnyPath, atomic, write

STRIDE = 4  # of "cam"


def export(trained: Trained, part: str, config: Config, out: AnyPath, protocol: Protocol | None = None) -> int:
    """Write the seeds of every image with a class in part `part` of the model's data set; returns the number of images.

    protocol  its batch size, input size, scales and flip; None: the defaults

    A file gets its name only when it is complete, so an interrupted call goes on with the batches that lack a file. Raises
    InputError if the folder has seeds of other settings.
    """
    protocol, data, out = protocol or Protocol(), trained.load(part), Path(out)
    settings = {**identity(trained, data, protocol), "config": str(config)}
    del settings["batch_size"]  # where memory was short, a smaller one goes on
    record = out / "seeds.json"
    known = json.loads(record.read_text()) if record.is_file() else {}
    others = [name for name, value in settings.items() if known.get(name) != json.loads(json.dumps(value))]
    if others and any(out.rglob("*.npy")):
        raise InputError(f"{out} has .npy files of another {', '.join(others)}: pass another --out, or delete them")
    images = sorted(data.labels.any(dim=1).nonzero().flatten().tolist(), key=lambda i: data.labels[i].sum())
    there = {i for i in images if (out / f"{data.entries[i].name}.npy").is_file()}
    missing = [batch for batch in BatchSampler(images, protocol.batch_size, False) if not there.issuperset(batch)]
    if missing or "finished" not in known:
        write(record, json.dumps(settings, indent=2) + "\n")
        for samples in tqdm(image_loader(data, trained, protocol, missing), f"{data.title} {part}", disable=None, leave=False):
            for name, seeds in _seeds(trained, samples, config, protocol):
                with atomic(out / f"{name}.npy") as temporary:
                    np.save(temporary, np.array(seeds, dtype=object), allow_pickle=True)
        write(record, json.dumps({**provenance.environment(), **settings, "files": len(images)}, indent=2) + "\n")
    return len(images)


def _seeds(
    trained: Trained, samples: list[Sample], config: Config, protocol: Protocol
) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    """(name, dictionary) for each image of a batch."""
    images = torch.stack([s.image for s in samples]).to(next(trained.model.parameters()))
    maps = maps_of_batch(trained, images, torch.stack([s.label for s in samples]), [config], protocol)
    for number, sample in enumerate(samples):
        own = torch.nonzero(maps.pairs[:, 0] == number).flatten()
        height, width = sample.mask.shape
        found = [maps.pairs[own, 1].cpu().numpy()]
        for size in ((-(-height // STRIDE), -(-width // STRIDE)), (height, width)):
            ((_, heat),) = maps.heatmaps(own.tolist(), size)
            found.append(normalized([heat[0]], "max")[0].cpu().numpy())
        yield sample.name, dict(zip(("keys", "cam", "high_res"), found, strict=True))


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
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            if header(file)[2] != np.dtype(object):
                raise InputError("it is a plain array")
            seeds = unpickle(file).item()
        keys, maps = (torch.as_tensor(seeds[name]) for name in ("keys", "high_res"))
    except Exception as error:  # other bytes fail in many ways: EOFError, KeyError, AttributeError, UnpicklingError ...
        expected = "expected a dict of arrays keys and high_res; export it again"
        raise InputError(f"{path} holds no seeds ({error}): {expected}") from error
    if keys.ndim != 1 or keys.is_floating_point() or maps.ndim != 3 or len(keys) != len(maps) or not maps.is_floating_point():
        raise InputError(f"{path} has keys {tuple(keys.shape)} and high_res {tuple(maps.shape)}: expected (n,) and (n, H, W)")
    if any(not 0 <= key < classes for key in keys.tolist()) or len({*keys.tolist()}) < len(keys):
        raise InputError(f"{path} has the keys {keys.tolist()}: expected different classes from 0 to {classes - 1}")
    if not ((maps >= 0) & (maps <= 1)).all():
        raise InputError(f"{path} has values outside [0, 1]: expected each map over its maximum; export it again")
    return keys.long(), maps

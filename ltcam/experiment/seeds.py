"""CAM seeds, the files that weakly-supervised segmentation starts from: `ltcam export-seeds --checkpoint PATH --out FOLDER`.

The layout is that of IRN (Ahn, Cho, Kwak, CVPR 2019). `<image name>.npy` is a dictionary of arrays for the n classes that the
image's labels name.

keys      (n,) int64, ascending, from 0; background is not a class
cam       (n, ceil(H/4), ceil(W/4)) float32 in [0, 1]
high_res  (n, H, W) float32 in [0, 1]; (H, W) is the image's own size

Each map is divided by its maximum (IRN adds 1e-5 to it). A map without evidence is all zero. An image without a class has no
file, since IRN's labelling divides by the number of classes.

Such a file is a pickle. `np.load(path, allow_pickle=True).item()` reads it, and would run any code inside, so load only your
own files. `cam` is an array here and a tensor in IRN. Where IRN calls `.cuda()` on it, call `torch.from_numpy` first. Files
written under numpy 2 need numpy 1.26 or later to be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler
from tqdm import tqdm

from ltcam.data import Sample
from ltcam.engine.cam import Options, fused, layer_maps
from ltcam.engine.scales import Found, averaged, views
from ltcam.engine.traces import Trace
from ltcam.engine.tracing import trace
from ltcam.engine.tricks import normalized
from ltcam.errors import InputError
from ltcam.experiment import provenance
from ltcam.experiment.checkpoints import Trained
from ltcam.experiment.configs import UNSCALED, Config, Protocol, plain
from ltcam.experiment.evaluation import image_loader
from ltcam.experiment.probe import behaviour
from ltcam.files import AnyPath, atomic, write

STRIDE = 4  # of "cam"


def export(trained: Trained, part: str, config: Config, out: AnyPath, protocol: Protocol | None = None) -> int:
    """Write the seeds of every image with a class in part `part` of the model's data set; returns the number of images.

    protocol  its batch size, input size, scales and flip; None: the defaults

    `out/seeds.json` says how they were made. A file gets its name only when it is complete, so an interrupted call goes on with
    the batches that lack a file. Raises InputError if the folder has seeds of other settings.
    """
    protocol = protocol or Protocol()
    data, out, config = trained.load(part), Path(out), Config._make(plain(tuple(config)))
    settings = {
        "data": data.title, "part": part, "fingerprint": data.fingerprint, "layers": config.selection,
        "size": protocol.size or trained.size,
        **asdict(config.options), "refine": config.refine, "checkpoint": trained.sha256, "probe": behaviour(),
        **protocol.views,
    }  # fmt: skip
    record = out / "seeds.json"
    known = _known(record, settings)
    images = sorted(data.labels.any(dim=1).nonzero().flatten().tolist(), key=lambda i: data.labels[i].sum())
    there = {i for i in images if (out / f"{data.entries[i].name}.npy").is_file()}
    missing = [batch for batch in BatchSampler(images, protocol.batch_size, False) if not there.issuperset(batch)]
    if missing or "finished" not in known:
        write(record, json.dumps(settings, indent=2) + "\n")
        for samples in tqdm(image_loader(data, trained, protocol, missing), f"{data.title} {part}", disable=None, leave=False):
            for name, seeds in _seeds(trained, samples, config, protocol):
                with atomic(out / f"{name}.npy") as temporary:
                    np.save(temporary, np.array(seeds, dtype=object), allow_pickle=True)
        about = {**trained.about(data), **provenance.environment(), **settings, "files": len(images)}
        write(record, json.dumps(about, indent=2) + "\n")
    return len(images)


def over_views(
    trained: Trained, samples: list[Sample], protocol: Protocol, configs: Sequence[Config], maps_in: Callable[[Trace], Found]
) -> tuple[Tensor, Found]:
    """The pairs of a batch, of the classes that its labels name, and their maps: `maps_in` of one trace a view, averaged.

    A trace keeps the layers that `configs` ask for, so the backward ends at the first of them.
    """
    full = any(config.method == "fullgrad" for config in configs)
    refined = (config.options.refine for config in configs)
    asked = {*(config.selection for config in configs), *(how.layers for how in refined if how)}
    layers = None if full or None in asked else sorted(map(str, asked))
    images = torch.stack([s.image for s in samples]).to(next(trained.model.parameters()))
    labels, size = torch.stack([s.label for s in samples]).to(images.device), protocol.size or trained.size
    with torch.backends.cudnn.flags(allow_tf32=False):
        seen = [
            (maps_in(trace(trained.model, view, labels, layers, full)), mirrored)
            for view, mirrored in views(images, size, protocol.scales, protocol.flip)
        ]
    return torch.nonzero(labels), averaged(seen, size)


def _seeds(
    trained: Trained, samples: list[Sample], config: Config, protocol: Protocol
) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    """(name, dictionary) for each image of a batch."""
    item = options, selection = config.options, config.selection
    pairs, found = over_views(trained, samples, protocol, [config], lambda run: {item: layer_maps(run, options, selection)})
    maps, options = found[item], Options() if protocol.several else options
    for number, sample in enumerate(samples):
        own = pairs[:, 0] == number
        layers = {name: m[own] for name, m in maps.items()}
        height, width = sample.mask.shape
        sizes = (-(-height // STRIDE), -(-width // STRIDE)), (height, width)
        cam, high_res = (normalized([fused(layers, options, size)], "max")[0].cpu().numpy() for size in sizes)
        yield sample.name, {"keys": pairs[own, 1].cpu().numpy(), "cam": cam, "high_res": high_res}


def _known(record: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What `record` says about the seeds beside it. Raises InputError if they were made with other settings."""
    known: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    others = [name for name, value in (UNSCALED | json.loads(json.dumps(settings))).items() if known.get(name) != value]
    if others and any(record.parent.rglob("*.npy")):
        raise InputError(f"{record.parent} has .npy files of another {', '.join(others)}: pass another --out, or delete them")
    return known

"""Train a classifier on image-level labels only (Sec. 3.1): `ltcam train --data NAME`.

Training reads from a mask only which classes it holds. The last epoch is kept, so nothing is chosen on the held-out part. Its
files are opened after the last epoch is saved, to score its labels.

`accelerate launch -m ltcam train` and torchrun split each batch over several processes. The batches and their order stay those
of one process, and gradients are averaged over the whole batch. Each process draws its own flips, scales and dropout.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, Dataset, RandomSampler, Subset
from torchvision.models import VGG
from torchvision.transforms import v2
from tqdm import tqdm

from ltcam import data as datasets
from ltcam.data import Segmentation
from ltcam.engine.stages import stages
from ltcam.errors import DivergedError, InputError
from ltcam.experiment import provenance
from ltcam.experiment.losses import LOSSES, outputs, rarity
from ltcam.experiment.parallel import Shuffled, alone, gather_object, loader, processes, reduce
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.vgg16 import load, vgg16
from ltcam.files import AnyPath, atomic, sha256, write

log = logging.getLogger(__name__)
_KEPT: dict[str, dict[str, Tensor]] = {}  # the device and weights of frozen stages -> image -> their features
_REMEDY = "train with a smaller lr; earlier epochs are kept"


class Inputs(Dataset[tuple[Tensor, Tensor]]):
    """(network input, multi-hot label) of each image, from its pixels or from its features in the frozen stages."""

    def __init__(
        self, data: Segmentation, size: tuple[int, int], augment: Callable[[Tensor], Tensor] | None = None,
        features: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        self.data, self.size, self.augment, self.features = data, size, augment, features
        self.labels = data.labels  # read here once, not in every loader process

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        value = self.features[index] if self.features else datasets.preprocess(self.data.image(index), self.size)
        return (self.augment(value) if self.augment else value), self.labels[index]


def train(recipe: Recipe, out: AnyPath) -> Path:
    """Train by `recipe`, or go on where an interrupted run of the same recipe stopped. Returns the path of the checkpoint.

    Writes `checkpoint.pt` (the last epoch), `train.csv` (loss per epoch), `labels.csv` (AP per class on the held-out part) and
    `run.json` (what made them) into `out`. A finished run is returned as it is. Of several processes, whose number may change
    between calls, only the main one writes. Raises InputError if `out` has another or a damaged training, UnavailableError if
    another run writes there or nothing can be.
    """
    data, last, kept = datasets.load(recipe.data, recipe.train), Path(out, "last.pt"), Path(out, "checkpoint.pt")
    identity = {"recipe": asdict(recipe), "fingerprint": data.fingerprint}
    state = load(last) if last.is_file() else {}
    before = state.get("identity", {})
    same = before | {"recipe": asdict(Recipe()) | before.get("recipe", {})} == identity  # it may be older than a field
    if (state or kept.is_file()) and not same:
        raise InputError(f"{out} has a training of another recipe or data, or no last.pt: name another folder, or move it away")
    if state and "model" not in state and kept.is_file():
        if sha256(kept) != provenance.load(kept.with_name("run.json")).get("checkpoint"):
            raise InputError(f"{kept} is damaged (run.json has another SHA-256): restore it, or delete it to train again")
        log.info("%s: trained already", recipe.data)
        return kept
    held_out = {*datasets.load(recipe.data, recipe.test).groups}  # by its list, which opens none of them
    if shared := sum(group in held_out for group in data.groups):
        said = "%s: %d of the %d images of part %r are in part %r too, which is held out: take them off the list"
        log.warning(said, recipe.data, shared, len(data), recipe.train, recipe.test)
    with alone(out):
        _train(recipe, data.with_classes(), identity, state, Path(out))
    return kept


def _train(recipe: Recipe, data: Segmentation, identity: dict[str, Any], state: dict[str, Any], out: Path) -> None:
    """Train on `data`, and go on from `state` if it holds a model."""
    started, workers, device = time.time(), processes(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if recipe.bfloat16 and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        log.warning("this CPU has no bfloat16 and emulates it many times slower than float32: use --set bfloat16=false")
    torch.manual_seed(recipe.seed)
    with workers.local_main_process_first():  # it may download the weights
        model = vgg16(outputs(data.labels, recipe.loss), recipe.head, recipe.weights, recipe.hidden, recipe.width)
    model.to(device, memory_format=torch.channels_last)
    inputs, trainable = prepare(model, data, recipe, device)
    optimizer, schedule = _optimizer(model, recipe, steps=-(-len(inputs) // recipe.batch_size))
    history: list[dict[str, float]] = []
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if "model" in state:
        if state["source"] != model.source:
            raise InputError(f"{out} began with {state['source']}, but the weights are now {model.source}: delete its last.pt")
        history = state["history"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    fitted = DistributedDataParallel(trainable) if workers.num_processes > 1 else trainable
    for epoch in range(len(history) + 1, recipe.epochs + 1):
        torch.manual_seed(recipe.seed * 1000 + epoch - 1 + (workers.process_index << 32))  # an interrupted run draws the same
        loss = _fit_epoch(fitted, inputs, optimizer, schedule, recipe, device)
        with torch.no_grad():  # no loss has used the last step's weights yet
            logits = trainable.eval()(inputs[0][0][None].to(device))
        if not bool(logits.isfinite().all()):
            raise DivergedError(f"after epoch {epoch} the logits are not finite at lr={recipe.lr}: {_REMEDY}")
        history.append({"epoch": epoch, "loss": loss})
        log.info("%s: epoch %d/%d, loss %.4f", recipe.data, epoch, recipe.epochs, loss)
        begun = {"identity": identity, "source": model.source, "history": history}
        _save(begun | {name: part.state_dict() for name, part in parts.items()}, out / "last.pt")
    about = {"classes": list(data.classes), "size": list(inputs.size), "source": model.source, "last": history[-1]}
    _save({"model": model.state_dict(), "record": identity | about}, out / "checkpoint.pt")
    held_out = datasets.load(recipe.data, recipe.test).with_classes()  # only now is it opened
    logits = predict(model.eval(), Inputs(held_out, inputs.size), recipe.batch_size, device)
    labels = label_scores(logits.double().log_softmax(dim=1) if recipe.loss == "softmax" else logits, held_out)
    log.info("%s: mAP %.4f on part %s", recipe.data, labels["AP"].mean(), recipe.test)
    if workers.is_main_process:
        provenance.save(pd.DataFrame(history), out / "train.csv")
        provenance.save(labels, out / "labels.csv")
        about |= {
            **identity, **provenance.environment(), "test": held_out.fingerprint, "checkpoint": sha256(out / "checkpoint.pt"),
            "images": {"train": len(data), "test": len(held_out)}, "processes": workers.num_processes,
            "seconds": round(time.time() - started, 1),
        }  # fmt: skip
        write(out / "run.json", json.dumps(about, indent=1, sort_keys=True) + "\n")
    _save({"identity": identity, "history": history}, out / "last.pt")  # no model in it: the run is finished


def _save(state: dict[str, Any], path: Path) -> None:
    """The main process alone writes."""
    if processes().is_main_process:
        with atomic(path) as temporary, temporary.open("wb") as file:  # torch would write a path into the file
            try:
                torch.save(state, file)
            except RuntimeError as error:  # it names a position in the file; its context has the cause
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _fit_epoch(
    model: nn.Module, data: Inputs, optimizer: torch.optim.Optimizer, schedule: Any, recipe: Recipe, device: torch.device
) -> float:
    """The mean loss. Raises DivergedError, naming the images of the batch, before a step with a loss that is not finite."""
    model.train()
    workers, batches, total, count = processes(), Shuffled(RandomSampler(data), recipe.batch_size, drop_last=False), 0.0, 0.0
    weights, loaded = rarity(data.labels).to(device) if recipe.balance else None, loader(data, device, batch_sampler=batches)
    shown = tqdm(loaded, recipe.data, disable=None if workers.is_main_process else True, leave=False)
    for number, (inputs, labels) in enumerate(shown):
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
            logits = model(inputs.to(device))
            loss = LOSSES[recipe.loss](logits, labels.to(device), weights)
        mine = loss.detach().double() * len(labels)
        summed, images = reduce(torch.stack([mine, torch.full_like(mine, len(labels))]), "sum").tolist()
        if not math.isfinite(summed):  # true in all processes at once
            names = ", ".join(data.data.entries[index].name for index in batches.whole[number])
            said = f"the loss of batch {number + 1} of {len(batches)} ({names}) is {summed / images} at lr={recipe.lr}"
            raise DivergedError(f"{said}: look at these images, or {_REMEDY}")
        optimizer.zero_grad()
        (loss * (workers.num_processes * len(labels) / images)).backward()  # so the mean over processes is the mean over images
        optimizer.step()
        schedule.step()
        total, count = total + summed, count + images
    return total / count


def _optimizer(model: VGG, recipe: Recipe, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW and a one-cycle schedule. The head learns at `lr`, the convolutions that are not frozen at `slow` times `lr`."""
    parts = ((model.classifier, recipe.lr), (model.features, recipe.lr * recipe.slow))
    groups = [{"params": [p for p in part.parameters() if p.requires_grad], "lr": rate} for part, rate in parts]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=recipe.weight_decay)
    rates, total = [group["lr"] for group in optimizer.param_groups], recipe.epochs * steps
    length, first = max(3, total), 25 if total > 1 else 1
    rising = max(0.2, 2 / length)  # the second step has the whole rate, however few there are; a single one has it too
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, length, pct_start=rising, div_factor=first)


@torch.no_grad()
def predict(
    model: Callable[[Tensor], Tensor], data: Inputs | Subset[tuple[Tensor, Tensor]], batch_size: int, device: torch.device
) -> Tensor:
    """Logits (N, C), on the CPU, of a data set of (input, label) pairs. Processes share the batches; each returns all."""
    with processes().split_between_processes(list(BatchSampler(range(len(data)), batch_size, False))) as batches:
        shown = tqdm(loader(data, device, batch_sampler=batches), disable=None, leave=False)
        logits = [model(inputs.to(device)).float().cpu() for inputs, _ in shown]
    return torch.cat(gather_object(logits))


def label_scores(scores: Tensor, data: Segmentation) -> pd.DataFrame:
    """class, images, and AP, the average precision, of each class that occurs. scores (N, C): any monotone score will do."""
    from sklearn.metrics import average_precision_score  # a third of the time that every command takes to begin

    rows = [
        (name, int(own.sum()), average_precision_score(own, score))
        for name, own, score in zip(data.classes, data.labels.T.numpy(), scores.T.numpy(), strict=False)  # "none" is no class
        if own.any()
    ]
    return pd.DataFrame(rows, columns=["class", "images", "AP"])


def prepare(model: VGG, data: Segmentation, recipe: Recipe, device: torch.device) -> tuple[Inputs, nn.Module]:
    """The inputs of the training, and the module that maps them to logits: `model`, or its part behind the frozen stages.

    The frozen stages' features of an image and its mirror images are computed by themselves and kept, so other seeds, folds and
    hold-outs use the same.
    """
    boundary = int(list(stages(model).values())[recipe.frozen - 1].split(".")[1]) + 1 if recipe.frozen else 0
    frozen, free = model.features[:boundary].requires_grad_(False), model.features[boundary:]
    plain = Inputs(data, recipe.size or data.size)
    if recipe.augment == "light":
        return Inputs(data, plain.size, augmentation(data)), model
    mirrors = 1 if recipe.augment == "none" else 2 if data.upright else 4
    flips = [(), (-1,), (-2,), (-2, -1)][:mirrors]
    key = f"{device} {flips} {[_digest(weights) for weights in frozen.parameters()]}"
    if key not in _KEPT:
        _KEPT.clear()
    kept, images = _KEPT.setdefault(key, {}), [_digest(plain[index][0]) for index in range(len(plain))]
    if missing := [index for index, image in enumerate(images) if image not in kept]:
        log.info("%s: %d frozen stages' features of %d images, computed once", recipe.data, recipe.frozen, len(missing))
        mirrored = lambda image: frozen(torch.cat([image.flip(dims) for dims in flips]))  # noqa: E731
        found = predict(mirrored, Subset(plain, missing), 1, device)
        kept |= zip([images[index] for index in missing], found.view(len(missing), mirrors, *found.shape[1:]), strict=True)
    trainable = nn.Sequential(free, model.avgpool, nn.Flatten(), model.classifier)
    return Inputs(data, plain.size, _drawn, [kept[image] for image in images]), trainable


def augmentation(data: Segmentation) -> v2.Transform:
    flips = [v2.RandomHorizontalFlip()] if data.upright else [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    return v2.Compose([*flips, v2.RandomAffine(0, scale=data.jitter, interpolation=v2.InterpolationMode.BILINEAR)])


def _drawn(mirrors: Tensor) -> Tensor:
    """One of (mirrors, ...), at random."""
    return mirrors[int(torch.randint(len(mirrors), ())) if len(mirrors) > 1 else 0]


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()

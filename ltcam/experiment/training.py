"""Train a classifier on image-level labels only (Sec. 3.1): `ltcam train --data NAME`.

The settings the paper omits are the fields of `Recipe`. Training reads from a mask only which classes it holds. The last epoch
is kept, so nothing is chosen on the held-out part: its files are opened when the last epoch is saved, to score its labels. The
recipes were fixed on a hold-out of the training part (`tuning`); every try is in `tries.csv` beside the results.

`accelerate launch -m ltcam train` and torchrun split each batch over several processes. `batch_size` stays that of the whole
batch, the batches and their order stay those of one process, and gradients are averaged over the whole batch. Each process
draws flips, scales and dropout of its own, so the weights are not, bit for bit, those of another number of processes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
import yaml
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, Dataset, Subset, TensorDataset
from torchvision.models import VGG
from torchvision.transforms import v2
from tqdm import tqdm

from ltcam import data as datasets
from ltcam.data import DataError, Segmentation
from ltcam.engine.stages import stages
from ltcam.engine.tricks import one_of, whole
from ltcam.errors import DivergedError, InputError
from ltcam.experiment import provenance
from ltcam.experiment.locks import alone
from ltcam.experiment.parallel import gather_object, loader, processes, reduce
from ltcam.experiment.vgg16 import Head, vgg16
from ltcam.experiment.weights import load
from ltcam.files import atomic, sha256

log = logging.getLogger(__name__)
_REMEDY = "train with a smaller lr; what earlier epochs left is kept"
_KEPT: dict[str, dict[str, Tensor]] = {}  # features of images, by what computes them
Augment = Literal["none", "flips", "light", "strong"]


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run. Equal recipes on equal data, weights and machines give equal checkpoints."""

    data: str = "demo"
    train: str = "train"  # the part trained on
    test: str = "test"  # the held-out part
    head: Head = "fc"
    hidden: int | None = None
    width: int = 1
    weights: str | None = "imagenet"
    size: tuple[int, int] | None = None  # (height, width) of the input; None: the data set's own
    frozen: int = 2  # stages kept as they are
    epochs: int = 4
    batch_size: int = 16
    lr: float = 3e-4  # of the head
    slow: float = 0.1  # times that: the rate of the convolutions
    weight_decay: float = 1e-4
    # "flips", "light" (and scales) or "strong" (and turns, shifts, contrast, brightness). Without scales the features of the
    # frozen stages are computed once, for each image and its mirror images: training is several times faster.
    augment: Augment = "light"
    balance: bool = False  # weigh the images of a class by how rare they are
    bfloat16: bool = False  # autocast in training: about twice as fast on CPUs that compute in it, 18 times slower on others
    seed: int = 0

    def __post_init__(self) -> None:
        whole("epochs", self.epochs)
        whole("batch_size", self.batch_size)
        one_of("augment", self.augment, Augment)
        if not 0 <= self.frozen <= 5:
            raise InputError(f"frozen={self.frozen}: VGG16 has 5 stages, expected 0 to 5")
        if self.size is not None:
            object.__setattr__(self, "size", tuple(self.size))


@dataclass(frozen=True)
class Trained:
    """A trained model with what is needed to use it."""

    model: VGG
    recipe: Recipe
    classes: tuple[str, ...]
    size: tuple[int, int]
    record: dict[str, Any]  # its last epoch, the source of the weights, the fingerprint of the data trained on
    sha256: str = ""  # of the checkpoint

    def load(self, part: str) -> Segmentation:
        """Part `part` of its data set. Raises DataError where the files trained on have changed since then."""
        data, before = datasets.load(self.recipe.data, part), self.record.get("fingerprint")
        if before and part == self.recipe.train and data.fingerprint != before:
            raise DataError(
                f"{data.title}, part {part}: its files have changed since the training (fingerprint {before[:12]}... then, "
                f"{data.fingerprint[:12]}... now): bring the former back, or train again; ltcam data check finds damage"
            )
        return data

    def about(self, data: Segmentation) -> dict[str, Any]:
        """Provenance of what is measured with this model on `data`."""
        images = {"part": len(data), "scored": len(data.scored)}
        about = {"data": data.title, "part": data.part, "fingerprint": data.fingerprint}
        measured = {**about, "images": images, "tf32": False}
        return {**measured, "recipe": asdict(self.recipe), "source": self.record["source"], "trained": self.record["last"]}


def train(recipe: Recipe, out: Path, device: str | torch.device | None = None) -> Path:
    """Train by `recipe`, or go on where an interrupted run of the same recipe stopped; returns the checkpoint's path.

    Writes `checkpoint.pt` (the last epoch), `train.csv` (loss per epoch) and `labels.csv` (AP per class on the held-out part)
    into `out`. A finished run of the same recipe on the same data is returned as it is; a run of another recipe is replaced.
    Of several processes all read `out`, the main one writes there, and all return; their number may change on the way.
    Raises UnavailableError where another run writes into `out`.
    """
    with alone(out, "write"):
        return _train(recipe, out, device)


def _train(recipe: Recipe, out: Path, device: str | torch.device | None) -> Path:
    started, workers = time.time(), processes()
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    fit = datasets.load(recipe.data, recipe.train)
    kept, last = out / "checkpoint.pt", out / "last.pt"
    identity = {"recipe": asdict(recipe), "fingerprint": fit.fingerprint}
    state = load(last) if last.is_file() else {}
    workers.wait_for_everyone()  # all have read what is there before one changes it
    if state and _of(state["identity"]) != (recipe, fit.fingerprint):
        state = {}
        if workers.is_main_process:
            log.warning("%s: another recipe or other data made the run in %s; training anew", recipe.data, out)
            kept.unlink(missing_ok=True)
            last.unlink()
    if state and "model" not in state and kept.is_file():
        log.info("%s: trained already", recipe.data)
        return kept

    if recipe.bfloat16 and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        log.warning("this CPU does not compute in bfloat16 and is many times slower at imitating it: --set bfloat16=false")
    torch.manual_seed(recipe.seed)
    with workers.local_main_process_first():  # which may download them
        model = vgg16(len(fit.classes), recipe.head, recipe.weights, recipe.hidden, recipe.width)
    model.to(device, memory_format=torch.channels_last)
    size = recipe.size or fit.size
    train_set, trainable = _prepare(model, fit, size, recipe, device)
    optimizer, schedule = _optimizer(model, recipe, steps=-(-len(fit) // recipe.batch_size))
    if "model" in state:
        if state["source"] != asdict(model.source):
            raise InputError(f"{last} began with {state['source']['name']}, now the weights are {model.source.name}: delete it")
        for part, name in ((model, "model"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(state[name])
    history: list[dict[str, float]] = state.get("history", []) if "model" in state else []
    record = {**identity, "classes": list(fit.classes), "size": list(size), "source": asdict(model.source)}

    fitted = DistributedDataParallel(trainable) if workers.num_processes > 1 else trainable
    names, weights = [entry.name for entry in fit.entries], _rarity(fit.labels) if recipe.balance else None
    for epoch in range(len(history), recipe.epochs):
        torch.manual_seed(recipe.seed * 1000 + epoch)  # an interrupted run draws what an undisturbed one draws
        loss = _fit_epoch(fitted, train_set, optimizer, schedule, recipe, device, names, weights)
        with torch.no_grad():  # the last step's weights have given no loss yet
            logits = trainable.eval()(train_set[0][0][None].to(device))
        if not bool(logits.isfinite().all()):
            raise DivergedError(f"after epoch {epoch + 1} the logits are no numbers at lr={recipe.lr}: {_REMEDY}")
        history.append({"epoch": epoch + 1, "loss": loss})
        log.info("%s: epoch %d/%d, loss %.4f", recipe.data, epoch + 1, recipe.epochs, loss)
        if workers.is_main_process:
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            _save({"identity": identity, "source": asdict(model.source), "history": history, **states}, last)

    record["last"] = history[-1]
    if workers.is_main_process:
        _save({"model": model.state_dict(), "record": record}, kept)
    # Only now is the held-out part opened.
    held_out = datasets.load(recipe.data, recipe.test)
    scores = predict(model, _Labelled(held_out, size), recipe.batch_size, device)
    if workers.is_main_process:
        labels = _label_table(label_scores(scores, held_out.labels), held_out)
        log.info("%s: mAP %.4f on part %s", recipe.data, labels["AP"].mean(), recipe.test)
        made = {"images": {"train": len(fit), "test": len(held_out)}, "device": str(device), "processes": workers.num_processes}
        about = {**record, "test": held_out.fingerprint, "checkpoint": sha256(kept), **made}
        provenance.save(pd.DataFrame(history), out / "train.csv", started, **about)
        provenance.save(labels, out / "labels.csv", started, **about)
        _save({"identity": identity, "history": history}, last)  # without the model: finished
    workers.wait_for_everyone()
    return kept


def settings(texts: Sequence[str]) -> dict[str, Any]:
    """Fields of a recipe from "NAME=VALUE", the values as in a profile's file. Raises InputError for another name."""
    found = dict(text.partition("=")[::2] for text in texts)
    known = [field.name for field in fields(Recipe)]
    if unknown := [name for name in found if name not in known]:
        raise InputError(f"{unknown[0]!r} is no setting of a recipe: expected NAME=VALUE with a name of {', '.join(known)}")
    return {name: yaml.safe_load(value) for name, value in found.items()}


def tuning(recipe: Recipe) -> Recipe:
    """`recipe` on nine tenths of its training part, its labels scored on the rest: what recipes are chosen by."""
    return replace(recipe, train=f"{recipe.train}/fit", test=f"{recipe.train}/tune")


def tried(folder: Path, out: Path) -> pd.DataFrame:
    """`out/tries.csv`: a row a finished run of a recipe of `tuning` below `folder`, its settings and what it scored."""
    started, rows = time.time(), []
    for path in sorted(folder.rglob("labels.csv")):
        record = json.loads(path.with_suffix(".json").read_text())
        if record["recipe"]["test"].endswith("/tune"):
            scores = {"mAP": pd.read_csv(path)["AP"].mean(), "loss": record["last"]["loss"], "minutes": record["seconds"] / 60}
            rows.append({"try": path.parent.name, **record["recipe"], **scores})
    table = pd.DataFrame(rows)
    provenance.save(table, out / "tries.csv", started)
    return table


def fit(model: nn.Module, recipe: Recipe) -> pd.Series[float]:
    """Train any classifier, on its device and in memory, by `recipe` (but its model); AP of each class on the held-out part.

    Several processes fit a copy each, on whole batches.
    """
    device = next(model.parameters()).device
    data, held_out = (datasets.load(recipe.data, part) for part in (recipe.train, recipe.test))
    size = recipe.size or data.size
    torch.manual_seed(recipe.seed)
    optimizer, schedule = _optimizer(model, recipe, steps=-(-len(data) // recipe.batch_size))
    for _ in range(recipe.epochs):
        inputs = _Labelled(data, size, _augment(data, recipe.augment))
        _fit_epoch(model, inputs, optimizer, schedule, recipe, device, [entry.name for entry in data.entries])
    return label_scores(predict(model, _Labelled(held_out, size), recipe.batch_size, device), held_out.labels)


def load_checkpoint(path: Path, device: str | torch.device | None = None) -> Trained:
    """The model that `train` left at `path`, in eval mode. Raises MissingError or InputError for another file."""
    state = load(path)
    if not {"model", "record"} <= state.keys():
        raise InputError(f"{path} is no checkpoint of ltcam train: expected its checkpoint.pt")
    try:
        record = state["record"]
        recipe = Recipe(**record["recipe"])
        hidden = None if recipe.head == "gap" else state["model"]["classifier.0.bias"].numel()
        model = vgg16(len(record["classes"]), recipe.head, None, hidden, recipe.width)
        model.load_state_dict(state["model"])
        size = (record["size"][0], record["size"][1])
        classes = tuple(record["classes"])
    except (AttributeError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} is no checkpoint of ltcam train ({error}): expected its checkpoint.pt") from error
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    return Trained(model, recipe, classes, size, record, sha256(path))


def label_scores(scores: Tensor, labels: Tensor) -> pd.Series[float]:
    """Average precision per class that occurs; scores and labels (N, C), any monotone score."""
    present = torch.nonzero(labels.any(dim=0)).flatten().tolist()
    return pd.Series({c: average_precision_score(labels[:, c].numpy(), scores[:, c].numpy()) for c in present})


@torch.no_grad()
def predict(model: nn.Module, data: Inputs, batch_size: int, device: torch.device) -> Tensor:
    """Logits (N, C) on the CPU of a data set of (input, label) pairs; several processes share the batches, each returns all."""
    model.eval()
    with processes().split_between_processes(list(BatchSampler(range(len(data)), batch_size, False))) as batches:
        shown = tqdm(loader(data, device, batch_sampler=batches), disable=None, leave=False)
        logits = [model(inputs.to(device)).float().cpu() for inputs, _ in shown]
    return torch.cat(gather_object(logits))


def _fit_epoch(
    model: nn.Module,
    data: Inputs,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    recipe: Recipe,
    device: torch.device,
    names: Sequence[str],
    rarity: Tensor | None = None,
) -> float:
    """The mean loss. Raises DivergedError, with the names of the batch, before a step by one that is no number."""
    model.train()
    total = count = 0.0
    workers, drawn = processes(), torch.get_rng_state()
    batches = _batches(model, data, recipe.batch_size, device)
    shown = tqdm(batches, recipe.data, disable=None if workers.is_main_process else True, leave=False)
    for number, (inputs, labels) in enumerate(shown):
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
            logits, weights = model(inputs.to(device)), None if rarity is None else rarity.to(device)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(device), pos_weight=weights)
        mine = loss.detach().double() * len(labels)
        summed, images = reduce(torch.stack([mine, torch.full_like(mine, len(labels))]), "sum").tolist()
        if not math.isfinite(summed):  # in all processes at once
            torch.set_rng_state(drawn)
            batch = ", ".join(names[i] for i in _order(len(data), recipe.batch_size)[number])
            found = f"the loss of batch {number + 1} of {len(batches)} ({batch}) is {summed / images} at lr={recipe.lr}"
            raise DivergedError(f"{found}: look at these images, or {_REMEDY}")
        optimizer.zero_grad()
        (loss * (workers.num_processes * len(labels) / images)).backward()  # the mean over processes is that over images
        optimizer.step()
        schedule.step()
        total, count = total + summed, count + images
    return total / count


def _prepare(
    model: VGG, fit: Segmentation, size: tuple[int, int], recipe: Recipe, device: torch.device
) -> tuple[Inputs, nn.Module]:
    """What is trained on, and the module that maps it to logits: all of `model`, or what is behind its frozen stages."""
    boundary = int(list(stages(model).values())[recipe.frozen - 1].split(".")[1]) + 1 if recipe.frozen else 0
    frozen, free = model.features[:boundary].requires_grad_(False), model.features[boundary:]
    if recipe.augment not in ("none", "flips"):
        return _Labelled(fit, size, _augment(fit, recipe.augment)), model
    features = _computed(frozen, fit, size, recipe, device)
    trainable = nn.Sequential(free, model.avgpool, nn.Flatten(), model.classifier)
    return _Features(features, fit.labels), trainable


def _computed(
    frozen: nn.Module, fit: Segmentation, size: tuple[int, int], recipe: Recipe, device: torch.device
) -> list[Tensor]:
    """Of every image (mirrors, ...): what the frozen stages make of it and its mirror images. Each image is computed by itself
    and kept, so other seeds, folds and hold-outs find the same."""
    flips = [(), (-1,)] if fit.upright else [(), (-1,), (-2,), (-2, -1)]
    mirrored = _Labelled(fit, size, _Mirrors(flips[:1] if recipe.augment == "none" else flips))
    key = json.dumps([str(device), *map(_digest, frozen.parameters())])
    if key not in _KEPT:
        _KEPT.clear()
    kept = _KEPT.setdefault(key, {})
    images = [_digest(mirrored[i][0]) for i in range(len(mirrored))]
    missing = list({image: i for i, image in enumerate(images) if image not in kept}.values())
    if missing:
        log.info("%s: %d frozen stages' features of %d images, computed once", recipe.data, recipe.frozen, len(missing))
        each = nn.Sequential(nn.Flatten(0, 1), frozen)  # a batch of one image is one of its mirror images
        found = predict(each, Subset(mirrored, missing), 1, device)
        found = found.view(len(missing), -1, *found.shape[1:])
        kept.update(zip((images[i] for i in missing), found, strict=True))
    return [kept[image] for image in images]


class _Mirrors:
    """(3, H, W) -> (mirrors, 3, H, W)."""

    def __init__(self, flips: Sequence[tuple[int, ...]]) -> None:
        self.flips = flips

    def __call__(self, image: Tensor) -> Tensor:
        return torch.stack([image.flip(dims) for dims in self.flips])


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def _rarity(labels: Tensor) -> Tensor:
    """(C,): how many images lack each class for one that has it, so that both weigh alike; 1 where none has it."""
    present = labels.sum(dim=0)
    return torch.where(present > 0, (len(labels) - present) / present.clamp(min=1), 1.0)


def _optimizer(model: nn.Module, recipe: Recipe, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW and a one-cycle schedule: the head at `lr`, what is left free of the convolutions at `slow` times that."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    slow = [p for name, p in named if name.startswith("features.")]
    fast = [p for name, p in named if not name.startswith("features.")]
    groups = [(p, rate) for p, rate in ((fast, recipe.lr), (slow, recipe.lr * recipe.slow)) if p]
    optimizer = torch.optim.AdamW([{"params": p} for p, _ in groups], weight_decay=recipe.weight_decay)
    rates = [rate for _, rate in groups]
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, recipe.epochs * steps, pct_start=0.2)


def _augment(data: Segmentation, augment: Augment = "light") -> v2.Transform:
    flips = [v2.RandomHorizontalFlip()] if data.upright else [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    turn, shift, light = (10, (0.05, 0.05), [v2.Lambda(_lit)]) if augment == "strong" else (0, None, [])
    moved = v2.RandomAffine(turn, shift, data.jitter, interpolation=v2.InterpolationMode.BILINEAR)
    return v2.Compose([*flips, *light, moved])


def _lit(image: Tensor) -> Tensor:
    """Another contrast and brightness; 1 is a standard deviation of ImageNet's pixels."""
    contrast, brightness = torch.empty(2).uniform_(-0.3, 0.3)
    lit: Tensor = image * (1 + contrast) + brightness
    return lit


class _Labelled(Dataset[tuple[Tensor, Tensor]]):
    """(network input, multi-hot label) of a data set, optionally augmented."""

    def __init__(self, data: Segmentation, size: tuple[int, int], augment: Callable[[Tensor], Tensor] | None = None) -> None:
        self.data, self.size, self.augment = data, size, augment
        self.labels = data.labels  # read here once, not in every loader process

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = datasets.preprocess(self.data.image(index), self.size)
        return (self.augment(image) if self.augment else image), self.labels[index]


class _Features(Dataset[tuple[Tensor, Tensor]]):
    """(features of an image or of one of its mirror images, drawn at random, its label)."""

    def __init__(self, features: Sequence[Tensor], labels: Tensor) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        mirrors = self.features[index]
        return mirrors[int(torch.randint(len(mirrors), ())) if len(mirrors) > 1 else 0], self.labels[index]


Inputs = _Labelled | _Features | Subset[tuple[Tensor, Tensor]]


def _batches(model: nn.Module, data: Inputs, batch_size: int, device: torch.device) -> DataLoader[Any]:
    """Shuffled batches, or of each the share of this process where it trains `model` with others."""
    if not isinstance(model, DistributedDataParallel):
        return loader(data, device, batch_size=batch_size, shuffle=True)
    process, number = processes().process_index, processes().num_processes
    batches = _order(len(data), batch_size)
    torch.manual_seed(torch.initial_seed() + (process << 32))
    # A last batch of fewer images than there are processes is repeated: each has to take the step.
    shares = [batch[process::number] or [batch[process % len(batch)]] for batch in batches]
    return loader(data, device, batch_sampler=shares)


def _order(images: int, batch_size: int) -> list[list[int]]:
    """The numbers of the images in each batch, drawn as one process draws them."""
    return [batch.tolist() for (batch,) in DataLoader(TensorDataset(torch.arange(images)), batch_size, shuffle=True)]


def _save(state: dict[str, Any], path: Path) -> None:
    with atomic(path) as temporary, temporary.open("wb") as file:  # given a path, torch would write that into the file
        try:
            torch.save(state, file)
        except RuntimeError as error:  # about a position in the file: why is in what came before
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _label_table(scores: pd.Series[float], held_out: Segmentation) -> pd.DataFrame:
    counts = held_out.labels.sum(dim=0).int().tolist()
    rows = [{"class": held_out.classes[int(c)], "images": counts[int(c)], "AP": ap} for c, ap in scores.items()]  # type: ignore[call-overload]
    return pd.DataFrame(rows, columns=["class", "images", "AP"])


def _of(identity: dict[str, Any]) -> tuple[Recipe, str] | None:
    """The recipe and the data of a run; None where another version of this code began it."""
    try:
        return Recipe(**identity["recipe"]), identity["fingerprint"]
    except (KeyError, TypeError):
        return None

"""Train a classifier on image-level labels only (Sec. 3.1): `ltcam train --data NAME`.

The fields of `Recipe` are the settings that the paper omits. Training reads from a mask only which classes it holds. The last
epoch is kept, so nothing is chosen on the held-out part. Its files are opened after the last epoch is saved, to score its
labels. The recipes were fixed on a hold-out of the training part (`tuning`). `tries.csv` beside the results has every try.

`accelerate launch -m ltcam train` and torchrun split each batch over several processes. `batch_size` is that of the whole
batch. The batches and their order stay those of one process, and gradients are averaged over the whole batch. Each process
draws its own flips, scales and dropout, so the weights depend on the number of processes.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from ltcam import data as datasets
from ltcam.errors import DivergedError, InputError
from ltcam.experiment import provenance
from ltcam.experiment.features import Inputs, Labelled, augmentation, predict, prepare
from ltcam.experiment.locks import alone
from ltcam.experiment.parallel import loader, processes, reduce
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.trained import save
from ltcam.experiment.vgg16 import vgg16
from ltcam.experiment.weights import load
from ltcam.files import AnyPath, sha256, write, writing

log = logging.getLogger(__name__)
_REMEDY = "train with a smaller lr; earlier epochs are kept"


def train(recipe: Recipe, out: AnyPath) -> Path:
    """Train by `recipe`, or go on where an interrupted run of the same recipe stopped. Returns the path of the checkpoint.

    Writes `checkpoint.pt` (the last epoch), `train.csv` (loss per epoch), `labels.csv` (AP per class on the held-out part) and
    `run.json` (what made them) into `out`. A finished run of the same recipe on the same data is returned as it is. A run of
    another recipe is replaced. With several processes, all read `out` and only the main one writes there. Their number may
    change between calls. Raises UnavailableError if another run writes into `out`.
    """
    with alone(out):
        return _train(recipe, Path(out))


def _train(recipe: Recipe, out: Path) -> Path:
    started, workers = time.time(), processes()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fit_data = datasets.load(recipe.data, recipe.train)
    kept, last = out / "checkpoint.pt", out / "last.pt"
    identity = {"recipe": asdict(recipe), "fingerprint": fit_data.fingerprint}
    state = load(last) if last.is_file() else {}
    workers.wait_for_everyone()  # nobody changes the files before all have read them
    before = state.get("identity", {})
    if state and before | {"recipe": asdict(Recipe()) | before.get("recipe", {})} != identity:  # it may be older than a field
        state = {}
        if workers.is_main_process:
            log.warning("%s: the run in %s used another recipe or other data: training from the start", recipe.data, out)
            kept.unlink(missing_ok=True)
            last.unlink()
    begun = state if "model" in state else {}
    if state and not begun and kept.is_file():
        log.info("%s: trained already", recipe.data)
        return kept
    if workers.is_main_process:
        with writing(out):  # a closed folder is named now, not after the first epoch
            out.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=out).close()
    if recipe.bfloat16 and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        log.warning("this CPU has no bfloat16 and emulates it many times slower than float32: use --set bfloat16=false")
    torch.manual_seed(recipe.seed)
    with workers.local_main_process_first():  # it may download the weights
        model = vgg16(len(fit_data.classes), recipe.head, recipe.weights, recipe.hidden, recipe.width)
    model.to(device, memory_format=torch.channels_last)
    size = recipe.size or fit_data.size
    train_set, trainable = prepare(model, fit_data, size, recipe, device)
    optimizer, schedule = _optimizer(model, recipe, steps=-(-len(fit_data) // recipe.batch_size))
    source, parts = asdict(model.source), {"model": model, "optimizer": optimizer, "schedule": schedule}
    if begun and begun["source"] != source:
        raise InputError(f"{last} began with {begun['source']['name']}, but the weights are now {source['name']}: delete it")
    for name, part in parts.items() if begun else ():
        part.load_state_dict(begun[name])
    history: list[dict[str, float]] = begun.get("history", [])
    fitted = DistributedDataParallel(trainable) if workers.num_processes > 1 else trainable
    names, weights = [entry.name for entry in fit_data.entries], _rarity(fit_data.labels) if recipe.balance else None
    for epoch in range(len(history), recipe.epochs):
        torch.manual_seed(recipe.seed * 1000 + epoch)  # an interrupted run draws the same numbers
        loss = _fit_epoch(fitted, train_set, optimizer, schedule, recipe, device, names, weights)
        with torch.no_grad():  # no loss has used the last step's weights yet
            logits = trainable.eval()(train_set[0][0][None].to(device))
        if not bool(logits.isfinite().all()):
            raise DivergedError(f"after epoch {epoch + 1} the logits are not finite at lr={recipe.lr}: {_REMEDY}")
        history.append({"epoch": epoch + 1, "loss": loss})
        log.info("%s: epoch %d/%d, loss %.4f", recipe.data, epoch + 1, recipe.epochs, loss)
        if workers.is_main_process:
            states = {name: part.state_dict() for name, part in parts.items()}
            save({"identity": identity, "source": source, "history": history, **states}, last)
    record = {**identity, "classes": list(fit_data.classes), "size": list(size), "source": source, "last": history[-1]}
    if workers.is_main_process:
        save({"model": model.state_dict(), "record": record}, kept)
    held_out = datasets.load(recipe.data, recipe.test)  # only now is it opened
    precision = label_scores(predict(model, Labelled(held_out, size), recipe.batch_size, device), held_out.labels)
    if workers.is_main_process:
        images = held_out.labels.sum(dim=0).int().tolist()
        rows = [(held_out.classes[c], images[c], ap) for c, ap in zip(precision.index.tolist(), precision, strict=True)]
        labels = pd.DataFrame(rows, columns=["class", "images", "AP"])
        log.info("%s: mAP %.4f on part %s", recipe.data, labels["AP"].mean(), recipe.test)
        provenance.save(pd.DataFrame(history), out / "train.csv")
        provenance.save(labels, out / "labels.csv")
        about = {
            **record, **provenance.environment(), "test": held_out.fingerprint, "checkpoint": sha256(kept),
            "images": {"train": len(fit_data), "test": len(held_out)}, "processes": workers.num_processes,
            "seconds": round(time.time() - started, 1),
        }  # fmt: skip
        write(out / "run.json", json.dumps(about, indent=1, sort_keys=True) + "\n")
        save({"identity": identity, "history": history}, last)  # no model in it: the run is finished
    workers.wait_for_everyone()
    return kept


def fit(model: nn.Module, recipe: Recipe) -> pd.Series[float]:
    """Train any classifier by `recipe`, on its device and in memory. Returns the AP of each class on the held-out part.

    The recipe's model is ignored. Each of several processes trains its own copy, on whole batches.
    """
    device = next(model.parameters()).device
    data, held_out = (datasets.load(recipe.data, part) for part in (recipe.train, recipe.test))
    size = recipe.size or data.size
    torch.manual_seed(recipe.seed)
    optimizer, schedule = _optimizer(model, recipe, steps=-(-len(data) // recipe.batch_size))
    for _ in range(recipe.epochs):
        inputs = Labelled(data, size, augmentation(data))
        _fit_epoch(model, inputs, optimizer, schedule, recipe, device, [entry.name for entry in data.entries])
    return label_scores(predict(model, Labelled(held_out, size), recipe.batch_size, device), held_out.labels)


def label_scores(scores: Tensor, labels: Tensor) -> pd.Series[float]:
    """Average precision of each class that occurs. scores and labels (N, C); any monotone score will do."""
    from sklearn.metrics import average_precision_score  # a third of the time that every command takes to begin

    present = torch.nonzero(labels.any(dim=0)).flatten().tolist()
    return pd.Series({c: average_precision_score(labels[:, c].numpy(), scores[:, c].numpy()) for c in present})


def _fit_epoch(
    model: nn.Module, data: Inputs, optimizer: torch.optim.Optimizer, schedule: Any, recipe: Recipe, device: torch.device,
    names: Sequence[str], rarity: Tensor | None = None,
) -> float:  # fmt: skip
    """The mean loss. Raises DivergedError, naming the images of the batch, before a step with a loss that is not finite."""
    model.train()
    total = count = 0.0
    workers, drawn, batches = processes(), torch.get_rng_state(), _batches(model, data, recipe.batch_size, device)
    weights = None if rarity is None else rarity.to(device)
    shown = tqdm(batches, recipe.data, disable=None if workers.is_main_process else True, leave=False)
    for number, (inputs, labels) in enumerate(shown, 1):
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
            logits = model(inputs.to(device))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(device), pos_weight=weights)
        mine = loss.detach().double() * len(labels)
        summed, images = reduce(torch.stack([mine, torch.full_like(mine, len(labels))]), "sum").tolist()
        if not math.isfinite(summed):  # true in all processes at once
            torch.set_rng_state(drawn)
            batch = ", ".join(names[i] for i in _order(len(data), recipe.batch_size)[number - 1])
            lost = f"the loss of batch {number} of {len(batches)} ({batch}) is {summed / images} at lr={recipe.lr}"
            raise DivergedError(f"{lost}: look at these images, or {_REMEDY}")
        optimizer.zero_grad()
        (loss * (workers.num_processes * len(labels) / images)).backward()  # so the mean over processes is the mean over images
        optimizer.step()
        schedule.step()
        total, count = total + summed, count + images
    return total / count


def _rarity(labels: Tensor) -> Tensor:
    """(C,): how many images lack a class for each image that has it, so that both weigh alike. 1 if no image has it."""
    present = labels.sum(dim=0)
    return torch.where(present > 0, (len(labels) - present) / present.clamp(min=1), 1.0)


def _optimizer(model: nn.Module, recipe: Recipe, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW and a one-cycle schedule. The head learns at `lr`, the convolutions that are not frozen at `slow` times `lr`."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    slow = [p for name, p in named if name.startswith("features.")]
    fast = [p for name, p in named if not name.startswith("features.")]
    groups = [(p, rate) for p, rate in ((fast, recipe.lr), (slow, recipe.lr * recipe.slow)) if p]
    optimizer = torch.optim.AdamW([{"params": p} for p, _ in groups], weight_decay=recipe.weight_decay)
    rates = [rate for _, rate in groups]
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, recipe.epochs * steps, pct_start=0.2)


def _batches(model: nn.Module, data: Inputs, batch_size: int, device: torch.device) -> DataLoader[Any]:
    """Shuffled batches, or this process's share of each batch if several processes train `model`."""
    if not isinstance(model, DistributedDataParallel):
        return loader(data, device, batch_size=batch_size, shuffle=True)
    process, number = processes().process_index, processes().num_processes
    batches = _order(len(data), batch_size)
    torch.manual_seed(torch.initial_seed() + (process << 32))
    # If the last batch has fewer images than there are processes, some repeat an image: each process has to take the step.
    shares = [batch[process::number] or [batch[process % len(batch)]] for batch in batches]
    return loader(data, device, batch_sampler=shares)


def _order(images: int, batch_size: int) -> list[list[int]]:
    """The indices of the images in each batch, drawn as a single process draws them."""
    return [batch.tolist() for (batch,) in DataLoader(TensorDataset(torch.arange(images)), batch_size, shuffle=True)]

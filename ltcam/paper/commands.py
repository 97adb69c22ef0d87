"""What `ltcam train` and `ltcam evaluate` do. Each yields the lines to print."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from ltcam import data as datasets
from ltcam import files
from ltcam.errors import InputError
from ltcam.experiment import evaluation, metrics, provenance, recipe, seed_scores, seeds, training
from ltcam.experiment.checkpoints import load_checkpoint
from ltcam.experiment.configs import Config, Protocol
from ltcam.experiment.locks import alone
from ltcam.experiment.parallel import processes
from ltcam.files import AnyPath
from ltcam.paper import beyond, reproduce
from ltcam.paper import tables as paper

DEFAULT = "gradcam:S1-S5:20"  # of export-seeds and eval-seeds


def train(
    data: str, profile: str, seed: int | None, fold: int | None, settings: Sequence[str], tune: bool, out: AnyPath | None
) -> Iterator[str]:
    """Run the profile's trainings on `data`, one by one."""
    runs = [run for name in ([profile] if profile else ["demo", "real", "paper"]) for run in reproduce.profile(name)]
    run = next((run for run in runs if run["data"] == data), None)
    if run is None:
        raise InputError(f"no recipe for data set {data!r}: expected one of {sorted({run['data'] for run in runs})}")
    run["recipe"] |= recipe.settings(settings)
    run["seeds"] = run.get("seeds", []) if seed is None else [seed]
    chosen = [t for t in reproduce.trainings(run) if fold is None or t.fold == f"fold{fold}"][: 1 if tune else None]
    if not chosen or (out and len(chosen) > 1):
        raise InputError(
            f"--seed {seed} --fold {fold} --out {out} name {len(chosen)} trainings of {data}: "
            "expected at least one, and exactly one with --out"
        )
    home, first = files.runs(run["profile"], data), processes().is_main_process
    for each in chosen:
        folder = Path(out) if out else home / (f"tries/{', '.join(settings) or 'profile'}" if tune else each.name)
        with alone(folder, "run"):
            path = training.train(recipe.tuning(each.recipe) if tune else each.recipe, folder)
        if first:
            yield str(path)
    if tune and first:
        tried = recipe.tried(home / "tries", files.results(run["profile"], data))[["try", "mAP", "loss"]]
        yield tried.to_string(index=False)


def evaluate(
    checkpoint: AnyPath, part: str, numbers: Sequence[int], texts: Sequence[str], out: AnyPath | None, batch_size: int,
    bfloat16: bool, scales: Sequence[float] | None = None, flip: bool = False,
) -> Iterator[str]:  # fmt: skip
    """Measure tables of the paper and single configurations. If none are named, measure all tables."""
    started = time.time()
    asked = [Config.parse(text) for text in texts]
    numbers = numbers or ([] if asked else list(paper.TABLES))
    if unknown := set(numbers) - set(paper.TABLES):
        raise InputError(f"table {min(unknown)} is not in the paper: expected one of {list(paper.TABLES)}")
    trained = load_checkpoint(checkpoint)
    protocol = Protocol(batch_size, bfloat16=bfloat16, scales=tuple(scales or [1.0]), flip=flip)
    folder, part = Path(out or Path(checkpoint).parent / part), part or trained.recipe.test
    data = trained.load(part)
    wanted: dict[str, tuple[list[Config], Callable[[pd.DataFrame], pd.DataFrame]]] = {
        f"table{n}": (list(paper.TABLES[n].values()), partial(paper.table, n)) for n in numbers
    }
    wanted |= {"scores": (asked, metrics.scores)} if asked else {}
    with alone(folder, "run"):
        evaluation.evaluate(trained, part, [c for configs, _ in wanted.values() for c in configs], folder, protocol)
        for name, (configs, cut) in wanted.items():
            scores = cut(evaluation.evaluate(trained, part, configs, folder, protocol))
            if processes().is_main_process:
                provenance.save(scores, folder / f"{name}.csv", started, **trained.about(data))
                yield f"{name} on {data.title}, part {part}\n{scores.round(2).to_string(index=False)}\n"


def export_seeds(
    checkpoint: AnyPath, part: str, text: str, out: AnyPath, batch_size: int, scales: Sequence[float] | None, flip: bool,
    best: bool,
) -> str:  # fmt: skip
    """Write the seeds of one configuration, or of the best for the protocol of weakly-supervised segmentation."""
    if best and (text != DEFAULT or scales or flip):
        raise InputError(f"--best has its own configuration and views: expected no --config {text}, --scale or --flip with it")
    way = beyond.Way(Config.parse(text), Protocol(scales=tuple(scales or [1.0]), flip=flip))
    config, views = beyond.BEST["argmax"] if best else way
    trained = load_checkpoint(checkpoint)
    protocol = replace(beyond.fitted(views, trained.size), batch_size=batch_size)
    images = seeds.export(trained, part or trained.recipe.train, config, out, protocol)
    return f"{out}: {images} images"


def eval_seeds(
    checkpoint: AnyPath | None, folder: AnyPath | None, data: str, part: str, choose_on: str, texts: Sequence[str],
    batch_size: int, scales: Sequence[float] | None, flip: bool, out: AnyPath | None,
) -> Iterator[str]:  # fmt: skip
    """Score the seeds of a checkpoint's configurations, or those in a folder."""
    if (checkpoint is None) == (folder is None) or bool(folder) != bool(data) or (folder and (texts or scales or flip)):
        raise InputError("expected --checkpoint PATH, or --folder PATH with --data NAME and without --config, --scale, --flip")
    started, protocol = time.time(), Protocol(batch_size, scales=tuple(scales or [1.0]), flip=flip)
    if checkpoint:
        trained = load_checkpoint(checkpoint)
        asked = {text: Config.parse(text) for text in texts or [DEFAULT]}
        part = part or trained.recipe.train

        def tally(name: str) -> dict[str, seed_scores.Tally]:
            found = seed_scores.of_checkpoint(trained, name, list(asked.values()), protocol)
            return {text: found[config] for text, config in asked.items()}

        about = trained.about(trained.load(part))
    else:
        part, place = part or "train", Path(str(folder))
        about = {"data": datasets.load(data, part).title, "fingerprint": datasets.load(data, part).fingerprint}

        def tally(name: str) -> dict[str, seed_scores.Tally]:
            return {str(place): seed_scores.of_folder(place, datasets.load(data, name))}

    scored = tally(part)
    scores = seed_scores.table(scored, tally(choose_on) if choose_on else None)
    if out:
        about |= {"part": part, "choose_on": choose_on, **protocol.views}
        provenance.save(scores, Path(out) / "seeds.csv", started, **about)
        provenance.save(seed_scores.curves(scored), Path(out) / "curves.csv", started, **about)
    said = f"; t is the best on {choose_on}" if choose_on else ""
    yield f"{about['data']}, part {part}: best_t is the best on {part} itself{said}\n{scores.round(2).to_string(index=False)}"

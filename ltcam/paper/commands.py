"""What `ltcam train`, `evaluate`, `export-seeds` and `eval-seeds` do. Each yields the lines to print."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ltcam import data as datasets
from ltcam import files
from ltcam.engine.config import Config
from ltcam.errors import InputError
from ltcam.experiment import counting, provenance, recipe, seeds, training
from ltcam.experiment.parallel import alone, processes
from ltcam.experiment.protocol import Protocol, Way
from ltcam.experiment.scores import scores
from ltcam.experiment.store import Store
from ltcam.experiment.trained import load_checkpoint
from ltcam.files import AnyPath
from ltcam.paper import beyond, tables

DEFAULT = "gradcam:S1-S5:20"  # of export-seeds and eval-seeds


def train(
    data: str, profile: str, seed: int | None, fold: int | None, settings: Sequence[str], tune: bool, out: AnyPath | None
) -> Iterator[str]:
    """Run the profile's trainings on `data`, one by one."""
    sets = {name: recipe.profile(name) for name in ([profile] if profile else ["demo", "real", "paper"])}
    home = next((name for name, own in sets.items() if data in own), None)
    if home is None:
        raise InputError(
            f"no recipe for data set {data!r}: expected one of {sorted({key for own in sets.values() for key in own})}"
        )
    run = sets[home][data]
    fields = run["recipe"] | recipe.settings(settings)
    plan = recipe.planned(data, fields, run.get("seeds", ()) if seed is None else [seed], run.get("folds", 0))
    chosen = [t for t in plan if fold is None or t.fold == f"fold{fold}"][: 1 if tune else None]
    if not chosen or (out and len(chosen) > 1):
        raise InputError(
            f"--seed {seed} --fold {fold} --out {out} name {len(chosen)} trainings of {data}: "
            "expected at least one, and exactly one with --out"
        )
    runs, first = files.runs(home, data), processes().is_main_process
    for each in chosen:
        folder = Path(out) if out else runs / (f"tries/{', '.join(settings) or 'profile'}" if tune else each.name)
        with alone(folder, ".run.lock"):
            path = training.train(recipe.tuning(each.recipe) if tune else each.recipe, folder)
        if first:
            yield str(path)
    if tune and first:
        yield _tried(runs / "tries", files.results(home, data) / "tries.csv")


def _tried(folder: Path, target: Path) -> str:
    """Write a row with settings and scores for each finished try."""
    rows = []
    for path in sorted(folder.rglob("run.json")):
        run, labels = json.loads(path.read_text()), pd.read_csv(path.with_name("labels.csv"))
        about = {"mAP": labels["AP"].mean(), "loss": run["last"]["loss"], "minutes": run["seconds"] / 60}
        rows.append({"try": path.parent.name, **run["recipe"], **about})
    table = pd.DataFrame(rows)
    provenance.save(table, target)
    return table[["try", "mAP", "loss"]].to_string(index=False)


def evaluate(
    checkpoint: AnyPath, part: str, numbers: Sequence[int], texts: Sequence[str], out: AnyPath | None, protocol: Protocol
) -> Iterator[str]:
    """Measure tables of the paper and single configurations. If none are named, measure all tables."""
    asked = [Config.parse(text) for text in texts]
    numbers = numbers or ([] if asked else list(tables.ROWS))
    if unknown := set(numbers) - set(tables.ROWS):
        raise InputError(f"table {min(unknown)} is not in the paper: expected one of {list(tables.ROWS)}")
    trained = load_checkpoint(checkpoint)
    part = part or trained.recipe.test
    folder, data = Path(out or Path(checkpoint).parent / "evaluated"), trained.load(part)
    wanted = {f"table{n}": list(tables.ROWS[n].values()) for n in numbers} | ({"scores": asked} if asked else {})
    ways = [Way(config) for config in dict.fromkeys(config for configs in wanted.values() for config in configs)]
    with alone(folder, ".run.lock"):
        store = Store(folder)
        named = ",".join(filter(None, [f"counts.{part.replace('/', '-')}", protocol.name]))
        number = store.open(counting.identity(trained, data, protocol), f"{named}.{trained.sha256[:12]}.csv.gz")
        if missing := [way for way in ways if way not in store.done(number)]:
            counting.measure(store, number, trained, data, missing, protocol)
        for name, configs in wanted.items():
            table = scores(store.read(number, configs))
            if processes().is_main_process:
                provenance.save(table, folder / f"{named.replace('counts', name)}.csv")
                yield f"{name} on {data.title}, part {part}\n{table.round(2).to_string(index=False)}\n"


def export_seeds(checkpoint: AnyPath, part: str, text: str, out: AnyPath, protocol: Protocol, best: bool) -> str:
    """Write the seeds of one configuration, or of the best for the protocol of weakly-supervised segmentation."""
    if best and (text != DEFAULT or protocol.several):
        raise InputError(f"--best has its own configuration and views: expected no --config {text}, --scale or --flip with it")
    trained, config = load_checkpoint(checkpoint), Config.parse(text)
    if best:
        config, views = beyond.BEST["argmax"]
        protocol = replace(protocol, size=beyond.enlarged(views, trained.size))
    images = seeds.export(trained, part or trained.recipe.train, config, out, protocol)
    return f"{out}: {images} images"


def eval_seeds(
    checkpoint: AnyPath | None, folder: AnyPath | None, data: str, part: str, choose_on: str, texts: Sequence[str],
    protocol: Protocol, out: AnyPath | None,
) -> Iterator[str]:  # fmt: skip
    """Score the seeds of a checkpoint's configurations, or those in a folder."""
    if (checkpoint is None) == (folder is None) or bool(folder) != bool(data) or (folder and (texts or protocol.several)):
        raise InputError("expected --checkpoint PATH, or --folder PATH with --data NAME and without --config, --scale, --flip")
    trained = load_checkpoint(checkpoint) if checkpoint else None
    asked = {text: Config.parse(text) for text in texts or [DEFAULT]}
    part = part or (trained.recipe.train if trained else "train")

    def tally(name: str) -> dict[str, seeds.Tally]:
        if trained is None:
            return {str(folder): seeds.of_folder(str(folder), datasets.load(data, name))}
        found = seeds.of_checkpoint(trained, name, list(asked.values()), protocol)
        return {text: found[config] for text, config in asked.items()}

    scored = tally(part)
    table = seeds.table(scored, tally(choose_on) if choose_on else None)
    if out:
        provenance.save(table, Path(out) / "seeds.csv")
        provenance.save(seeds.curves(scored), Path(out) / "curves.csv")
    title = (trained.load(part) if trained else datasets.load(data, part)).title
    said = f"; t is the best on {choose_on}" if choose_on else ""
    yield f"{title}, part {part}: best_t is the best on {part} itself{said}\n{table.round(2).to_string(index=False)}"

"""The command line. A command imports what takes seconds only when it runs."""

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import ltcam
from ltcam import Config, files
from ltcam.errors import InputError, companion, one_line

try:
    companion("typer")
    import typer
    from typer.core import TyperGroup

    from ltcam.experiment.protocol import Protocol, Way
    from ltcam.show import datasets
except ImportError as error:
    sys.exit(f"ltcam: {error}")


class _Interruptible(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            typer.echo("ltcam: interrupted; run the same command again to go on from here", err=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    help=ltcam.__doc__, cls=_Interruptible, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(datasets.app, name="data")

CONFIG = "METHOD[:LAYERS[:DELTA]][,NAME=VALUE...], e.g. gradcam:S1-S5:20 or layercam:S1-S5:0,normalize=tanh,refine=S3-S5"
SEEDS = "gradcam:S1-S5:20"  # the configuration of seeds where none is named
Checkpoint = Annotated[Path, typer.Option(help="checkpoint.pt of a training run")]
Configs = Annotated[list[str] | None, typer.Option(help=CONFIG)]
Flip = Annotated[bool, typer.Option("--flip", help="average over mirrored inputs too")]
Part = Annotated[str, typer.Option(help="part of the data set")]
Subset = Annotated[bool, typer.Option("--subset", help="run even if files of a data set are missing")]
Scales = Annotated[list[float] | None, typer.Option("--scale", help="average over scales of the input: --scale 1 --scale 1.5")]
Tiles = Annotated[int | None, typer.Option(help="explain larger images in square crops with this side, in pixels")]


@app.command()
def explain(
    image: Annotated[Path, typer.Argument(help="any image file")],
    model: Annotated[str, typer.Option(help="name of a torchvision model; ignored with a checkpoint of ltcam train")] = "vgg16",
    checkpoint: Annotated[Path | None, typer.Option(help="of ltcam train, or a state dict; default: torchvision's")] = None,
    target: Annotated[str, typer.Option("--class", help="name or index; default: the class with the largest logit")] = "",
    config: Annotated[str, typer.Option(help=CONFIG)] = "gradcam:all",
    per_stage: Annotated[bool, typer.Option(help="draw each stage's own map too")] = False,
    tiles: Tiles = None,
    out: Annotated[Path, typer.Option(help="the picture: .png, .jpg, .pdf or .svg")] = Path("heat.png"),
) -> None:
    """Draw the heatmap of one class over one image."""
    from matplotlib import rc_context

    from ltcam.engine.views import cost
    from ltcam.show import heatmaps, picture

    if out.suffix not in (".png", ".jpg", ".pdf", ".svg"):
        raise InputError(f"--out {out} is not a picture: expected a name that ends in .png, .jpg, .pdf or .svg")
    network = picture.classifier(model, checkpoint)
    pixels, chosen, heats = picture.maps(image, network, target, Config.parse(config), per_stage, tiles)
    figure = heatmaps.grid([pixels], [heats], [chosen], side=3.2, pixels=max(pixels.shape[1:]))
    dates = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # so that the same picture has the same bytes
    with files.atomic(out, new=True) as temporary, rc_context({"svg.hashsalt": "ltcam"}):
        figure.savefig(temporary, dpi=150, metadata=dates.get(out.suffix))
    said = tiles and "; {} crops, {:.3g} times the pixels of one view".format(*cost(pixels[0].shape, tiles, network[2]))
    typer.echo(f"{out}: {chosen}{said or ''}")


@app.command()
def train(
    data: Annotated[str, typer.Option(help="a data set of `ltcam data list`")],
    profile: Annotated[str, typer.Option(help="profile with the recipe; default: one that has DATA")] = "",
    seed: Annotated[int | None, typer.Option(help="train only this seed; default: all of the profile")] = None,
    softmax: Annotated[bool, typer.Option("--softmax", help="train in the setting of the paper, a softmax")] = False,
    setting: Annotated[list[str] | None, typer.Option("--set", help="change the recipe: NAME=VALUE, e.g. epochs=2")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="train on 9/10 of the training part, score on the rest")] = False,
    out: Annotated[Path | None, typer.Option(help="folder of the run; default: in LTCAM_RUNS or the results")] = None,
    subset: Subset = False,
) -> None:
    """Train classifiers on image labels, each in its own folder. An interrupted run goes on where it stopped."""
    import pandas as pd

    from ltcam.data import load
    from ltcam.data.sets import SETS
    from ltcam.experiment import parallel, provenance, recipe, training
    from ltcam.experiment.study import Study

    homes = [profile] if profile else [name for name in ("demo", "real", "paper") if data in recipe.profile(name)]
    if not homes:
        raise InputError(f"no profile has data set {data!r}: expected one of {', '.join(SETS)}")
    study = Study(homes[0], data, seeds=[] if seed is None else [seed], loss="softmax" if softmax else "sigmoid")
    study.settings["recipe"] |= recipe.settings(setting or [])
    chosen = [*study.planned.values()][: 1 if tune else None]
    load(data, chosen[0].recipe.train).check(subset)
    if setting and not out and not tune:
        raise InputError(f"--set {setting[0]} changes the profile's recipe: pass --out FOLDER too, to keep its checkpoint")
    tried = [*(setting or []), *([] if seed is None else [f"seed={seed}"])]
    for each in chosen:
        own = out / each.name if out and len(chosen) > 1 else out
        folder = own or study.runs / (f"tries/{', '.join(tried or ['profile'])}" if tune else each.name)
        with parallel.alone(folder, ".run.lock"):
            path = training.train(recipe.tuning(each.recipe) if tune else each.recipe, folder)
        if parallel.processes().is_main_process:
            typer.echo(path)
    if tune and parallel.processes().is_main_process:
        path = study.out / "tries.csv"
        rows = provenance.load(path).to_dict("records") if path.is_file() else []  # their trainings may be gone
        for record in sorted((study.runs / "tries").rglob("run.json")):
            run, labels = provenance.load(record), provenance.load(record.with_name("labels.csv"))
            about = {"mAP": labels["AP"].mean(), "loss": run["last"]["loss"], "minutes": run["seconds"] / 60}
            rows.append({"try": record.parent.name, **run["recipe"], **about})
        provenance.save(table := pd.DataFrame(rows).drop_duplicates("try", keep="last"), path)
        typer.echo(table[["try", "mAP", "loss"]].to_string(index=False))


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    part: Part = "",
    config: Configs = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results; default: `evaluated` beside the checkpoint")] = None,
    batch_size: int = 8,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="run forward and backward in bfloat16, which is faster")] = False,
    scales: Scales = None,
    flip: Flip = False,
    tiles: Tiles = None,
) -> None:
    """Measure heatmaps, Otsu masks and scores on the checkpoint's data set. The default is its held-out part.

    Without --config it measures the rows of all tables of the paper.
    """
    from ltcam.experiment import counting, parallel, provenance, scores, store, trained
    from ltcam.paper import tables

    protocol = Protocol(batch_size, bfloat16=bfloat16, scales=tuple(scales or [1.0]), flip=flip, tiles=tiles)
    of_tables = {f"table{number}": [*rows.values()] for number, rows in tables.ROWS.items()}
    wanted = {"scores": [Config.parse(text) for text in config]} if config else of_tables
    model = trained.load_checkpoint(checkpoint)
    folder, part = out or checkpoint.parent / "evaluated", part or model.recipe.test
    data = model.load(part)
    named = ",".join(filter(None, [part.replace("/", "-"), protocol.name]))
    with parallel.alone(folder, ".run.lock"):
        kept = store.Store(folder)
        number = kept.open(counting.identity(model, data, protocol), f"counts.{named}.{model.sha256[:12]}.csv.gz")
        ways = {Way(config): None for configs in wanted.values() for config in configs}
        if missing := [way for way in ways if way not in kept.done(number)]:
            counting.measure(kept, number, model, data, missing, protocol)
        every = sorted((way.config for way in kept.done(number)), key=str)  # rows of earlier calls stay
        for name, configs in wanted.items() if parallel.processes().is_main_process else ():
            file = kept.about(number)[1].replace("counts", name, 1).removesuffix(".gz")
            provenance.save(scores.scores(kept.read(number, every if config else configs)), folder / file)
            shown = scores.scores(kept.read(number, configs)).round(2).to_string(index=False)
            typer.echo(f"{name} on {data.title}, part {part}\n{shown}\n")


@app.command()
def export_seeds(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="folder of the seeds: <image name>.npy, and a seeds.json that describes them")],
    part: Part = "",
    config: Annotated[str, typer.Option(help=CONFIG)] = SEEDS,
    batch_size: int = 8,
    scales: Scales = None,
    flip: Flip = False,
    tiles: Tiles = None,
    best: Annotated[bool, typer.Option("--best", help="use the best configuration and views of notebook 12")] = False,
) -> None:
    """Write seeds in IRN's format. The default part is the training part. An interrupted run goes on where it stopped."""
    from ltcam.experiment import seeds, trained
    from ltcam.paper import beyond

    protocol, chosen = Protocol(batch_size, scales=tuple(scales or [1.0]), flip=flip, tiles=tiles), Config.parse(config)
    if best and (config != SEEDS or protocol.several):
        do = f"expected no --config {config}, --scale, --flip or --tiles with it"
        raise InputError(f"--best has its own configuration and views: {do}")
    model = trained.load_checkpoint(checkpoint)
    if best:
        chosen, views = beyond.BEST["argmax"]
        protocol = replace(protocol, size=beyond.enlarged(views, model.size))
    typer.echo(f"{out}: {seeds.export(model, part or model.recipe.train, chosen, out, protocol)} images")


@app.command()
def eval_seeds(
    checkpoint: Annotated[Path | None, typer.Option(help="score the seeds of this checkpoint.pt of a training run")] = None,
    folder: Annotated[Path | None, typer.Option(help="or score a folder of seeds: <image name>.npy, in IRN's format")] = None,
    data: Annotated[str, typer.Option(help="the data set of FOLDER, e.g. voc2012")] = "",
    part: Part = "",
    choose_on: Annotated[str, typer.Option(help="also use the threshold that is best on this part, e.g. train for val")] = "",
    config: Configs = None,
    batch_size: int = 8,
    scales: Scales = None,
    flip: Flip = False,
    tiles: Tiles = None,
    out: Annotated[Path | None, typer.Option(help="folder for seeds.csv and curves.csv, the score at every threshold")] = None,
) -> None:
    """Score seeds by mIoU with background at each threshold, as papers do. The default part is the training part."""
    from ltcam.data import load
    from ltcam.experiment import provenance, seeds, trained

    protocol = Protocol(batch_size, scales=tuple(scales or [1.0]), flip=flip, tiles=tiles)
    asked = {text: Config.parse(text) for text in config or [SEEDS]}
    if (checkpoint is None) == (folder is None) or bool(folder) != bool(data) or (folder and (config or protocol.several)):
        alone = "--folder PATH with --data NAME and without --config, --scale, --flip, --tiles"
        raise InputError(f"expected --checkpoint PATH, or {alone}")
    model = trained.load_checkpoint(checkpoint) if checkpoint else None
    part = part or (model.recipe.train if model else "train")

    def tally(name: str) -> dict[str, seeds.Tally]:
        if model is None:
            return {str(folder): seeds.of_folder(str(folder), load(data, name))}
        found = seeds.of_checkpoint(model, name, list(asked.values()), protocol)
        return {text: found[config] for text, config in asked.items()}

    if out:
        views = [protocol.scales, flip, *filter(None, [tiles])]
        provenance.only(out / "seeds.csv", [model.sha256 if model else str(folder), data, [*asked], part, choose_on, *views])
    table = seeds.table(scored := tally(part), tally(choose_on) if choose_on else None)
    if out:
        provenance.save(seeds.curves(scored), out / "curves.csv")
        provenance.save(table, out / "seeds.csv")
    title, said = (model.load(part) if model else load(data, part)).title, f"; t is the best on {choose_on}" * bool(choose_on)
    typer.echo(f"{title}, part {part}: best_t is the best on {part} itself{said}\n{table.round(2).to_string(index=False)}")


@app.command()
def reproduce(
    profile: Annotated[str, typer.Option(help="demo, real or paper")] = "demo",
    only: Annotated[str, typer.Option(help="run the notebooks whose names start with this, e.g. 04")] = "",
    data: Annotated[str, typer.Option(help="run only this data set of the profile")] = "",
    start: Annotated[str, typer.Option("--from", help="begin at the notebook whose name starts with this, e.g. 03")] = "",
    force: Annotated[bool, typer.Option("--force", help="also run notebooks whose inputs have not changed")] = False,
    seed: Annotated[list[int] | None, typer.Option(help="use only this seed, may be repeated; default: all")] = None,
    subset: Subset = False,
) -> None:
    """Run the notebooks, which write all tables and figures. Notebooks that are up to date are skipped."""
    from ltcam.paper.reproduce import reproduce as run

    run(profile, only, data, start=start, force=force, seeds=seed or [], subset=subset)


def main() -> None:
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING  # of several processes
    logging.basicConfig(level=level, format="%(message)s")
    with one_line("ltcam"):
        app()


if __name__ == "__main__":
    main()

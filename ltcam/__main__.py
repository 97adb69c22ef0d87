"""The command line.

`ltcam explain | train | evaluate | export-seeds | eval-seeds | search | reproduce | tables | report | readme | data`
"""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from ltcam.errors import LtcamError, companion, of_loader

try:
    companion("typer")
    import typer
    from typer.core import TyperGroup

    from ltcam.show.data_app import data_app
except ImportError as error:
    sys.exit(f"ltcam: {error}")


class _Interruptible(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            typer.echo("ltcam: interrupted; run the same command again to go on from here", err=True)
            raise typer.Exit(130) from error


app = typer.Typer(help=__doc__, cls=_Interruptible, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(data_app, name="data")

CONFIG = "METHOD[:LAYERS[:DELTA]][,NAME=VALUE...], e.g. gradcam:S1-S5:20 or layercam:S1-S5:0,normalize=tanh,refine=S3-S5"
Scales = Annotated[
    list[float] | None, typer.Option("--scale", help="average maps over these scales of the input: --scale 1 --scale 1.5")
]
Flip = Annotated[bool, typer.Option("--flip", help="average over mirrored inputs too")]
Profile = Annotated[str, typer.Option(help="demo, real or paper")]
Checkpoint = Annotated[Path, typer.Option(help="checkpoint.pt of a training run")]


@app.callback()
def logs(
    quiet: Annotated[bool, typer.Option("--quiet", help="print only warnings, errors and results")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="print everything, with the time and the module")] = False,
) -> None:
    """How much is printed on stderr. Of several processes, only the first prints more than warnings."""
    if quiet and verbose:
        raise typer.BadParameter("expected --quiet or --verbose, not both")
    first = os.environ.get("RANK", "0") == "0"
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s" if verbose else "%(message)s"
    logging.basicConfig(level=logging.INFO if first and not quiet else logging.WARNING, format=line)
    if verbose and first:
        logging.getLogger("ltcam").setLevel(logging.DEBUG)  # not all loggers: matplotlib alone prints hundreds of lines


@app.command()
def explain(
    image: Annotated[Path, typer.Argument(help="any image file")],
    model: Annotated[str, typer.Option(help="name of a torchvision model; ignored with a checkpoint of ltcam train")] = "vgg16",
    checkpoint: Annotated[
        Path | None, typer.Option(help="from ltcam train, or a state dict; default: torchvision's weights")
    ] = None,
    target: Annotated[str, typer.Option("--class", help="name or index; default: the class with the largest logit")] = "",
    method: Annotated[str, typer.Option(help="gradcam, layercam, fullgrad ...")] = "gradcam",
    layers: Annotated[str, typer.Option(help="S5, S3-S5 ...; default: all stages")] = "",
    delta: Annotated[float | None, typer.Option(help="percentile to truncate at, in [0, 100)")] = None,
    per_stage: Annotated[bool, typer.Option(help="draw each stage's own map too")] = False,
    refine: Annotated[
        str, typer.Option(help="spread the fused map along features: LAYERS[:SIZE[:POWER[:STEPS[:THEN]]]], e.g. S3-S5:28:8")
    ] = "",
    out: Annotated[Path, typer.Option(help="the picture: .png, .jpg, .pdf or .svg")] = Path("heat.png"),
) -> None:
    """Draw the heatmap of one class over one image."""
    from ltcam.show import picture

    chosen = picture.draw(image, out, model, checkpoint, target, method, layers or None, delta, per_stage, refine)
    typer.echo(f"{out}: {chosen}")


@app.command()
def train(
    data: Annotated[str, typer.Option(help="demo, voc2012, magnetic_tile, ksdd or ksdd2")],
    profile: Annotated[str, typer.Option(help="take its recipe; default: the first profile that has DATA")] = "",
    seed: Annotated[int | None, typer.Option(help="train this seed only, not all of the profile's")] = None,
    fold: Annotated[int | None, typer.Option(help="train this fold only, if the profile has folds")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", help="set NAME=VALUE in the recipe, e.g. epochs=2")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="train on 9/10 of the training part, score on the rest")] = False,
    out: Annotated[Path | None, typer.Option(help="folder of the run; default: in LTCAM_RUNS or the results")] = None,
) -> None:
    """Train classifiers on image-level labels. An interrupted run goes on where it stopped."""
    from ltcam.paper import commands

    for line in commands.train(data, profile, seed, fold, setting or [], tune, out):
        typer.echo(line)


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    part: Annotated[str, typer.Option(help="part of the data set; default: the run's held-out part")] = "",
    table: Annotated[
        list[int] | None, typer.Option(help="table of the paper to measure; default: all, unless --config is given")
    ] = None,
    config: Annotated[list[str] | None, typer.Option(help=CONFIG)] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the results; default: that of the checkpoint, or its PART")
    ] = None,
    batch_size: int = 8,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="run forward and backward in bfloat16, which is faster")] = False,
    scales: Scales = None,
    flip: Flip = False,
) -> None:
    """Measure heatmaps, Otsu masks and scores on the data set that a checkpoint was trained on."""
    from ltcam.paper import commands

    for line in commands.evaluate(checkpoint, part, table or [], config or [], out, batch_size, bfloat16, scales, flip):
        typer.echo(line)


@app.command()
def export_seeds(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="folder of the seeds: <image name>.npy, and a seeds.json that describes them")],
    part: Annotated[str, typer.Option(help="part of the data set; default: the part trained on")] = "",
    config: Annotated[str, typer.Option(help=CONFIG)] = "gradcam:S1-S5:20",
    batch_size: int = 8,
    scales: Scales = None,
    flip: Flip = False,
    best: Annotated[bool, typer.Option("--best", help="the best that was found, in its own views (notebook 09)")] = False,
) -> None:
    """Write seeds for weakly-supervised segmentation, in IRN's format. An interrupted run goes on where it stopped."""
    from ltcam.paper import commands

    typer.echo(commands.export_seeds(checkpoint, part, config, out, batch_size, scales, flip, best))


@app.command()
def eval_seeds(
    checkpoint: Annotated[Path | None, typer.Option(help="checkpoint.pt of a training run, whose seeds are scored")] = None,
    folder: Annotated[Path | None, typer.Option(help="or a folder of seeds: <image name>.npy, in IRN's format")] = None,
    data: Annotated[str, typer.Option(help="the data set of FOLDER, e.g. voc2012")] = "",
    part: Annotated[str, typer.Option(help="part that is scored; default: the part trained on")] = "",
    choose_on: Annotated[str, typer.Option(help="another part, whose best threshold is used too, e.g. train for val")] = "",
    config: Annotated[list[str] | None, typer.Option(help=CONFIG)] = None,
    batch_size: int = 8,
    scales: Scales = None,
    flip: Flip = False,
    out: Annotated[Path | None, typer.Option(help="folder for seeds.csv and curves.csv, the score at every threshold")] = None,
) -> None:
    """Score seeds as weakly-supervised segmentation does: mIoU with background, by threshold, and average precision."""
    from ltcam.paper import commands

    for line in commands.eval_seeds(checkpoint, folder, data, part, choose_on, config or [], batch_size, scales, flip, out):
        typer.echo(line)


@app.command()
def search(
    checkpoint: Annotated[list[Path], typer.Option(help="checkpoint.pt of a training; again for one with another head")],
    out: Annotated[Path, typer.Option(help="folder for search.csv, a row for every try")],
) -> None:
    """Search for the best maps on the training part (beyond the paper). It takes hours, and goes on where it stopped."""
    from ltcam.experiment.checkpoints import load_checkpoint
    from ltcam.paper import search as beyond

    table = beyond.search([load_checkpoint(path) for path in checkpoint], out)
    for score, (head, protocol, config) in beyond.chosen(table).items():
        typer.echo(f"best by {score}, of {len(table)} tries: head {head}, {protocol}, {config}")


@app.command()
def reproduce(
    profile: Profile = "demo",
    only: Annotated[str, typer.Option(help="run the notebooks whose names start with this, e.g. 04")] = "",
    data: Annotated[str, typer.Option(help="run only this data set of the profile")] = "",
    start: Annotated[str, typer.Option("--from", help="begin at the notebook whose name starts with this, e.g. 03")] = "",
    force: Annotated[bool, typer.Option("--force", help="also run notebooks whose inputs have not changed")] = False,
    seed: Annotated[list[int] | None, typer.Option(help="use this training only, not all of the profile's")] = None,
) -> None:
    """Run the notebooks. They leave every table, figure and executed notebook. What is up to date is skipped."""
    from ltcam.paper.reproduce import reproduce as run

    run(profile, only, data, start=start, force=force, seeds=seed or [])


@app.command()
def tables(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="with results, e.g. results/paper/voc2012")],
    check: Annotated[bool, typer.Option("--check", help="write nothing; exit with 1 if a file is stale")] = False,
) -> None:
    """Make a folder's tables, claims and intervals again from its counts. This needs no data and no checkpoint."""
    from ltcam.paper import derived

    stale = False
    for folder in folders:
        for file, differs in derived.rebuild(folder, check).items():
            said = f"stale, run ltcam tables {folder}" if check else "written"
            typer.echo(f"{folder / file}: {said if differs else 'unchanged'}")
            stale |= differs
    raise typer.Exit(int(check and stale))


@app.command()
def report(
    profile: Profile = "demo",
    out: Annotated[Path, typer.Option(help="folder of the site; the new site replaces an older one at the end")] = Path("site"),
) -> None:
    """Write a static site of the results: tables, claims, figures, notebooks, and heatmaps with sliders."""
    from ltcam.show.report import report as run

    typer.echo(run(profile, out))


@app.command()
def readme(
    check: Annotated[bool, typer.Option("--check", help="write nothing; exit with 1 if a section is stale")] = False,
) -> None:
    """Update the tables of README.md and docs/ from committed results."""
    from ltcam.show import readme as page

    changed = page.stale() if check else page.write()
    for name, section in changed:
        typer.echo(f"{name}, section {section}: {'stale, run ltcam readme' if check else 'written anew'}")
    raise typer.Exit(int(check and bool(changed)))


def main() -> None:
    try:
        app()
    except LtcamError as error:  # a bug, or an error from torch, keeps its traceback
        sys.exit(f"ltcam: {error}")
    except RuntimeError as error:
        if not of_loader(error):
            raise
        sys.exit(f"ltcam: {error}, as happens when memory runs out: run again; finished work is kept")


if __name__ == "__main__":
    main()

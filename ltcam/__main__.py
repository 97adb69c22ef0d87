"""The command line.

`ltcam explain | train | evaluate | export-seeds | eval-seeds | reproduce | data`
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
data_app = typer.Typer(help="The data sets: list, fetch, verify and show them.", no_args_is_help=True)
app.add_typer(data_app, name="data")

CONFIG = "METHOD[:LAYERS[:DELTA]][,NAME=VALUE...], e.g. gradcam:S1-S5:20 or layercam:S1-S5:0,normalize=tanh,refine=S3-S5"
Scales = Annotated[
    list[float] | None, typer.Option("--scale", help="average maps over these scales of the input: --scale 1 --scale 1.5")
]
Flip = Annotated[bool, typer.Option("--flip", help="average over mirrored inputs too")]
Checkpoint = Annotated[Path, typer.Option(help="checkpoint.pt of a training run")]
Name = Annotated[str, typer.Argument(help="demo, voc2012, magnetic_tile, ksdd or ksdd2")]


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
    config: Annotated[str, typer.Option(help=CONFIG)] = "gradcam:all",
    per_stage: Annotated[bool, typer.Option(help="draw each stage's own map too")] = False,
    out: Annotated[Path, typer.Option(help="the picture: .png, .jpg, .pdf or .svg")] = Path("heat.png"),
) -> None:
    """Draw the heatmap of one class over one image."""
    from ltcam.engine.config import Config
    from ltcam.show import picture

    chosen = picture.draw(image, out, model, checkpoint, target, Config.parse(config), per_stage)
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
    out: Annotated[Path | None, typer.Option(help="folder of the results; default: `evaluated` beside the checkpoint")] = None,
    batch_size: int = 8,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="run forward and backward in bfloat16, which is faster")] = False,
    scales: Scales = None,
    flip: Flip = False,
) -> None:
    """Measure heatmaps, Otsu masks and scores on the data set that a checkpoint was trained on."""
    from ltcam.experiment.protocol import Protocol
    from ltcam.paper import commands

    protocol = Protocol(batch_size, bfloat16=bfloat16, scales=tuple(scales or [1.0]), flip=flip)
    for line in commands.evaluate(checkpoint, part, table or [], config or [], out, protocol):
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
    from ltcam.experiment.protocol import Protocol
    from ltcam.paper import commands

    protocol = Protocol(batch_size, scales=tuple(scales or [1.0]), flip=flip)
    typer.echo(commands.export_seeds(checkpoint, part, config, out, protocol, best))


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
    """Score seeds as weakly-supervised segmentation does: mIoU with background, by threshold."""
    from ltcam.experiment.protocol import Protocol
    from ltcam.paper import commands

    protocol = Protocol(batch_size, scales=tuple(scales or [1.0]), flip=flip)
    for line in commands.eval_seeds(checkpoint, folder, data, part, choose_on, config or [], protocol, out):
        typer.echo(line)


@app.command()
def reproduce(
    profile: Annotated[str, typer.Option(help="demo, real or paper")] = "demo",
    only: Annotated[str, typer.Option(help="run the notebooks whose names start with this, e.g. 04")] = "",
    data: Annotated[str, typer.Option(help="run only this data set of the profile")] = "",
    start: Annotated[str, typer.Option("--from", help="begin at the notebook whose name starts with this, e.g. 03")] = "",
    force: Annotated[bool, typer.Option("--force", help="also run notebooks whose inputs have not changed")] = False,
    seed: Annotated[list[int] | None, typer.Option(help="use this training only, not all of the profile's")] = None,
) -> None:
    """Run the notebooks. They leave every table, figure and executed notebook. What is up to date is skipped."""
    from ltcam.paper.reproduce import reproduce as run

    run(profile, only, data, start=start, force=force, seeds=seed or [])


@data_app.command("list")
def data_list() -> None:
    """List every data set: whether it is there and where, the size of its download, its terms."""
    from ltcam.data import get

    typer.echo(get.listing().to_string(index=False))


@data_app.command("get")
def data_get(name: Annotated[str, typer.Argument(help="voc2012, magnetic_tile, ksdd or ksdd2")]) -> None:
    """Fetch a data set, verify and unpack it."""
    from ltcam.data import get

    typer.echo(get.get(name))


@data_app.command("check")
def data_check(name: Name) -> None:
    """Verify every file of a data set. The exit code is 1 if one is missing or damaged."""
    from ltcam.data import check

    report = check.check(name)
    lines = [f"note: {note}" for note in report.notes] + [f"finding: {finding}" for finding in report.findings]
    typer.echo("\n".join([report.title, report.table.to_string(index=False), *lines, f"{len(report.findings)} findings"]))
    raise typer.Exit(int(bool(report.findings)))


@data_app.command("show")
def data_show(
    name: Name,
    part: Annotated[str, typer.Option(help="part or list of the data set; for ksdd: all, train0, test0, ...")] = "train",
    out: Annotated[Path, typer.Option(help="draw samples with their masks as OUT.png, and OUT.pdf if small")] = Path("samples"),
) -> None:
    """Show how many images have each class and how much of them it covers, and draw samples."""
    from ltcam import data as datasets
    from ltcam.paper import areas
    from ltcam.show import figures, heatmaps

    data = datasets.load(name, part)
    typer.echo(f"{data.title}, part {part}\n{areas.summary(data).round(2).to_string(index=False)}")
    heatmaps.save(figures.samples(data), out)
    typer.echo(f"{out}.png")


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

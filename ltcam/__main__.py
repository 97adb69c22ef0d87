"""The command line: `ltcam explain | train | evaluate | export-seeds | reproduce | tables | report | readme | data`."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from ltcam.errors import LtcamError, of_loader

try:
    import typer
    from typer.core import TyperGroup
except ImportError:
    sys.exit("ltcam: typer is not installed, only the engine's packages are: pip install 'ltcam[companion]'")


class _Interruptible(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            typer.echo("ltcam: interrupted; the same command goes on where it stopped", err=True)
            raise typer.Exit(130) from error


app = typer.Typer(help=__doc__, cls=_Interruptible, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
data_app = typer.Typer(
    help="The data sets: what is there, fetched, verified.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(data_app, name="data")

Profile = Annotated[str, typer.Option(help="demo, real or paper")]
Checkpoint = Annotated[Path, typer.Option(help="checkpoint.pt of a training run")]
Name = Annotated[str, typer.Argument(help="demo, voc2012, magnetic_tile, ksdd or ksdd2")]
Part = Annotated[str, typer.Option(help="part or list of the data set; of ksdd all, train0, test0, ...")]


@app.callback()
def logs(
    quiet: Annotated[bool, typer.Option("--quiet", help="say nothing but warnings, errors and results")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="say all, with the time and the module")] = False,
) -> None:
    """How much is said on stderr; of the processes of `accelerate launch` or torchrun all but the first only warn."""
    if quiet and verbose:
        raise typer.BadParameter("expected --quiet or --verbose, not both")
    first = os.environ.get("RANK", "0") == "0"
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s" if verbose else "%(message)s"
    logging.basicConfig(level=logging.INFO if first and not quiet else logging.WARNING, format=line)
    if verbose and first:
        logging.getLogger("ltcam").setLevel(logging.DEBUG)  # not all: matplotlib alone says hundreds of lines


@app.command()
def explain(
    image: Annotated[Path, typer.Argument(help="any image file")],
    model: Annotated[
        str, typer.Option(help="name of a torchvision model; not read with a checkpoint of ltcam train")
    ] = "vgg16",
    checkpoint: Annotated[
        Path | None, typer.Option(help="of ltcam train, or a state dict; torchvision's own if not given")
    ] = None,
    target: Annotated[str, typer.Option("--class", help="name or index; the largest logit if not given")] = "",
    method: Annotated[str, typer.Option(help="gradcam, layercam, fullgrad ...")] = "gradcam",
    layers: Annotated[str, typer.Option(help="S5, S3-S5 ...; all stages if not given")] = "",
    delta: Annotated[float | None, typer.Option(help="percentile to truncate at, in [0, 100)")] = None,
    per_stage: Annotated[bool, typer.Option(help="a panel for each stage too")] = False,
    out: Annotated[Path, typer.Option(help="the picture: .png, .jpg, .pdf or .svg")] = Path("heat.png"),
) -> None:
    """The heatmap of one class over one image."""
    from ltcam.show import picture

    typer.echo(f"{out}: {picture.draw(image, out, model, checkpoint, target, method, layers or None, delta, per_stage)}")


@app.command()
def train(
    data: Annotated[str, typer.Option(help="demo, voc2012, magnetic_tile, ksdd or ksdd2")],
    profile: Annotated[str, typer.Option(help="whose recipe to start from; the first that has DATA if not given")] = "",
    seed: Annotated[int | None, typer.Option(help="this one alone, instead of all of the profile's")] = None,
    fold: Annotated[int | None, typer.Option(help="this one alone, where the profile has folds")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE of the recipe, e.g. epochs=2")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="on nine tenths of the training part, scored on the rest")] = False,
    out: Annotated[Path | None, typer.Option(help="folder of the run; below LTCAM_RUNS or the results if not given")] = None,
) -> None:
    """Train classifiers on image-level labels; an interrupted run goes on where it stopped."""
    from ltcam.paper import commands

    for line in commands.train(data, profile, seed, fold, setting or [], tune, out):
        typer.echo(line)


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    part: Annotated[str, typer.Option(help="part of the data set; the run's held-out part if not given")] = "",
    table: Annotated[list[int] | None, typer.Option(help="tables of the paper to measure; all if nothing is asked")] = None,
    config: Annotated[list[str] | None, typer.Option(help="METHOD[:LAYERS[:DELTA]], e.g. gradcam:S1-S5:20")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results; the checkpoint's, and in it PART if given")] = None,
    batch_size: int = 8,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="forward and backward in bfloat16: faster")] = False,
) -> None:
    """Heatmaps, Otsu masks and scores on the data set a checkpoint was trained on."""
    from ltcam.paper import commands

    for line in commands.evaluate(checkpoint, part, table or [], config or [], out, batch_size, bfloat16):
        typer.echo(line)


@app.command()
def export_seeds(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="folder of the seeds: <image name>.npy, and seeds.json about them")],
    part: Annotated[str, typer.Option(help="part of the data set; the one trained on if not given")] = "",
    config: Annotated[str, typer.Option(help="METHOD[:LAYERS[:DELTA]]")] = "gradcam:S1-S5:20",
    batch_size: int = 8,
) -> None:
    """Heatmaps as seeds for weakly-supervised segmentation, in IRN's files; an interrupted run goes on where it stopped."""
    from ltcam.experiment import checkpoints, configs, seeds

    asked = configs.Config.parse(config)
    trained = checkpoints.load_checkpoint(checkpoint)
    typer.echo(f"{out}: {seeds.export(trained, part or trained.recipe.train, asked, out, batch_size)} images")


@app.command()
def reproduce(
    profile: Profile = "demo",
    only: Annotated[str, typer.Option(help="run the notebooks whose names start with this, e.g. 04")] = "",
    data: Annotated[str, typer.Option(help="just this data set of the profile")] = "",
    start: Annotated[str, typer.Option("--from", help="begin at the notebook whose name starts with this, e.g. 03")] = "",
    force: Annotated[bool, typer.Option("--force", help="run notebooks also where nothing changed")] = False,
    seed: Annotated[list[int] | None, typer.Option(help="these trainings alone, instead of all of the profile's")] = None,
) -> None:
    """Run the notebook series and leave every table, figure and executed notebook; what is up to date is skipped."""
    from ltcam.paper.reproduce import reproduce as run

    run(profile, only, data, start=start, force=force, seeds=seed or [])


@app.command()
def tables(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="of results, e.g. results/paper/voc2012")],
    check: Annotated[bool, typer.Option("--check", help="write nothing; exit code 1 where a file is stale")] = False,
) -> None:
    """Make the tables, claims and intervals of a results folder anew from its counts: no data, no checkpoint is needed."""
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
    out: Annotated[Path, typer.Option(help="folder of the site; an older one is replaced when the new one is whole")] = Path(
        "site"
    ),
) -> None:
    """Write a static site of what was reproduced: tables, claims, figures, notebooks, and sliders to move."""
    from ltcam.show.report import report as run

    typer.echo(run(profile, out))


@app.command()
def readme(
    check: Annotated[bool, typer.Option("--check", help="write nothing; exit code 1 where a section is stale")] = False,
) -> None:
    """Write the tables of README.md and docs/ anew from committed results."""
    from ltcam.show import readme as page

    changed = page.stale() if check else page.write()
    for name, section in changed:
        typer.echo(f"{name}, section {section}: {'stale, run ltcam readme' if check else 'written anew'}")
    raise typer.Exit(int(check and bool(changed)))


@data_app.command("list")
def data_list() -> None:
    """Every data set: whether it is there and where, what its download weighs, its terms."""
    from ltcam.data import fetch

    typer.echo(fetch.listing().to_string(index=False))


@data_app.command("get")
def data_get(name: Annotated[str, typer.Argument(help="voc2012, magnetic_tile, ksdd or ksdd2")]) -> None:
    """Fetch a data set, verify and unpack it; an interrupted download goes on where it stopped."""
    from ltcam.data import fetch

    typer.echo(fetch.get(name))


@data_app.command("check")
def data_check(name: Name) -> None:
    """Open every file of a data set; exit code 1 where one is missing or damaged."""
    from ltcam.data import checks

    report = checks.check(name)
    lines = [f"note: {note}" for note in report.notes] + [f"finding: {finding}" for finding in report.findings]
    typer.echo("\n".join([report.title, report.table.to_string(index=False), *lines, f"{len(report.findings)} findings"]))
    raise typer.Exit(int(bool(report.findings)))


@data_app.command("show")
def data_show(
    name: Name,
    part: Part = "train",
    out: Annotated[Path, typer.Option(help="samples with their masks, as OUT.png and OUT.pdf")] = Path("samples"),
) -> None:
    """Images, how much of them each class covers, and a picture of samples."""
    from ltcam import data as datasets
    from ltcam.show import overview, plotting

    data = datasets.load(name, part)
    typer.echo(f"{data.title}, part {part}\n{overview.summary(data).round(2).to_string(index=False)}")
    plotting.save(overview.samples_figure(data), out)
    typer.echo(f"{out}.png")


@data_app.command("bench")
def data_bench(
    name: Name,
    part: Part = "train",
) -> None:
    """Images per second of loading alone, against the model's own rate."""
    from ltcam.show import overview

    typer.echo(overview.bench(name, part).round(1).to_string(index=False))


def main() -> None:
    try:
        app()
    except LtcamError as error:  # a bug, or torch's own error, keeps its traceback
        sys.exit(f"ltcam: {error}")
    except RuntimeError as error:
        if not of_loader(error):
            raise
        sys.exit(f"ltcam: {error}, as when memory runs out: what is done is kept; run again")


if __name__ == "__main__":
    main()

"""The command line: `ltcam train | evaluate | reproduce`."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def train(
    data: Annotated[str, typer.Option(help="demo, voc2012, magnetic_tile or ksdd2")],
    profile: Annotated[str, typer.Option(help="start from this profile's recipe and write into its results")] = "demo",
    epochs: Annotated[int | None, typer.Option(help="instead of the profile's")] = None,
    seed: Annotated[int | None, typer.Option(help="instead of the profile's")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the run; results/<profile>/<data> if not given")] = None,
) -> None:
    """Train a classifier on image-level labels; an interrupted run goes on where it stopped."""
    from ltcam import paths, training
    from ltcam.reproduce import profile as load_profile

    recipes = {run["data"]: run["recipe"] for run in load_profile(profile)}
    changes = {key: value for key, value in (("epochs", epochs), ("seed", seed)) if value is not None}
    recipe = training.Recipe(data=data, **{**recipes.get(data, {}), **changes})
    typer.echo(training.train(recipe, out or paths.results(profile, data)))


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Option(help="checkpoint.pt of a training run")],
    part: Annotated[str, typer.Option(help="part of the data set; the run's held-out part if not given")] = "",
    table: Annotated[list[int] | None, typer.Option(help="tables of the paper to measure; all if not given")] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of counts and tables; the checkpoint's (and in it the part's, if named)")
    ] = None,
    batch_size: Annotated[int, typer.Option()] = 8,
) -> None:
    """Heatmaps, Otsu masks and scores of the paper's rows on the data set a checkpoint was trained on."""
    import time

    from ltcam import datasets, paper, provenance, training
    from ltcam import evaluation as ev

    trained = training.load_checkpoint(checkpoint)
    folder = out or checkpoint.parent / part  # another part than the held-out one goes into a folder of its own
    part = part or trained.recipe.test
    numbers = table or list(paper.TABLES)
    if unknown := set(numbers) - set(paper.TABLES):
        raise ValueError(f"table {min(unknown)} is not in the paper: expected one of {list(paper.TABLES)}")
    started = time.time()
    ev.evaluate(trained, checkpoint, part, [c for n in numbers for c in paper.TABLES[n].values()], folder, batch_size)
    data = datasets.load(trained.recipe.data, part)
    for n in numbers:
        counts = ev.evaluate(trained, checkpoint, part, list(paper.TABLES[n].values()), folder, batch_size)
        scores = paper.table(n, counts, data.headline)
        provenance.save(scores, folder / f"table{n}.csv", started, **trained.about(data))
        typer.echo(f"Table {n}\n{scores.round(2).to_string(index=False)}\n")


@app.command()
def reproduce(
    profile: Annotated[str, typer.Option(help="demo, real or paper")] = "demo",
    only: Annotated[str, typer.Option(help="run the notebooks whose names start with this, e.g. 04")] = "",
    data: Annotated[str, typer.Option(help="just this data set of the profile")] = "",
) -> None:
    """Run the notebook series and leave every table, figure and executed notebook."""
    from ltcam.reproduce import reproduce as run

    run(profile, only, data)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        app()
    except (ValueError, FileNotFoundError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"ltcam: {error}")


if __name__ == "__main__":
    main()

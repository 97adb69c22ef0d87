"""`ltcam data`: list, fetch, verify and show the data sets."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The data sets: list, fetch, verify and show them.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="demo, voc2012, magnetic_tile, ksdd or ksdd2")]


@app.command("list")
def data_list() -> None:
    """List every data set: whether it is there and where, the size of its download, its terms."""
    from ltcam.data import get

    typer.echo(get.listing().to_string(index=False))


@app.command("get")
def data_get(name: Name) -> None:
    """Fetch a data set, verify and unpack it."""
    from ltcam.data import get

    typer.echo(get.get(name))


@app.command("check")
def data_check(name: Name) -> None:
    """Verify every file of a data set. The exit code is 1 if one is missing or damaged."""
    from ltcam.data import get

    report = get.check(name)
    lines = [f"finding: {finding}" for finding in report.findings]
    typer.echo("\n".join([report.title, report.table.to_string(index=False), *lines, f"{len(report.findings)} findings"]))
    raise typer.Exit(int(bool(report.findings)))


@app.command("show")
def data_show(
    name: Name,
    part: Annotated[str, typer.Option(help="part or list of the data set; for ksdd: all, train0, test0, ...")] = "train",
    out: Annotated[Path, typer.Option(help="draw samples with masks in OUT.png")] = Path("samples"),
) -> None:
    """Show how many images have each class and how much of an image the class covers. Draw samples."""
    from ltcam.data import load
    from ltcam.paper import areas
    from ltcam.show import figures, heatmaps

    data = load(name, part)
    typer.echo(f"{data.title}, part {part}\n{areas.summary(data).round(2).to_string(index=False)}")
    heatmaps.save(figures.samples(data), out, new=True)
    typer.echo(f"{out}.png")

"""Beyond the paper: the best configuration of each protocol that the search found, step by step, beside our rows of Table 3.

`ltcam search` chose them on training images of VOC 2012; `results/paper/voc2012/search/search.csv` has every try. Here they
are measured on the held-out part of any data set, under both cuts of `ltcam.experiment.seed_counts`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltcam.errors import MissingError
from ltcam.experiment import metrics, provenance, seed_scores
from ltcam.experiment.checkpoints import Trained
from ltcam.experiment.configs import FLOATS, Config, Protocol, configurations
from ltcam.experiment.intervals import draws, ends, verdict
from ltcam.experiment.probe import behaviour
from ltcam.experiment.seed_counts import count
from ltcam.experiment.seed_scores import THRESHOLDS
from ltcam.experiment.study import Role, Study, known, trainings_in
from ltcam.files import ROOT, AnyPath
from ltcam.paper import sweep, tables
from ltcam.paper.kept import ABOUT

ONE = Protocol()
SIDE = 224  # of VOC's input, which the search has its sizes for
PUBLISHED = ROOT / "data/published_seeds.csv"
Values = NDArray[np.float64]  # an entry of `draws`


class Way(NamedTuple):
    """A configuration, and the views of an image that its maps are averaged over."""

    config: Config
    views: Protocol = ONE


CHOSEN = Config("xgradcam", "S4-S5", 0.0, fuse="prod")
BEST = {
    "otsu": Way(CHOSEN._replace(refine="S3-S5:56:4:2"), Protocol(size=(448, 448))),
    "argmax": Way(CHOSEN._replace(refine="S3-S5:28:4:2:floor"), Protocol(size=(448, 448))),
}


def steps(best: Way) -> dict[str, Way]:
    """From Grad-CAM at S5 to `best`: each step changes one thing, and is named by it."""
    config, start = best.config, Config("gradcam")
    each = {
        "Grad-CAM at S5": start,
        f"method: {config.method}": start._replace(method=config.method, delta=config.delta),
        f"stages: {config.layers}": config._replace(fuse="sum", normalize="none", refine=None),
        f"fusion: {config.fuse}, scale: {config.normalize}": config._replace(refine=None),
        f"refine: {config.refine}": config,
    }
    found = {name: Way(way) for name, way in each.items()} | {f"views: {label(best.views)}": best}
    return {name: way for (name, way), before in zip(found.items(), [None, *found.values()], strict=False) if way != before}


def fitted(views: Protocol, size: tuple[int, int]) -> Protocol:
    """The views for a network whose own input size is not VOC's: another size is as many times its own, in its own aspect."""
    if views.size is None:
        return views
    times = views.size[0] / SIDE
    return replace(views, size=(round(times * size[0]), round(times * size[1])))


def label(views: Protocol) -> str:
    """The views in words, also as the name of a folder."""
    size = [f"input x {views.size[0] / SIDE:.3g}"] if views.size else []
    scales = [f"scales {' '.join(f'{s:g}' for s in views.scales)}"] if len(views.scales) > 1 else []
    return ", ".join(size + scales + ["also mirrored"] * views.flip) or "one view"


def rows(views: Protocol) -> dict[str, Config]:
    """Our rows of Table 3 that are measured in `views`: FullGrad, which costs as much as all others, in one view alone."""
    return {name: row for name, row in tables.SEVEN.items() if views == ONE or row.method != "fullgrad"}


def ways() -> dict[Protocol, list[Config]]:
    """All that is measured, by view: our rows of Table 3 in one view and in those of each of `BEST`, and every step."""
    found: dict[Protocol, list[Config]] = {}
    for best in BEST.values():
        for views in (ONE, best.views):
            found.setdefault(views, [*rows(views).values()])
        for config, views in steps(best).values():
            found[views].append(config)
    return {views: list(dict.fromkeys(configs)) for views, configs in found.items()}


def measure(trained: Trained, out: AnyPath, part: str, batch_size: int = 8, first: int | None = None) -> None:
    """Count every way on `part`, below `out`. t is the best on the training part, or on its first images."""
    for views, configs in ways().items():
        folder, protocol = Path(out) / label(views), replace(fitted(views, trained.size), batch_size=batch_size)
        found = curves(trained, configs, folder, protocol, first)
        best = {config: float(THRESHOLDS[int(curve.argmax())]) for config, curve in found.items()}
        count(trained, part, best, folder, protocol)


def curves(
    trained: Trained, configs: list[Config], out: AnyPath, protocol: Protocol = ONE, first: int | None = None
) -> dict[Config, pd.Series[float]]:
    """{configuration: the mIoU with background by t} on the training part, or on its first images.

    Kept as `out/curves.csv`, and measured again if the configurations or what counts depend on have changed.
    """
    path, started, part = Path(out) / "curves.csv", time.time(), trained.recipe.train + (f"/{first}" if first else "")
    data = trained.load(part)
    asked = {
        **protocol.identity, "part": part, "fingerprint": data.fingerprint, "checkpoint": trained.sha256,
        "probe": behaviour(), "configs": [list(config) for config in configs],
    }  # fmt: skip
    if not provenance.made_by(path, asked):
        found = seed_scores.of_checkpoint(trained, part, configs, protocol)
        table = pd.concat([tally.curve().reset_index().assign(**config._asdict()) for config, tally in found.items()])
        provenance.save(table, path, started, **{**trained.about(data), **asked})
    return kept_curves(out)


def kept_curves(folder: AnyPath) -> dict[Config, pd.Series[float]]:
    """`curves` as they are kept in `folder`."""
    kept = pd.read_csv(Path(folder) / "curves.csv", dtype=FLOATS)
    groups = kept.groupby(pd.Series(configurations(kept), kept.index), sort=False)
    return {Config(*config): rows.set_index("t")["mIoU"] for config, rows in groups}


def table(folder: AnyPath, data: str) -> pd.DataFrame:
    """What each step adds, and how far the best is above our rows of Table 3, from the counts below the trainings in `folder`.

    Columns cut, kind ("step" or "row"), name, views, configuration, value in percent (the headline score of the data set for
    "otsu", mIoU with background for "argmax") and its ends, change (of a step: from the step before; of a row: to the best) and
    its ends, verdict. Raises MissingError if something was not counted.
    """
    found = []
    for cut, best in BEST.items():
        metric = sweep.headline(data) if cut == "otsu" else "mIoU"
        scored = {views: draws(counts(folder, cut, views), metric) for views in (ONE, best.views)}
        ways = list(steps(best).items())
        for (name, way), (_, before) in zip(ways, [ways[0], *ways], strict=False):
            value = scored[way.views][way.config]
            change = None if way == before else value - scored[before.views][before.config]
            found.append({"cut": cut, "kind": "step", "name": name, **_row(way, value, change)})
        for views in scored:
            for name, config in rows(views).items():
                value = scored[views][config]
                margin = scored[best.views][best.config] - value
                found.append({"cut": cut, "kind": "row", "name": name, **_row(Way(config, views), value, margin)})
    return metrics.compact(pd.DataFrame(found))


def first_and_last() -> dict[str, Way]:
    """Where the steps begin and where they end for "argmax"."""
    return {"Grad-CAM at S5": Way(Config("gradcam")), "our best": BEST["argmax"]}


def lines(study: Study, batch_size: int = 8, first: int | None = None) -> dict[str, pd.Series[float]]:
    """The curves of `first_and_last` in the first training, on its training part or on the first images of that."""
    home, found = study.out / study.names[0] / "beyond", {}
    for name, (config, views) in first_and_last().items():
        protocol = replace(fitted(views, study.trained.size), batch_size=batch_size)
        found[name] = curves(study.trained, [config], home / name, protocol, first)[config]
    return found


def beside(table: pd.DataFrame, curves: Mapping[str, pd.Series[float]], study: Study) -> pd.DataFrame:
    """Published seeds on PASCAL VOC 2012, then ours: name, network, data, part, mIoU in percent, source.

    On the training part ours is that of `curves`, from `lines`, at its best threshold, as the field reports it. On the held-out
    part it is in `table`: at the training part's threshold, the mean over trainings.
    """
    steps = table[(table["cut"] == "argmax") & (table["kind"] == "step")]["value"]
    home = study.out / study.names[0] / "beyond"
    paths = (home / "our best/curves.json", home / label(ONE) / "counts.json")
    trained_on, scored = (json.loads(path.read_text())["part"] for path in paths)
    ours = [[name, trained_on, curve.max()] for name, curve in curves.items()]
    ours += [[name, scored, value] for name, value in zip(curves, steps.iloc[[0, -1]], strict=True)]
    found = pd.DataFrame(ours, columns=["name", "part", "mIoU"]).assign(network="VGG16", data=study.test.title, source="here")
    published = pd.read_csv(PUBLISHED).assign(data="PASCAL VOC 2012")
    return pd.concat([published, found], ignore_index=True)[["name", "network", "data", "part", "mIoU", "source"]]


def listed(table: pd.DataFrame) -> list[list[str]]:
    """`table` in words: every step with its score and what it adds, then the best against the best row of Table 3 in a view."""
    cells = []
    for cut, own in table.groupby("cut", sort=False):
        steps, others = (own[own["kind"] == kind] for kind in ("step", "row"))
        top = others.loc[others.groupby("views", sort=False)["value"].idxmax()]
        names = [*steps["name"], *("best, against " + top["name"] + ", " + top["views"])]
        for name, row in zip(names, pd.concat([steps, top]).to_dict("records"), strict=True):
            change = [row["change"], row["change_low"], row["change_high"]]
            said = "" if pd.isna(row["change"]) else "{:+.2f} ({:+.2f} to {:+.2f})".format(*change)
            value = "{:.2f} ({:.2f} to {:.2f})".format(row["value"], row["ci_low"], row["ci_high"])
            cells.append([str(cut), name, value, said, "" if pd.isna(row["verdict"]) else row["verdict"]])
    return cells


def counts(folder: AnyPath, cut: str, views: Protocol | None = None) -> pd.DataFrame:
    """The counts of `measured` under `cut`, in `views` (None: those of the best). Raises MissingError if there are none."""
    name = label(views or BEST[cut].views)
    found = known(folder, cast(Role, f"beyond/{name}"), measured(folder)["seed"].unique())
    if found.empty:
        raise MissingError(f"{folder} has no counts of seeds ({name}). Run notebook 09 first")
    return found[found["cut"] == cut].drop(columns="cut")


def measured(folder: AnyPath) -> pd.DataFrame:
    """The trainings in `folder` of the seeds that were counted in every view, as `trainings_in` gives them."""
    table, folder = trainings_in(folder), Path(folder)
    files = {name: [folder / name / "beyond" / label(views) / "counts.csv.gz" for views in ways()] for name in table["name"]}
    there = table["name"].map(lambda name: all(file.is_file() for file in files[name]))
    return table[there.groupby(table["seed"]).transform("all")]


def record(folder: AnyPath) -> dict[str, Any]:
    """What `measured` was counted with, in the form of a table's .json."""
    names = measured(folder)["name"]
    records = [json.loads((Path(folder) / n / "beyond" / label(ONE) / "counts.json").read_text()) for n in names]
    trainings = [{"name": n, "checkpoint": kept["checkpoint"]} for n, kept in zip(names, records, strict=True)]
    return {name: records[0][name] for name in ABOUT if name in records[0]} | {"trainings": trainings}


def _row(way: Way, value: Values, change: Values | None) -> dict[str, Any]:
    about = {"views": label(way.views), **way.config._asdict(), **ends(value)}
    changed = {} if change is None else ends(change, "change", "change_low", "change_high") | {"verdict": verdict(change)}
    return about | changed

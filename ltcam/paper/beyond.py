"""Beyond the paper: the best configuration of each protocol that a search found, step by step, beside our rows of Table 3.

`benchmarks/search.py` chose them on training images of VOC 2012; `results/paper/voc2012/search/search.csv` has every try. Here
they are measured on the held-out part of any data set, under both cuts of `ltcam.experiment.store.Way`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd

from ltcam.engine.config import Config
from ltcam.engine.refine import Refine
from ltcam.experiment.counting import identity
from ltcam.experiment.protocol import Protocol, Way
from ltcam.experiment.scores import LATER, Floats, draws, ends, row, verdict
from ltcam.experiment.seeds import THRESHOLDS, of_checkpoint
from ltcam.experiment.study import Study
from ltcam.files import ROOT
from ltcam.paper.registry import result
from ltcam.paper.tables import SEVEN

ONE = Protocol()
SIDE = 224  # of VOC's input, which the search has its sizes for


class Best(NamedTuple):
    """A configuration, and the views of an image that its maps are averaged over."""

    config: Config
    views: Protocol = ONE


CHOSEN = Config("xgradcam", "S4-S5", 0.0, fuse="prod")
TWICE = Protocol(size=(448, 448))
BEST = {
    "otsu": Best(replace(CHOSEN, refine=Refine("S3-S5", 56, 4, 2)), TWICE),
    "argmax": Best(replace(CHOSEN, refine=Refine("S3-S5", 28, 4, 2, "floor")), TWICE),
}


def steps(best: Best) -> dict[str, Best]:
    """From Grad-CAM at S5 to `best`: each step changes one thing, and is named by it."""
    config, start = best.config, Config("gradcam")
    each = {
        "Grad-CAM at S5": start,
        f"method: {config.method}": replace(start, method=config.method, delta=config.delta),
        f"stages: {config.layers}": replace(config, fuse="sum", normalize="none", refine=None),
        f"fusion: {config.fuse}, scale: {config.normalize}": replace(config, refine=None),
        f"refine: {row(config)['refine']}": config,
    }
    found = {name: Best(way) for name, way in each.items()} | {f"views: {label(best.views)}": best}
    return {name: way for (name, way), before in zip(found.items(), [None, *found.values()], strict=False) if way != before}


def fitted(views: Protocol, study: Study) -> Protocol:
    """The views for a network whose own input size is not VOC's: another size is as many times its own, in its own aspect."""
    return replace(study.protocol, size=enlarged(views, study.recipe(study.names[0]).size or study.dataset.size))


def enlarged(views: Protocol, size: tuple[int, int]) -> tuple[int, int] | None:
    """The input of `views` for a network that was trained at `size`; None: that size."""
    return views.size and (round(views.size[0] / SIDE * size[0]), round(views.size[0] / SIDE * size[1]))


def label(views: Protocol) -> str:
    """The views in words."""
    return f"input x {views.size[0] / SIDE:.3g}" if views.size else "one view"


def rows(views: Protocol) -> dict[str, Config]:
    """Our rows of Table 3 that are measured in `views`: FullGrad, which costs as much as all others, in one view alone."""
    return {name: config for name, config in SEVEN.items() if views == ONE or config.method != "fullgrad"}


def ways() -> dict[Protocol, list[Config]]:
    """All that is measured, by view: our rows of Table 3 in one view and in those of each of `BEST`, and every step."""
    found: dict[Protocol, list[Config]] = {}
    for best in BEST.values():
        for views in (ONE, best.views):
            found.setdefault(views, [*rows(views).values()])
        for config, views in steps(best).values():
            found[views].append(config)
    return {views: list(dict.fromkeys(configs)) for views, configs in found.items()}


def backgrounds(study: Study, name: str, views: Protocol, configs: list[Config]) -> dict[Config, float]:
    """The t of each configuration that is best on the training part of the training `name`, or on its first images."""
    part = _part(study, "train", study.settings["chosen_on"])
    found = curves_of(study, name, part, configs, fitted(views, study))
    return {config: float(THRESHOLDS[int(curve.argmax())]) for config, curve in found.items()}


def curves_of(study: Study, name: str, part: str, configs: list[Config], protocol: Protocol) -> dict[Config, pd.Series[float]]:
    """The mIoU with background by t. It is kept in the store and measured again only if something it depends on has changed."""
    trained = study.trained if name == study.names[0] else study.load(name)
    key = identity(trained, trained.load(part), protocol) | {"curves": list(map(str, configs))}
    if 0 not in (kept := study.store.notes(key)):
        tallies = of_checkpoint(trained, part, configs, protocol)
        study.store.note(key, 0, [tallies[config].curve().to_list() for config in configs])
        kept = study.store.notes(key)
    return {config: pd.Series(curve, THRESHOLDS) for config, curve in zip(configs, kept[0], strict=True)}


def _part(study: Study, role: str, first: int | None) -> str:
    return f"{getattr(study.recipe(study.names[0]), role)}{f'/{first}' if first else ''}"


@result("Beyond the paper, step by step", golden=("cut", "kind", "name", "views", "value"), tolerance=3)
def best(study: Study) -> pd.DataFrame:
    """What each step adds, and how far the best is above our rows of Table 3.

    Columns cut, kind ("step" or "row"), name, views, configuration, value in percent (the headline score of the data set for
    "otsu", mIoU with background for "argmax") and its ends, change (of a step: from the step before; of a row: to the best) and
    its ends, verdict.
    """
    found, first, t = [], study.settings["scored_on"], {}
    for views, configs in ways().items():
        if not study.kept:  # both cuts in one pass
            for name in study.names:
                t[name, views] = backgrounds(study, name, views, configs)
                both = [*map(Way, configs), *(Way(config, "argmax", t[name, views][config]) for config in configs)]
                study.measured(name, both, protocol=fitted(views, study), first=first)
    for cut, chosen in BEST.items():
        metric, scored = study.metric if cut == "otsu" else "mIoU", {}
        for views in (ONE, chosen.views):
            at = {name: t.get((name, views), {}) for name in study.names} if cut == "argmax" else {}
            counts = study.counts(ways()[views], protocol=fitted(views, study), cut=cut, t=at, first=first)
            scored[views] = draws(counts, metric)
        each = list(steps(chosen).items())
        for (name, way), (_, before) in zip(each, [each[0], *each], strict=False):
            value = scored[way.views][way.config]
            change = None if way == before else value - scored[before.views][before.config]
            found.append({"cut": cut, "kind": "step", "name": name, **_row(way, value, change)})
        for views, own in scored.items():
            for name, config in rows(views).items():
                margin = scored[chosen.views][chosen.config] - own[config]
                found.append({"cut": cut, "kind": "row", "name": name, **_row(Best(config, views), own[config], margin)})
    table = pd.DataFrame(found)
    return table.drop(columns=[name for name in LATER if table[name].isna().all()])


def _row(way: Best, value: Floats, change: Floats | None) -> dict[str, Any]:
    about = {"views": label(way.views), **row(way.config), **ends(value)}
    changed = {} if change is None else ends(change, "change", "change_low", "change_high") | {"verdict": verdict(change)}
    return about | changed


def first_and_last() -> dict[str, Best]:
    """Where the steps begin and where they end for "argmax"."""
    return {"Grad-CAM at S5": Best(Config("gradcam")), "our best": BEST["argmax"]}


def lines(study: Study) -> dict[str, pd.Series[float]]:
    """The curves of `first_and_last` in the first training, on its training part or on the first images of that."""
    part = _part(study, "train", study.settings["drawn_on"])
    return {
        name: curves_of(study, study.names[0], part, [config], fitted(views, study))[config]
        for name, (config, views) in first_and_last().items()
    }


def beside(table: pd.DataFrame, curves: Mapping[str, pd.Series[float]], study: Study) -> pd.DataFrame:
    """Published seeds on PASCAL VOC 2012, then ours: name, network, data, part, mIoU in percent, source.

    On the training part ours is that of `curves`, from `lines`, at its best threshold, as the field reports it. On the held-out
    part it is in `table`, the result `best`: at the training part's threshold, the mean over trainings.
    """
    value = table[(table["cut"] == "argmax") & (table["kind"] == "step")]["value"]
    ours = [[name, _part(study, "train", study.settings["drawn_on"]), curve.max()] for name, curve in curves.items()]
    held_out = _part(study, "test", study.settings["scored_on"])
    ours += [[name, held_out, score] for name, score in zip(curves, value.iloc[[0, -1]], strict=True)]
    found = pd.DataFrame(ours, columns=["name", "part", "mIoU"]).assign(network="VGG16", data=study.test.title, source="here")
    published = pd.read_csv(ROOT / "data/published_seeds.csv").assign(data="PASCAL VOC 2012")
    return pd.concat([published, found], ignore_index=True)[["name", "network", "data", "part", "mIoU", "source"]]

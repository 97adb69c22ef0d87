"""Beyond the paper: the best configuration of each protocol that a search found, step by step, beside our rows of Table 3.

`benchmarks/search.py` chose them on training images of VOC 2012; `results/paper/voc2012/search/search.csv` has every try. Here
they are measured on the held-out part of any data set, under both cuts of `ltcam.experiment.protocol.Way`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from ltcam.engine.config import Config
from ltcam.engine.refine import Refine
from ltcam.experiment.counting import identity
from ltcam.experiment.curves import THRESHOLDS, of_checkpoint
from ltcam.experiment.protocol import Protocol, Way
from ltcam.experiment.scores import LATER, VERDICTS, draws, ends, row
from ltcam.experiment.study import Study
from ltcam.files import ROOT
from ltcam.paper.registry import result
from ltcam.paper.tables import SEVEN, margin


class Best(NamedTuple):
    """A configuration, and by how much the input is larger than the network's own."""

    config: Config
    views: float = 1.0


SAME = {word: word for word in VERDICTS}
CHOSEN = Config("xgradcam", "S4-S5", 0.0, fuse="prod")
BEST = {
    "otsu": Best(replace(CHOSEN, refine=Refine("S3-S5", 56, 4, 2)), 2.0),
    "argmax": Best(replace(CHOSEN, refine=Refine("S3-S5", 28, 4, 2, "floor")), 2.0),
}


def steps(best: Best) -> dict[str, Best]:
    """From Grad-CAM at S5 to `best`: each step changes one thing, and is named by it. What changes nothing is no step."""
    config, start = best.config, Config("gradcam")
    each = {
        "Grad-CAM at S5": Best(start),
        f"method: {config.method}": Best(replace(start, method=config.method, delta=config.delta)),
        f"stages: {config.layers}": Best(replace(config, fuse="sum", normalize="none", refine=None)),
        f"fusion: {config.fuse}, scale: {config.normalize}": Best(replace(config, refine=None)),
        f"refine: {row(config)['refine']}": Best(config),
        f"views: {label(best.views)}": best,
    }
    return {name: way for (name, way), before in zip(each.items(), [None, *each.values()], strict=False) if way != before}


def seven(views: float) -> dict[str, Best]:
    """Our rows of Table 3 at an input. FullGrad, which costs as much as all others, is measured at the network's own alone."""
    return {name: Best(config, views) for name, config in SEVEN.items() if views == 1 or config.method != "fullgrad"}


def ways() -> dict[float, list[Config]]:
    """All that is measured, by input: our rows of Table 3 at the network's own and at those of `BEST`, and every step."""
    found: dict[float, list[Config]] = {}
    for best in BEST.values():
        for way in (*seven(1).values(), *seven(best.views).values(), *steps(best).values()):
            found.setdefault(way.views, []).append(way.config)
    return {views: list(dict.fromkeys(configs)) for views, configs in found.items()}


def label(views: float) -> str:
    """The input in words."""
    return "one view" if views == 1 else f"input x {views:.3g}"


def enlarged(views: float, size: tuple[int, int]) -> tuple[int, int] | None:
    """The input (height, width) of a network that was trained at `size`; None: that size."""
    return None if views == 1 else (round(views * size[0]), round(views * size[1]))


def fitted(views: float, study: Study) -> Protocol:
    """The protocol of a study with such an input."""
    return replace(study.protocol, size=enlarged(views, study.recipe(study.names[0]).size or study.dataset.size))


def curves(study: Study, name: str, part: str, configs: Sequence[Config], views: float) -> dict[Config, pd.Series[float]]:
    """The mIoU with background by t. It is kept in the store and measured again only if something it depends on has changed."""
    trained, protocol = study.trained if name == study.names[0] else study.load(name), fitted(views, study)
    key = identity(trained, trained.load(part), protocol) | {"curves": list(map(str, configs))}
    if not (kept := study.store.notes(key)):
        kept[0] = [tally.curve().to_list() for tally in of_checkpoint(trained, part, configs, protocol).values()]
        study.store.note(key, 0, kept[0])
    return {config: pd.Series(curve, THRESHOLDS) for config, curve in zip(configs, kept[0], strict=True)}


def backgrounds(study: Study, name: str, configs: Sequence[Config], views: float) -> dict[Config, float]:
    """The t of each configuration that is best on the training part of the training `name`, or on its first images."""
    found = curves(study, name, _part(study, "train", "chosen_on"), configs, views)
    return {config: float(THRESHOLDS[int(curve.argmax())]) for config, curve in found.items()}


@result("Beyond the paper, step by step", golden=("cut", "kind", "name", "views", "value"), tolerance=3)
def best(study: Study) -> pd.DataFrame:
    """What each step adds, and how far the best is above our rows of Table 3.

    Columns cut, kind ("step" or "row"), name, views, configuration, value in percent (the headline score of the data set for
    "otsu", mIoU with background for "argmax") and its ends, change (of a step: from the step before; of a row: to the best) and
    its ends, verdict.
    """
    found, first, t = [], study.settings["scored_on"], dict[float, dict[str, dict[Config, float]]]()
    for views, configs in ways().items():
        t[views] = {} if study.kept else {name: backgrounds(study, name, configs, views) for name in study.names}
        for name, at in t[views].items():  # both cuts in one pass
            both = [*map(Way, configs), *(Way(config, "argmax", at[config]) for config in configs)]
            study.measured(name, both, protocol=fitted(views, study), first=first)
    for cut, chosen in BEST.items():
        scored = {}
        for views, configs in ways().items():
            at = t[views] if cut == "argmax" else {}
            counts = study.counts(configs, protocol=fitted(views, study), cut=cut, t=at, first=first)
            own = draws(counts, study.metric if cut == "otsu" else "mIoU")
            scored |= {Best(config, views): values for config, values in own.items()}
        ladder = steps(chosen)
        entries = [
            ("step", name, way, before) for (name, way), before in zip(ladder.items(), [None, *ladder.values()], strict=False)
        ]
        entries += [
            ("row", name, way, chosen) for views in dict.fromkeys([1, chosen.views]) for name, way in seven(views).items()
        ]
        for kind, name, way, other in entries:
            about = {"cut": cut, "kind": kind, "name": name, "views": label(way.views), **row(way.config), **ends(scored[way])}
            change = (scored[way] - scored[other]) * (1 if kind == "step" else -1) if other else None
            found.append(about | ({} if change is None else margin(change, words=SAME)))
    table = pd.DataFrame(found)
    return table.drop(columns=[name for name in LATER if table[name].isna().all()])


def lines(study: Study) -> dict[str, pd.Series[float]]:
    """The curves of the first and the last step for "argmax", in the first training, on its training part or first images."""
    part, (first, *_, last) = _part(study, "train", "drawn_on"), steps(BEST["argmax"]).values()
    ends = {"Grad-CAM at S5": first, "our best": last}
    return {name: curves(study, study.names[0], part, [way.config], way.views)[way.config] for name, way in ends.items()}


def beside(table: pd.DataFrame, curves: Mapping[str, pd.Series[float]], study: Study) -> pd.DataFrame:
    """Published seeds on PASCAL VOC 2012, then ours: name, network, data, part, mIoU in percent, source.

    On the training part ours is that of `curves`, from `lines`, at its best threshold, as the field reports it. On the held-out
    part it is in `table`, the result `best`: at the training part's threshold, the mean over trainings.
    """
    steps = table[(table["cut"] == "argmax") & (table["kind"] == "step")]["value"]
    scores = {("train", "drawn_on"): [curve.max() for curve in curves.values()], ("test", "scored_on"): steps.iloc[[0, -1]]}
    ours = [(name, _part(study, *part), score) for part, own in scores.items() for name, score in zip(curves, own, strict=True)]
    found = pd.DataFrame(ours, columns=["name", "part", "mIoU"]).assign(network="VGG16", data=study.test.title, source="here")
    published = pd.read_csv(ROOT / "data/published_seeds.csv").assign(data="PASCAL VOC 2012")
    return pd.concat([published, found], ignore_index=True)[["name", "network", "data", "part", "mIoU", "source"]]


def _part(study: Study, role: str, setting: str) -> str:
    """The part of a role, or its first images if the profile asks for so many."""
    first = study.settings[setting]
    return f"{getattr(study.recipe(study.names[0]), role)}{f'/{first}' if first else ''}"

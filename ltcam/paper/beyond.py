"""Beyond the paper: the best configuration of each protocol that a search found, step by step, beside our rows of Table 3.

`benchmarks/search.py` chose them on training images of VOC 2012; `results/paper/voc2012/search/search.csv` has every try. Here
they are measured on the held-out part of any data set, under both cuts of `ltcam.experiment.protocol.Way`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import NamedTuple

import pandas as pd

from ltcam.engine.config import Config
from ltcam.engine.refine import Refine
from ltcam.experiment.counting import identity
from ltcam.experiment.protocol import Protocol, Way
from ltcam.experiment.scores import LATER, Floats, draws, ends, row
from ltcam.experiment.seeds import THRESHOLDS, of_checkpoint
from ltcam.experiment.study import Study
from ltcam.files import ROOT
from ltcam.paper.registry import result
from ltcam.paper.tables import SEVEN, margin


class Best(NamedTuple):
    """A configuration, and by how much the input is larger than the network's own."""

    config: Config
    views: float = 1.0


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


def entries(best: Best) -> list[tuple[str, str, Best, Best | None]]:
    """Every row of the table: kind, name, way, and the other way of its change. FullGrad, which costs as much as all others, is
    measured at the network's own input alone."""
    ladder, both = steps(best), dict.fromkeys([1.0, best.views])
    found = [("step", name, way, before) for (name, way), before in zip(ladder.items(), [None, *ladder.values()], strict=False)]
    rows = [(name, Best(config, views)) for views in both for name, config in SEVEN.items()]
    return found + [("row", name, way, best) for name, way in rows if way.views == 1 or way.config.method != "fullgrad"]


def ways() -> dict[float, list[Config]]:
    """All that is measured, by input."""
    found: dict[float, list[Config]] = {}
    for best in BEST.values():
        for _, _, way, _ in sorted(entries(best), key=itemgetter(0)):  # rows first, as in the keys of curves that are kept
            found.setdefault(way.views, []).append(way.config)
    return {views: list(dict.fromkeys(configs)) for views, configs in found.items()}


def label(views: float) -> str:
    """The input in words."""
    return "one view" if views == 1 else f"input x {views:.3g}"


def enlarged(views: float, size: tuple[int, int]) -> tuple[int, int] | None:
    """The input (height, width) of a network that was trained at `size`; None: that size."""
    return None if views == 1 else (round(views * size[0]), round(views * size[1]))


def fitted(views: float, study: Study) -> Protocol:
    """The protocol of a study at such an input."""
    return replace(study.protocol, size=enlarged(views, study.recipe(study.names[0]).size or study.dataset.size))


def curves(study: Study, name: str, first: str, configs: Sequence[Config], views: float) -> dict[Config, pd.Series[float]]:
    """The mIoU with background by t, on the training part of the training `name`, or on its first images: the setting `first`.

    It is kept in the store, and measured again only if something it depends on has changed.
    """
    trained, protocol = study.trained if name == study.names[0] else study.load(name), fitted(views, study)
    part = _part(study, "train", first)
    key = identity(trained, trained.load(part), protocol) | {"curves": list(map(str, configs))}
    if not (kept := study.store.notes(key)):
        kept[0] = [tally.curve().to_list() for tally in of_checkpoint(trained, part, configs, protocol).values()]
        study.store.note(key, 0, kept[0])
    return {config: pd.Series(curve, THRESHOLDS) for config, curve in zip(configs, kept[0], strict=True)}


@result("Beyond the paper, step by step", golden=("cut", "kind", "name", "views", "value"), tolerance=3)
def best(study: Study) -> pd.DataFrame:
    """What each step adds, and how far the best is above our rows of Table 3, by cut.

    The value, in percent, is the data set's headline score for "otsu" and the mIoU with background for "argmax". The change of
    a step is from the step before, that of a row is to the best.
    """
    first, scored, found = study.settings["scored_on"], dict[tuple[str, Best], Floats](), []
    for views, configs in ways().items():
        protocol, t = fitted(views, study), dict[str, dict[Config, float]]()
        for name in () if study.kept else study.names:  # each t is the best on training images; both cuts in one pass
            t[name] = {
                c: float(THRESHOLDS[curve.argmax()]) for c, curve in curves(study, name, "chosen_on", configs, views).items()
            }
            both = [*map(Way, configs), *(Way(config, "argmax", at) for config, at in t[name].items())]
            study.measured(name, both, protocol=protocol, first=first)
        for cut, metric, at in (("otsu", study.metric, {}), ("argmax", "mIoU", t)):
            own = draws(study.counts(configs, protocol=protocol, cut=cut, t=at, first=first), metric)
            scored |= {(cut, Best(config, views)): values for config, values in own.items()}
    for cut, (kind, name, way, other) in ((cut, entry) for cut, chosen in BEST.items() for entry in entries(chosen)):
        about = {"cut": cut, "kind": kind, "name": name, "views": label(way.views), **row(way.config), **ends(scored[cut, way])}
        if other:
            change = scored[cut, way] - scored[cut, other]
            about |= margin(change if kind == "step" else -change, words=("holds", "fails"))
        found.append(about)
    table = pd.DataFrame(found)
    return table.drop(columns=[name for name in LATER if table[name].isna().all()])


def lines(study: Study) -> dict[str, pd.Series[float]]:
    """The curves of the first and the last step for "argmax", in the first training."""
    first, *_, last = steps(BEST["argmax"]).values()
    named = {"Grad-CAM at S5": first, "our best": last}
    return {name: curves(study, study.names[0], "drawn_on", [way.config], way.views)[way.config] for name, way in named.items()}


def beside(table: pd.DataFrame, curves: Mapping[str, pd.Series[float]], study: Study) -> pd.DataFrame:
    """Published seeds on PASCAL VOC 2012, then ours: name, network, data, part, mIoU in percent, source.

    On the training part ours is that of `curves`, from `lines`, at its best threshold, as the field reports it. On the held-out
    part it is in `table`, the result `best`: at the training part's threshold, the mean over trainings.
    """
    held_out = table[(table["cut"] == "argmax") & (table["kind"] == "step")]["value"].to_list()
    scores = {("train", "drawn_on"): [c.max() for c in curves.values()], ("test", "scored_on"): [held_out[0], held_out[-1]]}
    ours = [(name, _part(study, *part), score) for part, own in scores.items() for name, score in zip(curves, own, strict=True)]
    found = pd.DataFrame(ours, columns=["name", "part", "mIoU"]).assign(network="VGG16", data=study.test.title, source="here")
    published = pd.read_csv(ROOT / "data/published_seeds.csv").assign(data="PASCAL VOC 2012")
    return pd.concat([published, found], ignore_index=True)[["name", "network", "data", "part", "mIoU", "source"]]


def _part(study: Study, role: str, setting: str) -> str:
    first = study.settings[setting]
    return f"{getattr(study.recipe(study.names[0]), role)}{f'/{first}' if first else ''}"

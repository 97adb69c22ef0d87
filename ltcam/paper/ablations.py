"""What each setting that the paper leaves open is worth, one choice at a time; percentile scope, scale and delta in full.

The rows are measured with the defaults, with one option changed (`OPTIONS`), under another protocol, and with other trainings
of the same model. The images are always the same, so each change is a paired difference with an interval. So is the gain of the
paper's two `TRICKS` in each of these runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, get_args

import numpy as np
import pandas as pd

from ltcam.engine.config import READINGS, Config
from ltcam.engine.tricks import By, Normalize, Scope
from ltcam.errors import InputError
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.scores import LATER, Counts, Draws, Floats, draws, ends, row
from ltcam.experiment.study import Study
from ltcam.paper.registry import Need, result
from ltcam.paper.tables import BOTH, SEVEN, SWEEP, margin, published

Run = tuple[str, str]  # a factor and its level
DEFAULTS: Run = ("defaults", "as they are")
ROWS = {
    "Grad-CAM": Config("gradcam"),
    "Grad-CAM, truncated": Config("gradcam", "S5", 0.0),
    "Grad-CAM, fused": Config("gradcam", "S1-S5"),
    "LTGrad-CAM": Config("gradcam", "S1-S5", 20.0),
    "Layer-CAM": Config("layercam", "S1-S5", 0.0),
    "LTLayer-CAM": Config("layercam", "S1-S5", 20.0),
    "FullGrad": Config("fullgrad", "all"),
    "LTFullGrad": Config("fullgrad", "all", 20.0),
}
OPTIONS: dict[str, tuple[Any, ...]] = {  # no fuse="mean": Otsu cuts it like the sum
    "per": ("channel",),
    "compare": ("gt",),
    "fuse": ("max",),
    "normalize": ("max", "minmax", "tanh"),
    "fraction": (0.2, 0.35, 0.5),
    "align_corners": (True,),  # as FullGrad's reference implementation resizes
}
TRICKS = {  # the row with the trick, and the row without
    "truncation at S5": ("Grad-CAM, truncated", "Grad-CAM"),
    "fusion of S1 to S5": ("Grad-CAM, fused", "Grad-CAM"),
    "both": ("LTGrad-CAM", "Grad-CAM"),
    "truncation of Layer-CAM": ("LTLayer-CAM", "Layer-CAM"),
    "truncation of FullGrad": ("LTFullGrad", "FullGrad"),
    "LTGrad-CAM instead of Layer-CAM": ("LTGrad-CAM", "Layer-CAM"),
}
MEANS = {"mIoU": {"IoU": "over all pixels", "iIoU": "over objects"}, "IoU": {"iIoU": "over objects"}}  # beside the metric
COMPARED = list(dict.fromkeys([*ROWS.values(), *SEVEN.values()]))  # under every protocol
LT0, LT20 = SEVEN["LTGrad-CAM(l=5, δ=0)"], ROWS["LTGrad-CAM"]
EQ9 = {"δ = 0": LT0, "positive values (Eq. 9)": LT20} | {name: replace(LT20, by=name) for name in (*READINGS, get_args(By)[1])}


def variants(config: Config) -> Iterator[tuple[Run, Config]]:
    """`config` with one option changed, for each change that can alter its mask."""
    truncated, full = config.delta is not None, config.method == "fullgrad"
    fused = config.layers not in ("S1", "S2", "S3", "S4", "S5")
    alters = {"per": truncated, "compare": truncated, "fuse": fused, "normalize": fused and not full, "align_corners": full}
    for option, values in OPTIONS.items():
        for value in values if alters.get(option, True) else ():
            yield (option, str(value)), replace(config, **{option: value})


def crossings(deltas: Sequence[float]) -> list[Config]:
    """LTGrad-CAM at every delta and without truncation, for every percentile scope and scale of the maps."""
    whole = [Config("gradcam", "S1-S5", normalize=scale) for scale in get_args(Normalize)]
    return whole + [replace(c, per=per, delta=float(delta)) for per in get_args(Scope) for c in whole for delta in deltas]


def protocols(study: Study) -> dict[Run, Protocol]:
    """The runs under another protocol that the profile asks for. Sizes are named as width x height."""
    known: dict[str, Any] = {"labels": "predicted", "outputs": "relu", "size": study.dataset.larger}
    for setting, names in (("protocols", known), ("varied", ROWS)):
        if unknown := [name for name in study.settings[setting] if name not in names]:
            raise InputError(f"{setting}: {unknown[0]!r} cannot be changed, expected some of {', '.join(names)}")
    asked = {factor: known[factor] for factor in study.settings["protocols"]}
    levels = {factor: value if isinstance(value, str) else "{1} x {0}".format(*value) for factor, value in asked.items()}
    return {(factor, levels[factor]): replace(study.protocol, **{factor: value}) for factor, value in asked.items()}


def needs(study: Study) -> list[Need]:
    """All that the tables of this file read."""
    first, varied = study.settings["ablated"], [*(ROWS[name] for name in study.settings["varied"]), *SEVEN.values()]
    changed = [other for config in varied for _, other in variants(config)]
    whole = list(dict.fromkeys([*COMPARED, *changed, *crossings(study.settings["deltas"])]))
    others = [Need(COMPARED, protocol=protocol, seeds=first) for protocol in protocols(study).values()]
    return [Need(whole, seeds=first), *others]


def measured(study: Study, configs: Sequence[Config]) -> tuple[dict[Run, Counts], dict[Config, dict[Run, Config]]]:
    """The counts of every run, and those `variants` of each configuration that are counted with the defaults."""
    first, there = study.settings["ablated"], set(needs(study)[0].configs)
    levels = {config: {run: other for run, other in variants(config) if other in there} for config in configs}
    found = {DEFAULTS: study.counts([*configs, *(other for own in levels.values() for other in own.values())], seeds=first)}
    for run, protocol in protocols(study).items():
        found[run] = study.counts(configs, protocol=protocol, seeds=first)
    base = asdict(study.recipe(study.names[0]))
    for name in study.settings["others"]:
        changed = {field: value for field, value in asdict(study.recipe(name)).items() if value != base[field]}
        run = ", ".join(changed) or "training", ", ".join(map(str, changed.values())) or "again"
        found[run] = study.of_training(name, configs)
    return found, levels


@result("What each choice is worth, one at a time", needs, golden=("factor", "level", "row", "value"))
def ablations(study: Study) -> pd.DataFrame:
    """Every row of every run: the headline score in percent, and its change in points, with their intervals and a verdict.

    A change is against the same row with the defaults. For the factor "trick" it is against the row without the trick; the
    level names the trick, and the run unless it is the default.
    """
    counts, levels = measured(study, list(ROWS.values()))
    scores, found = {run: draws(own, study.metric) for run, own in counts.items()}, []
    for run, own in scores.items():
        for trick, (made, before) in TRICKS.items():
            level = trick if run == DEFAULTS else f"{trick}, {run[0]} = {run[1]}"
            found.append(_row(("trick", level), made, ROWS[made], own, own[ROWS[before]]))
    defaults = scores.pop(DEFAULTS)
    for name, config in ROWS.items():
        found.append(_row(DEFAULTS, name, config, defaults))
        found += [_row(run, name, changed, defaults, defaults[config]) for run, changed in levels[config].items()]
        found += [_row(run, name, config, other, defaults[config]) for run, other in scores.items()]
    return pd.DataFrame(found).assign(data=study.title, metric=study.metric)


@result("How well each reading agrees with the paper's order of methods", needs)
def readings(study: Study) -> pd.DataFrame:
    """How well our order of the seven methods agrees with that of the paper's table, the reading with the best agreement first.

    A reading is another run, one of `OPTIONS` for every method whose mask it can change, or another mean (`MEANS`). Columns:
    tau, Kendall's rank correlation of our scores with the printed ones, in [-1, 1]; farthest, the largest difference from a
    printed score, in points; our score of each method.
    """
    printed = published(study.compared[-1])["mIoU"][list(SEVEN)].to_numpy()
    counts, levels = measured(study, list(SEVEN.values()))
    scores = {run: draws(own, study.metric) for run, own in counts.items()}
    scores |= {("mean", level): draws(counts[DEFAULTS].pick(levels), mean) for mean, level in MEANS[study.metric].items()}
    seven = {run: [own[config] for config in levels] for run, own in scores.items()}
    for run in (run for own in levels.values() for run in own):
        seven[run] = [scores[DEFAULTS][own.get(run, config)] for config, own in levels.items()]
    rows = []
    for (factor, level), ours in seven.items():
        means, agreed = [values[0].mean() for values in ours], ends(tau(printed, np.array(ours)), "tau")
        farthest = {"farthest": np.abs(printed - means).max()}
        rows.append({"factor": factor, "level": level, **agreed, **farthest, **dict(zip(SEVEN, means, strict=True))})
    ordered = sorted(rows, key=lambda row: -row["tau"])
    return pd.DataFrame(ordered).assign(data=study.title, metric=study.metric)


@result("Scores by percentile scope, scale of the stages' maps, and δ", needs, golden=("per", "normalize", "delta", "value"))
def cross(study: Study) -> pd.DataFrame:
    """`crossings` in the form of `ablations`. A change is against no truncation at the same scale."""
    configs = crossings(study.settings["deltas"])
    scores = draws(study.counts(configs, seeds=study.settings["ablated"]), study.metric)
    plain = {config: scores[replace(config, delta=None, per="layer")] for config in configs}
    rows = [_row(("cross", ""), "LTGrad-CAM", config, scores, plain[config]) for config in configs]
    return pd.DataFrame(rows).assign(data=study.title, metric=study.metric)


@result("Other readings of Eq. 9", lambda study: [Need(list(EQ9.values()), seeds=1)], losses=BOTH)
def eq9(study: Study) -> pd.DataFrame:
    """The score of each reading of Eq. 9 at delta = 20 in percent, and its difference from delta = 0, in the first seed."""
    counts = study.counts(EQ9.values(), seeds=1)
    by_name = counts.pairs.sort_values(["name", "class"]).index.to_numpy()  # of all folds together: the order of the draws
    scores = draws(counts.where(by_name), study.metric)
    rows = [{"reading": name, **ends(scores[c]), **margin(scores[c] - scores[LT0])} for name, c in EQ9.items()]
    return pd.DataFrame(rows).assign(data=study.title, metric=study.metric)


@result("The sweep's best configuration on the training part, scored on the held-out part", needs)
def beyond(study: Study) -> pd.DataFrame:
    """The best configuration on the training part, in the form of `ablations`, then the seven methods, on the held-out part.

    A change is the chosen score minus the method's own. chosen_on: the chosen configuration's score on the training part.
    """
    first = study.settings["ablated"]
    scores = draws(study.counts(dict.fromkeys([*SEVEN.values(), *SWEEP]), seeds=first), study.metric)
    on_train = {c: values[0].mean() for c, values in draws(study.counts(SWEEP, "train", seeds=first), study.metric, 1).items()}
    chosen = max(on_train, key=lambda config: on_train[config])
    rows = {"chosen": chosen, **SEVEN}.items()
    found = [_row(("beyond", ""), name, c, scores) | margin(scores[chosen] - scores[c]) for name, c in rows]
    return pd.DataFrame(found).assign(chosen_on=on_train[chosen], data=study.title, metric=study.metric)


def tau(printed: Floats, ours: Floats) -> Floats:
    """Kendall's tau of (methods,) with each column of (methods, draws, trainings)."""
    first, second = np.triu_indices(len(printed), 1)
    agreed = np.sign(printed[first] - printed[second])[:, None, None] * np.sign(ours[first] - ours[second])
    return np.asarray(agreed.mean(axis=0))


def _row(run: Run, name: str, config: Config, scores: Draws, before: Floats | None = None) -> dict[str, Any]:
    fields = {field: value for field, value in row(config).items() if field not in LATER or value}
    found = {"factor": run[0], "level": run[1], "row": name, **fields, **ends(scores[config])}
    return found if before is None else found | margin(scores[config] - before)

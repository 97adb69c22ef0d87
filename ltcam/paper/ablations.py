"""What each setting that the paper leaves open is worth, one choice at a time; percentile scope, scale and delta in full.

`COMPARED` rows are measured with the defaults, with one option changed (`OPTIONS`), under another protocol, and with other
trainings of the same model. The images are always the same, so each change is a paired difference with an interval. So is the
gain of the paper's two `TRICKS` in each of these runs. `readings` asks in which of them the paper's order of methods appears.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, get_args

import numpy as np
import pandas as pd

from ltcam.engine.config import READINGS, Config
from ltcam.engine.tricks import Normalize, Scope
from ltcam.errors import InputError
from ltcam.experiment.protocol import Protocol, Way
from ltcam.experiment.scores import VERDICTS, Counts, Draws, Floats, draws, ends, row, verdict
from ltcam.experiment.study import Study
from ltcam.paper.registry import Need, result
from ltcam.paper.tables import SEVEN, SWEEP, published

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
GAINS = {name: (ROWS[made], ROWS[before]) for name, (made, before) in TRICKS.items()}
MEANS = {"mIoU": {"IoU": "over all pixels", "iIoU": "over objects"}, "IoU": {"iIoU": "over objects"}}  # beside the metric
COMPARED = list(dict.fromkeys([*ROWS.values(), *SEVEN.values()]))  # under every protocol
LT0, LT20 = SEVEN["LTGrad-CAM(l=5, δ=0)"], ROWS["LTGrad-CAM"]
EQ9 = {"δ = 0": LT0, "positive values (Eq. 9)": LT20} | {name: replace(LT20, by=name) for name in READINGS}


def variants(config: Config) -> Iterator[tuple[Run, Config]]:
    """`config` with one option changed, for each change that can alter its mask."""
    for option, values in OPTIONS.items():
        untruncated = config.delta is None and option in ("per", "compare")
        alone = config.layers in ("S1", "S2", "S3", "S4", "S5") and option in ("fuse", "normalize")
        scaled = config.method == "fullgrad" and option == "normalize"  # by Eq. 7
        resized = config.method != "fullgrad" and option == "align_corners"
        if not (untruncated or alone or scaled or resized):
            changed: list[dict[str, Any]] = [{option: value} for value in values]
            yield from (((option, str(change[option])), replace(config, **change)) for change in changed)


def crossings(deltas: Sequence[float]) -> list[Config]:
    """LTGrad-CAM at every delta and without truncation, for every percentile scope and scale of the maps."""
    whole = [Config("gradcam", "S1-S5", normalize=scale) for scale in get_args(Normalize)]
    return whole + [
        replace(config, per=per, delta=float(delta)) for per in get_args(Scope) for config in whole for delta in deltas
    ]


def protocols(study: Study) -> dict[Run, Protocol]:
    """The runs under another protocol that the profile asks for. Sizes are named as width x height."""
    height, width = study.dataset.larger
    levels: dict[str, tuple[str, Any]] = {
        "labels": ("predicted", "predicted"), "outputs": ("relu", "relu"), "size": (f"{width} x {height}", (height, width)),
    }  # fmt: skip
    for setting, known in (("protocols", levels), ("varied", ROWS)):
        if unknown := [name for name in study.settings[setting] if name not in known]:
            raise InputError(f"{setting}: {unknown[0]!r} cannot be changed, expected some of {', '.join(known)}")
    asked = {factor: levels[factor] for factor in study.settings["protocols"]}
    return {(f, name): replace(study.protocol, **{f: value}) for f, (name, value) in asked.items()}


def needs(study: Study) -> list[Need]:
    """All that the tables of this file read."""
    varied = study.settings["varied"]
    changed = [c for config in (*(ROWS[name] for name in varied), *SEVEN.values()) for _, c in variants(config)]
    first = study.settings["ablated"]
    whole = list(dict.fromkeys([*COMPARED, *changed, *crossings(study.settings["deltas"])]))
    return [
        Need(whole, seeds=first),
        *(Need(COMPARED, protocol=protocol, seeds=first) for protocol in protocols(study).values()),
    ]


def measured(study: Study, wanted: Callable[[Run], Sequence[Config]]) -> dict[Run, Counts]:
    """The counts of every run: the defaults, other protocols, and other trainings of the model. wanted: by run."""
    first = study.settings["ablated"]
    found = {DEFAULTS: study.counts(wanted(DEFAULTS), seeds=first)}
    for run, protocol in protocols(study).items():
        found[run] = study.counts(wanted(run), protocol=protocol, seeds=first)
    base = asdict(study.recipe(study.names[0]))
    for name in study.settings["others"]:
        changed = {field: value for field, value in asdict(study.recipe(name)).items() if value != base[field]}
        run = ", ".join(changed) or "training", ", ".join(map(str, changed.values())) or "again"
        found[run] = study.store.read(study.measured(name, [*map(Way, wanted(run))]), list(wanted(run)))
    return found


def labelled(study: Study, table: pd.DataFrame, metric: str = "") -> pd.DataFrame:
    """`table` with the columns that end every table of notebook 08. metric: default the data set's headline score."""
    return table.assign(data=study.title, metric=metric or study.metric)


@result("What each choice is worth, one at a time", needs, golden=("factor", "level", "row", "value"))
def ablations(study: Study) -> pd.DataFrame:
    """Every row of every measured run: the headline score in percent with its interval, and what the run changed, in points.

    The columns are factor, level, row (a name in `ROWS`), those of the configuration, value, ci_low, ci_high, and change,
    change_low, change_high, verdict ("better", "worse", "tie"). A change is against the same row with the defaults. For the
    factor "trick" it is against the row without the trick; the level names the trick, and the run unless it is the default.
    """
    there = set(needs(study)[0].configs)
    options = {name: [(run, changed) for run, changed in variants(config) if changed in there] for name, config in ROWS.items()}
    every = [*ROWS.values(), *(config for changed in options.values() for _, config in changed)]
    counts = measured(study, lambda run: every if run == DEFAULTS else list(ROWS.values()))
    found, scores = [], {run: draws(own, study.metric) for run, own in counts.items()}
    for run, own in scores.items():
        for trick, (made, before) in TRICKS.items():
            level = trick if run == DEFAULTS else f"{trick}, {run[0]} = {run[1]}"
            found.append(_row(("trick", level), made, ROWS[made], own, own[ROWS[before]]))
    defaults = scores[DEFAULTS]
    for name, config in ROWS.items():
        found.append(_row(DEFAULTS, name, config, defaults))
        found += [_row(run, name, changed, defaults, defaults[config]) for run, changed in options[name]]
        found += [_row(run, name, config, other, defaults[config]) for run, other in scores.items() if run != DEFAULTS]
    return labelled(study, pd.DataFrame(found))


@result("How well each reading agrees with the paper's order of methods", needs)
def readings(study: Study) -> pd.DataFrame:
    """How well our order of the seven methods agrees with that of the paper's table, under every measured reading.

    A reading is another run, one of `OPTIONS` for every method whose mask it can change, or another mean (`MEANS`). The columns
    are factor and level, then tau, ci_low and ci_high (Kendall's rank correlation of our scores with the printed ones, in
    [-1, 1]), farthest (the largest difference from a printed score, in points), then our score of each method. The reading with
    the best agreement comes first.
    """
    printed = published(study.compared[-1])["mIoU"][list(SEVEN)].to_numpy()
    changed = {config: dict(variants(config)) for config in SEVEN.values()}
    every = [*changed, *(config for levels in changed.values() for config in levels.values())]
    counts = measured(study, lambda run: every if run == DEFAULTS else list(changed))
    scores = {run: draws(own, study.metric) for run, own in counts.items()}
    for mean, level in MEANS[study.metric].items():
        scores["mean", level] = draws(counts[DEFAULTS].pick(changed), mean)
    options = dict.fromkeys(run for levels in changed.values() for run in levels)
    seven = {run: [own[config] for config in changed] for run, own in scores.items()} | {
        run: [scores[DEFAULTS][levels.get(run, config)] for config, levels in changed.items()] for run in options
    }
    rows = []
    for run, ours in seven.items():
        means = dict(zip(SEVEN, (values[0].mean() for values in ours), strict=True))
        farthest = np.abs(printed - [*means.values()]).max()
        rows.append(
            {"factor": run[0], "level": run[1], **ends(_tau(printed, np.array(ours)), "tau"), "farthest": farthest, **means}
        )
    return labelled(study, pd.DataFrame(rows).sort_values("tau", ascending=False, kind="stable", ignore_index=True))


@result("Scores by percentile scope, scale of the stages' maps, and δ", needs, golden=("per", "normalize", "delta", "value"))
def cross(study: Study) -> pd.DataFrame:
    """`crossings` in the form of `ablations`. A change is against no truncation at the same scale."""
    configs = crossings(study.settings["deltas"])
    scores = draws(study.counts(configs, seeds=study.settings["ablated"]), study.metric)
    plain = {config: replace(config, delta=None, per="layer") for config in configs}
    return labelled(study, pd.DataFrame([_row(("cross", ""), "LTGrad-CAM", c, scores, scores[plain[c]]) for c in configs]))


@result("Other readings of Eq. 9", lambda study: [Need(list(EQ9.values()), seeds=1)])
def eq9(study: Study) -> pd.DataFrame:
    """The score of each reading of Eq. 9 at delta = 20 in percent, and its difference from delta = 0, in the first seed."""
    counts = study.counts(EQ9.values(), seeds=1)
    by_name = counts.pairs.sort_values(["name", "class"]).index.to_numpy()  # of all folds together: the order of the draws
    scores = draws(counts.where(by_name), study.metric)
    rows = [{"reading": name, **ends(scores[c]), **_change(scores[c] - scores[LT0])} for name, c in EQ9.items()]
    return labelled(study, pd.DataFrame(rows))


@result("The best of the sweep on the training part, on the held-out part", needs)
def beyond(study: Study) -> pd.DataFrame:
    """The best configuration on the training part, compared with each of the seven methods on the held-out part.

    The rows are as in `ablations`: first the chosen configuration, then the seven, whose change is the chosen score minus their
    own. The column chosen_on has the chosen configuration's score on the training part.
    """
    first = study.settings["ablated"]
    scores = draws(study.counts(dict.fromkeys([*SEVEN.values(), *SWEEP]), seeds=first), study.metric)
    on_train = {c: values[0].mean() for c, values in draws(study.counts(SWEEP, "train", seeds=first), study.metric, 1).items()}
    chosen = max(on_train, key=lambda config: on_train[config])
    rows = [
        _row(("beyond", ""), name, config, scores) | _change(scores[chosen] - scores[config])
        for name, config in {"chosen": chosen, **SEVEN}.items()
    ]
    return labelled(study, pd.DataFrame(rows).assign(chosen_on=on_train[chosen]))


def _tau(printed: Floats, ours: Floats) -> Floats:
    """Kendall's tau of (methods,) with each column of (methods, draws, trainings)."""
    first, second = np.triu_indices(len(printed), 1)
    agreed = np.sign(printed[first] - printed[second])[:, None, None] * np.sign(ours[first] - ours[second])
    return np.asarray(agreed.mean(axis=0))


def _row(run: Run, name: str, config: Config, scores: Draws, before: Floats | None = None) -> dict[str, Any]:
    fields = {field: value for field, value in row(config).items() if field not in ("refine", "align_corners") or value}
    found = {"factor": run[0], "level": run[1], "row": name, **fields, **ends(scores[config])}
    return found if before is None else found | _change(scores[config] - before)


def _change(margin: Floats) -> dict[str, Any]:
    return {**ends(margin, "change", "change_low", "change_high"), "verdict": VERDICTS[verdict(margin)]}

"""What each setting that the paper leaves open is worth, one choice at a time; percentile scope, scale and delta in full.

`ROWS` are measured with the defaults, with one option changed (`OPTIONS`), under another protocol, and with other trainings of
the same model. The images are always the same, so each change is a paired difference with an interval. So is the gain of the
paper's two `TRICKS` in each of these runs. `readings` asks in which of them the paper's order of methods appears.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltcam.engine.tricks import Normalize, Scope
from ltcam.errors import InputError
from ltcam.experiment import metrics
from ltcam.experiment.configs import FLOATS, Config, Protocol, pick
from ltcam.experiment.counting import Reading
from ltcam.experiment.evaluation import evaluate
from ltcam.experiment.intervals import DRAWS, VERDICTS, Draws, draws, ends, verdict
from ltcam.experiment.study import Study
from ltcam.files import AnyPath
from ltcam.paper import tables as paper
from ltcam.paper.sweep import DELTAS

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
COMPARED = list(dict.fromkeys([*ROWS.values(), *paper.SEVEN.values()]))  # under every protocol
PROTOCOLS = ("labels", "outputs", "size")
LARGER = {  # defect sets keep their aspect ratio
    "demo": (320, 320), "voc2012": (320, 320), "magnetic_tile": (320, 288), "ksdd": (960, 344), "ksdd2": (960, 344)
}  # fmt: skip


def variants(config: Config) -> Iterator[tuple[Run, Config]]:
    """`config` with one option changed, for each change that can alter its mask."""
    for option, values in OPTIONS.items():
        untruncated = config.delta is None and option in ("per", "compare")
        alone = config.layers in ("S1", "S2", "S3", "S4", "S5") and option in ("fuse", "normalize")
        scaled = config.method == "fullgrad" and option == "normalize"  # by Eq. 7
        resized = config.method != "fullgrad" and option == "align_corners"
        if not (untruncated or alone or scaled or resized):
            yield from (((option, str(value)), config._replace(**{option: value})) for value in values)


def cross(deltas: Sequence[float] = DELTAS) -> list[Config]:
    """LTGrad-CAM at every delta and without truncation, for every percentile scope and scale of the maps."""
    whole = [Config("gradcam", "S1-S5", normalize=scale) for scale in get_args(Normalize)]
    return whole + [config._replace(per=per, delta=delta) for per in get_args(Scope) for config in whole for delta in deltas]


def readings_of(
    data: str, protocol: Protocol, deltas: Sequence[float], varied: Sequence[str], protocols: Sequence[str]
) -> dict[str, Reading]:
    """All that `measure` reads, by folder: much under `protocol` itself, and what is compared with one field of it changed."""
    changed = [c for row in (*(ROWS[name] for name in varied), *paper.SEVEN.values()) for _, c in variants(row)]
    everything = list(dict.fromkeys([*COMPARED, *changed, *cross(deltas)]))
    levels = _levels(data)
    others = {f"ablations/{factor}": (COMPARED, replace(protocol, **{factor: levels[factor]})) for factor in protocols}
    return {"": (everything, protocol), **others}


def measure(
    study: Study,
    deltas: Sequence[float] = DELTAS,
    batch_size: int = 8,
    protocols: Sequence[str] = PROTOCOLS,
    varied: Sequence[str] = tuple(ROWS),
    others: Sequence[str] = (),
) -> dict[Run, pd.DataFrame]:
    """The counts of every run on the held-out part. Those of other protocols are in each training's folder `ablations`.

    protocols  the `PROTOCOLS` to change; only another size needs its own pass over the images
    varied     the rows whose options are changed, beside the paper's seven
    others     other trainings of the model, by their folders in the study's; without a checkpoint, their kept counts are read
    """
    if unknown := [name for name in (*protocols, *varied) if name not in (*PROTOCOLS, *ROWS)]:
        raise InputError(f"{unknown[0]!r} cannot be changed: expected protocols of {PROTOCOLS} and rows of {tuple(ROWS)}")
    runs = [DEFAULTS, *(changed_by(factor, study.data) for factor in protocols)]
    wanted = readings_of(study.data, Protocol(batch_size), deltas, varied, protocols)
    found = dict(zip(runs, study.together(wanted), strict=True))
    for name in others:
        kept = study.out / name
        if (study.runs / name / "checkpoint.pt").is_file():
            evaluate(study.load(name), study.trained.recipe.test, COMPARED, kept, Protocol(batch_size))
        if (kept / "counts.csv.gz").is_file():
            found |= another(kept, asdict(study.trained.recipe))
    return found


def changed_by(factor: str, data: str) -> Run:
    """The run of another protocol. Sizes are given as width x height."""
    level = _levels(data)[factor]
    return factor, "{1} x {0}".format(*level) if factor == "size" else level


def another(folder: AnyPath, recipe: Mapping[str, Any]) -> dict[Run, pd.DataFrame]:
    """The counts of another training of the model, keyed by the fields of its recipe that differ from `recipe`."""
    fields = json.loads(json.dumps(recipe))
    other = json.loads((Path(folder) / "counts.json").read_text())["recipe"]
    changed = {name: value for name, value in other.items() if value != fields.get(name)}
    run = ", ".join(changed) or "training", ", ".join(str(value) for value in changed.values()) or "again"
    return {run: pd.read_csv(Path(folder) / "counts.csv.gz", dtype=FLOATS)}


def table(measured: Mapping[Run, pd.DataFrame], metric: str, number: int = DRAWS) -> pd.DataFrame:
    """Every row of every measured run: `metric` in percent with its interval, and what the run changed, in points.

    The columns are factor, level, row (a name in `ROWS`), those of the configuration, value, ci_low, ci_high, and change,
    change_low, change_high, verdict ("better", "worse", "tie"). A change is against the same row with the defaults. For the
    factor "trick" it is against the row without the trick; the level names the trick, and the run unless it is the default.
    """
    needed = [*ROWS.values(), *(config for row in ROWS.values() for _, config in variants(row))]
    scores = {run: draws(pick(counts, needed), metric, number) for run, counts in measured.items()}
    defaults = scores[DEFAULTS]
    found = [
        _row(("trick", trick if run == DEFAULTS else f"{trick}, {run[0]} = {run[1]}"), made, ROWS[made], own, own[ROWS[before]])
        for run, own in scores.items()
        for trick, (made, before) in TRICKS.items()
    ]
    for name, config in ROWS.items():
        found.append(_row(DEFAULTS, name, config, defaults))
        options = [(run, changed) for run, changed in variants(config) if changed in defaults]
        found += [_row(run, name, changed, defaults, defaults[config]) for run, changed in options]
        found += [_row(run, name, config, other, defaults[config]) for run, other in scores.items() if run != DEFAULTS]
    return pd.DataFrame(found)


def crossed(counts: pd.DataFrame, metric: str, deltas: Sequence[float] = DELTAS, number: int = DRAWS) -> pd.DataFrame:
    """`cross` of `deltas` in the form of `table`. A change is against no truncation at the same scale."""
    scores = draws(pick(counts, cross(deltas)), metric, number)
    return pd.DataFrame([
        _row(("cross", ""), "LTGrad-CAM", config, scores, scores[config._replace(delta=None, per="layer")])
        for config in cross(deltas)
    ])  # fmt: skip


def readings(measured: Mapping[Run, pd.DataFrame], number: int, metric: str, draw: int = DRAWS) -> pd.DataFrame:
    """How well our order of the seven methods agrees with the paper's table `number`, under every measured reading.

    A reading is another run, one of `OPTIONS` for every method whose mask it can change, or another mean (`MEANS`). The columns
    are factor and level, then tau, ci_low and ci_high (Kendall's rank correlation of our scores with the printed ones, in
    [-1, 1]), farthest (the largest difference from a printed score, in points), then our score of each method. The reading with
    the best agreement comes first.
    """
    printed = paper.published(number)["mIoU"][list(paper.SEVEN)].to_numpy()
    changed = {config: dict(variants(config)) for config in paper.SEVEN.values()}
    needed = [*changed, *(config for levels in changed.values() for config in levels.values())]
    scores = {run: draws(pick(counts, needed), metric, draw) for run, counts in measured.items()}
    for mean, level in MEANS[metric].items():
        scores["mean", level] = draws(pick(measured[DEFAULTS], changed), mean, draw)
    options = dict.fromkeys(run for levels in changed.values() for run in levels)
    seven = {run: [own[config] for config in changed] for run, own in scores.items()} | {
        run: [scores[DEFAULTS][levels.get(run, config)] for config, levels in changed.items()] for run in options
    }
    rows = []
    for run, ours in seven.items():
        means = dict(zip(paper.SEVEN, (v[0].mean() for v in ours), strict=True))
        farthest = np.abs(printed - [*means.values()]).max()
        tau = ends(_tau(printed, np.array(ours)), "tau")
        rows.append({"factor": run[0], "level": run[1], **tau, "farthest": farthest, **means})
    return pd.DataFrame(rows).sort_values("tau", ascending=False, kind="stable", ignore_index=True)


def beyond(
    test: pd.DataFrame, train: pd.DataFrame, baselines: Mapping[str, Config], metric: str, number: int = DRAWS
) -> pd.DataFrame:
    """The best configuration on the training part, compared with each baseline on the test part.

    test, train: the counts of both parts; only configurations in both can be chosen. The rows are as in `table`: first the
    chosen configuration, then the baselines. A baseline's change is the chosen score minus its own. The column chosen_on has
    the chosen configuration's score on the training part.
    """
    scores = draws(test, metric, number)
    on_train = {config: values[0].mean() for config, values in draws(train, metric, 1).items() if config in scores}
    chosen = max(on_train, key=lambda config: on_train[config])
    rows = [_row(("beyond", ""), name, config, scores) for name, config in {"chosen": chosen, **baselines}.items()]
    differences = [_change(scores[chosen] - scores[config]) for config in (chosen, *baselines.values())]
    return pd.DataFrame([row | by for row, by in zip(rows, differences, strict=True)]).assign(chosen_on=on_train[chosen])


def _tau(printed: NDArray[np.float64], ours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kendall's tau of (methods,) with each column of (methods, draws, trainings)."""
    first, second = np.triu_indices(len(printed), 1)
    agreed = np.sign(printed[first] - printed[second])[:, None, None] * np.sign(ours[first] - ours[second])
    return np.asarray(agreed.mean(axis=0))


def _row(run: Run, name: str, config: Config, scores: Draws, before: Any = None) -> dict[str, Any]:
    fields = {field: value for field, value in config._asdict().items() if field not in metrics.LATER or value}
    row = {"factor": run[0], "level": run[1], "row": name, **fields, **ends(scores[config])}
    return row if before is None else row | _change(scores[config] - before)


def _change(margin: Any) -> dict[str, Any]:
    return {**ends(margin, "change", "change_low", "change_high"), "verdict": VERDICTS[verdict(margin)]}


def _levels(data: str) -> dict[str, Any]:
    return {"labels": "predicted", "outputs": "relu", "size": LARGER[data]}

"""Every figure of the series is a function of a study: `draw("fig1", study)` draws one and saves it.

figures.yaml has the captions, and the texts that stand for a figure where it is not seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ltcam import Config, trace, truncate
from ltcam import data as datasets
from ltcam.data import Segmentation
from ltcam.errors import InputError
from ltcam.experiment.otsu import otsu_masks
from ltcam.experiment.scores import Counts
from ltcam.experiment.study import Study
from ltcam.paper import areas as covered
from ltcam.paper import beyond, breakdown
from ltcam.paper.beyond import BEST, Best
from ltcam.paper.registry import make
from ltcam.paper.tables import SEVEN
from ltcam.show import charts, heatmaps
from ltcam.show.heatmaps import Pair

STAGES = {f"S{i}": Config("gradcam", f"S{i}") for i in range(1, 6)}
SUM = "Eq. 8: sum"
LT = SEVEN["LTGrad-CAM(l=5, δ=20)"]
FAILING = ("Grad-CAM", "Layer-CAM(l=5, δ=0)", "LTGrad-CAM(l=5, δ=20)")
SWEPT = {"gradcam": "Grad-CAM", "fullgrad": "FullGrad", "layercam": "Layer-CAM"}
COLORS = dict(zip(SWEPT.values(), ("tab:blue", "tab:orange", "tab:green"), strict=True))  # the paper's in Figs. 4 and 5
DELTA = "δ (percentile of the positive gradients)"


class Entry(NamedTuple):
    caption: str
    alt: str
    of: Callable[..., Figure]  # a function of a study, with options


def draw(name: str, study: Study, **options: object) -> Figure:
    """Draw figure `name` of a study, and save it in the study's folder of figures. Raises InputError for another name."""
    if name not in FIGURES:
        raise InputError(f"figure {name!r} is unknown: expected one of {', '.join(FIGURES)}")
    figure = FIGURES[name].of(study, **options)
    heatmaps.save(figure, study.figures / name)
    return figure


def worst(counts: Counts, data: Segmentation, config: Config, count: int = 4) -> dict[Pair, float]:
    """{(image index, class): IoU in percent} of the `count` pairs of `data` that `config` segments worst, worst first.

    Of several trainings the first counts. A pair without a true pixel is left out: there its mask fails, and not the method.
    """
    index, own = {entry.name: i for i, entry in enumerate(data.entries)}, counts.pick([config])
    tp, _, fn = own.values[:, 0].T
    rows = own.pairs.assign(IoU=own.iou()[:, 0])[tp + fn > 0]
    rows = rows[rows["name"].isin(index) & (rows["training"] == rows["training"].iloc[0])]
    lowest = rows.sort_values(["IoU", "name", "class"]).head(count)
    return {(index[name], c): value for name, c, value in lowest[["name", "class", "IoU"]].itertuples(index=False)}


def compared(
    study: Study, chosen: Sequence[Pair] | Mapping[Pair, float], ways: Mapping[str, Config | Best], truth: bool = True
) -> Figure:
    """A row for each pair, with its IoU if `chosen` has it, and a column for the heatmap of each way, in its own views.

    truth: outline the class in the image.
    """
    samples, rows = [study.test[i] for i, _ in chosen], []
    way_of = {title: way if isinstance(way, Best) else Best(way) for title, way in ways.items()}
    for sample, (_, c) in zip(samples, chosen, strict=True):
        heats = dict[Best, Tensor]()
        for views in dict.fromkeys(way.views for way in way_of.values()):
            configs = [way.config for way in way_of.values() if way.views == views]
            found = heatmaps.maps(study.trained, sample, c, configs, beyond.fitted(views, study))
            heats |= {Best(config, views): heat for config, heat in found.items()}
        rows.append({title.replace(": ", ":\n").replace(", s", ",\ns"): heats[way] for title, way in way_of.items()})
    labels = [study.test.entries[i].kind or study.test.classes[c] for i, c in chosen]
    if isinstance(chosen, Mapping):
        labels = [f"{label}\nIoU {iou:.1f}%" for label, iou in zip(labels, chosen.values(), strict=True)]
    masks = [sample.mask == c + 1 for sample, (_, c) in zip(samples, chosen, strict=True)]
    return heatmaps.grid([sample.image for sample in samples], rows, labels, masks if truth else None)


def samples(data: Segmentation, count: int = 8) -> Figure:
    """The classes take turns, and samples are spread evenly over the areas of each. Raises InputError if there are none."""
    table = covered.areas(data).sample(frac=1, random_state=0).drop_duplicates("name")
    groups = [t.sort_values(["area", "name"]) for t in covered.by_class(table).values()]
    if not groups or count < 1:
        raise InputError(f"{count} samples of {data.title}, part {data.part}: expected at least one, of an image with a class")
    groups = random.Random(0).sample(groups, len(groups))
    turns = -(-count // len(groups))
    chosen = pd.DataFrame([t.iloc[int((k + 0.5) / turns * len(t))] for k in range(turns) for t in groups][:count])
    names = [entry.name for entry in data.entries]
    found = [data[names.index(name)] for name in chosen["name"]]
    masks = [sample.mask == data.classes.index(c) + 1 for sample, c in zip(found, chosen["class"], strict=True)]
    titles = [f"{kind or c}\n{area:.2f}%" for _, c, kind, area in chosen.itertuples(index=False)]
    return heatmaps.strip([sample.image for sample in found], titles, masks)


def areas(study: Study) -> Figure:
    """A row for the held-out part of every data set that is here, and for each class of this one."""
    tables = {title: covered.areas(data) for title, data in {**datasets.present(), study.test.title: study.test}.items()}
    rows = {**tables, **covered.by_class(tables[study.test.title])}
    positive = {f"{title} ({len(t)})": t.loc[t["area"] > 0, "area"].to_numpy() for title, t in rows.items()}
    return charts.distributions(positive, "area of a class, % of the image")


def truncation(study: Study, rows: int = 5, deltas: Sequence[float | None] = (None, 0, 20, 60, 90)) -> Figure:
    """The gradients, summed over channels, of the one among `rows` examples whose class the model is surest of."""
    pairs = heatmaps.examples(study.test, rows)
    found, classes = [study.test[i] for i, _ in pairs], [c for _, c in pairs]
    traced = trace(study.trained.model, heatmaps.inputs(study.trained, found), classes)
    best = int(traced.logits[range(len(classes)), classes].argmax())
    left: dict[str, dict[str, Tensor]] = {"S2": {}, "S3": {}, "S5": {}}
    for stage, panels in left.items():
        for delta in deltas:
            kept = truncate(traced.gradient(traced.stages[stage])[[best]], delta)[0].cpu()
            name = "all" if delta is None else f"δ = {delta:g}"
            panels[f"{name}\n{float((kept != 0).float().mean()):.0%} kept"] = kept.sum(dim=0)
    masks = [found[best].mask == classes[best] + 1] * len(left)
    return heatmaps.grid([found[best].image] * len(left), [*left.values()], [*left], masks, heatmaps.signed)


def idea(study: Study, rows: int = 5, delta: float = 20) -> Figure:
    """Grad-CAM at each stage, the sum (Eq. 8) and its Otsu mask: with all gradients, and with those that Eq. 9 keeps."""
    index, c = heatmaps.examples(study.test, rows, seed=3)[-1]
    sample, lines = study.test[index], list[dict[str, Tensor]]()
    truth = sample.mask == c + 1

    def outlined(axes: Axes, image: NDArray[np.uint8], heat: Tensor) -> None:
        heatmaps.panel(axes, image, heat.float())
        if heat.dtype == torch.bool:
            heatmaps.outline(axes, truth, image.shape[:2])

    for kept in (None, delta):
        configs = {stage: replace(config, delta=kept) for stage, config in {**STAGES, SUM: Config(layers="S1-S5")}.items()}
        found = heatmaps.maps(study.trained, sample, c, [*configs.values()])
        mask = otsu_masks(found[configs[SUM]][None])[0]
        iou = float(heatmaps.iou(mask, sample.mask, c))
        lines.append({name: found[config] for name, config in configs.items()} | {f"Otsu's mask, IoU {iou:.0f}%": mask})
    labels = ["all gradients", f"truncated,\nEq. 9 (δ={delta:g})"]
    return heatmaps.grid([sample.image] * 2, lines, labels, [truth] * 2, outlined)


def swept(study: Study, part: str) -> Figure:
    """The headline score over delta on one part, for three methods."""
    table = make("sweep", study)
    table = table[table["part"] == part].replace({"method": SWEPT})
    wide = table.dropna(subset="delta").pivot(index="delta", columns="method", values=study.metric)[[*COLORS]]
    flat = table[table["delta"].isna()].set_index("method")[study.metric]
    return charts.lines(wide, DELTA, f"{study.metric} (%)", f"{study.title}, part {part}", COLORS, flat)


def gained(study: Study, by: str) -> Figure:
    """The points that the tricks gain on single objects, over an amount."""
    each = breakdown.each(study)
    each = each.assign(group=breakdown.fifths(each[by], breakdown.AMOUNTS[by]))
    return charts.gains(each, make("breakdown", study), breakdown.SHOWN, study.title, by)


def dropped(study: Study) -> Figure:
    """The share of the positive gradient that Eq. 9 drops; on the dashed line if all gradients were equal."""
    wide = make("dropped", study).pivot(index="delta", columns="stage", values="share")
    figure = charts.lines(wide, DELTA, "dropped (% of their sum)", study.title)
    figure.axes[0].plot([0, 100], [0, 100], color="gray", linewidth=0.8, linestyle="--")
    return figure


def seeds(study: Study) -> Figure:
    """mIoU with background over the threshold, of Grad-CAM at S5 and of the best."""
    wide = pd.DataFrame(beyond.lines(study))
    figure = charts.lines(wide, "t, the value of background", "mIoU (%)", study.title, marker="")
    figure.axes[0].plot(wide.idxmax(), wide.max(), "o", color="black", markersize=4)
    return figure


def failures_beyond(study: Study) -> Figure:
    """The pairs that the best configuration segments worst."""
    best, ways = BEST["otsu"], beyond.steps(BEST["otsu"])
    counts = study.counts([best.config], protocol=beyond.fitted(best.views, study), first=study.settings["scored_on"])
    first, *_, last = ways.items()
    return compared(study, worst(counts, study.test, best.config), dict([first, last]))


def _examples(study: Study, ways: Mapping[str, Config | Best], rows: int = 5, seed: int = 0, truth: bool = True) -> Figure:
    return compared(study, heatmaps.examples(study.test, rows, seed), ways, truth)


_OF: dict[str, Callable[..., Figure]] = {
    "samples": lambda study, count=8: samples(study.test, count),
    "areas": areas,
    "fig1": lambda study, rows=5: _examples(study, STAGES, rows, truth=False),
    "truncation": truncation,
    "idea": idea,
    "fig2": lambda study, rows=5: _examples(study, SEVEN, rows, seed=3),
    "fig3": lambda study, rows=5: _examples(study, SEVEN, rows, seed=4),
    "failures": lambda study: compared(study, worst(study.counts([LT]), study.test, LT), {row: SEVEN[row] for row in FAILING}),
    "fig4": lambda study: swept(study, "test"),
    "fig5": lambda study: swept(study, "train"),
    "ablations": lambda study: charts.changes(make("ablations", study), study.settings["varied"], study.title),
    "cross": lambda study: charts.cross(make("cross", study), f"LTGrad-CAM on {study.title}, {study.metric} (%)"),
    "signs": lambda study: charts.signs(make("signs", study), study.title),
    "stages": lambda study: charts.stages(make("stages", study), study.title),
    "dropped": dropped,
    "gain_by_area": lambda study: gained(study, "area"),
    "gain_by_overlap": lambda study: gained(study, "overlap"),
    "steps": lambda study: charts.steps(make("best", study), study.title),
    "beyond": lambda study, rows=5: _examples(study, beyond.steps(BEST["argmax"]), rows),
    "seeds": seeds,
    "failures_beyond": failures_beyond,
}
_TEXTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
FIGURES = {name: Entry(_TEXTS[name][0], _TEXTS[name][1], of) for name, of in _OF.items()}

"""Every figure of the series is a function of a study: `draw("fig1", study)` draws one and saves it.

figures.yaml has the captions, and the texts that stand for a figure where it is not seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
import torch
import yaml
from matplotlib.figure import Figure
from torch import Tensor

from ltcam import Config, trace, truncate
from ltcam import data as datasets
from ltcam.data import Sample, Segmentation
from ltcam.errors import InputError
from ltcam.experiment.otsu import above, otsu_masks
from ltcam.experiment.scores import Counts
from ltcam.experiment.study import Role, Study
from ltcam.files import ROOT
from ltcam.paper import areas as covered
from ltcam.paper import beyond, breakdown, defects, shares
from ltcam.paper.beyond import BEST, Best
from ltcam.paper.registry import make, shown
from ltcam.paper.tables import SEVEN, deltas, published, settings
from ltcam.show import charts, heatmaps
from ltcam.show.heatmaps import Pair

STAGES = {f"S{i}": Config("gradcam", f"S{i}") for i in range(1, 6)}
LT = "LTGrad-CAM(l=5, δ=20)"
TINY = 1e-12  # an empty map has no share
FAILING = {row: SEVEN[row] for row in ("Grad-CAM", "Layer-CAM(l=5, δ=0)", LT)}
SWEPT = {"gradcam": "Grad-CAM", "fullgrad": "FullGrad", "layercam": "Layer-CAM"}


class Entry(NamedTuple):
    caption: str
    alt: str
    of: Callable[..., Figure]  # a function of a study, with options


def about(study: Study, first: int | Literal["ablated"] | None = None, role: Role = "test") -> str:
    """What a figure is of: data set, part (of folds, all of them), how many seeds (the first so many; None: all), setting."""
    first = study.settings[first] if isinstance(first, str) else first
    part, count = getattr(study.recipe(study.names[0]), role).rstrip("0123456789"), len(study.seeds[:first])
    return f"{study.title}, {part}, {count} seed{'s' * (count > 1)}, {study.loss}"


@charts.own_style
def draw(name: str, study: Study, **options: object) -> Figure:
    """Draw figure `name` of a study, and save it in the study's folder of figures. Raises InputError for another name."""
    if name not in FIGURES:
        raise InputError(f"figure {name!r} is unknown: expected one of {', '.join(FIGURES)}")
    figure = FIGURES[name].of(study, **options)
    heatmaps.save(figure, study.figures / name)
    return figure


def samples(data: Segmentation, count: int = 8) -> Figure:
    """Samples of each class in turn, spread evenly over the areas of each. Raises InputError if there are none."""
    table = covered.areas(data).sample(frac=1, random_state=0).drop_duplicates("name").sort_values(["area", "name"])
    groups = [*covered.by_class(table).values()]
    if not groups:
        raise InputError(f"no samples of {data.title}, part {data.part}: expected at least one image with a class")
    turns, order = -(-count // len(groups)), random.Random(0).sample(groups, len(groups))
    rows = [own.iloc[int((turn + 0.5) / turns * len(own))] for turn in range(turns) for own in order][:count]
    index = {entry.name: i for i, entry in enumerate(data.entries)}
    found = [data[index[row["name"]]] for row in rows]
    masks = [sample.mask == data.classes.index(row["class"]) + 1 for sample, row in zip(found, rows, strict=True)]
    titles = [f"{row['kind'] or row['class']}\n{row['area']:.2f}%" for row in rows]
    return heatmaps.strip([sample.image for sample in found], titles, masks)


def areas(study: Study) -> Figure:
    """A row for the held-out part of every data set that is here, of folds for all of them, and for each class of this one."""
    here = {**datasets.present(), study.test.title: study.test}.items()
    tables = {title: covered.areas(datasets.load(own.name, "all") if "all" in own.official else own) for title, own in here}
    tables |= covered.by_class(tables[study.test.title])
    rows = {f"{title} ({len(table)})": table["area"][table["area"] > 0] for title, table in tables.items()}
    return charts.boxes(rows, "area of a class, % of the image")


def compared(
    study: Study, ways: Mapping[str, Config | Best], chosen: Mapping[Pair, float] | list[Pair], cut: str = ""
) -> Figure:  # fmt: skip
    """A row for each pair, with its IoU if `chosen` has it, and a column for the heatmap of each way, in its own views.

    Each heatmap says the IoU of its mask by Otsu's threshold, which is outlined; those of `STAGES` their share of the sum. The
    last of `SEVEN` is shown by its difference from the one before, which looks the same. cut: a way whose mask at the share
    that the first training has chosen is one more column, if the study has a second cut."""
    best = {title: way if isinstance(way, Best) else Best(way) for title, way in ways.items()}
    views = {way.views: beyond.fitted(way.views, study) for way in best.values()}
    configs = {own: {title: way.config for title, way in best.items() if way.views == own} for own in views}
    samples, rows, labels = [study.test[i] for i, _ in chosen], [], []
    for sample, (i, c) in zip(samples, chosen, strict=True):
        heats = {own: heatmaps.maps(study.trained, sample, c, configs[own], protocol) for own, protocol in views.items()}
        row = {title: heats[way.views][title] for title, way in best.items()}
        rows.append(shared(row) if ways is STAGES else scored(row, sample, c))
        if ways is SEVEN:
            (_, before), (title, after) = [*rows[-1].items()][-2:]
            change = after / after.max().clamp(min=TINY) - before / before.max().clamp(min=TINY)
            del rows[-1][title]
            rows[-1][f"{title}\nminus δ=0, up to {float(change.abs().max()):.1%}"] = change
        if cut and "shares" in shown(study):
            share = shares.chosen(study, study.names[0])[best[cut].config]
            rows[-1] |= scored({f"above {share:.0%}": above(row[cut], share)}, sample, c)
        iou = f"\nIoU {chosen[i, c]:.1f}%" if isinstance(chosen, Mapping) else ""
        labels.append((study.test.entries[i].kind or study.test.classes[c]) + iou)
    masks = [sample.mask == c + 1 for sample, (_, c) in zip(samples, chosen, strict=True)]
    return heatmaps.grid([sample.image for sample in samples], rows, labels, masks, cut=ways is not STAGES)


def shared(heats: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Heatmaps of stages, each with its share of their sum in its title."""
    total = max(sum(float(heat.sum()) for heat in heats.values()), TINY)
    return {f"{stage}\n{float(heat.sum()) / total:.1%} of sum": heat for stage, heat in heats.items()}


def scored(heats: Mapping[str, Tensor], sample: Sample, c: int) -> dict[str, Tensor]:
    """Heatmaps, or masks, each with the IoU of its mask with class `c` in its title."""
    masks = {title: heat if heat.dtype == torch.bool else otsu_masks(heat[None])[0] for title, heat in heats.items()}
    found = {title: float(heatmaps.iou(mask, sample.mask, c)) for title, mask in masks.items()}
    return {f"{title}\nIoU {found[title]:.0f}%": heat for title, heat in heats.items()}


def worst(counts: Counts, data: Segmentation, count: int = 4) -> dict[Pair, float]:
    """{(image index, class): IoU in percent} of the `count` pairs of `data` that one configuration segments worst, worst first.

    Of several trainings the first counts. A pair without a true pixel is left out: there its mask fails, and not the method.
    """
    index, (tp, _, fn) = {entry.name: i for i, entry in enumerate(data.entries)}, counts.values[:, 0].T
    rows = counts.pairs.assign(IoU=counts.iou()[:, 0])[tp + fn > 0]
    rows = rows[rows["name"].isin(index) & (rows["training"] == rows["training"].iloc[0])]
    lowest = rows.sort_values(["IoU", "name", "class"]).head(count)
    return {(index[name], c): value for name, c, value in lowest[["name", "class", "IoU"]].itertuples(index=False)}


def said(cut: str) -> dict[str, Best]:
    """The steps to the best configuration for a cut, in words."""
    return {charts.words(name): way for name, way in beyond.steps(BEST[cut]).items()}


def failures_beyond(study: Study) -> Figure:
    """The pairs that the best configuration segments worst."""
    (config, views), (first, *_, last) = BEST["otsu"], said("otsu").items()
    counts = study.counts([config], protocol=beyond.fitted(views, study), first=study.settings["scored_on"])
    return compared(study, dict([first, last]), worst(counts, study.test))


def truncation(study: Study) -> Figure:
    """The gradients, summed over channels, of the one among five examples whose class the model is surest of."""
    sample, image, c = heatmaps.surest(study.trained, study.test)
    traced = trace(study.trained.model, image, c)
    rows: dict[str, dict[str, Tensor]] = {"S2": {}, "S3": {}, "S5": {}}
    for stage, row in rows.items():
        kept = {delta: truncate(traced.gradient(traced.stages[stage]), delta)[0] for delta in (None, 0, 20, 60, 90)}
        kept[20] = kept[0] - kept[20]  # what is left looks like that of 0
        for delta, own in kept.items():
            name = "all" if delta is None else f"δ = {delta}{' drops' * (delta == 20)}"
            row[f"{name}\n{float((own != 0).float().mean()):.0%} of all"] = own.sum(dim=0)
    mask = sample.mask == c + 1
    return heatmaps.grid([sample.image] * len(rows), [*rows.values()], [*rows], [mask] * len(rows), signed=True)


def idea(study: Study) -> Figure:
    """Grad-CAM at each stage, the sum (Eq. 8) and its Otsu mask: with all gradients, and with those that Eq. 9 keeps."""
    index, c = heatmaps.examples(study.test, seed=3)[-1]
    sample, rows, summed = study.test[index], dict[str, dict[str, Tensor]](), "Eq. 8: sum"
    for label, delta in {"all gradients": None, "truncated,\nEq. 9 (δ=20)": 20.0}.items():
        ways = {name: replace(way, delta=delta) for name, way in {**STAGES, summed: Config(layers="S1-S5")}.items()}
        heats = heatmaps.maps(study.trained, sample, c, ways)
        whole = heats.pop(summed)
        rows[label] = shared(heats) | {summed: whole} | scored({"Otsu's mask": otsu_masks(whole[None])[0]}, sample, c)
    return heatmaps.grid([sample.image] * 2, [*rows.values()], [*rows], [sample.mask == c + 1] * 2)


def swept(study: Study, part: Role) -> Figure:
    """The headline score over delta on one part, for three methods."""
    some = f", first {first} images" if part == "train" and (first := study.settings["first"]) else ""
    return charts.swept(deltas(study), part, SWEPT, f"{study.metric} (%)", about(study, role=part) + some)


def gained(study: Study, by: str) -> Figure:
    """The points that the tricks gain on single objects, over an amount."""
    each = breakdown.each(study)
    each = each.assign(group=breakdown.fifths(each[by], breakdown.AMOUNTS[by]))
    return charts.gains(each, make("breakdown", study), breakdown.SHOWN, about(study, "ablated"), by)


def dropped(study: Study) -> Figure:
    """The share of the positive gradient that Eq. 9 drops, by stage, and what it would be if all gradients were equal."""
    wide = make("dropped", study).pivot(index="delta", columns="stage", values="share")
    figure = charts.lines(wide, f"{charts.DELTA}; dashed: if all were equal", "dropped (% of their sum)", about(study, 1))
    figure.axes[0].plot(wide.index, wide.index, "--", color="gray", linewidth=1)
    return figure


def gain_by_share(study: Study) -> Figure:
    """Points that LTGrad-CAM gains over two methods by a defect's share of the input, with bands; the paper's gains dashed."""
    table = make("gain_by_share", study).query("of == 'all'")
    wide, printed = table.pivot(index="area", columns="over", values="value")[defects.OTHERS], published(4)["mIoU"]
    x, y = "defect, % of the input", "points of IoU gained\n(dashed: printed for KSDD2)"
    figure = charts.lines(wide, x, y, f"{LT}: {table['data'].iloc[0]}")
    for row, line in zip(defects.OTHERS, [*figure.axes[0].lines], strict=True):
        band, color = table[table["over"] == row].set_index("area"), line.get_color()
        figure.axes[0].fill_between(band.index, band["ci_low"], band["ci_high"], color=color, alpha=0.15, linewidth=0)
        figure.axes[0].axhline(printed[LT] - printed[row], color=color, linestyle="dashed", linewidth=1)
    figure.axes[0].set_xscale("log")
    figure.axes[0].xaxis.set(**charts.plain())
    return figure


def seeds(study: Study) -> Figure:
    """mIoU with background over the threshold, of Grad-CAM at S5 and of the best; on VOC beside published ones."""
    wide, published = pd.DataFrame(beyond.lines(study)), pd.read_csv(ROOT / "data" / "published_seeds.csv")
    figure = charts.lines(wide, "threshold, as a share of the maximum", "mIoU (%)", about(study, 1, "train"), marker="")
    figure.axes[0].plot(wide.idxmax(), wide.max(), "o", color="black", markersize=4)
    if study.data == "voc2012":
        scores = published.query("name == 'CAM' and part == 'train'")["mIoU"]
        said = f"CAM, published:\n{' and '.join(map('{:g}'.format, scores))}"
        figure.axes[0].hlines(scores, 0, 1, "gray", "dashed", linewidth=1, label=said)
        figure.axes[0].legend(**charts.BESIDE)
    return figure


_OF: dict[str, Callable[..., Figure]] = {
    "samples": lambda study: samples(study.test),
    "areas": areas,
    "fig1": lambda study: compared(study, STAGES, heatmaps.examples(study.test, study.settings["pictures"])),
    "truncation": truncation,
    "idea": idea,
    "fig2": lambda study: compared(study, SEVEN, heatmaps.examples(study.test, study.settings["pictures"], 3)),
    "fig3": lambda study: compared(study, SEVEN, heatmaps.examples(study.test, study.settings["pictures"], 4), LT),
    "failures": lambda study: compared(study, FAILING, worst(study.counts([SEVEN[LT]]), study.test), LT),
    "fig4": lambda study: swept(study, "test"),
    "fig5": lambda study: swept(study, "train"),
    "claims": lambda s: charts.claims({own.loss: make("claims", own) for own in settings(s)}, about(s).rpartition(",")[0]),
    "ablations": lambda study: charts.changes(make("ablations", study), study.settings["varied"], about(study, "ablated")),
    "cross": lambda study: charts.cross(make("cross", study), f"LTGrad-CAM, {study.metric} (%): {about(study, 'ablated')}"),
    "signs": lambda study: charts.signs(make("signs", study), about(study, 1)),
    "stages": lambda study: charts.stages(make("stages", study), about(study, 1)),
    "dropped": dropped,
    "gain_by_area": lambda study: gained(study, "area"),
    "gain_by_overlap": lambda study: gained(study, "overlap"),
    "gain_by_share": gain_by_share,
    "steps": lambda study: charts.steps(make("best", study), about(study)),
    "beyond": lambda study, rows=5: compared(study, said("argmax"), heatmaps.examples(study.test, rows)),
    "seeds": seeds,
    "failures_beyond": failures_beyond,
}
_TEXTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
FIGURES = {name: Entry(_TEXTS[name][0], _TEXTS[name][1], of) for name, of in _OF.items()}

"""The paragraphs "Found" of the notebooks, one function per topic. The numbers in a run's tables decide the words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from ltcam.paper import findings
from ltcam.paper import sweep as over_delta
from ltcam.paper import tables as paper

Tables = Mapping[str, pd.DataFrame]
SWEPT = {"gradcam": "LTGrad-CAM", "layercam": "LTLayer-CAM", "fullgrad": "LTFullGrad"}


def areas(cells: pd.DataFrame, medians: Mapping[str, float]) -> str:
    """cells: `overview.against_cell`, one row per data set; medians: the area of each class shown, in percent."""
    lines = [
        f"On {title} a class covers {row['median']:.2g}% of an image at the median. A cell of S5 covers {row['cell']:.2g}%. "
        f"{row['smaller']:.0f}% of the pairs are smaller than a cell. A segmentation of the median area that is exact but for "
        f"one cell too many has an IoU of {row['IoU']:.0f}%."
        for title, row in cells.iterrows()
    ]
    small, large = min(medians, key=medians.__getitem__), max(medians, key=medians.__getitem__)
    if small != large:
        lines.append(f"The classes shown range from {small} ({medians[small]:.2g}%) to {large} ({medians[large]:.2g}%).")
    return "**Found.** " + " ".join(lines) + " So small defects need finer maps than S5 gives. The shallow stages have them."


def training(scores: pd.Series[float], epochs: int, source: str) -> str:
    """scores: mean average precision of each training."""
    spread = f" ({scores.min():.3f} to {scores.max():.3f} in {len(scores)} trainings)" if len(scores) > 1 else ""
    return (
        f"**Found.** After {epochs} epochs the mean average precision is {scores.mean():.3f}{spread}. The weights of the "
        f"convolutions come from {source}."
    )


def layers(made: Tables) -> str:
    miou = made["table1"].set_index("row")["mIoU"]
    fused, shallow, deep = miou["S1+S2+S3+S4+S5"], miou[["S1", "S2", "S3", "S4"]].max(), miou["S5"]
    return (
        f"S5 scores {deep:.2f}, the best other stage {shallow:.2f}, all five fused {fused:.2f} (paper: 25.31, 14.03, 21.57). "
        f"Fusing {_beats(fused, shallow)} every shallower stage and {_beats(fused, deep)} S5 alone. In the paper it beats the "
        "shallower stages and does not beat S5."
    )


def truncation(made: Tables) -> str:
    miou = paper.beside(2, made["table2"])["mIoU"]
    gradcam = miou.loc["LTGrad-CAM(l=1, δ=0)"] - miou.loc["Grad-CAM"]
    fullgrad = miou.loc["LTFullGrad(δ=0)"] - miou.loc["FullGrad"]
    return (
        f"Truncation alone (δ=0) {_helps(gradcam['ours'])} Grad-CAM at S5: {gradcam['ours']:+z.2f} points of mIoU (paper "
        f"{gradcam['paper']:+z.2f}). It {_helps(fullgrad['ours'])} FullGrad: {fullgrad['ours']:+z.2f} points (paper "
        f"{fullgrad['paper']:+z.2f})."
    )


def comparison(made: Tables, numbers: Iterable[int]) -> str:
    lines = []
    for number in numbers:
        both = paper.beside(number, made[f"table{number}"])["mIoU"]
        best = {column: both[column].idxmax() for column in both}
        lt, plain, layercam = (both.loc[row] for row in ("LTGrad-CAM(l=5, δ=20)", "Grad-CAM", "Layer-CAM(l=5, δ=0)"))
        lines.append(
            f"Table {number}: {best['ours']} has the best mIoU (paper: {best['paper']}). LTGrad-CAM with δ=20 scores "
            f"{lt['ours']:.2f} (paper {lt['paper']:.2f}), Grad-CAM {plain['ours']:.2f} ({plain['paper']:.2f}), Layer-CAM l=5 "
            f"{layercam['ours']:.2f} ({layercam['paper']:.2f})."
        )
    return " ".join(lines)


def level(made: Tables, number: int) -> str:
    """number: the table of the paper that the data set is compared with."""
    rows = made["comparison"]
    known, own = rows.dropna(subset="inside"), rows[rows["table"] == number].groupby("metric", sort=False)["difference"]
    spans = [f"{metric} {low:+z.2f} to {high:+z.2f}" for metric, low, high in own.agg(["min", "max"]).itertuples()]
    return (
        f"Of {len(known)} numbers that have an interval here, the paper's lies inside it for {int(known['inside'].sum())}. Our "
        f"differences from Table {number}, in points: {', '.join(spans)}."
    )


def readings(made: Tables, number: int) -> str:
    """number: the table of the paper that the readings are compared with."""
    found, printed = made["readings"], paper.published(number)["mIoU"]
    near = found.iloc[int(found["farthest"].argmin())]
    likely = "Every row lies within 3 points, so it is likely."
    unlikely = "Not every row lies within 3 points, so the level of the paper's scores stays unexplained."
    name = " = ".join(near[["factor", "level"]])
    each = []
    for row, paper_value in printed.items():
        best = found.iloc[int((found[str(row)] - paper_value).abs().argmin())]
        each.append(f"{row} {best[str(row)]:.2f} with {best['factor']} = {best['level']} (paper {paper_value:.2f})")
    return (
        f"{len(found)} readings were tried. The nearest to Table {number} is {name}: it differs by at most "
        f"{near['farthest']:.2f} points. {likely if near['farthest'] <= 3 else unlikely} Row by row the nearest are "
        f"{'; '.join(each)}."
    )


def failures(made: Tables, scored: Mapping[str, Mapping[tuple[int, int], float]]) -> str:
    """scored: IoU in percent of each (image, class) pair, for Grad-CAM, Layer-CAM and LTGrad-CAM."""
    plain, layercam, lt = scored.values()
    poor = [pair for pair, iou in lt.items() if iou < 5]
    better = [sum(other[pair] > lt[pair] for pair in poor) for other in (plain, layercam)]
    return (
        f"LTGrad-CAM with δ=20 scores below 5% IoU on {len(poor)} of {len(lt)} pairs. On {better[0]} of these Grad-CAM does "
        f"better, on {better[1]} Layer-CAM l=5."
    )


def beyond(made: Tables) -> str:
    said = []
    for cut, rows in made["best"].groupby("cut", sort=False):
        steps, others = (rows[rows["kind"] == kind] for kind in ("step", "row"))
        start, best = steps.iloc[0], steps.iloc[-1]
        lines = [f"By {cut}, the steps lead from {start['value']:.2f} to {best['value']:.2f}."]
        for views, own in others.groupby("views", sort=False):
            top = own.iloc[int(own["value"].argmax())]
            margin = f"{top['change']:+z.2f} points ({top['change_low']:+z.2f} to {top['change_high']:+z.2f})"
            word = {"holds": "above", "does not hold": "below", "tie": "in a tie with"}[top["verdict"]]
            lines.append(f"That is {word} our best row of Table 3 ({views}), {top['name']} with {top['value']:.2f}: {margin}.")
        said += lines
    return " ".join(said)


def eq9(made: Tables) -> str:
    share = made["dropped"].query("delta == 20")["share"]
    change = made["eq9"].set_index("reading")["change"].drop("δ = 0")
    most = max(change.index, key=lambda name: abs(change[name]))
    printed = [paper.published(number)["mIoU"] for number in (3, 4)]
    gains = [miou["LTGrad-CAM(l=5, δ=20)"] - miou["LTGrad-CAM(l=5, δ=0)"] for miou in printed]
    return (
        f"At the median pair, the gradients that δ=20 drops carry {share.min():.1f}% to {share.max():.1f}% of a stage's "
        f"positive gradient. So δ=20 instead of δ=0 changes the score by {change.iloc[0]:+z.2f} points (paper: {gains[0]:+.2f} "
        f"on VOC 2012, {gains[1]:+.2f} on KSDD2). Of the {len(change)} readings, '{most}' changes it most: by "
        f"{change[most]:+z.2f} points."
    )


def sweep(made: Tables, metric: str) -> str:
    curves, choice = over_delta.curves(made["sweep"], metric), made["delta_choice"]
    shapes = {part: [over_delta.shape(curve[part]) for curve in curves.values()] for part in ("test", "train")}
    rising = {part: words.count("rises, then falls") for part, words in shapes.items()}
    lines = [
        f"{rising['test']} of 3 curves rise, then fall on the test part, {rising['train']} on the training part. In the paper "
        "all do."
    ]
    for row in choice.to_dict("records"):
        lines.append(
            f"{SWEPT[row['method']]}: the training part chooses δ={row['delta']:g}, {row['test']:.2f} on the test part. It is "
            f"{row['test'] - row['none']:+z.2f} points from no truncation, and {row['regret']:.2f} below the best δ "
            f"({row['best_delta']:g})."
        )
    helped = (choice["test"] > choice["none"]).sum()
    lines.append(
        f"So the choice costs at most {choice['regret'].max():.2f} points, and beats no truncation with {helped} of 3 methods."
    )
    return " ".join(lines)


def claims(made: Tables) -> str:
    judged = made["claims"]
    verdicts = ("holds", "tie", "does not hold", "not measured")
    names = {verdict: judged.loc[judged["verdict"] == verdict, "claim"].to_list() for verdict in verdicts}
    both = ((judged["verdict"] == judged["paper"]) & (judged["verdict"] != "not measured")).sum()
    listed = {verdict: "; ".join(claims) or "none" for verdict, claims in names.items()}
    return (
        f"{len(judged) - len(names['not measured'])} of the paper's {len(judged)} claims are measured here.\n\n"
        f"- **{len(names['holds'])} hold:** {listed['holds']}.\n- **{len(names['tie'])} tie:** {listed['tie']}.\n"
        f"- **{len(names['does not hold'])} do not hold:** {listed['does not hold']}.\n\n"
        f"For {both} claims the verdict is the one that the paper's own numbers give."
    )


def ablations(made: Tables, data: str) -> str:
    """The findings, one line each, with links to their tables."""
    lines = [f"- {f.finding} **{f.number}** ([{f.table}](../{data}/{f.table}))" for f in findings.listed(made["findings"])]
    return "\n\n" + "\n".join(lines)


def plug_in(scores: pd.DataFrame) -> str:
    """scores: pooled IoU of each model's best class, with a row for each model and a column for each way to make the maps."""
    gains = [f"{gain:+.1f} points ({name})" for name, gain in (scores["LT"] - scores["last layer"]).items()]
    return (
        f"**Found.** LT changed the pooled IoU of Grad-CAM by {', '.join(gains)}. Fusing sharpens what is coarse: the DenseNet "
        "ends at 3 x 3 cells, the ConvNeXt at 6 x 6. All layers of the transformer have 8 x 8 patches, so what changes "
        "there is not how fine the map is. These are toy models, trained from nothing on generated images, and the class is in "
        "a handful of images. The numbers say that the tricks run on any backbone, not how well."
    )


def _beats(a: float, b: float) -> str:
    return "beats" if a > b else "does not beat"


def _helps(points: float) -> str:
    return "hardly changes" if abs(points) < 0.5 else "helps" if points > 0 else "hurts"

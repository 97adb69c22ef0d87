"""Every figure has its texts, every committed picture its entry, and each shows what its table holds."""

import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from ltcam import Config, trace
from ltcam import data as datasets
from ltcam.engine.tricks import truncate
from ltcam.errors import InputError
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.trained import Trained
from ltcam.experiment.vgg16 import vgg16
from ltcam.files import ROOT
from ltcam.paper import areas
from ltcam.show import figures, heatmaps


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def demo():
    return datasets.load("demo", "test")


class Counted:
    """As much of `Counts` as a figure reads: one configuration of some pairs."""

    def __init__(self, rows):
        self.pairs = pd.DataFrame([row[:3] for row in rows], columns=["training", "name", "class"])
        self.values = np.array([row[3:] for row in rows])[:, None]

    def iou(self):
        return 100 * self.values[..., 0] / self.values.sum(axis=-1).clip(min=1)


@pytest.fixture
def study(demo, tmp_path):
    """A study of a tiny network on the demo, with empty folders."""
    torch.manual_seed(0)
    trained = Trained(vgg16(4, weights=None, width=16, hidden=8).eval(), Recipe(), demo.classes, (64, 64), {})
    folders = {"out": tmp_path / "results", "figures": tmp_path / "figures"}
    counts = Counted(
        [("seed0", demo.entries[i].name, int(demo.labels[i].argmax()), n % 3, 1, 1) for n, i in enumerate(demo.scored[:6])]
    )
    settings = {"varied": ["Grad-CAM", "LTGrad-CAM"], "ablated": None, "pictures": 5, "second_cut": True}
    about = {
        "data": "demo",
        "kept": False,
        "dataset": demo,
        "title": "demo",
        "metric": "IoU",
        "compared": (3, 4),
        "made": {},
        "loss": "sigmoid",
    }
    about |= {"names": ["seed0"], "seeds": ["seed0"], "recipe": lambda name: trained.recipe, "protocol": Protocol()}
    return SimpleNamespace(trained=trained, test=demo, settings=settings, counts=lambda configs: counts, **about, **folders)


def keep(study, name, table):
    """As if the table had been made."""
    study.made[name] = table.to_csv(index=False).encode()


def titles(axes):
    """Of each panel; one without a title has that of the panel above."""
    found = [[""] * len(axes[0])]
    for line in axes:
        found.append([panel.get_title() or above for panel, above in zip(line, found[-1], strict=True)])
    return found[1:]


def test_every_figure_has_a_caption_and_a_text_of_its_own():
    assert len(figures.FIGURES) == 23 and set(figures._TEXTS) == set(figures._OF)
    for name, entry in figures.FIGURES.items():
        assert len(entry.caption) > 10 and len(entry.alt) > 20 and entry.alt != entry.caption, name
        assert callable(entry.of) and not re.search(r"[_{}]", entry.caption + entry.alt)
    assert len({entry.caption for entry in figures.FIGURES.values()}) == 23


def test_every_committed_figure_has_an_entry():
    committed = {path.stem for path in ROOT.glob("figures/*/*/*.png") if path.parts[-3] != "demo"}
    assert len(committed) > 15 and committed <= set(figures.FIGURES)


def test_a_figure_is_drawn_and_saved(study):
    figures.draw("samples", study)
    assert (study.figures / "samples.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="figure 'fig9' is unknown: expected one of samples, areas"):
        figures.draw("fig9", study)


def test_the_worst_pairs_are_those_of_lowest_iou(demo):
    one, two, three, four, five = (entry.name for entry in demo.entries[:5])
    rows = [(five, 0, 1, 1, 2), (three, 1, 0, 5, 5), (two, 2, 0, 9, 1), (two, 0, 0, 1, 1), (one, 3, 9, 0, 1)]
    rows += [(four, 0, 0, 0, 0), (one, 1, 0, 5, 0)]  # no true pixel
    other = [("seed1", three, 1, 9, 0, 0), ("seed1", four, 2, 0, 1, 1)]  # of another training, whose maps are not shown
    counts = Counted([*(("seed0", *row) for row in rows), *other])
    lowest = figures.worst(counts, demo)
    assert list(lowest.items()) == [((1, 0), 0.0), ((1, 2), 0.0), ((2, 1), 0.0), ((4, 0), 25.0)]  # 25 = 1 / (1 + 1 + 2)
    assert list(figures.worst(counts, demo, 9).values())[4:] == [90.0]
    fold = SimpleNamespace(entries=demo.entries[:1])  # the others are another model's
    assert figures.worst(counts, fold) == {(0, 3): 90.0}


def test_samples_are_of_each_class_in_turn_with_their_masks(study):
    study.test = datasets.load("demo", "test")
    figure = figures.samples(study.test, 6)
    top, bottom = figure.axes[:6], figure.axes[6:]
    names = [a.get_title().split("\n")[0] for a in top]
    assert sorted(names[:4]) == ["crack", "scratch", "spot", "stain"] != names[:4] and names[4:] == names[:2]  # drawn
    areas = [float(a.get_title().split("\n")[1].rstrip("%")) for a in top]
    assert areas[0] <= areas[4] and areas[1] <= areas[5] and min(areas) > 0
    assert all(len(a.collections) + len(a.patches) == 1 for a in bottom)
    study.test.labels = torch.zeros(len(study.test), 4)
    del study.test.scored
    with pytest.raises(
        InputError, match=r"no samples of demo \(generated\), part test: expected at least one image with a class"
    ):
        figures.samples(study.test)


def test_areas_have_a_row_for_each_data_set_and_class(study, monkeypatch):
    monkeypatch.setattr(datasets, "present", dict)
    (axes,) = figures.areas(study).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "demo (generated) (24)", *(f"{c} ({len(t)})" for c, t in areas.by_class(areas.areas(study.test)).items()),
    ]  # fmt: skip


def test_areas_are_those_of_all_folds(study, monkeypatch):
    seen = {"all": [1.0, 2.0, 4.0], "test0": [1.0]}
    fold = SimpleNamespace(name="ksdd", official={"all": 3, "test0": 1}, title="KSDD", part="test0")
    monkeypatch.setattr(datasets, "present", lambda: {"KSDD": fold})
    monkeypatch.setattr(datasets, "load", lambda name, part: SimpleNamespace(part=part))
    columns = {"class": "crack", "kind": ""}
    monkeypatch.setattr(areas, "areas", lambda data: pd.DataFrame({"area": seen.get(data.part, [1.0]), **columns}))
    study.test = fold
    (axes,) = figures.areas(study).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["KSDD (3)", "crack (3)"]


def test_fig1_is_a_row_an_image_and_a_column_a_stage(study):
    axes = np.reshape(figures.FIGURES["fig1"].of(study).axes, (5, 6))
    assert [a.get_title().split("\n")[0] for a in axes[0]] == ["image", "S1", "S2", "S3", "S4", "S5"]
    pairs = heatmaps.examples(study.test)
    assert [line[0].get_ylabel() for line in axes] == [study.test.classes[c] for _, c in pairs]
    index, c = pairs[1]
    ways = {**figures.STAGES, "sum": Config("gradcam", "S1-S5")}
    expected = heatmaps.maps(study.trained, study.test[index], c, ways)
    assert axes[1, 3].images[1].get_clim()[1] == pytest.approx(float(expected["S3"].max()), rel=0.05)
    said = [float(a.get_title().split("\n")[-1].removesuffix("% of sum")) for a in axes[1, 1:]]
    shares = [100 * float(expected[stage].sum() / expected["sum"].sum()) for stage in figures.STAGES]
    assert said == pytest.approx(shares, abs=0.051) and sum(shares) == pytest.approx(100)
    assert [len(a.collections) for a in axes[0]] == [1, 0, 0, 0, 0, 0]  # the outline


def test_failures_say_their_iou_and_that_of_each_map_and_show_a_second_cut(study, monkeypatch):
    monkeypatch.setattr(figures.shares, "chosen", lambda study, name: dict.fromkeys(figures.SEVEN.values(), 0.3))
    axes = np.reshape(figures.FIGURES["failures"].of(study).axes, (4, 5))
    assert [line[0].get_ylabel().split("\n")[1] for line in axes] == ["IoU 0.0%", "IoU 0.0%", "IoU 33.3%", "IoU 33.3%"]
    assert all(line[0].collections or line[0].patches for line in axes)  # the outline, or where it is enlarged
    for line, (index, c) in zip(axes, figures.worst(study.counts([]), study.test), strict=True):
        sample = study.test[index]
        heat = heatmaps.maps(study.trained, sample, c, {"": figures.SEVEN[figures.LT]})[""]
        for panel, mask in zip(line[3:], (figures.otsu_masks(heat[None])[0], heat > 0.3 * heat.max()), strict=True):
            iou = f"IoU {float(heatmaps.iou(mask, sample.mask, c)):.0f}%"
            assert panel.get_title().split("\n")[-1] == iou
        assert (np.asarray(line[4].images[1].get_array()) == mask.numpy()).all()
    assert [panel.get_title().split("\n")[0] for panel in axes[0, 3:]] == ["LTGrad-CAM", "above 30%"]
    study.kept = True  # and without the table of shares there is no such column
    assert len(figures.FIGURES["failures"].of(study).axes) == 16


def test_the_comparison_shows_what_delta_20_changes(study):
    """And not two maps that look the same."""
    axes = np.reshape(figures.FIGURES["fig2"].of(study).axes, (5, 8))
    index, c = heatmaps.examples(study.test, seed=3)[0]
    zero, twenty = heatmaps.maps(study.trained, study.test[index], c, dict(enumerate([*figures.SEVEN.values()][-2:]))).values()
    change = twenty / twenty.max() - zero / zero.max()
    assert torch.allclose(torch.as_tensor(np.asarray(axes[0, 7].images[1].get_array())), change, atol=1e-5)
    iou = float(heatmaps.iou(figures.otsu_masks(twenty[None])[0], study.test[index].mask, c))
    said = ["LTGrad-CAM", "(l=5, δ=20)", f"IoU {iou:.0f}%", f"minus δ=0, up to {float(change.abs().max()):.1%}"]
    assert axes[0, 7].get_title().split("\n") == said
    assert all(white(panel) == 1 for panel in axes[0, 1:7]) and not white(axes[0, 7])


def white(panel):
    """How many white outlines a panel has."""
    return sum(own.get_edgecolor().tolist() == [[1, 1, 1, 1]] for own in panel.collections)


def test_truncation_shows_what_eq_9_keeps(study):
    axes = np.reshape(figures.truncation(study).axes, (3, 6))
    assert [line[0].get_ylabel() for line in axes] == ["S2", "S3", "S5"]
    pairs = heatmaps.examples(study.test)
    images = heatmaps.inputs(study.trained, [study.test[i] for i, _ in pairs])
    traced = trace(study.trained.model, images, [c for _, c in pairs])
    best = max(range(5), key=lambda n: float(traced.logits[n, pairs[n][1]]))
    kept = truncate(traced.gradient(traced.stages["S5"])[[best]], 60)[0]  # of five at once
    assert axes[2, 4].get_title() == (f"{float((kept != 0).float().mean()):.0%} of all")
    shown = [torch.as_tensor(np.asarray(panel.images[1].get_array())) for panel in axes[2, 1:]]
    assert torch.allclose(shown[3], kept.sum(dim=0))
    zero, twenty = (truncate(traced.gradient(traced.stages["S5"])[[best]], delta)[0] for delta in (0, 20))
    assert axes[0, 3].get_title().startswith("δ = 20 drops\n") and torch.allclose(shown[2], (zero - twenty).sum(dim=0))


def test_the_idea_is_the_sum_of_the_stages_and_its_mask(study):
    axes = np.reshape(figures.idea(study).axes, (2, 8))
    index, c = heatmaps.examples(study.test, seed=3)[-1]
    sample = study.test[index]
    for line, named, delta in zip(axes, titles(axes), (None, 20), strict=True):
        config = Config("gradcam", "S1-S5", delta)
        fused = heatmaps.maps(study.trained, sample, c, {"": config})[""]
        iou = float(heatmaps.iou(figures.otsu_masks(fused[None])[0], sample.mask, c))
        assert named[6] == "Eq. 8: sum" and all(name.endswith("% of sum") for name in named[1:6])
        shares = [float(name.split("\n")[-1].removesuffix("% of sum")) for name in named[1:6]]
        assert sum(shares) == pytest.approx(100, abs=0.26)
        assert named[7].endswith(f"IoU {iou:.0f}%")
        assert line[6].images[1].get_clim()[1] == pytest.approx(float(fused.max()), rel=0.05)
        assert [len(a.patches) for a in line] == [1] * 8  # where the object, which is small, is enlarged
    assert "δ=20" in axes[1, 0].get_ylabel()


@pytest.mark.parametrize("readings", [["percentile"], ["percentile", "fraction of the maximum"]], ids=len)
def test_fig4_and_fig5_are_the_two_parts_with_their_intervals_over_one_axis(study, monkeypatch, readings):
    """In the second reading a score is 0.25 higher; what is not truncated, and δ = 0, are rows of the first alone."""
    scores = {"gradcam": 1.0, "fullgrad": 2.0, "layercam": 3.0}
    rows = [
        (part, by, method, delta, score + 10 * (part == "train") - 0.5 * (delta is None) + 0.25 * (by != "percentile"))
        for part in ("test", "train") for by in readings for method, score in scores.items()
        for delta in ((None, 0.0, 90.0) if by == "percentile" else (90.0,))
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["part", "by", "method", "delta", "value"])
    table = table.assign(ci_low=table["value"] - 1, ci_high=table["value"] + 4)
    table = table.sort_values(["part", "by", "method", "delta"], na_position="first")  # as `deltas` has them
    monkeypatch.setattr(figures, "deltas", lambda study: table)
    study.settings["first"] = 36
    for name, where, first in (("fig4", "test", 1), ("fig5", "train", 11)):
        figure = figures.FIGURES[name].of(study)
        some = ", first 36 images" * (where == "train")
        assert figure.get_suptitle() == f"demo, {where}, 1 seed, sigmoid{some}" and figure.axes[0].get_ylabel() == "IoU (%)"
        assert [axes.get_xlabel() for axes in figure.axes] == [figures.charts.READINGS[by] for by in readings]
        assert [text.get_text() for text in figure.axes[-1].get_legend().get_texts()] == ["Grad-CAM", "FullGrad", "Layer-CAM"]
        for number, axes in enumerate(figure.axes):
            assert axes.get_ylim() == (0.5 - 1 - 0.5, 13 + 0.25 * (len(readings) - 1) + 4 + 0.5)  # of both parts
            curves, dashed = axes.lines[::2], axes.lines[1::2]
            assert [line.get_color() for line in curves] == ["tab:blue", "tab:orange", "tab:green"]  # as in the paper
            for n, (curve, line, band) in enumerate(zip(curves, dashed, axes.collections, strict=True)):
                last = first + n + 0.25 * number
                assert curve.get_xydata().tolist() == [[0, first + n], [90, last]]
                assert set(line.get_ydata()) == {first + n - 0.5} and line.get_linestyle() == "--"
                low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
                assert (low, high) == (first + n - 1, last + 4)


def test_the_surest_is_that_of_the_largest_logit(study):
    sample, image, c = heatmaps.surest(study.trained, study.test)
    pairs = heatmaps.examples(study.test)
    logits = [study.trained.model(heatmaps.inputs(study.trained, [study.test[i]]))[0, own].item() for i, own in pairs]
    index, expected = pairs[int(np.argmax(logits))]
    assert c == expected and torch.equal(sample.image, study.test.image(index))
    assert torch.equal(image, heatmaps.inputs(study.trained, [sample])) and image.shape == (1, 3, 64, 64)


def test_ablations_show_the_rows_that_were_varied(study):
    columns = ["factor", "level", "row", "change", "change_low", "change_high", "verdict"]
    rows = [["fraction", 0.2, row, 1.0, 0.5, 2.0, "better"] for row in ("Grad-CAM", "Layer-CAM", "LTGrad-CAM")]
    keep(study, "ablations", pd.DataFrame(rows, columns=columns))
    panels = figures.FIGURES["ablations"].of(study).axes
    assert [panel.get_title() for panel in panels] == ["Grad-CAM", "LTGrad-CAM"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["cut at 20% of the maximum"]


def test_what_is_dropped_is_a_line_for_each_stage(study):
    keep(study, "dropped", pd.DataFrame({"stage": ["S1", "S1", "S5", "S5"], "delta": [10, 20] * 2, "share": [1, 2, 3, 4]}))
    (axes,) = figures.dropped(study).axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[1, 2], [3, 4], [10, 20]]  # and if all were equal


def test_seeds_have_a_dot_at_their_best(study, monkeypatch):
    curve = pd.Series([10.0, 30.0, 20.0], pd.Index([0.0, 0.5, 1.0], name="t"))
    monkeypatch.setattr(figures.beyond, "lines", lambda study: {"a": curve}, raising=False)
    (axes,) = figures.seeds(study).axes
    line, dot = axes.lines
    assert line.get_ydata().tolist() == [10, 30, 20] and (dot.get_xdata()[0], dot.get_ydata()[0]) == (0.5, 30)
    assert axes.get_title() == "demo, train, 1 seed, sigmoid" and not axes.collections
    study.data = "voc2012"
    (axes,) = figures.seeds(study).axes
    (published,) = axes.collections  # of VOC's training images
    assert sorted(segment[0, 1] for segment in published.get_segments()) == [46.51, 48.3]
    assert "46.51" in axes.get_legend().get_texts()[-1].get_text()


def test_a_title_says_part_seeds_and_setting(study):
    """VOC's held-out part is called val; folds are one part."""
    study.title, study.seeds, study.recipe = "VOC", ["0", "1", "2"], lambda name: Recipe(data="voc2012", test="val")
    assert figures.about(study) == "VOC, val, 3 seeds, sigmoid"
    study.recipe = lambda name: Recipe(data="ksdd", train="train1", test="test1")
    study.settings["ablated"] = 1
    assert figures.about(study, "ablated", "train") == "VOC, train, 1 seed, sigmoid"


def test_a_figure_is_drawn_of_the_table_that_the_registry_makes(study, monkeypatch):
    """Not of a file that an earlier run left."""
    table = pd.DataFrame(
        {"normalize": "none", "per": ["layer", "channel", "layer"], "delta": [20, 20, None], "value": [1, 2, 3]}
    )
    asked = []
    monkeypatch.setattr(figures, "make", lambda name, study: asked.append(name) or table)
    (axes,) = figures.FIGURES["cross"].of(study).axes
    assert asked == ["cross"] and [text.get_text() for text in axes.texts] == ["3.0", "1.0", "3.0", "2.0"]


OF_A_USER = {
    "image.origin": "lower",
    "savefig.format": "svg",
    "figure.dpi": 300,
    "axes.facecolor": "black",
    "text.usetex": True,
}


def test_what_a_user_sets_for_his_own_figures_does_not_reach_these(study, tmp_path):
    """Photographs would stand upside down, and LaTeX is not installed everywhere."""
    expected = figures.draw("fig1", study)
    before = {path.name: path.read_bytes() for path in study.figures.iterdir()}
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [2.0, 1.0]}, index=[0.0, 10.0])
    with plt.rc_context(OF_A_USER):
        assert len(figures.draw("fig1", study).axes) == len(expected.axes)
        heatmaps.save(figures.charts.lines(table, "δ", "IoU (%)"), tmp_path / "lines")
        assert plt.rcParams["image.origin"] == "lower"
    heatmaps.save(figures.charts.lines(table, "δ", "IoU (%)"), tmp_path / "plain")
    assert {path.name: path.read_bytes() for path in study.figures.iterdir()} == before
    assert (tmp_path / "lines.png").read_bytes() == (tmp_path / "plain.png").read_bytes()

from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage.filters import threshold_otsu
from torchvision.transforms.v2.functional import resize

from ltcam import data as datasets
from ltcam import explain, trace
from ltcam.experiment.checkpoints import Trained
from ltcam.experiment.configs import Config
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.vgg16 import vgg16
from ltcam.show import idea, plotting


@pytest.fixture
def demo():
    return datasets.load("demo", "test")


@pytest.fixture
def figure(demo):
    torch.manual_seed(0)
    trained = Trained(vgg16(4, weights=None, width=16, hidden=8).eval(), Recipe(), demo.classes, (64, 64), {})
    configs = {"Grad-CAM": Config("gradcam"), "FullGrad": Config("fullgrad", "all")}
    yield plotting.heatmap_figure(trained, demo, plotting.examples(demo, 3), configs, truth=True)
    plt.close("all")


def test_examples_take_turns_and_show_something(demo):
    chosen = plotting.examples(demo, 6)
    classes = [c for _, c in chosen]
    assert sorted(classes[:4]) == [0, 1, 2, 3] and classes[4:] == classes[:2] and classes[:4] != [0, 1, 2, 3]  # drawn
    assert plotting.examples(demo, 6) == chosen
    for i, c in chosen:
        areas = [(demo.mask(k) == c + 1).mean() for k in demo.scored if demo.labels[k, c]]
        assert (demo.mask(i) == c + 1).mean() >= np.median(areas)
    assert len(set(chosen)) == 6
    assert plotting.examples(demo, 6) == chosen != plotting.examples(demo, 6, seed=1)


def test_a_figure_has_a_row_an_image_and_a_column_a_method(figure, demo):
    titles = [a.get_title() for a in figure.axes[:3]]
    assert len(figure.axes) == 9 and titles == ["image", "Grad-CAM", "FullGrad"]
    assert [a.get_ylabel() for a in figure.axes[::3]] == [demo.classes[c] for _, c in plotting.examples(demo, 3)]
    maps = [a.images[1].get_array() for i, a in enumerate(figure.axes) if i % 3]
    assert len({m.tobytes() for m in maps}) == len(maps) == 6
    assert all(max(a.images[0].get_array().shape) <= plotting.THUMBNAIL for a in figure.axes)


def counted(*rows, method="gradcam", delta=20.0):
    columns = ["name", "class", "method", "layers", "delta", "per", "tp", "fp", "fn"]
    return pd.DataFrame(
        [(name, c, method, "S1-S5", delta, "layer", *pixels) for name, c, *pixels in rows], columns=columns
    ).astype({"delta": float})


def test_the_worst_pairs_are_those_of_lowest_iou(demo):
    one, two, three, four, five = (entry.name for entry in demo.entries[:5])
    rows = [(five, 0, 1, 1, 2), (three, 1, 0, 5, 5), (two, 2, 0, 9, 1), (two, 0, 0, 1, 1), (one, 3, 9, 0, 1)]
    rows += [(four, 0, 0, 0, 0), (one, 1, 0, 5, 0)]  # no true pixel
    others = [counted((one, 0, 0, 1, 1), delta=0.0), counted((one, 0, 0, 1, 1), delta=None)]
    others += [counted((one, 0, 0, 1, 1), method="layercam")]
    counts = pd.concat([*others, counted(*rows)], ignore_index=True)
    lowest = plotting.worst(counts, demo, Config("gradcam", "S1-S5", 20.0), 4)
    assert list(lowest.items()) == [((1, 0), 0.0), ((1, 2), 0.0), ((2, 1), 0.0), ((4, 0), 25.0)]  # 25 = 1 / (1 + 1 + 2)
    assert plotting.worst(counts.sample(frac=1, random_state=0), demo, Config("gradcam", "S1-S5", 20.0), 4) == lowest
    assert list(plotting.worst(counts, demo, Config("gradcam", "S1-S5", 20.0), 9).values())[4:] == [90.0]
    assert plotting.worst(counts, demo, Config("gradcam", "S1-S5")) == {(0, 0): 0.0}  # without truncation
    other = counted((three, 1, 9, 0, 0), (four, 2, 0, 1, 1))  # of another training, whose maps are not shown
    both = pd.concat([counts.assign(training="seed0"), other.assign(training="seed1")], ignore_index=True)
    assert plotting.worst(both, demo, Config("gradcam", "S1-S5", 20.0), 4) == lowest
    demo.entries = demo.entries[:1]  # a fold: the others are another model's
    assert plotting.worst(counts, demo, Config("gradcam", "S1-S5", 20.0), 4) == {(0, 3): 90.0}


def test_a_figure_of_scored_pairs_says_the_scores(demo):
    torch.manual_seed(0)
    trained = Trained(vgg16(4, weights=None, width=16, hidden=8).eval(), Recipe(), demo.classes, (64, 64), {})
    (first, second), configs = plotting.examples(demo, 2), {"Grad-CAM": Config("gradcam")}
    figure = plotting.heatmap_figure(trained, demo, {first: 0.25, second: 12.0}, configs, truth=True)
    names = [demo.classes[c] for _, c in (first, second)]
    assert [a.get_ylabel() for a in figure.axes[::2]] == [f"{names[0]}\nIoU 0.2%", f"{names[1]}\nIoU 12.0%"]
    plt.close("all")


def test_a_thin_mask_keeps_its_outline_in_a_small_picture():
    mask = torch.zeros(800, 800, dtype=torch.bool)
    mask[400] = True  # a fifth of a pixel of the thumbnail
    figure = plotting.grid([torch.zeros(3, 800, 800, dtype=torch.uint8)], {}, ["line"], [mask])
    (outline,) = figure.axes[0].collections
    points = np.concatenate([path.vertices for path in outline.get_paths()])
    assert points[:, 1] == pytest.approx(79.6, abs=0.2) and np.ptp(points[:, 0]) > 150  # (400 + 0.5) / 5 - 0.5
    plt.close("all")


def test_gradients_have_a_row_a_layer_and_a_column_a_delta():
    image = torch.zeros(3, 40, 80, dtype=torch.uint8)
    mask = torch.zeros(40, 80, dtype=torch.bool)
    mask[10:20, 10:20] = True
    gradient = torch.tensor([[[3.0, -1.0], [0.0, 2.0]], [[5.0, 1.0], [-3.0, 4.0]]])
    figure = plotting.gradients(image, mask, {"S4": gradient, "S5": -gradient}, (None, 0, 60))
    top, bottom = np.reshape(figure.axes, (2, 4))
    assert [a.get_title() for a in top[1:]] == ["all\n88% kept", "δ = 0\n62% kept", "δ = 60\n25% kept"]  # 7, 5, 2 of 8
    assert [a.get_title() for a in bottom[1:]] == ["all\n88% kept", "δ = 0\n25% kept", "δ = 60\n12% kept"]
    assert [a[0].get_ylabel() for a in (top, bottom)] == ["S4", "S5"]
    shown = [a.images[0] for a in top[1:]]
    assert [s.get_array().tolist() for s in shown] == [[[8, 0], [-3, 6]], [[8, 1], [0, 6]], [[5, 0], [0, 4]]]
    assert [s.get_clim() for s in shown] == [(-8, 8), (-8, 8), (-5, 5)]  # zero is the middle of the colors
    assert all(list(s.get_extent()) == [0, 160, 80, 0] for s in shown)  # the image's own shape
    assert [len(a[0].collections) for a in (top, bottom)] == [0, 1]  # the outline
    empty = plotting.gradients(image, mask, {"S5": -torch.ones(2, 2, 2)}, (0,)).axes[1]
    assert empty.get_title() == "δ = 0\n0% kept" and not empty.images[0].get_array().any()
    plt.close("all")


def test_a_sweep_has_a_line_a_method_in_the_paper_s_colors():
    scores = {"gradcam": [1.0, 5.0, 7.0, 6.0], "fullgrad": [2.0, 4.0, 4.0, 4.0], "layercam": [3.0, 9.0, 8.0, 1.0]}
    rows = [(m, delta, s) for m, values in scores.items() for delta, s in zip((np.nan, 90.0, 0.0, 50.0), values, strict=True)]
    table = pd.DataFrame(rows, columns=["method", "delta", "IoU"])
    (axes,) = plotting.sweep_figure(table, "IoU", "pooled IoU (%)", "demo, part test").axes
    assert (axes.get_ylabel(), axes.get_title()) == ("pooled IoU (%)", "demo, part test") and "δ" in axes.get_xlabel()
    lines = {line.get_label(): line for line in axes.lines}
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["Grad-CAM", "FullGrad", "Layer-CAM", "no truncation"]
    colors = {"Grad-CAM": "tab:blue", "FullGrad": "tab:orange", "Layer-CAM": "tab:green"}
    for (name, color), (none, last, first, middle) in zip(colors.items(), scores.values(), strict=True):
        assert lines[name].get_color() == color
        assert lines[name].get_xdata().tolist() == [0, 50, 90] and lines[name].get_ydata().tolist() == [first, middle, last]
        (dashed,) = [line for line in axes.lines if line.get_color() == color and line.get_linestyle() == "--"]
        assert list(dashed.get_ydata()) == [none, none]
    assert axes.get_xticks().tolist() == [0, 50, 90]
    plt.close("all")


def test_files_are_the_same_bytes_every_time(figure, tmp_path):
    plotting.save(figure, tmp_path / "a")
    plotting.save(figure, tmp_path / "b")
    for suffix in (".png", ".pdf"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert np.array(image.convert("L")).std() > 10 and image.info["dpi"][0] == pytest.approx(150, abs=1)
        drawn = BytesIO()
        figure.savefig(drawn, dpi=150)
        exact, coarse = (np.array(each.convert("RGB"), dtype=int) for each in (Image.open(drawn), image))
        assert np.abs(exact - coarse).max() == 4 and len(np.unique(coarse)) <= 32 and coarse.max() == 255
    assert len(list(tmp_path.iterdir())) == 4


def test_a_large_pdf_is_not_kept(figure, tmp_path, monkeypatch):
    """Neither that of an earlier run."""
    plotting.save(figure, tmp_path / "a")
    size = (tmp_path / "a.pdf").stat().st_size
    monkeypatch.setattr(plotting, "PDF", size)
    plotting.save(figure, tmp_path / "a")
    assert (tmp_path / "a.pdf").stat().st_size == size < 500_000
    monkeypatch.setattr(plotting, "PDF", size - 1)
    plotting.save(figure, tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_nothing(figure, tmp_path, monkeypatch):
    write = Path.write_bytes

    def full(path, content):
        write(path, content[: len(content) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        plotting.save(figure, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_the_idea_is_the_sum_of_the_stages_and_its_mask_with_and_without_truncation(demo):
    """Titles, both rows' sums and masks, against the engine's own functions; void pixels count for nothing."""
    torch.manual_seed(0)
    trained = Trained(vgg16(4, weights=None, width=16, hidden=8).eval(), Recipe(), demo.classes, (64, 64), {})
    sample = demo[demo.scored[0]]
    target = int(sample.label.argmax())
    sample.mask[:40] = 255
    figure = idea.idea_figure(trained, sample, target, delta=40)
    stages = [f"S{i}" for i in range(1, 6)]
    traced = trace(trained.model, datasets.preprocess(sample.image, (64, 64))[None], target)
    known, truth = sample.mask != 255, sample.mask == target + 1
    for row, delta in ((figure.axes[:8], None), (figure.axes[8:], 40)):
        fused = explain(traced, "gradcam", delta=delta, size=(160, 160))
        mask = torch.from_numpy(fused[0].numpy() > threshold_otsu(fused[0].numpy()))
        iou = 100 * (mask & truth).sum() / ((mask | truth) & known).sum()
        assert [a.get_title() for a in row] == ["image", *stages, "Eq. 8: sum", f"Otsu's mask, IoU {iou:.0f}%"]
        shown = row[6].images[1].get_array()
        assert np.allclose(shown, resize(fused, list(shown.shape), antialias=True)[0])
    assert "δ=40" in figure.axes[8].get_ylabel()
    plt.close("all")

"""Heatmaps over images: what a panel, an outline and a file hold."""

from io import BytesIO
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ltcam import Config, explain, trace
from ltcam import data as datasets
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.trained import Trained
from ltcam.experiment.vgg16 import vgg16
from ltcam.show import charts, heatmaps


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def demo():
    return datasets.load("demo", "test")


@pytest.fixture
def trained(demo):
    torch.manual_seed(0)
    return Trained(vgg16(4, weights=None, width=16, hidden=8).eval(), Recipe(), demo.classes, (64, 64), {})


def square(height=40, width=80):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[5:35, 10:70] = True
    return torch.zeros(3, height, width, dtype=torch.uint8), mask


def test_examples_take_turns_and_show_something(demo):
    chosen = heatmaps.examples(demo, 6)
    classes = [c for _, c in chosen]
    assert sorted(classes[:4]) == [0, 1, 2, 3] and classes[4:] == classes[:2] and classes[:4] != [0, 1, 2, 3]  # drawn
    for i, c in chosen:
        areas = [(demo.mask(k) == c + 1).mean() for k in demo.scored if demo.labels[k, c]]
        assert (demo.mask(i) == c + 1).mean() >= np.median(areas)
    assert len(set(chosen)) == 6 and heatmaps.examples(demo, 6) == chosen != heatmaps.examples(demo, 6, seed=1)


def test_maps_are_what_ltcam_explains(trained, demo):
    index, c = heatmaps.examples(demo, 1)[0]
    sample, ways = demo[index], {"a": Config("gradcam", "S3-S5", 20), "b": Config("layercam"), "c": Config("layercam")}
    found = heatmaps.maps(trained, sample, c, ways)
    assert [*found] == [*ways]
    traced = trace(trained.model, datasets.preprocess(sample.image, (64, 64))[None], c)
    for way, config in ways.items():
        expected = explain(traced, config.method, config.layers, config.delta, size=(160, 160))[0]
        assert found[way].shape == (160, 160)
        torch.testing.assert_close(found[way], expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


def test_iou_leaves_void_out():
    mask = torch.tensor([[1, 1, 0, 255], [2, 0, 0, 255]], dtype=torch.uint8)
    predicted = torch.tensor([[[True, False, True, True], [False] * 4], [[False] * 4] * 2])
    assert heatmaps.iou(predicted, mask, 0).tolist() == pytest.approx([100 / 3, 0])


def test_a_grid_has_a_row_an_image_and_a_title_where_it_changes():
    image, mask = square()
    heat = torch.rand(8, 16)
    rows = [{"a(b)": heat, "c": 2 * heat}, {"a(b)": heat, "c": heat}, {"a(b)": heat, "d": heat}]
    figure = heatmaps.grid([image] * 3, rows, ["one", "two", "three"], [mask] * 3)
    axes = np.reshape(figure.axes, (3, 3))
    assert [[a.get_title() for a in line] for line in axes] == [
        ["image", "a\n(b)", "c"], ["", "", ""], ["", "", "d"],
    ]  # fmt: skip
    assert [line[0].get_ylabel() for line in axes] == ["one", "two", "three"]
    assert [len(a.collections) for a in axes[0]] == [1, 0, 0]  # the outline
    photograph, shown = axes[0, 2].images
    assert np.allclose(shown.get_array(), 2 * heat) and shown.get_clim() == pytest.approx((0, float(2 * heat.max())))
    assert list(shown.get_extent()) == list(photograph.get_extent()) == [0, 80, 40, 0]  # the image's own shape
    assert all(max(a.images[0].get_array().shape) == heatmaps.THUMBNAIL for a in figure.axes)


def test_a_mask_among_the_maps_is_outlined_too():
    image, mask = square()
    axes = heatmaps.grid([image], [{"map": torch.rand(8, 16), "mask": ~mask}], ["a"], [mask]).axes
    assert [len(a.collections) for a in axes] == [1, 0, 1]
    assert len(heatmaps.grid([image], [{"mask": ~mask}], ["a"]).axes[1].collections) == 0


def test_a_window_holds_a_small_mask_and_lies_in_the_image():
    """Twice as wide as high: 1.2 times the mask's width, or as much as its height asks for."""
    mask = torch.zeros(100, 50, dtype=torch.bool)
    mask[40:44, 20:30] = True
    assert heatmaps.window(mask) == (19, 31, 39, 45)
    mask[:] = False
    mask[0:10, 47:50] = True  # 1.2 * 10 / 0.5 = 24 wide, at the corner
    assert heatmaps.window(mask) == (26, 50, 0, 12)
    for rows, columns in ((slice(0, 40), slice(20, 22)), (slice(0, 60), slice(0, 50)), (slice(0, 0), slice(0, 0))):
        mask[:] = False  # taller than any window, larger than a fifth of the image, empty
        mask[rows, columns] = True
        assert heatmaps.window(mask) is None


def test_a_small_mask_is_enlarged_below_each_panel_in_an_outline_of_one_pixel():
    image = torch.zeros(3, 100, 50, dtype=torch.uint8)
    mask = torch.zeros(100, 50, dtype=torch.bool)
    mask[40:44, 20:30] = True
    figure = heatmaps.grid([image], [{"map": torch.rand(8, 16), "cut": mask}], ["crack"], [mask])
    assert len(figure.axes) == 3 and not any(panel.collections for panel in figure.axes)
    for number, panel in enumerate(figure.axes):
        inset = panel.child_axes[0]
        assert (*inset.get_xlim(), *inset.get_ylim()) == (19, 31, 45, 39) and len(inset.images) == 2 + (number > 0)
        ring = np.asarray(inset.images[-1].get_array())[..., 3] > 0
        assert ring.sum() == 12 * 6 - 10 * 4 and not (ring & mask.numpy()).any()  # one pixel on each side
        (box,) = panel.patches
        assert (*box.get_xy(), box.get_width(), box.get_height()) == (19, 39, 12, 6)
        assert np.allclose(np.diff(panel.images[0].get_extent()), np.diff(inset.images[0].get_extent()))


def test_a_bar_says_what_the_colors_are():
    image, mask = square()
    for signed, said in ((False, ["0", "max"]), (True, ["-max", "max"])):
        figure = heatmaps.grid([image] * 2, [{"a": torch.rand(8, 16)}] * 2, ["x", "y"], [mask] * 2, signed)
        bars = [[t.get_text() for t in child.get_yticklabels()] for panel in figure.axes for child in panel.child_axes]
        assert bars == [said]
    empty = heatmaps.grid([image], [{"a": torch.zeros(8, 16, dtype=torch.bool)}], ["x"], [mask]).axes[1]
    assert empty.images[1].get_clim() == (0, 0)  # the bar beside it does not change its colors


def test_the_first_line_of_a_title_is_said_once():
    image, mask = square()
    rows = [{"S1\n3% of sum": torch.rand(8, 16)}, {"S1\n5% of sum": torch.rand(8, 16)}, {"S1\n5% of sum": torch.rand(8, 16)}]
    axes = np.reshape(heatmaps.grid([image] * 3, rows, ["a", "b", "c"], [mask] * 3).axes, (3, 2))
    assert [line[1].get_title() for line in axes] == ["S1\n3% of sum", "5% of sum", "5% of sum"]


def test_rows_have_even_gaps_whatever_the_shape_of_their_images():
    """Of images that are wide, high and square, below a title each."""
    images = [torch.zeros(3, *size, dtype=torch.uint8) for size in ((60, 90), (90, 60), (60, 90), (75, 75))]
    rows = [{f"S1\n{number}": torch.rand(8, 16)} for number in range(4)]
    figure = heatmaps.grid(images, rows, ["a"] * 4)
    figure.draw_without_rendering()
    boxes = [panel.get_position() for panel in np.reshape(figure.axes, (4, 2))[:, 1]]
    gaps = [above.y0 - below.y1 for above, below in pairwise(boxes)]
    assert min(gaps) > 0 and max(gaps) < 1.15 * min(gaps), gaps


def test_a_map_is_cut_at_otsus_threshold_in_white():
    image, mask = square()
    heat = torch.zeros(40, 80)
    heat[10:20, 30:50] = 1.0
    rows = [{"map": heat, "difference": heat - 0.5, "mask": mask}]
    _, cut, difference, drawn = heatmaps.grid([image], rows, ["a"], [mask], cut=True).axes
    (outline,) = cut.collections
    assert outline.get_edgecolor().tolist() == [[1, 1, 1, 1]]
    (path,) = outline.get_paths()
    assert path.vertices.min(axis=0) == pytest.approx((30, 10), abs=0.6)
    assert path.vertices.max(axis=0) == pytest.approx((50, 20), abs=0.6)
    assert not difference.collections and difference.images[1].get_clim() == (-0.5, 0.5)  # some below 0: signed
    assert [c.get_edgecolor().tolist() for c in drawn.collections] == [[[1, 1, 0, 1]]]
    assert not heatmaps.grid([image], rows, ["a"], [mask]).axes[1].collections


def test_signed_values_are_blue_below_zero_and_red_above():
    image, _ = square()
    values = torch.tensor([[8.0, 0.0], [-3.0, 6.0]])
    shown = heatmaps.grid([image], [{"all": values}], ["S5"], signed=True).axes[1].images[1]
    assert shown.get_array().tolist() == values.tolist() and shown.get_clim() == (-8, 8)  # zero is the middle of the colors


def test_a_strip_has_each_image_twice_and_its_outline_below():
    image, mask = square()
    figure = heatmaps.strip([image] * 3, ["a", "empty", "full"], [mask, mask & False, mask | True])
    assert [a.get_title() for a in figure.axes] == ["a", "empty", "full", "", "", ""]
    assert [len(a.collections) for a in figure.axes] == [0, 0, 0, 1, 0, 1]


def test_a_thin_mask_keeps_its_outline_in_a_small_picture():
    mask = torch.zeros(800, 800, dtype=torch.bool)
    mask[400] = True  # a fifth of a pixel of the thumbnail
    figure = heatmaps.strip([torch.zeros(3, 800, 800, dtype=torch.uint8)], ["line"], [mask])
    (outline,) = figure.axes[1].collections
    points = np.concatenate([path.vertices for path in outline.get_paths()])
    assert points[:, 1] == pytest.approx(400.5, abs=0.6) and np.ptp(points[:, 0]) == pytest.approx(800, abs=1)


@pytest.fixture
def figure():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 40, 80), dtype=np.uint8))
    return heatmaps.grid([image], [{"a": torch.rand(8, 16)}], ["row"])


@pytest.fixture
def chart():
    return charts.lines(pd.DataFrame({"a": [0.0, 1.0]}), "x", "y")


def test_files_are_the_same_bytes_every_time(figure, chart, tmp_path):
    for name, made in (("a", figure), ("b", figure), ("c", chart), ("d", chart)):
        heatmaps.save(made, tmp_path / name)
    for one, other in (("a.png", "b.png"), ("c.png", "d.png"), ("c.pdf", "d.pdf")):
        assert (tmp_path / one).read_bytes() == (tmp_path / other).read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert np.array(image.convert("L")).std() > 10 and image.info["dpi"][0] == pytest.approx(150, abs=1)
        drawn = BytesIO()
        figure.savefig(drawn, dpi=150, bbox_inches="tight", pad_inches=0.05)
        exact, coarse = (np.array(each.convert("RGB"), dtype=int) for each in (Image.open(drawn), image))
        assert np.abs(exact - coarse).max() == 4 and len(np.unique(coarse)) <= 32 and coarse.max() == 255
    assert len(list(tmp_path.iterdir())) == 6  # a picture with photographs has no PDF


def test_a_failed_write_leaves_nothing(figure, tmp_path, monkeypatch):
    write = Path.write_bytes

    def full(path, content):
        write(path, content[: len(content) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        heatmaps.save(figure, tmp_path / "a")
    assert not list(tmp_path.iterdir())

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from ltcam import data as datasets
from ltcam import files
from ltcam.data import Segmentation
from ltcam.data.base import Entry
from ltcam.show import overview, plotting
from tests import lookalikes


class Toy(Segmentation):
    """Two classes, four images of 10 x 20 (the last one clean), the third with a class that its mask does not have."""

    title, classes, size = "toy", ("a", "b"), (64, 96)

    def __init__(self, kinds=("", "", "", "")):
        super().__init__("test")
        self.entries = [Entry(f"image {i}", kind=kind) for i, kind in enumerate(kinds)]
        self.masks = np.zeros((4, 10, 20), np.uint8)
        self.masks[0, :2, :5] = 1  # 10 of 200
        self.masks[1, 0] = 255  # 180 known, of which a has 9 and b 36
        self.masks[1, 1, :9] = 1
        self.masks[1, 4:8, :9] = 2
        self.masks[2, :, :19] = 255  # 10 known, all background
        self.labels = torch.tensor([[1.0, 0], [1, 1], [0, 1], [0, 0]])

    def image(self, index):
        return torch.full((3, 10, 20), 50 * index, dtype=torch.uint8)

    def mask(self, index):
        return self.masks[index]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_areas_are_shares_of_the_pixels_that_are_known():
    table = overview.areas(Toy(("", "x", "y", "z")))
    assert table.values.tolist() == [
        ["image 0", "a", "", 5.0], ["image 1", "a", "x", 5.0], ["image 1", "b", "x", 20.0], ["image 2", "b", "y", 0.0],
    ]  # fmt: skip
    assert list(table) == ["name", "class", "kind", "area"]


def test_an_image_without_a_known_pixel_has_no_area():
    data = Toy()
    data.masks[0] = 255
    assert overview.areas(data)["area"].tolist() == [0, 5, 20, 0]


def test_the_demos_areas_are_those_of_its_masks():
    data = datasets.load("demo", "test")
    table = overview.areas(data)
    assert len(table) == data.labels.sum()
    for name, c, _, area in table.itertuples(index=False):
        mask = data.mask(next(i for i, e in enumerate(data.entries) if e.name == name))
        assert area == pytest.approx(100 * (mask == data.classes.index(c) + 1).mean())


def test_a_summary_has_the_quantiles_of_each_class_and_of_all():
    data = datasets.load("demo", "test")
    table, areas = overview.summary(data).set_index("class"), overview.areas(data)
    assert list(table.index) == [*sorted(data.classes), "all"]
    for name, row in table.iterrows():
        of_class = areas[areas["class"].isin([name] if name != "all" else data.classes)]
        assert row.tolist()[1:] == pytest.approx(np.quantile(of_class["area"], [0.1, 0.5, 0.9]))
        assert row["images"] == len(set(of_class["name"]))
    assert table.loc["all", "images"] == len(data.scored) == 40
    assert table["images"].iloc[:-1].tolist() == [int(data.labels[:, data.classes.index(c)].sum()) for c in table.index[:-1]]


def test_a_summary_tells_kinds_apart_and_counts_an_image_once():
    assert overview.summary(Toy())[["class", "images", "median"]].values.tolist() == [["a", 2, 5], ["b", 2, 10], ["all", 3, 5]]
    kinds = overview.summary(Toy(("x", "x", "y", "z")))
    assert kinds[["class", "images", "median"]].values.tolist() == [["x", 2, 5], ["y", 1, 0], ["all", 3, 5]]


def test_a_cell_is_what_32_pixels_of_the_input_are():
    found = overview.against_cell(Toy())  # areas 5, 5, 20, 0; 2 x 3 cells
    assert found == pytest.approx({"median": 5, "cell": 100 / 6, "smaller": 75, "IoU": 500 / (5 + 100 / 6)})


def test_samples_are_of_each_class_in_turn_with_their_masks():
    figure = overview.samples_figure(datasets.load("demo", "test"), 6)
    top, bottom = figure.axes[:6], figure.axes[6:]
    names = [a.get_title().split("\n")[0] for a in top]
    assert sorted(names[:4]) == ["crack", "scratch", "spot", "stain"] != names[:4] and names[4:] == names[:2]  # drawn
    areas = [float(a.get_title().split("\n")[1].rstrip("%")) for a in top]
    assert areas[0] <= areas[4] and areas[1] <= areas[5] and min(areas) > 0
    assert areas[names.index("stain")] > areas[names.index("scratch")]
    pictures = [a.images[0].get_array() for a in top]
    assert len({p.tobytes() for p in pictures}) == 6 and max(pictures[0].shape) <= plotting.THUMBNAIL
    for area, axes in zip(areas, bottom, strict=True):  # the outline encloses what the title says (the other side counts less)
        (path,) = axes.collections[0].get_paths()
        inside = sum(abs(shoelace(p)) for p in path.to_polygons()) / pictures[0].shape[0] ** 2
        assert 100 * inside == pytest.approx(area, rel=0.25)
        assert axes.get_xlim() == (-0.5, pictures[0].shape[1] - 0.5)


def shoelace(points):
    x, y = np.asarray(points).T
    return (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def test_an_empty_mask_has_no_outline_and_a_full_one_has():
    images, titles = [torch.zeros(3, 30, 40, dtype=torch.uint8)] * 2, ["empty", "full"]
    figure = plotting.strip(images, titles, [torch.zeros(30, 40, dtype=torch.bool), torch.ones(30, 40, dtype=torch.bool)])
    assert [len(a.collections) for a in figure.axes] == [0, 0, 0, 1]


def test_samples_of_nothing_are_refused():
    with pytest.raises(ValueError, match="0 samples of demo"):
        overview.samples_figure(datasets.load("demo", "test"), 0)
    data = Toy()
    data.labels = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="of an image with a class"):
        overview.samples_figure(data)
    assert overview.summary(data)["images"].tolist() == [0]


def test_the_distribution_has_a_row_each_and_leaves_zeros_out():
    table = overview.areas(Toy())
    (axes,) = overview.areas_figure({"toy": table, "b": table[table["class"] == "b"]}).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["toy (4)", "b (2)"] and axes.get_xscale() == "log"
    assert [sorted(line.get_xdata()) for line in axes.lines[:2]] == [[5, 5, 20], [20]]


def test_what_is_present_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("LTCAM_DATA", str(tmp_path))
    assert list(datasets.present()) == ["demo (generated)"]
    lookalikes.ksdd2(lookalikes.voc(tmp_path))
    assert [(title, data.part) for title, data in datasets.present().items()] == [
        ("demo (generated)", "test"), ("PASCAL VOC 2012 subset", "val"), ("KSDD2", "test"),
    ]  # fmt: skip
    assert overview.summary(datasets.load("ksdd2", "test"))["median"].tolist() == pytest.approx([150 / 14.49] * 2)
    cat = overview.areas(datasets.load("voc2012", "val")).iloc[-1]
    assert cat["area"] == pytest.approx(100 * 18 * 18 / (45 * 60 - 76))  # without its void border
    figure = overview.samples_figure(datasets.load("ksdd2", "test"), 3)
    assert [a.get_title() for a in figure.axes[:3]] == ["defect\n10.35%"] * 3


def test_classes_are_counted_in_each_part():
    table = overview.classes({"train": Toy(), "test": Toy()})
    assert table.to_dict("list") == {"train": [4, 1, 2, 2], "test": [4, 1, 2, 2]} and table.index.name == "toy"
    empty = Toy()
    empty.labels = torch.zeros(4, 2)
    assert overview.classes({"train": empty}).index.to_list() == ["images", "without a class"]  # classes that occur


def test_summaries_stand_side_by_side_and_are_kept(output):
    parts = {"train": Toy(), "test": Toy()}
    table = overview.summaries(parts)
    assert table["part"].to_list() == ["train"] * 3 + ["test"] * 3 and len(table.columns) == 6
    wide = overview.side_by_side(table).data
    assert list(wide.columns.unique(0)) == ["train", "test"] and wide.index.to_list() == ["a", "b", "all"]
    overview.keep(table, parts, "demo", "toy")
    kept = files.results("demo", "toy") / "data.csv"
    assert len(pd.read_csv(kept)) == 6 and json.loads(kept.with_suffix(".json").read_text())["parts"]["test"]["images"] == 4

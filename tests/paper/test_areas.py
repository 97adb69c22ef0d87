"""How much of an image a class covers, and how many images have it: of images and masks made by hand, and of the demo."""

import numpy as np
import pytest
import torch

from ltcam import data as datasets
from ltcam.data import Segmentation
from ltcam.data.base import Entry
from ltcam.paper import areas
from tests import lookalikes


class Toy(Segmentation):
    """Two classes, four images of 10 x 20 (the last one clean), the third with a class that its mask does not have."""

    name, title, classes, size = "toy", "toy", ("a", "b"), (64, 96)

    @classmethod
    def listed(cls, folder):
        return {"test": [Entry(f"image {i}") for i in range(4)]}

    def __init__(self, kinds=("", "", "", "")):
        super().__init__("test", ".")
        self.entries = [Entry(entry.name, kind=kind) for entry, kind in zip(self.entries, kinds, strict=True)]
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


def test_areas_are_shares_of_the_pixels_that_are_known():
    table = areas.areas(Toy(("", "x", "y", "z")))
    assert table.values.tolist() == [
        ["image 0", "a", "", 5.0], ["image 1", "a", "x", 5.0], ["image 1", "b", "x", 20.0], ["image 2", "b", "y", 0.0],
    ]  # fmt: skip
    assert list(table) == ["name", "class", "kind", "area"]


def test_an_image_without_a_known_pixel_has_no_area():
    data = Toy()
    data.masks[0] = 255
    assert areas.areas(data)["area"].tolist() == [0, 5, 20, 0]


def test_the_demos_areas_are_those_of_its_masks_and_a_summary_has_their_quantiles():
    data = datasets.load("demo", "test")
    table, each = areas.summary(data).set_index("class"), areas.areas(data)
    masks = {entry.name: data.mask(i) for i, entry in enumerate(data.entries)}
    assert len(each) == data.labels.sum()
    for name, c, _, area in each.itertuples(index=False):
        assert area == pytest.approx(100 * (masks[name] == data.classes.index(c) + 1).mean())
    assert list(table.index) == [*sorted(data.classes), "all"]
    for name, row in table.iterrows():
        of_class = each[each["class"].isin([name] if name != "all" else data.classes)]
        assert row.tolist()[1:] == pytest.approx(np.quantile(of_class["area"], [0.1, 0.5, 0.9]))
        assert row["images"] == len(set(of_class["name"]))
    assert table.loc["all", "images"] == len(data.scored) == 16
    assert table["images"].iloc[:-1].tolist() == [int(data.labels[:, data.classes.index(c)].sum()) for c in table.index[:-1]]


def test_a_summary_tells_kinds_apart_and_counts_an_image_once():
    assert areas.summary(Toy())[["class", "images", "median"]].values.tolist() == [["a", 2, 5], ["b", 2, 10], ["all", 3, 5]]
    kinds = areas.summary(Toy(("x", "x", "y", "z")))
    assert kinds[["class", "images", "median"]].values.tolist() == [["x", 2, 5], ["y", 1, 0], ["all", 3, 5]]


def test_what_is_present_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("LTCAM_DATA", str(tmp_path))
    assert list(datasets.present()) == ["demo (generated)"]
    lookalikes.ksdd2(lookalikes.voc(tmp_path))
    assert [(title, data.part) for title, data in datasets.present().items()] == [
        ("demo (generated)", "test"), ("PASCAL VOC 2012 subset", "val"), ("KSDD2 subset", "test"),
    ]  # fmt: skip
    assert areas.areas(datasets.load("ksdd2", "test"))["area"].median() == pytest.approx(150 / 14.49)
    cat = areas.areas(datasets.load("voc2012", "val")).iloc[-1]
    assert cat["area"] == pytest.approx(100 * 18 * 18 / (45 * 60 - 76))  # without its void border


def test_classes_are_counted_in_each_part():
    table = areas.classes({"train": Toy(), "test": Toy()})
    assert table.to_dict("list") == {"train": [4, 1, 2, 2], "test": [4, 1, 2, 2]} and table.index.name == "toy"
    empty = Toy()
    empty.labels = torch.zeros(4, 2)
    assert areas.classes({"train": empty}).index.to_list() == ["images", "without a class"]  # classes that occur

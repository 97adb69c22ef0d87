import hashlib
import random
import re
import shutil
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from ltcam import data as datasets
from ltcam.data import DataError
from ltcam.data.base import read
from ltcam.data.demo import render
from ltcam.data.get import check, state
from ltcam.data.sets import CHECKSUMS, KSDD, SETS, VOC2012, MagneticTile
from tests import lookalikes


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LTCAM_DATA", str(tmp_path))
    return tmp_path


def agrees(data):
    """Every sample is well-formed, and the masks hold the labelled classes."""
    for i in range(len(data)):
        sample = data[i]
        assert sample.image.dtype == sample.mask.dtype == torch.uint8 and sample.image.shape[1:] == sample.mask.shape
        present = {int(v) - 1 for v in sample.mask.unique() if 0 < v < 255}
        assert present == set(sample.label.nonzero().flatten().tolist()) and sample.name == data.entries[i].name
    return True


def test_demo_is_whole_and_always_the_same():
    parts = {part: datasets.load("demo", part) for part in ("train", "test")}
    assert [len(d) for d in parts.values()] == [96, 24]
    assert all(agrees(d) for d in parts.values())
    free = sum(int((d.labels.sum(dim=1) == 0).sum()) for d in parts.values())
    several = sum(int((d.labels.sum(dim=1) == 2).sum()) for d in parts.values())
    assert free == 40 and several > 30  # one of a second defect's may cover the first
    pixels = hashlib.sha256(b"".join(array.tobytes() for number in range(120) for array in render(number))).hexdigest()
    assert pixels == "24b6a9f6039757d40044dbdda7c005109807637038c9a36a2aa5e5d0e7de953b"
    before = [array.copy() for array in render(3)]
    render.cache_clear()
    assert all(np.array_equal(a, b) for a, b in zip(before, render(3), strict=True))


def test_demo_defects_vary_in_size_and_place():
    areas = {c: [(render(i)[1] == c + 1).mean() for i in range(120) if (render(i)[1] == c + 1).any()] for c in range(4)}
    assert all(len(a) >= 25 and max(a) > 2 * min(a) for a in areas.values())
    assert np.mean(areas[2]) > 5 * np.mean(areas[0])  # stains are large, scratches thin


def test_voc(root):
    lookalikes.voc(root)
    data = datasets.load("voc2012", "train")
    assert len(data) == 8 and agrees(data) and data.scored == list(range(8))
    assert data.title == "PASCAL VOC 2012 subset"
    assert [VOC2012.classes[c] for c in data.labels[0].nonzero().flatten()] == ["cat", "dog"]


def test_the_whole_of_voc_is_told_by_its_lists(root):
    lists = lookalikes.voc(root) / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    (lists / "val.txt").write_text("".join(f"2008_{i:06d}\n" for i in range(1449)))
    assert datasets.load("voc2012", "val").title == "PASCAL VOC 2012 subset"  # its training part is not the official one
    (lists / "train.txt").write_text("".join(f"2007_{i:06d}\n" for i in range(1464)))
    data = datasets.load("voc2012", "val")
    assert data.title == "PASCAL VOC 2012"


def test_ksdd2(root):
    lookalikes.ksdd2(root)
    train, test = (datasets.load("ksdd2", part) for part in ("train", "test"))
    assert (len(train), len(test)) == (12, 8)  # without the duplicates
    assert agrees(train) and test.scored == [1, 3, 5, 7] and train.size == (640, 232)


@pytest.fixture(scope="module")
def commutators(tmp_path_factory):
    """One of all, for tests that only read."""
    return lookalikes.ksdd(tmp_path_factory.mktemp("ksdd"))


@pytest.fixture
def folds(commutators, monkeypatch):
    """By name, every part of KolektorSDD."""
    monkeypatch.setenv("LTCAM_DATA", str(commutators))
    return {part: datasets.load("ksdd", part) for part in KSDD.listed(commutators / "KolektorSDD")}


def test_ksdd(folds):
    assert list(folds) == ["all", "train0", "test0", "train1", "test1", "train2", "test2"]
    assert [len(d) for d in folds.values()] == [399, 271, 128, 263, 136, 264, 135]
    assert [len(d.scored) for d in folds.values()] == [52, 35, 17, 35, 17, 34, 18]
    data = folds["all"]
    assert data.title == "KolektorSDD" and data.classes == ("defect",)
    assert (data.size, data.jitter, data.upright) == ((640, 232), (0.8, 1.0), False) and set(data.sizes) == {(63, 25)}
    assert agrees(folds["test2"]) and [e.name for e in data.entries][7:9] == ["kos01/Part7", "kos02/Part0"]


def test_a_ksdd_mask_is_a_defect_above_0(folds):
    masks = {e.name: folds["all"].mask(i) for i, e in enumerate(folds["all"].entries) if e.name.startswith("kos20/")}
    expected = np.zeros((63, 25), np.uint8)
    expected[20:24, 5:11] = 1  # the file has 2
    assert np.array_equal(masks["kos20/Part4"], expected) and not masks["kos20/Part3"].any()


def test_a_grey_image_is_three_equal_channels(folds):
    sample = folds["all"][0]
    assert sample.name == "kos01/Part0" and sample.image.shape == (3, 63, 25) and (sample.image == sample.image[0]).all()


def test_every_commutator_is_in_one_fold_with_its_twin():
    assert sorted(n for fold in KSDD.folds for n in fold) == list(range(1, 51))
    fold = {n: k for k, numbers in enumerate(KSDD.folds) for n in numbers}
    assert fold[1] == fold[26] and fold[27] == fold[34]


def test_no_part_of_ksdd_holds_out_what_another_image_shows(folds):
    content = {e.name: e.image.read_bytes() for e in folds["all"].entries}
    assert len(set(content.values())) == 399 - 16  # the twins
    tests = [{e.name for e in folds[f"test{k}"].entries} for k in range(3)]
    assert sum(map(len, tests)) == 399 and set.union(*tests) == set(content)
    for k, test in enumerate(tests):
        train = {e.name for e in folds[f"train{k}"].entries}
        assert train == set(content) - test
        assert not {content[name] for name in train} & {content[name] for name in test}
        assert not set(folds[f"train{k}"].groups) & set(folds[f"test{k}"].groups)
    groups = dict(zip(content, folds["all"].groups, strict=True))
    assert (
        groups["kos26/Part3"] == groups["kos01/Part0"] == "kos01" and groups["kos34/Part3"] == groups["kos27/Part0"] == "kos27"
    )
    assert len(set(groups.values())) == 48


def drawn(data):
    """Three folds of groups: those with most defective images first, each to the fold that has fewest, then fewest images."""
    groups, defective = {}, [int(label) for label in data.labels.any(dim=1)]
    for i, group in enumerate(data.groups):
        groups.setdefault(group, []).append(i)
    order = list(groups.values())
    random.Random(0).shuffle(order)
    order.sort(key=lambda group: -sum(defective[i] for i in group))
    folds = [], [], []
    for group in order:
        min(folds, key=lambda fold: (sum(defective[i] for i in fold), len(fold))).extend(group)
    return tuple(tuple(sorted({int(data.entries[i].name[3:5]) for i in fold})) for fold in folds)


def test_the_folds_of_ksdd_are_drawn_by_its_masks(folds):
    assert drawn(folds["all"]) == KSDD.folds


def test_some_commutators_are_a_subset(commutators, root):
    for kos in ("kos01", "kos03"):
        shutil.copytree(commutators / "KolektorSDD" / kos, root / "KolektorSDD" / kos)
    parts = {part: datasets.load("ksdd", part) for part in ("all", "train2", "test0", "test1")}
    assert [len(d) for d in parts.values()] == [16, 16, 8, 8] and {d.title for d in parts.values()} == {"KolektorSDD subset"}
    with pytest.raises(DataError, match=r"part 'test2' of ksdd is not in .*: expected one of \['all', .*'train2'\], see data/"):
        datasets.load("ksdd", "test2")
    (root / "KolektorSDD" / "kos01" / "Part1_label.bmp").unlink()
    with pytest.raises(DataError, match=r"kos01/Part1_label.bmp is missing"):
        _ = parts["test1"].labels


def test_an_image_that_is_not_the_authors_is_left_out(commutators, root):
    shutil.copytree(commutators / "KolektorSDD", root / "KolektorSDD")
    shutil.copyfile(root / "KolektorSDD" / "kos21" / "Part0.jpg", root / "KolektorSDD" / "kos21" / "Part7.jpg")
    data = datasets.load("ksdd", "all")
    assert len(data) == 399 and data.title == "KolektorSDD"
    (root / "KolektorSDD" / "kos50" / "Part7.jpg").unlink()
    with pytest.raises(DataError, match=r"kos50/Part7.jpg is missing"):
        datasets.load("ksdd", "all").image(398)


def test_real_ksdd(real):
    folder = real / "KolektorSDD"
    if not folder.is_dir():
        pytest.skip(f"no KolektorSDD in {real}: set LTCAM_DATA to a folder that has it")
    data = datasets.load("ksdd", "all")
    whole = data.title == "KolektorSDD"
    assert (len(data), len(data.scored)) == ((399, 52) if whole else (80, 10))
    assert {width for _, width in data.sizes} == {500} and {height // 100 for height, _ in data.sizes} == {12}
    assert all(data[i].mask.any() and data[i].image.shape[1:] == data[i].mask.shape for i in data.scored)
    twins = [(folder / kos / "Part3.jpg").read_bytes() for kos in ("kos01", "kos26", "kos27", "kos34")]
    assert twins[0] == twins[1] != twins[2] == twins[3]
    if whole:
        assert len({e.image.read_bytes() for e in data.entries}) == 399 - 16


def test_the_folds_of_ksdd_are_drawn_by_its_real_masks(real):
    if not (real / "KolektorSDD").is_dir() or (data := datasets.load("ksdd", "all")).title != "KolektorSDD":
        pytest.skip(f"not the whole KolektorSDD in {real}: set LTCAM_DATA to a folder that has it")
    assert drawn(data) == KSDD.folds


def test_magnetic_tile_groups_do_not_leak(root):
    lookalikes.magnetic_tile(root)
    train, test = (datasets.load("magnetic_tile", part) for part in ("train", "test"))
    assert (len(train), len(test)) == (36, 24) and agrees(train) and agrees(test)
    tiles = [{e.name.split("_num_")[1][:-3] for e in d.entries} for d in (train, test)]
    assert not tiles[0] & tiles[1] and not set(train.groups) & set(test.groups)
    assert {*train.groups, *test.groups} == {str(1000 * t) for t in range(10)}


def test_magnetic_tile_masks_are_cut_above_127(root):
    lookalikes.magnetic_tile(root)
    data = datasets.load("magnetic_tile", "train")
    assert int((data.mask(data.scored[0]) == 1).sum()) == 100


def defect():
    mask = np.zeros((40, 30), np.uint8)
    mask[10:20, 10:20] = 255
    return Image.fromarray(mask)


def palette(colors):
    image = Image.fromarray((np.asarray(defect()) > 0).astype(np.uint8)).convert("P")
    image.putpalette(colors)
    return image


def transparent():
    image = Image.new("LA", (30, 40), (0, 255))
    image.putalpha(defect())
    return image


def test_the_split_does_not_depend_on_which_files_are_there(tmp_path, monkeypatch):
    """Empty files of the official names will do, since the split opens none. An image less changes no other image's side."""
    sums = (CHECKSUMS / "magnetic_tile.sha256").read_text()
    paths = [tmp_path / line.split()[1] for line in sums.splitlines() if line.split()[1].startswith("magnetic_tile/MT_")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def side():
        parts = MagneticTile.listed(tmp_path / "magnetic_tile")
        assert MagneticTile("train", tmp_path).title == (
            "Magnetic tile" if sum(map(len, parts.values())) == 1344 else "Magnetic tile subset"
        )
        return {entry.name: part for part, entries in parts.items() for entry in entries}

    whole = side()
    assert len(whole) == 1344 and sum(part == "test" for part in whole.values()) == 411
    images = [path for path in paths if path.suffix == ".jpg"]
    for gone in ([images[0]], images[1:400:7], images[500:900], images[901::2]):
        for path in gone:
            path.unlink()
        fewer = side()
        assert len(fewer) < len(whole) and all(whole[name] == part for name, part in fewer.items())


STRANGE = {
    "0 and 1": (lambda: Image.fromarray(np.asarray(defect()) // 255), "values from 0 to 1: expected black and white, 0 to 255"),
    "0 and 100": (lambda: defect().point(lambda value: value * 100 // 255), "has values from 0 to 100"),
    "red": (lambda: Image.merge("RGB", (defect(), *[Image.new("L", (30, 40))] * 2)), "in color, by a palette"),
    "VOC's palette": (lambda: palette([0, 0, 0, 128, 0, 0]), "in color, by a palette or with transparency: expected grey"),
    "black palette": (lambda: palette([0, 0, 0, 0, 0, 0]), "by a palette"), "alpha": (transparent, "with transparency"),
    "nothing": (lambda: Image.new("L", (30, 40)), "shows no defect, but Break is one: fetch the data set again"),
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGE)
def test_a_mask_in_another_encoding_is_named_and_never_empty(kind, root):
    """Whoever reads it: training by the labels, scores, samples."""
    lookalikes.magnetic_tile(root)
    data, (made, said) = datasets.load("magnetic_tile", "train"), STRANGE[kind]
    index = data.scored[0]
    made().save(data.entries[index].mask)
    for read_it in (data.mask, data.__getitem__):
        with pytest.raises(DataError, match=re.escape(said)):
            read_it(index)
    for same in (defect(), defect().convert("1"), defect().convert("RGB"), defect().convert("RGBA")):
        same.save(data.entries[index].mask)
        assert int((data.mask(index) == 1).sum()) == 100


def test_masks_of_ksdd2_in_another_encoding_do_not_make_a_defect_free(root):
    lookalikes.ksdd2(root)
    data = datasets.load("ksdd2", "train")
    index = data.scored[0]
    for kind in ("alpha", "black palette", "VOC's palette", "red"):
        STRANGE[kind][0]().save(data.entries[index].mask)
        with pytest.raises(DataError, match="expected grey"):
            datasets.load("ksdd2", "train").labels  # noqa: B018


def test_real_magnetic_tile(real):
    train, test = (datasets.load("magnetic_tile", part) for part in ("train", "test"))
    everything = [*train.entries, *test.entries]
    assert len(everything) == 1344 == len({e.name for e in everything})
    assert int(train.labels.sum() + test.labels.sum()) == 392
    assert len(train.scored) + len(test.scored) == 392 - 4
    assert all(d.mask(i).any() for d in (train, test) for i in d.scored)
    assert 0.27 < len(test) / 1344 < 0.33
    assert {e.kind for e in train.entries} == {e.kind for e in test.entries} == set(MagneticTile.kinds)
    numbers = sorted((int(e.name.split("_num_")[1]), int(e.group)) for e in everything)
    near = [(a, b) for a, b in pairwise(numbers) if b[0] - a[0] <= 100]
    assert all(a[1] == b[1] for a, b in near) and len({*train.groups, *test.groups}) == 1344 - len(near)
    assert not set(train.groups) & set(test.groups)


def test_real_voc(real):
    parts = {part: datasets.load("voc2012", part) for part in ("train", "val", "trainval")}
    whole = parts["val"].title == "PASCAL VOC 2012"
    assert [len(data) for data in parts.values()] == ([1464, 1449, 2913] if whole else [103, 100, 203])
    val = parts["val"]
    assert val.title == "PASCAL VOC 2012" + " subset" * (not whole)
    assert [int(n) for n in val.labels.sum(dim=0)] == (
        [90, 79, 103, 72, 96, 74, 127, 119, 123, 71, 75, 128, 79, 76, 446, 85, 57, 90, 84, 74] if whole else
        [6, 7, 6, 6, 9, 6, 9, 6, 6, 6, 6, 6, 6, 6, 33, 7, 6, 7, 6, 6]
    )  # fmt: skip
    sample = val[[e.name for e in val.entries].index("2007_001239")]
    assert set(sample.mask.unique().tolist()) == {0, 12, 255} and sample.image.shape[1:] == sample.mask.shape
    assert val.scored == list(range(len(val)))


def test_an_image_is_resized_by_one_thread_and_the_others_are_there_again(monkeypatch):
    threads, seen = torch.get_num_threads(), []
    resize = datasets.base.F.resize
    monkeypatch.setattr(datasets.base.F, "resize", lambda *a, **k: seen.append(torch.get_num_threads()) or resize(*a, **k))
    try:
        torch.set_num_threads(3)
        datasets.preprocess(torch.zeros(3, 9, 9, dtype=torch.uint8), (4, 4))
        assert seen == [1] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_preprocessing_is_imagenets():
    grey = torch.full((3, 20, 30), 128, dtype=torch.uint8)
    result = datasets.preprocess(grey, (8, 4))
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert result.shape == (3, 8, 4) and torch.allclose(result[:, 0, 0], expected)


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("coco", "train", "data set 'coco' is unknown: expected one of demo, voc2012, magnetic_tile, ksdd, ksdd2"),
        ("demo", "val", r"part 'val' of demo is not in .*: expected one of \['train', 'test'\]"),
        ("voc2012", "train", r"PASCAL VOC 2012 is not at .*VOC2012: set LTCAM_DATA"),
        ("magnetic_tile", "train", "Magnetic tile is not at .*: set LTCAM_DATA"),
        ("ksdd", "train0", "KolektorSDD is not at .*KolektorSDD: set LTCAM_DATA"),
        ("ksdd2", "train", "KSDD2 is not at .*: set LTCAM_DATA"),
    ],
)
def test_what_is_not_there_is_named(root, name, part, message):
    with pytest.raises(DataError, match=message):
        datasets.load(name, part)


@pytest.mark.parametrize(("name", "part"), [("voc2012", "train_aug"), ("magnetic_tile", "val"), ("ksdd2", "val")])
def test_a_part_that_is_not_there_is_named(root, name, part):
    getattr(lookalikes, {"voc2012": "voc"}.get(name, name))(root)
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/empty.txt").write_text("\n")
    parts = "train', 'trainval', 'val" if name == "voc2012" else "train', 'test"
    for wrong in (part, "empty"):
        with pytest.raises(
            DataError, match=rf"part '{wrong}' of {name} is not in .*: expected one of \['{parts}'\], see data/README"
        ):
            datasets.load(name, wrong)


def test_a_misnamed_tile_belongs_to_no_part(root):
    folder = lookalikes.magnetic_tile(root) / "magnetic_tile" / "MT_Free" / "Imgs"
    shutil.copy(folder / "exp1_num_0.jpg", folder / "exp1_num_0 (copy).jpg")
    assert sum(len(datasets.load("magnetic_tile", part)) for part in ("train", "test")) == 60


def test_what_the_paper_and_the_ablations_ask_of_a_set():
    assert {name: kind.headline for name, kind in SETS.items() if kind.headline != "IoU"} == {"voc2012": "mIoU"}
    assert {name: kind.compared for name, kind in SETS.items()} == {
        "demo": (3, 4), "voc2012": (3,), "magnetic_tile": (4,), "ksdd": (4,), "ksdd2": (4,)
    }  # fmt: skip
    assert {name: kind.larger for name, kind in SETS.items()} == {
        "demo": (320, 320), "voc2012": (320, 320), "magnetic_tile": (320, 288), "ksdd": (960, 344), "ksdd2": (960, 344)
    }  # fmt: skip
    assert {name: kind.held_out for name, kind in SETS.items() if kind.held_out != "test"} == {
        "voc2012": "val",
        "ksdd": "test0",
    }


@pytest.fixture
def augmented(root):
    """VOC with the list `train_aug` as weakly-supervised segmentation has it; its masks are other files."""
    folder = lookalikes.voc(root) / "VOCdevkit" / "VOC2012"
    names = (folder / "ImageSets" / "Segmentation" / "train.txt").read_text().split()[:3]
    (folder / "SegmentationClassAug").mkdir()
    for name in names:
        mask = np.array(Image.open(folder / "SegmentationClass" / f"{name}.png"))
        Image.fromarray(np.where(mask == 8, 3, mask).astype(np.uint8)).save(folder / "SegmentationClassAug" / f"{name}.png")
    lines = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n" for name in names]
    (folder / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("".join([*lines, "\n"]))
    return folder


def test_a_list_may_name_images_and_masks_in_pairs(augmented):
    data, plain = datasets.load("voc2012", "train_aug"), datasets.load("voc2012", "train")
    assert len(data) == 3 and agrees(data) and [e.name for e in data.entries] == [e.name for e in plain.entries[:3]]
    assert (
        VOC2012.classes[2] in [VOC2012.classes[c] for c in data.labels[0].nonzero().flatten()] and not plain.labels[:, 2].any()
    )
    report = check("voc2012", augmented.parents[1])
    assert not report.findings and ["train_aug", 3, "-", 3] in report.table.to_numpy().tolist()
    assert state("voc2012", augmented.parents[1]) == "subset"
    data.entries[0].mask.unlink()
    assert state("voc2012", augmented.parents[1]) == "incomplete"
    (finding,) = check("voc2012", augmented.parents[1]).findings
    assert finding.startswith(f"{data.entries[0].mask} is missing") and finding.endswith("(in train_aug)")


@pytest.mark.parametrize("name", ["train_aug", "mine"])
def test_a_bare_name_has_its_mask_where_it_is(name, augmented):
    """As lists that name no files: masks of VOC's own images are VOC's, those of the others are in SegmentationClassAug."""
    names = (augmented / "ImageSets" / "Segmentation" / "train.txt").read_text().split()[:3]
    (augmented / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(names))
    plain = datasets.load("voc2012", "train")
    assert [e.mask for e in datasets.load("voc2012", name).entries] == [e.mask for e in plain.entries[:3]]
    gone = augmented / "SegmentationClass" / f"{names[1]}.png"
    gone.unlink()
    data = datasets.load("voc2012", name)
    assert [e.mask.parent.name for e in data.entries] == ["SegmentationClass", "SegmentationClassAug", "SegmentationClass"]
    assert (data.mask(1) == np.array(Image.open(augmented / "SegmentationClassAug" / f"{names[1]}.png"))).all() and agrees(data)
    (augmented / "SegmentationClassAug" / f"{names[1]}.png").unlink()
    with pytest.raises(DataError, match=rf"SegmentationClass/{names[1]}\.png is missing"):
        datasets.load("voc2012", name).mask(1)


@pytest.mark.parametrize(
    "line",
    ["../../secret", "/JPEGImages/../../../a.jpg /b.png", "/JPEGImages/a.jpg ../b.png", "/JPEGImages/a.jpg", "a -1", "a b c"],
)
def test_a_line_that_leaves_the_data_or_is_no_name_is_refused(augmented, line):
    path = augmented / "ImageSets" / "Segmentation" / "mine.txt"
    path.write_text(f"2007_000000\n{line}\n")
    for call in (lambda: datasets.load("voc2012", "mine"), lambda: check("voc2012", augmented.parents[1])):
        with pytest.raises(
            DataError, match=rf"mine.txt has the line {re.escape(repr(line))}: expected a name, or an image and a mask in "
        ):
            call()
    path.write_text("//etc/a.jpg //etc/b.png\n")
    (entry,) = datasets.load("voc2012", "mine").entries
    assert entry.image.is_relative_to(augmented) and entry.mask.is_relative_to(augmented)


DEEP = {
    "12 bits in a PNG of 16": (np.uint16, 4095, "PNG", "from 0 to 4095"),
    "8 bits in a TIFF of 32": (np.int32, 255, "TIFF", "from 0 to 255"),
    "32 bits in a TIFF of 32": (np.int32, 2**31 - 1, "TIFF", "from 0 to 2147483647"),
    "values below zero": (np.int32, -9, "TIFF", "from -9 to 0"),
}


@pytest.mark.parametrize("name", DEEP)
def test_what_would_be_read_as_black_or_white_is_refused(name, tmp_path):
    kind, most, suffix, said = DEEP[name]
    Image.fromarray(np.linspace(0, most, 64).astype(kind).reshape(8, 8)).save(tmp_path / "deep", suffix)
    with pytest.raises(DataError, match=rf"deep has values {said}: expected 8 bits or all of 16; scale it to 8 bits$"):
        read(tmp_path / "deep", "RGB")


def test_16_bits_become_8(tmp_path):
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    for file, kind, array in (("a.png", "PNG", values), ("b.tiff", "TIFF", values.astype(np.int32))):
        Image.fromarray(array).save(tmp_path / file, kind)
        assert np.array_equal(read(str(tmp_path / file), "RGB"), (values >> 8)[..., None].repeat(3, -1))
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "black.png")
    assert not read(tmp_path / "black.png", "RGB").any()


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "gone"])
def test_a_damaged_image_is_named(root, damage):
    lookalikes.ksdd2(root)
    path = root / "KolektorSDD2" / "test" / "10001.png"
    whole = path.read_bytes()
    data = datasets.load("ksdd2", "test")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not an image"}[damage])
    with pytest.raises(DataError, match=r"10001.png (is missing|cannot be read as an image)"):
        data[1]


def test_a_mask_of_another_size_is_named(root):
    lookalikes.ksdd2(root)
    path = root / "KolektorSDD2" / "test" / "10001_GT.png"
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"10001: the mask is 5 x 5, the image 63 x 23"):
        datasets.load("ksdd2", "test")[1]


def test_a_mask_of_16_bits_is_refused_where_pixels_are_compared(root):
    lookalikes.ksdd2(root)
    path = root / "KolektorSDD2" / "test" / "10001_GT.png"
    Image.fromarray(np.ones((63, 23), np.uint16)).save(path)
    with pytest.raises(DataError, match=r"10001_GT.png has PIL's mode I;16: expected 8 bits; convert it"):
        datasets.load("ksdd2", "test").mask(1)


def test_the_fingerprint_sees_a_changed_file(root):
    lookalikes.ksdd2(root)
    before = datasets.load("ksdd2", "test").fingerprint
    assert before == datasets.load("ksdd2", "test").fingerprint
    path = root / "KolektorSDD2" / "test" / "10001.png"
    Image.fromarray(np.zeros((63, 23, 3), np.uint8)).save(path)
    image = datasets.load("ksdd2", "test").fingerprint
    path = path.with_name("10001_GT.png")
    Image.fromarray(np.zeros((63, 23), np.uint8)).save(path)
    assert len({before, image, datasets.load("ksdd2", "test").fingerprint}) == 3
    data = datasets.load("ksdd2", "test")
    path.unlink()
    with pytest.raises(DataError, match=r"10001_GT.png cannot be read \(No such file or directory\): fetch the data set"):
        _ = data.fingerprint


def official_tiles(root):
    """Empty files of the official names, since the split opens none; those of a look-alike would all be foreign to it."""
    for line in (CHECKSUMS / "magnetic_tile.sha256").read_text().splitlines():
        path = root / line.split()[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


MADE = {"voc2012": lookalikes.voc, "magnetic_tile": official_tiles, "ksdd": lookalikes.ksdd, "ksdd2": lookalikes.ksdd2}


@pytest.mark.parametrize("name", SETS)
def test_a_file_less_changes_no_other_images_side_of_the_split(name, tmp_path):
    """Whichever file it is: each of them, or of the large sets one of each kind and part, alone in its group and not."""
    kind = SETS[name]
    folder = (MADE[name](tmp_path) if name in MADE else tmp_path) / kind.folder
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()] if name in MADE else []

    def sides():
        found = {}
        for part, entries in kind.listed(folder).items():
            for entry in entries:
                found.setdefault(entry.name, set()).add(part)
        return found

    whole, entries = sides(), {entry: part for part, own in kind.listed(folder).items() for entry in own}
    groups = Counter(entry.group or entry.name for entry in entries)
    chosen = {(entry.kind, part, groups[entry.group or entry.name] == 1): entry for entry, part in entries.items()}
    removed = paths if len(paths) < 100 else [path for entry in chosen.values() for path in (entry.image, entry.mask)]
    assert len(whole) >= 14 and (len(removed) > 3 or not paths)
    for path in removed:
        content = path.read_bytes()
        path.unlink()
        now = sides()
        if path.suffix == ".txt":  # a list is a part itself
            assert now == {image: left for image, parts in whole.items() if (left := parts - {path.stem})}
        else:
            gone = whole.keys() - now.keys()
            assert (
                all(now[image] == whole[image] for image in now)
                and len(gone) <= 1
                and all(path.stem in image for image in gone)
            )
        path.write_bytes(content)
    assert sides() == whole

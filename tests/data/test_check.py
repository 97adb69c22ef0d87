import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ltcam.__main__ import app
from ltcam.data import DataError
from ltcam.data import get as checks
from ltcam.data.get import check, checksums, state
from ltcam.data.sets import KSDD, KSDD2, VOC2012, MagneticTile
from tests import lookalikes


def truncate(path):
    content = path.read_bytes()
    path.unlink()  # it may be a link to the original
    path.write_bytes(content[: len(content) * 2 // 3])


def change(path):
    """One bit of one byte, in the pixels."""
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def run(name, root):
    return CliRunner().invoke(app, ["data", "check", name], env={"LTCAM_DATA": str(root)})


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Makes `sums` the checksums of a data set."""
    shutil.copytree(checks.CHECKSUMS, folder := tmp_path / "checksums")
    monkeypatch.setattr(checks, "CHECKSUMS", folder)
    return lambda name, sums: (folder / f"{name}.sha256").write_text(sums)


@pytest.fixture
def voc(tmp_path):
    return lookalikes.voc(tmp_path) / "VOCdevkit" / "VOC2012"


@pytest.fixture
def tiles(tmp_path, listed, monkeypatch):
    monkeypatch.setattr(MagneticTile, "official", {"train": 36, "test": 24})
    listed("magnetic_tile", lookalikes.checksums(lookalikes.magnetic_tile(tmp_path / "tiles")))
    return tmp_path / "tiles"


@pytest.fixture
def ksdd(tmp_path, listed):
    listed("ksdd", lookalikes.checksums(lookalikes.ksdd(tmp_path / "commutators")))
    return tmp_path / "commutators" / "KolektorSDD"


@pytest.fixture
def ksdd2(tmp_path, monkeypatch):
    monkeypatch.setattr(KSDD2, "official", {"train": 12, "test": 8})
    monkeypatch.setattr(KSDD2, "defective", {"train": 6, "test": 4})
    return lookalikes.ksdd2(tmp_path) / "KolektorSDD2"


def test_a_whole_one_of_each(voc, tiles, ksdd, ksdd2, tmp_path):
    report = check("voc2012", tmp_path)
    assert report.title == "PASCAL VOC 2012 subset" and not report.findings
    expected = [["train", 8, 1464, 8], ["trainval", 14, "-", 14], ["val", 6, 1449, 6]]
    assert report.table.to_numpy().tolist() == expected and list(report.table) == ["part", "images", "official", "good"]
    report = check("magnetic_tile", tiles)
    assert report.table.to_numpy().tolist() == [["train", 36, 36, 36], ["test", 24, 24, 24]]
    assert not report.findings
    report = check("ksdd", ksdd.parent)
    assert report.title == "KolektorSDD" and not report.findings
    assert report.table.set_index("part")["good"].to_dict() == {
        "all": 399, "train0": 271, "test0": 128, "train1": 263, "test1": 136, "train2": 264, "test2": 135
    }  # fmt: skip
    report = check("ksdd2", tmp_path)
    assert report.table.to_numpy().tolist() == [["train", 12, 12, 12], ["test", 8, 8, 8]] and not report.findings
    report = check("demo", tmp_path)
    assert report.table["images"].tolist() == [96, 24] and not report.findings


def test_a_file_of_the_list_is_not_decoded_and_another_is(voc, listed, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("ltcam.data.base.opened", lambda path: read.append(path.name) or opened(path))
    opened = checks.opened
    check("voc2012", tmp_path)
    assert len(read) == 28
    sums = lookalikes.checksums(tmp_path).splitlines(keepends=True)
    listed("voc2012", "".join(line for line in sums if "2007_000003.png" not in line))
    read.clear()
    assert not check("voc2012", tmp_path).findings and sorted(read) == ["2007_000003.jpg", "2007_000003.png"]


def test_voc_faults_are_named(voc, tmp_path):
    names = [f"2007_{i:06d}" for i in range(14)]
    masks, images = voc / "SegmentationClass", voc / "JPEGImages"
    (masks / f"{names[0]}.png").unlink()
    truncate(images / f"{names[1]}.jpg")
    Image.fromarray(np.full((45, 60), 21, np.uint8)).save(masks / f"{names[2]}.png")
    Image.fromarray(np.zeros((60, 45), np.uint8)).save(masks / f"{names[8]}.png")
    content = bytearray((masks / f"{names[10]}.png").read_bytes())
    content[content.index(b"IEND") - 8] ^= 1  # the check sum of the pixels, which decoding passes over
    (masks / f"{names[10]}.png").write_bytes(content)
    (images / f"{names[11]}.jpg").unlink()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(images / "2012_000001.jpg")
    report = check("voc2012", tmp_path)
    expected = [
        (f"{names[0]}.png", r"is missing: .* \(in train, trainval\)"),
        (f"{names[1]}.jpg", "truncated"),
        (f"{names[2]}.png", r"holds the labels \[21\]: expected 0 to 20 and 255; fetch it again"),
        (f"{names[8]}", "the mask is 60 x 45, the image 45 x 60: expected the same size; fetch both again"),
        (f"{names[10]}.png", "it is damaged; fetch it again"),
        (f"{names[11]}.jpg", r"is missing: .*fetch.* \(in trainval, val\)"),
    ]
    for found, (file, what) in zip(report.findings, expected, strict=True):
        assert re.search(f"{file}:? .*{what}", found)
    assert report.table["good"].tolist() == [5, 8, 3]


def test_a_changed_byte_of_voc_is_named_in_a_subset_and_in_the_whole(voc, listed, tmp_path, monkeypatch):
    listed("voc2012", lookalikes.checksums(tmp_path))
    change(voc / "JPEGImages" / "2007_000004.jpg")
    mask = voc / "SegmentationClass" / "2007_000010.png"
    Image.fromarray(np.full((45, 60), 8, np.uint8)).save(mask)
    (voc / "SegmentationClass" / "2007_000012.png").unlink()
    for official, title in ((VOC2012.official, "PASCAL VOC 2012 subset"), ({"train": 8, "val": 6}, "PASCAL VOC 2012")):
        monkeypatch.setattr(VOC2012, "official", official)
        report = check("voc2012", tmp_path)
        files = [re.search(r"\w+\.(png|jpg)", found)[0] for found in report.findings]
        assert report.title == title and files == ["2007_000004.jpg", "2007_000010.png", "2007_000012.png"]
        other = "is not the file of the data set (its SHA-256 differs): fetch it again (in "
        assert other in report.findings[0] and other in report.findings[1] and "is missing" in report.findings[2]


def test_ksdd_faults_are_named(ksdd):
    change(ksdd / "kos26" / "Part3.jpg")
    (ksdd / "kos02" / "Part0_label.bmp").unlink()
    (ksdd / "kos50" / "Part7.jpg").unlink()
    truncate(ksdd / "kos33" / "Part1.jpg")
    shutil.copyfile(ksdd / "kos21" / "Part0.jpg", ksdd / "kos21" / "Part7.jpg")
    report = check("ksdd", ksdd.parent)
    expected = [
        ("kos02/Part0_label.bmp", "is missing"), ("kos26/Part3.jpg", "is not the file of the data set"),
        ("kos33/Part1.jpg", "is not the file of the data set"), ("kos50/Part7.jpg", "is missing"),
    ]  # fmt: skip
    for found, (file, what) in zip(report.findings, expected, strict=True):
        assert found.startswith(f"{ksdd / file} {what}")
    assert report.table.set_index("part").loc[["test0", "test1", "test2", "all"], "good"].tolist() == [127, 134, 134, 395]


def test_some_commutators_of_ksdd_are_a_subset(ksdd):
    for folder in ksdd.glob("kos*"):
        if folder.name not in ("kos01", "kos02"):
            shutil.rmtree(folder)
    report = check("ksdd", ksdd.parent)
    assert report.title == "KolektorSDD subset" and not report.findings
    change(ksdd / "kos02" / "Part3.jpg")
    assert [found.split(" ")[0] for found in check("ksdd", ksdd.parent).findings] == [str(ksdd / "kos02" / "Part3.jpg")]
    for folder in ksdd.glob("kos*"):
        shutil.rmtree(folder)
    assert "KolektorSDD has 0 images in part 'all', expected 399: fetch" in check("ksdd", ksdd.parent).findings[0]


def test_a_missing_list_is_named(voc, tmp_path):
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    (found,) = check("voc2012", tmp_path).findings
    assert found == f"{voc} has 0 images in part 'val', expected 1449: fetch the data set again"


def test_ksdd2_faults_are_named(ksdd2, tmp_path):
    (ksdd2 / "train" / "10001_GT.png").unlink()
    (ksdd2 / "train" / "10002.png").unlink()
    truncate(ksdd2 / "train" / "10003_GT.png")
    report = check("ksdd2", tmp_path)
    assert [found.removeprefix(f"{ksdd2}").split(" (")[0].split(":")[0] for found in report.findings] == [
        "/train/10001_GT.png is missing",
        "/train/10003_GT.png cannot be read as an image",
        " has 11 images in part 'train', expected 12",
    ]
    assert report.table["good"].tolist() == [9, 8]


def test_an_emptied_mask_of_ksdd2_shows_in_the_counts(ksdd2, tmp_path):
    mask = ksdd2 / "test" / "10001_GT.png"
    Image.fromarray(np.ones((63, 23), np.uint8)).save(mask)  # faint, not empty
    assert not check("ksdd2", tmp_path).findings
    Image.fromarray(np.zeros((63, 23), np.uint8)).save(mask)
    assert check("ksdd2", tmp_path).findings == [f"{ksdd2} has 3 defects in part 'test', expected 4: fetch the data set again"]


def test_magnetic_tile_faults_are_named(tiles):
    folder = tiles / "magnetic_tile" / "MT_Break" / "Imgs"
    (folder / "exp1_num_1000.png").unlink()
    (folder / "exp4_num_1045.jpg").unlink()
    Image.fromarray(np.full((40, 30), 7, np.uint8)).save(folder / "exp2_num_1015.jpg")  # whole, and not the authors'
    for suffix in (".jpg", ".png"):
        shutil.copy(folder / f"exp3_num_1030{suffix}", folder / f"exp3_num_1{suffix}")
    findings = check("magnetic_tile", tiles).findings
    for what in (
        r"exp1_num_1000.png is missing: .*fetch",
        r"exp4_num_1045.jpg is missing: fetch it again",
        r"exp2_num_1015.jpg is not the file of the data set \(its SHA-256 differs\): fetch it again",
        "exp3_num_1.jpg is not one of the data set's files: remove it",
        "exp3_num_1.png is not one of the data set's files: remove it",
    ):
        assert len([found for found in findings if re.search(what, found)]) == 1


def test_the_command_says_all_and_exits_1_on_findings(voc, tmp_path):
    done = run("voc2012", tmp_path)
    assert done.exit_code == 0 and "PASCAL VOC 2012 subset\n" in done.output and done.output.endswith("0 findings\n")
    truncate(voc / "JPEGImages" / "2007_000003.jpg")
    done = run("voc2012", tmp_path)
    assert done.exit_code == 1 and re.search("finding: .*2007_000003.jpg", done.output) and "1 findings" in done.output
    done = CliRunner().invoke(app, ["data", "list"], env={"LTCAM_DATA": str(tmp_path)})
    assert done.exit_code == 0 and "CC BY-NC-SA 4.0" in done.output and "subset" in done.output
    done = CliRunner().invoke(app, ["data", "get", "demo"], env={"LTCAM_DATA": str(tmp_path)})
    assert done.exit_code == 0 and done.output.strip() == str(tmp_path)


def test_state(voc, ksdd, ksdd2, tiles, listed, tmp_path, monkeypatch):
    states = {name: state(name, tmp_path) for name in ("demo", "voc2012", "magnetic_tile", "ksdd", "ksdd2")}
    expected = {"demo": "present", "voc2012": "subset", "magnetic_tile": "absent", "ksdd": "absent", "ksdd2": "present"}
    assert states == expected and state("magnetic_tile", tiles) == state("ksdd", ksdd.parent) == "present"
    shutil.rmtree(ksdd / "kos50")
    assert state("ksdd", ksdd.parent) == "subset"
    listed("voc2012", lookalikes.checksums(tmp_path / "VOCdevkit" / "VOC2012"))
    monkeypatch.setattr(VOC2012, "official", {"train": 8, "val": 6})
    assert state("voc2012", tmp_path) == "present"
    for name, root, path in (
        ("voc2012", tmp_path, "VOCdevkit/VOC2012/JPEGImages/2007_000001.jpg"),
        ("magnetic_tile", tiles, "magnetic_tile/MT_Free/Imgs/exp1_num_0.png"),
        ("ksdd", ksdd.parent, "KolektorSDD/kos49/Part3_label.bmp"),
        ("ksdd2", tmp_path, "KolektorSDD2/test/10001.png"),
    ):
        (root / path).unlink()
        assert state(name, root) == "incomplete"
    (voc / "ImageSets" / "Segmentation" / "mine.txt").write_text("../a\n")
    assert state("voc2012", tmp_path) == "damaged"


LISTS = {  # what a list may hold, and its state in `ltcam data list`
    "another user's lines": (b"../a\n", "damaged"), "UTF-16": ("2007_000001\n".encode("utf-16"), "damaged"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00", "damaged"), "UTF-8 with a mark": ("\ufeff2007_000001\n".encode(), "subset"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LISTS)
def test_one_stray_file_does_not_hide_the_other_sets(kind, voc, ksdd2, tmp_path):
    content, expected = LISTS[kind]
    path = voc / "ImageSets" / "Segmentation" / "mine.txt"
    path.write_bytes(content)
    states = checks.listing(tmp_path).set_index("name")["state"]
    assert states["voc2012"] == expected and states["ksdd2"] == "present" and states["demo"] == "present"
    if expected == "damaged":
        with pytest.raises(
            DataError, match=rf"^{path} has the line '[^\n]+': expected a name, or an image and a mask in .*, in UTF-8$"
        ):
            check("voc2012", tmp_path)
    else:
        assert [e.name for e in VOC2012("mine", tmp_path).entries] == ["2007_000001"]


def test_what_macos_leaves_beside_a_file_is_no_file_of_a_set(voc, tiles, ksdd, ksdd2, tmp_path):
    """`._x` has the attributes of x."""
    roots = {"voc2012": tmp_path, "magnetic_tile": tiles, "ksdd": ksdd.parent, "ksdd2": tmp_path}
    before = {name: (check(name, root), state(name, root)) for name, root in roots.items()}
    for path in [
        path for root in (*roots.values(), voc) for path in root.rglob("*.*") if path.suffix in (".txt", ".jpg", ".png")
    ]:
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07\xff")
    for name, (report, found) in before.items():
        again = check(name, roots[name])
        assert again.table.equals(report.table) and again.findings == report.findings and state(name, roots[name]) == found


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match=r"KSDD2 is not at .*KolektorSDD2: set LTCAM_DATA"):
        check("ksdd2", tmp_path)
    with pytest.raises(DataError, match="data set 'coco' is unknown"):
        check("coco", tmp_path)
    assert checksums("ksdd2") == {}


def test_the_real_sets_are_whole(real_data):
    report = check("voc2012", real_data)
    good = [1464, 2913, 1449] if report.title == "PASCAL VOC 2012" else [103, 203, 100]
    assert not report.findings and report.table["good"].tolist() == good
    if (real_data / "KolektorSDD").is_dir():
        report = check("ksdd", real_data)
        good = [399, 128, 136, 135] if report.title == "KolektorSDD" else [80, 16, 24, 40]
        parts = report.table.set_index("part")["good"]
        assert not report.findings and parts[["all", "test0", "test1", "test2"]].tolist() == good
    report = check("magnetic_tile", real_data)
    assert not report.findings and report.table["good"].tolist() == [933, 411]


def test_the_sums_are_of_the_images_and_masks_of_a_whole_copy(tmp_path):
    (tmp_path / "kos21").mkdir()
    paths = {e.image.relative_to(tmp_path).as_posix() for e in KSDD.listed(tmp_path)["all"]}
    assert paths <= checksums("ksdd").keys() and len(paths) == 7 and len(checksums("ksdd")) == 798
    sums = {folder: set() for folder in ("JPEGImages", "SegmentationClass")}
    for path in map(Path, checksums("voc2012")):
        sums[path.parent.name].add(path.stem)
    assert sums["JPEGImages"] == sums["SegmentationClass"] and len(sums["JPEGImages"]) == 1464 + 1449


def test_a_deleted_mask_and_a_truncated_jpeg_of_the_real_sets_are_named(real_data, tmp_path):
    source, target = (root / "VOCdevkit" / "VOC2012" for root in (real_data, tmp_path))
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (target / folder).mkdir(parents=True)
    names = []
    for part in ("train", "val"):
        chosen = (source / "ImageSets" / "Segmentation" / f"{part}.txt").read_text().split()[:15]
        (target / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("\n".join(chosen))
        names += chosen
    for name in names:
        shutil.copyfile(source / "JPEGImages" / f"{name}.jpg", target / "JPEGImages" / f"{name}.jpg")
        shutil.copyfile(source / "SegmentationClass" / f"{name}.png", target / "SegmentationClass" / f"{name}.png")
    (target / "SegmentationClass" / f"{names[3]}.png").unlink()
    truncate(target / "JPEGImages" / f"{names[20]}.jpg")
    change(target / "JPEGImages" / f"{names[7]}.jpg")
    found = [re.search(r"\w+\.(png|jpg)", found)[0] for found in check("voc2012", tmp_path).findings]
    assert sorted(found) == sorted([f"{names[3]}.png", f"{names[20]}.jpg", f"{names[7]}.jpg"])

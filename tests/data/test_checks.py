import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ltcam import data as datasets
from ltcam.__main__ import app
from ltcam.data import DataError, checks, presence
from tests import lookalikes


def truncate(path):
    content = path.read_bytes()
    path.unlink()  # it may be a link to the original
    path.write_bytes(content[: len(content) * 2 // 3])


def run(name, root):
    return CliRunner().invoke(app, ["data", "check", name], env={"LTCAM_DATA": str(root)})


@pytest.fixture
def voc(tmp_path):
    return lookalikes.voc(tmp_path) / "VOCdevkit" / "VOC2012"


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Makes `sums` the checksums of a data set."""
    shutil.copytree(presence.CHECKSUMS, folder := tmp_path / "checksums")
    monkeypatch.setattr(presence, "CHECKSUMS", folder)
    return lambda name, sums: (folder / f"{name}.sha256").write_text(sums)


@pytest.fixture
def tiles(tmp_path, listed):
    _, sums = lookalikes.magnetic_tile_zip(tmp_path)
    listed("magnetic_tile", sums)
    return tmp_path / "tiles"


@pytest.fixture
def ksdd(tmp_path, listed):
    listed("ksdd", lookalikes.checksums(lookalikes.ksdd(tmp_path / "commutators")))
    return tmp_path / "commutators" / "KolektorSDD"


def change(path):
    """One bit of one byte, in the pixels."""
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


@pytest.fixture
def ksdd2(tmp_path, monkeypatch):
    monkeypatch.setattr(presence, "KSDD2", {"train": (6, 6), "test": (4, 4)})
    return lookalikes.ksdd2(tmp_path)


def test_a_whole_one_of_each(voc, tiles, ksdd2, tmp_path):
    report = checks.check("voc2012", tmp_path)
    assert report.title == "PASCAL VOC 2012 subset" and not report.findings
    assert report.notes == ["a subset: the official lists have 1464 (train) and 1449 (val)"]
    expected = [["train", 8, "1464", 8], ["trainval", 14, "2913", 14], ["val", 6, "1449", 6]]
    assert report.table.to_numpy().tolist() == expected
    report = checks.check("magnetic_tile", tiles)
    assert not report.findings and report.table.iloc[-1].tolist() == ["all", 60, 60, 0, 0] and not report.notes
    report = checks.check("ksdd2", tmp_path)
    assert report.table.to_numpy().tolist() == [["train", 12, 6, 6, "6 + 6", 12], ["test", 8, 4, 4, "4 + 4", 8]]
    assert not report.findings and [note.split(" is ")[1] for note in report.notes] == ["a duplicate: left out"] * 2
    report = checks.check("demo", tmp_path)
    assert report.table["images"].tolist() == [140, 60] and not report.findings


def test_voc_faults_are_named(voc, tmp_path):
    names = [f"2007_{i:06d}" for i in range(14)]
    masks, images = voc / "SegmentationClass", voc / "JPEGImages"
    (masks / f"{names[0]}.png").unlink()
    truncate(images / f"{names[1]}.jpg")
    Image.fromarray(np.full((45, 60), 21, np.uint8)).save(masks / f"{names[2]}.png")
    Image.fromarray(np.zeros((60, 45), np.uint8)).save(masks / f"{names[8]}.png")
    (voc / "Annotations" / f"{names[9]}.xml").write_text("<annotation>")
    content = bytearray((masks / f"{names[10]}.png").read_bytes())
    content[content.index(b"IEND") - 8] ^= 1  # the check sum of the pixels, which decoding passes over
    (masks / f"{names[10]}.png").write_bytes(content)
    (images / f"{names[11]}.jpg").unlink()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(images / "2012_000001.jpg")
    report = checks.check("voc2012", tmp_path)
    expected = [
        (f"{names[0]}.png", r"is missing: .* \(listed in train, trainval\)"),
        (f"{names[1]}.jpg", "truncated"),
        (f"{names[2]}.png", r"holds the values \[21\]: expected 0..20 and 255; fetch it again"),
        (f"{names[8]}.png", r"has shape \(60, 45\), its image \(45, 60\): expected the same; fetch both again"),
        (f"{names[9]}.xml", r"is missing or damaged .*fetch"),
        (f"{names[10]}.png", "is damaged .*fetch it again"),
        (f"{names[11]}.jpg", r"is missing: .*fetch.* \(listed in trainval, val\)"),
    ]
    for found, (file, what) in zip(report.findings, expected, strict=True):
        assert re.search(f"{file} .*{what}", found)
    assert report.table["good"].tolist() == [5, 7, 2]
    assert report.notes[1:] == [
        f"annotation and mask name different classes in 2: {names[2]}, {names[8]}",
        "1 more images in JPEGImages are in no segmentation list: not used, not opened",
    ]


def test_a_changed_byte_of_voc_is_named_in_a_subset_and_in_the_whole(voc, listed, tmp_path, monkeypatch):
    listed("voc2012", lookalikes.checksums(tmp_path))
    assert not checks.check("voc2012", tmp_path).findings
    change(voc / "JPEGImages" / "2007_000004.jpg")
    mask = voc / "SegmentationClass" / "2007_000010.png"
    Image.fromarray(np.full((45, 60), 8, np.uint8)).save(mask)
    (voc / "SegmentationClass" / "2007_000012.png").unlink()
    for official in (checks.voc.OFFICIAL, {"train": 8, "val": 6}):
        monkeypatch.setattr(checks.voc, "OFFICIAL", official)
        found = checks.check("voc2012", tmp_path).findings
        assert [re.search(r"\w+\.(png|jpg)", f)[0] for f in found] == ["2007_000004.jpg", "2007_000010.png", "2007_000012.png"]
        other = "is not the file of the data set (its SHA-256 differs): fetch it again (listed in "
        assert other in found[0] and other in found[1] and "is missing" in found[2]
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000008\n")
    report = checks.check("voc2012", tmp_path)
    assert (
        report.title == "PASCAL VOC 2012 subset"
        and report.notes[0] == "a subset: the official lists have 8 (train) and 6 (val)"
    )


def test_ksdd_whole(ksdd):
    report = checks.check("ksdd", ksdd.parent)
    assert report.title == "KolektorSDD" and not report.findings and not report.notes
    assert report.table.to_numpy().tolist() == [
        ["test0", 128, 17, 111, 128, 128], ["test1", 136, 17, 119, 136, 136], ["test2", 135, 18, 117, 135, 135],
        ["all", 399, 52, 347, 399, 399],
    ]  # fmt: skip


def test_ksdd_faults_are_named(ksdd):
    change(ksdd / "kos26" / "Part3.jpg")
    (ksdd / "kos02" / "Part0_label.bmp").unlink()
    (ksdd / "kos50" / "Part7.jpg").unlink()
    change(ksdd / "kos21" / "Part5_label.bmp")
    truncate(ksdd / "kos33" / "Part1.jpg")
    shutil.copyfile(ksdd / "kos21" / "Part0.jpg", ksdd / "kos21" / "Part7.jpg")
    report = checks.check("ksdd", ksdd.parent)
    expected = [
        ("kos02/Part0_label.bmp", "is missing"), ("kos21/Part5_label.bmp", "is not the file of the data set"),
        ("kos26/Part3.jpg", "is not the file of the data set"), ("kos33/Part1.jpg", "cannot be read"),
        ("kos50/Part7.jpg", "is missing"),
    ]  # fmt: skip
    for found, (file, what) in zip(report.findings, expected, strict=True):
        assert found.startswith(f"{ksdd / file} {what}")
    assert report.notes == [f"{ksdd / 'kos21' / 'Part7.jpg'} is none of its files: left out"]
    assert report.table["good"].tolist() == [127, 134, 133, 394]


def test_some_commutators_of_ksdd_are_a_subset(ksdd):
    for folder in ksdd.glob("kos*"):
        if folder.name not in ("kos01", "kos02"):
            shutil.rmtree(folder)
    report = checks.check("ksdd", ksdd.parent)
    assert report.title == "KolektorSDD subset" and not report.findings
    assert report.notes == ["a subset: 2 of 50 commutators are there"] and report.table["good"].tolist() == [0, 8, 8, 16]
    change(ksdd / "kos02" / "Part3.jpg")
    assert [f.split(" ")[0] for f in checks.check("ksdd", ksdd.parent).findings] == [str(ksdd / "kos02" / "Part3.jpg")]
    for folder in ksdd.glob("kos*"):
        shutil.rmtree(folder)
    (found,) = checks.check("ksdd", ksdd.parent).findings
    assert "KolektorSDD holds no commutator: expected kosNN/PartK.jpg" in found


def test_a_missing_list_is_named(voc, tmp_path):
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    (found,) = checks.check("voc2012", tmp_path).findings
    assert "val.txt is missing: expected the list of part 'val'" in found


def test_ksdd2_faults_are_named(ksdd2, tmp_path):
    train, test = tmp_path / "KolektorSDD2" / "train", tmp_path / "KolektorSDD2" / "test"
    (train / "10001_GT.png").unlink()
    (train / "10002.png").unlink()
    truncate(train / "10003_GT.png")
    report = checks.check("ksdd2", tmp_path)
    assert [re.search(r"\d+(_GT)?\.png", found)[0] for found in report.findings] == [
        "10001_GT.png",
        "10002.png",
        "10003_GT.png",
    ]
    assert report.table["good"].tolist() == [9, 8]
    for path in (*train.glob("1000[123]*"), *test.glob("10007*")):
        path.unlink()
    report = checks.check("ksdd2", tmp_path)
    assert [found.split("KolektorSDD2/")[1] for found in report.findings] == [
        "train has 4 + 5 images (defective + free), expected 6 + 6: fetch the data set again",
        "test has 3 + 4 images (defective + free), expected 4 + 4: fetch the data set again",
    ]
    Image.fromarray(np.zeros((63, 23), np.uint8)).save(test / "10001_GT.png")
    (test / "notes.png").write_text("")
    report = checks.check("ksdd2", tmp_path)
    assert "test has 2 + 5 images" in report.findings[1] and report.notes[-1].endswith(
        "notes.png is none of its files: left out"
    )


def test_an_emptied_mask_of_ksdd2_shows_in_the_counts(ksdd2, tmp_path):
    test = tmp_path / "KolektorSDD2" / "test"
    Image.fromarray(np.ones((63, 23), np.uint8)).save(test / "10001_GT.png")  # faint, not empty
    assert not checks.check("ksdd2", tmp_path).findings
    Image.fromarray(np.zeros((63, 23), np.uint8)).save(test / "10001_GT.png")
    (found,) = checks.check("ksdd2", tmp_path).findings
    assert "test has 3 + 5 images (defective + free), expected 4 + 4" in found
    for path in test.glob("10001*"):
        path.unlink()
    truncate(test / "10002.png")
    found = checks.check("ksdd2", tmp_path).findings
    assert len(found) == 2 and "test has 3 + 4 images" in found[0] and "10002.png cannot be read" in found[1]


def test_magnetic_tile_faults_are_named(tiles):
    folder = tiles / "magnetic_tile" / "MT_Break" / "Imgs"
    (folder / "exp1_num_1000.png").unlink()
    Image.fromarray(np.full((40, 30), 7, np.uint8)).save(folder / "exp2_num_1015.jpg")  # whole, and not the authors'
    shutil.copy(folder / "exp3_num_1030.png", folder / "exp3_num_1.png")
    report = checks.check("magnetic_tile", tiles)
    expected = [
        "exp3_num_1.png is not one of the data set's files: remove it",
        r"exp1_num_1000.png is missing: .*fetch",
        r"exp2_num_1015.jpg is not the file of the data set \(its SHA-256 differs\): fetch it again",
    ]
    for found, what in zip(report.findings, expected, strict=True):
        assert re.search(what, found)
    assert report.table["good"].tolist()[1] == 28 and not report.notes  # a mask that is not there is not an empty one


def test_empty_and_nearly_empty_masks_are_notes(tiles, monkeypatch):
    folder = tiles / "magnetic_tile" / "MT_Break" / "Imgs"
    for number, pixels in (("1_num_1000", 0), ("2_num_1015", 9), ("3_num_1030", 10)):
        mask = np.zeros((40, 30), np.uint8)
        mask[0, :pixels], mask[1, :5] = 128, 127
        Image.fromarray(mask).save(folder / f"exp{number}.png")
    sums = dict.fromkeys(presence.checksums("magnetic_tile"), "")
    monkeypatch.setattr(presence, "checksums", lambda name: sums)
    report = checks.check("magnetic_tile", tiles)
    assert not report.findings and [note.split("/")[-1] for note in report.notes] == [
        "exp1_num_1000.png is empty, as the authors ship it",
        "exp2_num_1015.png is nearly empty (pixels: 9), as the authors ship it",
    ]
    assert report.table.iloc[-1].tolist() == ["all", 60, 60, 1, 1]


def test_the_command_says_all_and_exits_1_on_findings(voc, tmp_path):
    done = run("voc2012", tmp_path)
    assert done.exit_code == 0 and "note: a subset" in done.output and done.output.endswith("0 findings\n")
    truncate(voc / "JPEGImages" / "2007_000003.jpg")
    done = run("voc2012", tmp_path)
    assert done.exit_code == 1 and re.search("finding: .*2007_000003.jpg", done.output) and "1 findings" in done.output
    done = CliRunner().invoke(app, ["data", "list"], env={"LTCAM_DATA": str(tmp_path)})
    assert done.exit_code == 0 and "CC BY-NC-SA 4.0" in done.output and "subset" in done.output
    done = CliRunner().invoke(app, ["data", "get", "demo"], env={"LTCAM_DATA": str(tmp_path)})
    assert done.exit_code == 0 and done.output.strip() == str(tmp_path)


def test_state(voc, ksdd, ksdd2, tiles, tmp_path, monkeypatch):
    states = {name: presence.state(name, tmp_path) for name in ("demo", "voc2012", "magnetic_tile", "ksdd", "ksdd2")}
    expected = {"demo": "present", "voc2012": "subset", "magnetic_tile": "absent", "ksdd": "absent", "ksdd2": "present"}
    assert states == expected and presence.state("magnetic_tile", tiles) == presence.state("ksdd", ksdd.parent) == "present"
    shutil.rmtree(ksdd / "kos50")
    assert presence.state("ksdd", ksdd.parent) == "subset"
    monkeypatch.setattr(checks.voc, "OFFICIAL", {"train": 8, "val": 6})
    assert presence.state("voc2012", tmp_path) == "present"
    for name, root, path in (
        ("voc2012", tmp_path, "VOCdevkit/VOC2012/JPEGImages/2007_000001.jpg"),
        ("magnetic_tile", tiles, "magnetic_tile/MT_Free/Imgs/exp1_num_0.png"),
        ("ksdd", ksdd.parent, "KolektorSDD/kos49/Part3_label.bmp"),
        ("ksdd2", tmp_path, "KolektorSDD2/test/10001.png"),
    ):
        (root / path).unlink()
        assert presence.state(name, root) == "incomplete"


def test_what_is_not_there_is_said(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"ksdd2 is not at .*KolektorSDD2: set LTCAM_DATA"):
        checks.check("ksdd2", tmp_path)
    with pytest.raises(DataError, match="data set 'coco' is unknown"):
        checks.check("coco", tmp_path)
    monkeypatch.setattr(presence, "CHECKSUMS", tmp_path)
    assert presence.checksums("ksdd2") == {}
    with pytest.raises(DataError, match=r"magnetic_tile.sha256 is missing: .* use ltcam from a checkout"):
        presence.checksums("magnetic_tile")


def test_the_real_sets_are_whole(real_data):
    report = checks.check("voc2012", real_data)
    good = [1464, 2913, 1449] if report.title == "PASCAL VOC 2012" else [103, 203, 100]
    assert not report.findings and report.table["good"].tolist() == good
    if (real_data / "KolektorSDD").is_dir():
        report = checks.check("ksdd", real_data)
        whole = report.title == "KolektorSDD"
        good, defective = ([128, 136, 135, 399], [17, 17, 18, 52]) if whole else ([16, 24, 40, 80], [2, 3, 5, 10])
        assert not report.findings and report.table["good"].tolist() == good and report.table["defective"].tolist() == defective
    report = checks.check("magnetic_tile", real_data)
    assert not report.findings and report.table["good"].tolist() == [115, 85, 57, 32, 103, 952, 1344]
    kinds = [re.search(r"MT_Uneven/Imgs/\w+\.png is (empty|nearly empty)", note)[1] for note in report.notes]
    assert sorted(kinds) == ["empty"] * 4 + ["nearly empty"] * 2


def test_the_sums_of_ksdd_are_of_its_names():
    entries = datasets.ksdd.entries(checks.data_root(), datasets.ksdd.ALL)
    expected = {path.relative_to(checks.data_root()).as_posix() for e in entries for path in (e.image, e.mask)}
    assert set(presence.checksums("ksdd")) == expected and len(expected) == 798


def test_the_sums_of_voc_are_of_images_with_masks():
    sums = {folder: set() for folder in ("JPEGImages", "SegmentationClass")}
    for path in map(Path, presence.checksums("voc2012")):
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
    for file in (
        f"{folder}/{n}" for n in names for folder, n in (("JPEGImages", f"{n}.jpg"), ("SegmentationClass", f"{n}.png"))
    ):
        shutil.copyfile(source / file, target / file)
    (target / "SegmentationClass" / f"{names[3]}.png").unlink()
    truncate(target / "JPEGImages" / f"{names[20]}.jpg")
    change(target / "JPEGImages" / f"{names[7]}.jpg")
    findings = checks.check("voc2012", tmp_path).findings
    assert sorted(re.search(r"\w+\.(png|jpg)", found)[0] for found in findings) == sorted(
        [f"{names[3]}.png", f"{names[20]}.jpg", f"{names[7]}.jpg"]
    )

    for path in sorted((real_data / "magnetic_tile").glob("*/Imgs/*.*")):
        link = tmp_path / path.relative_to(real_data)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    (tmp_path / "magnetic_tile" / "MT_Fray" / "Imgs" / "exp0_num_797.png").unlink()
    truncate(damaged := min((tmp_path / "magnetic_tile" / "MT_Free" / "Imgs").glob("*.jpg")))
    done = run("magnetic_tile", tmp_path)
    assert done.exit_code == 1 and done.output.count("finding: ") == 2
    assert "MT_Fray/Imgs/exp0_num_797.png is missing" in done.output and f"{damaged} cannot be read" in done.output

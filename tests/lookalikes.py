"""Tiny data sets in the layouts of the real ones, and the archives they come in."""

import hashlib
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def voc(root: Path) -> Path:
    """8 training and 6 validation images of 60 x 45 with a rectangle of one or two classes and a void border."""
    folder = root / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    names = [f"2007_{i:06d}" for i in range(14)]
    for part, chosen in (("train", names[:8]), ("val", names[8:]), ("trainval", names)):
        (folder / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("\n".join(chosen) + "\n")
    for i, name in enumerate(names):
        rng = np.random.default_rng(i)
        image, mask = rng.integers(0, 255, (45, 60, 3), dtype=np.uint8), np.zeros((45, 60), np.uint8)
        present = [7, 11] if i % 3 == 0 else [(7, 11)[i % 2]]
        for k, c in enumerate(present):
            mask[5:25, 5 + 25 * k : 25 + 25 * k] = 255
            mask[6:24, 6 + 25 * k : 24 + 25 * k] = c + 1
            image[6:24, 6 + 25 * k : 24 + 25 * k, c % 3] = 250
        Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.jpg")
        palette = Image.fromarray(mask, "L").convert("P")
        palette.putdata(mask.flatten().tolist())
        palette.save(folder / "SegmentationClass" / f"{name}.png")
    return root


def ksdd2(root: Path, train: int = 12, test: int = 8) -> Path:
    """Images of 23 x 63 (width x height), the later ones a little larger, every other one defective; and the two duplicates."""
    for part, count in (("train", train), ("test", test)):
        folder = root / "KolektorSDD2" / part
        folder.mkdir(parents=True)
        for i in range(count):
            rng, height, width = np.random.default_rng(i), 63 + i // 12, 23 + i // 12
            image, mask = rng.integers(90, 110, (height, width, 3), dtype=np.uint8), np.zeros((height, width), np.uint8)
            if i % 2:
                image[20:35, 5:15], mask[20:35, 5:15] = 20, 255
            Image.fromarray(image).save(folder / f"{10000 + i}.png")
            Image.fromarray(mask).save(folder / f"{10000 + i}_GT.png")
    for name in ("10301 (copy)", "10301_GT (copy)"):
        Image.fromarray(mask).save(root / "KolektorSDD2" / "train" / f"{name}.png")
    return root


def ksdd(root: Path) -> Path:
    """All 399 names of KolektorSDD at 25 x 63 (width x height), grey: kosNN/Part(NN % 8) has a defect of 4 x 6 pixels, in kos38
    and kos39 the next one too. The twins' images are the same bytes. Masks have palettes; kos20/Part4's has the value 2."""
    for n in range(1, 51):
        folder = root / "KolektorSDD" / f"kos{n:02}"
        folder.mkdir(parents=True)
        twin = {26: 1, 34: 27}.get(n, n)
        defective = {n % 8, (n + 1) % 8} if n in (38, 39) else {n % 8}
        for k in range(7 if n == 21 else 8):
            if twin == n:
                image = np.random.default_rng((n, k)).integers(90, 110, (63, 25), dtype=np.uint8)
                image[20:24, 5:11] = 20 if k in defective else 100
                Image.fromarray(image).save(folder / f"Part{k}.jpg")
            else:
                shutil.copyfile(folder.with_name(f"kos{twin:02}") / f"Part{k}.jpg", folder / f"Part{k}.jpg")
            mask = Image.fromarray(np.zeros((63, 25), np.uint8))
            if k in defective:
                mask = Image.new("P", (25, 63))
                mask.putpalette([0, 0, 0, 85, 85, 85, 255, 255, 255])
                mask.paste(2 if (n, k) == (20, 4) else 1, (5, 20, 11, 24))
            mask.save(folder / f"Part{k}_label.bmp")
    return root


def magnetic_tile(root: Path) -> Path:
    """Ten tiles of six exposures; numbers of one tile lie close, tiles far apart."""
    for t in range(10):
        kind = ("Free", "Break")[t % 2]
        folder = root / "magnetic_tile" / f"MT_{kind}" / "Imgs"
        folder.mkdir(parents=True, exist_ok=True)
        for k in range(6):
            name = f"exp{k + 1}_num_{1000 * t + 15 * k}"
            mask = np.zeros((40, 30), np.uint8)
            if kind == "Break":
                mask[10:20, 10:20], mask[20, 10:20] = 255, 127
            Image.fromarray(np.full((40, 30), 100 + k, np.uint8)).save(folder / f"{name}.jpg")
            Image.fromarray(mask).save(folder / f"{name}.png")
    return root


def voc_tar(folder: Path) -> Path:
    """With folders as members of their own, as in the original."""
    path = folder / "VOCtrainval_11-May-2012.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(voc(folder / "voc") / "VOCdevkit", "VOCdevkit")
    return path


def ksdd2_zip(folder: Path, below: str = "") -> Path:
    """Both duplicates included; `below` is a folder around train/ and test/."""
    return _zip(folder / "KolektorSDD2.zip", ksdd2(folder / "ksdd2") / "KolektorSDD2", below)


def ksdd_zip(folder: Path) -> tuple[Path, str]:
    """And the lines of its data/checksums. With an uploader's own copy of an image."""
    content = ksdd(folder / "ksdd") / "KolektorSDD"
    sums = checksums(content.parent)
    shutil.copyfile(content / "kos21" / "Part0.jpg", content / "kos21" / "Part7.jpg")
    return _zip(folder / "KolektorSDD.zip", content, "KolektorSDD/"), sums


def magnetic_tile_zip(folder: Path) -> tuple[Path, str]:
    """And the lines of its data/checksums. As from GitHub: all in one folder, with files that are no images."""
    tiles = magnetic_tile(folder / "tiles") / "magnetic_tile"
    sums = checksums(tiles.parent)
    (tiles / "README.md").write_text("the authors' words")
    (tiles / "MT_Free" / "Imgs" / "Thumbs.db").write_text("no image")
    return _zip(folder / "tiles.zip", tiles, "Magnetic-tile-defect-datasets.-cc4eb53/"), sums


def checksums(root: Path) -> str:
    """Of every image and mask under `root`, in the form of data/checksums."""
    files = sorted(p for p in root.rglob("*") if p.suffix in (".jpg", ".png", ".bmp"))
    return "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(root).as_posix()}\n" for p in files)


def _zip(path: Path, content: Path, below: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(content.rglob("*")):
            archive.write(file, below + file.relative_to(content).as_posix())
    return path

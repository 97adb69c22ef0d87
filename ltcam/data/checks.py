"""`ltcam data check`: whether a data set is complete and undamaged, and if not, which files are at fault.

Every image and mask that a data set uses is decoded to its end. Masks of VOC must hold 0..20 and 255. Masks of the other sets
are accepted as their authors drew them (smoothed, some empty). Files in data/checksums are compared with it, in a subset too.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ltcam import data as datasets
from ltcam.data import DataError, ksdd, presence, voc
from ltcam.data.base import read, require
from ltcam.data.magnetic_tile import KINDS
from ltcam.files import AnyPath, data_root

NEARLY = 10  # a mask of fewer pixels is nearly empty: the smallest real defect of Magnetic tile has 26
COLUMNS = ["part", "images", "defective", "free", "official", "good"]
Result = tuple[list[str], NDArray[np.int_]]  # faults of an image and its mask, and how often the mask holds each value


@dataclass
class Report:
    title: str
    table: pd.DataFrame
    findings: list[str] = field(default_factory=list)  # what is wrong, each with its file and what to do
    notes: list[str] = field(default_factory=list)  # what is unusual but shipped so by the authors


def check(name: str, root: AnyPath | None = None) -> Report:
    """What data set `name` under `root` (None: `LTCAM_DATA`) holds and what is wrong. Raises DataError if it is not there."""
    root = data_root() if root is None else root
    if presence.known(name) == "demo":
        parts = [datasets.load("demo", part) for part in ("train", "test")]
        rows = [(d.part, len(d), int(d.labels.any(1).sum()), int((~d.labels.any(1)).sum())) for d in parts]
        return Report(parts[0].title, pd.DataFrame(rows, columns=["part", "images", "defective", "free"]))
    folder = require(root, presence.FOLDERS[name], name)
    return {"voc2012": _voc, "magnetic_tile": _magnetic_tile, "ksdd": _ksdd, "ksdd2": _ksdd2}[name](folder)


def _voc(folder: Path) -> Report:
    lists = {part: [(e.image, e.mask) for e in entries] for part, entries in presence.lists_in(folder).items()}
    full, listed = presence.is_official(lists), set().union(*lists.values())
    report = Report("PASCAL VOC 2012" if full else "PASCAL VOC 2012 subset", pd.DataFrame())
    for part in sorted({"train", "val"} - set(lists)):
        path = folder / "ImageSets" / "Segmentation" / f"{part}.txt"
        report.findings.append(f"{path} is missing: expected the list of part {part!r}; fetch the data set again")
    sums = {folder / path: digest for path, digest in presence.checksums("voc2012").items()}
    pairs = _decode(sorted(listed), None, sums)
    differ = []
    for (image, mask), (wrong, seen) in pairs.items():
        name = image.stem
        where = f" (listed in {', '.join(part for part, files in lists.items() if (image, mask) in files)})"
        if strange := [v for v in np.flatnonzero(seen).tolist() if 20 < v < 255]:
            wrong.append(f"{mask} holds the values {strange}: expected 0..20 and 255; fetch it again")
        if (folder / "Annotations").is_dir():
            try:
                objects = {c + 1 for c in voc._objects(folder / "Annotations" / f"{name}.xml")}
                if seen.any() and objects != set(np.flatnonzero(seen[1:21]) + 1):
                    differ.append(name)
            except DataError as error:
                wrong.append(str(error))
        report.findings += [w + where for w in wrong]
    good = {pair for pair, (wrong, _) in pairs.items() if not wrong}
    official = {**voc.OFFICIAL, "trainval": sum(voc.OFFICIAL.values())}
    rows = [(part, len(files), str(official.get(part, "-")), len(good & set(files))) for part, files in lists.items()]
    report.table = pd.DataFrame(rows, columns=["part", "images", "official", "good"])
    if not full:
        report.notes.append(
            f"a subset: the official lists have {voc.OFFICIAL['train']} (train) and {voc.OFFICIAL['val']} (val)"
        )
    if differ:
        report.notes.append(f"annotation and mask name different classes in {len(differ)}: {', '.join(differ[:5])}")
    if others := len(set(folder.glob("JPEGImages/*.jpg")) - {image for image, _ in listed}):
        report.notes.append(f"{others} more images in JPEGImages are in no segmentation list: not used, not opened")
    return report


def _ksdd(folder: Path) -> Report:
    every = {folder / path: digest for path, digest in presence.checksums("ksdd").items()}
    sums = {path: digest for path, digest in every.items() if path.parent.is_dir()}
    full = len(sums) == len(every)
    report, rows = Report("KolektorSDD" if full else "KolektorSDD subset", pd.DataFrame()), []
    if not sums:
        report.findings.append(f"{folder} holds no commutator: expected kosNN/PartK.jpg; fetch the data set again")
    elif not full:
        report.notes.append(f"a subset: {len({p.parent for p in sums})} of {len(ksdd.ALL)} commutators are there")
    report.notes += [f"{p} is none of its files: left out" for p in sorted(folder.glob("kos*/*")) if p not in sums]
    pairs = _decode([(e.image, e.mask) for e in ksdd.entries(folder, ksdd.ALL) if e.image in sums], None, sums)
    for part in ("test0", "test1", "test2", "all"):
        official = ksdd.entries(folder, ksdd.PARTS[part])
        counts, good = _tally([pairs[e.image, e.mask] for e in official if e.image in sums])
        rows.append((part, sum(counts), *counts, len(official), good))
    report.findings += [w for wrong, _ in pairs.values() for w in wrong]
    report.table = pd.DataFrame(rows, columns=COLUMNS)
    return report


def _ksdd2(folder: Path) -> Report:
    report, rows = Report("KSDD2", pd.DataFrame()), []
    for part, official in presence.KSDD2.items():
        where = require(folder.parent, f"{folder.name}/{part}", f"KSDD2's part {part!r}")
        files = sorted(where.glob("*.png"))
        numbers = sorted({p.stem.removesuffix("_GT") for p in files if p.stem.removesuffix("_GT").isdigit()})
        left = [p for p in files if p.stem.removesuffix("_GT") not in numbers]
        report.notes += [f"{p} is {'a duplicate' if '(copy)' in p.name else 'none of its files'}: left out" for p in left]
        pairs = _decode([(where / f"{n}.png", where / f"{n}_GT.png") for n in numbers], "L")
        counts, good = _tally(list(pairs.values()))
        found, expected = (f"{defective} + {free}" for defective, free in (counts, official))
        if len(pairs) != sum(official) or (good == len(pairs) and counts != official):
            report.findings.append(
                f"{where} has {found} images (defective + free), expected {expected}: fetch the data set again"
            )
        report.findings += [w for wrong, _ in pairs.values() for w in wrong]
        rows.append((part, len(pairs), *counts, expected, good))
    report.table = pd.DataFrame(rows, columns=COLUMNS)
    return report


def _magnetic_tile(folder: Path) -> Report:
    sums = {folder / path: digest for path, digest in presence.checksums("magnetic_tile").items()}
    there = {p for p in folder.glob("MT_*/Imgs/*") if p.suffix in (".jpg", ".png")}
    report, rows = Report("Magnetic tile", pd.DataFrame()), []
    report.findings += [f"{p} is not one of the data set's files: remove it" for p in sorted(there - set(sums))]
    pairs = _decode([(p, p.with_suffix(".png")) for p in sorted(sums) if p.suffix == ".jpg"], "L", sums)
    for kind in KINDS:
        mine = {mask: result for (_, mask), result in pairs.items() if mask.parts[-3] == f"MT_{kind}"}
        sizes = {mask: int(seen[128:].sum()) for mask, (_, seen) in mine.items() if seen.any() and kind != "Free"}
        few = {mask: size for mask, size in sizes.items() if size < NEARLY}
        whats = {mask: f"nearly empty (pixels: {size})" if size else "empty" for mask, size in few.items()}
        report.notes += [f"{mask} is {what}, as the authors ship it" for mask, what in whats.items()]
        good = sum(not found for found, _ in mine.values())
        rows.append((f"MT_{kind}", len(mine), good, sum(not n for n in few.values()), sum(map(bool, few.values()))))
    report.findings += [w for found, _ in pairs.values() for w in found]
    report.table = pd.DataFrame(rows, columns=["kind", "official", "good", "defects with empty masks", "nearly empty"])
    report.table.loc[len(rows)] = ["all", *report.table.iloc[:, 1:].sum()]
    return report


def _tally(results: Sequence[Result]) -> tuple[tuple[int, int], int]:
    """How many images are (defective, free), and how many have nothing wrong."""
    defective = sum(bool(seen[1:].any()) for _, seen in results)
    return (defective, len(results) - defective), sum(not wrong for wrong, _ in results)


def _decode(
    pairs: Sequence[tuple[Path, Path]], mode: str | None = None, sums: Mapping[Path, str] | None = None
) -> dict[tuple[Path, Path], Result]:
    """The result of each (image, mask). A mask that cannot be read counts as empty."""

    def one(pair: tuple[Path, Path]) -> Result:
        arrays, wrong = {}, []
        for path, wanted in zip(pair, ("RGB", mode), strict=True):
            try:
                arrays[path] = _pixels(path, wanted, (sums or {}).get(path))
            except DataError as error:
                wrong.append(str(error))
        sizes = [array.shape[:2] for array in arrays.values()]
        if not wrong and sizes[0] != sizes[1]:
            wrong.append(f"{pair[1]} has shape {sizes[1]}, its image {sizes[0]}: expected the same; fetch both again")
        return wrong, np.bincount(arrays[pair[1]].ravel() if pair[1] in arrays else [], minlength=256)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(pairs, tqdm(pool.map(one, pairs), total=len(pairs), desc="reading", disable=None), strict=True))


def _pixels(path: Path, mode: str | None, digest: str | None) -> NDArray[np.uint8]:
    pixels = read(path, mode)
    try:
        with Image.open(path) as image:
            image.verify()  # a PNG's checksums, which decoding ignores
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path} is damaged ({error}): fetch it again") from error
    if digest and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise DataError(f"{path} is not the file of the data set (its SHA-256 differs): fetch it again")
    return pixels

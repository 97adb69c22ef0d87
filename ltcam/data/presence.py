"""What is there of a data set, judged by file names alone. `checks.py` opens the files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltcam import data as datasets
from ltcam.data import DataError, voc
from ltcam.data.base import Entry
from ltcam.files import ROOT, AnyPath

CHECKSUMS = ROOT / "data" / "checksums"
FOLDERS = {
    "voc2012": "VOCdevkit/VOC2012", "magnetic_tile": "magnetic_tile", "ksdd": "KolektorSDD", "ksdd2": "KolektorSDD2",
}  # fmt: skip
KSDD2 = {"train": (246, 2085), "test": (110, 894)}  # defective, free


def state(name: str, root: AnyPath) -> str:
    """present, subset, incomplete or absent. Raises DataError if data/checksums is needed but missing."""
    if name == "demo":
        return "present"
    folder = Path(root) / FOLDERS[name]
    if not folder.is_dir():
        return "absent"
    full, wanted = True, 1
    if name == "voc2012":
        lists = lists_in(folder)
        files = sorted({path for entries in lists.values() for entry in entries for path in (entry.image, entry.mask)})
        full = is_official(lists)
    elif name == "ksdd2":
        files = [path.with_name(f"{path.stem}_GT.png") for path in folder.glob("t*/*.png") if path.stem.isdigit()]
        wanted = sum(map(sum, KSDD2.values()))
    else:
        files = [folder / path for path in checksums(name)]
    if name == "ksdd":  # a subset has whole commutators
        full = all(path.parent.is_dir() for path in files)
        files = [path for path in files if path.parent.is_dir()]
    if len(files) < wanted or not all(path.is_file() for path in files):
        return "incomplete"
    return "present" if full else "subset"


def known(name: str) -> str:
    if name not in datasets.NAMES:
        raise DataError(f"data set {name!r} is unknown: expected one of {', '.join(datasets.NAMES)}")
    return name


def checksums(name: str) -> dict[str, str]:
    """SHA-256 of its images and masks by path in its folder; none for ksdd2. Raises DataError if the list is not there."""
    if name == "ksdd2":
        return {}
    path = CHECKSUMS / f"{name}.sha256"
    if not path.is_file():
        raise DataError(f"{path} is missing: it is part of the repository; use ltcam from a checkout")
    lines = [line.split("  ", 1) for line in path.read_text().splitlines()]
    return {file.removeprefix(f"{FOLDERS[name]}/"): digest for digest, file in lines}


def lists_in(folder: AnyPath) -> dict[str, list[Entry]]:
    return {path.stem: voc.listed(path) for path in sorted(Path(folder).glob("ImageSets/Segmentation/*.txt"))}


def is_official(lists: Mapping[str, Sequence[Any]]) -> bool:
    return all(len(lists.get(part, ())) == count for part, count in voc.OFFICIAL.items())

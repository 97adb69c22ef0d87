"""`ltcam data check`: whether a data set is complete and undamaged, and if not, which files are at fault.

A file in data/checksums is good if its SHA-256 is the one there, in a subset too. Any other is decoded to its end.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from tqdm.contrib.concurrent import thread_map

from ltcam.data.base import DataError, Segmentation, _opened, require
from ltcam.data.sets import known
from ltcam.files import ROOT, AnyPath, data_root, sha256

CHECKSUMS = ROOT / "data" / "checksums"


@dataclass
class Report:
    title: str
    table: pd.DataFrame  # part, images, official: how many there are and in a whole copy, good: how many have no fault
    findings: list[str] = field(default_factory=list)  # what is wrong, each with its file and what to do
    notes: list[str] = field(default_factory=list)  # what is unusual and no fault


def check(name: str, root: AnyPath | None = None) -> Report:
    """What data set `name` under `root` (None: `LTCAM_DATA`) holds and what is wrong. Raises DataError if it is not there."""
    kind, root = known(name), data_root() if root is None else Path(root)
    if not kind.folder:
        return Report(kind.title, pd.DataFrame(kind.official.items(), columns=["part", "images"]))
    folder = require(root, kind.folder, kind.title)
    parts, sums = kind.listed(folder), {folder / path: digest for path, digest in checksums(name).items()}
    images = {e: (data, i) for part in parts if parts[part] for data in [kind(part, root)] for i, e in enumerate(data.entries)}
    faults = thread_map(lambda image: _fault(image[0], image[1], sums), images.values(), desc="reading", disable=None)
    bad = {entry: fault for entry, fault in zip(images, faults, strict=True) if fault}
    findings = [f"{fault} (in {', '.join(part for part in parts if entry in parts[part])})" for entry, fault in bad.items()]
    used = {path for entry in images for path in (entry.image, entry.mask)}
    if sums and not kind.subsets:
        findings += [f"{path} is missing: fetch it again" for path in sums if path not in used and not path.is_file()]
        findings += [f"{path} is not one of the data set's files: remove it" for path in sorted(used - sums.keys())]
    for part, count in kind.official.items():
        number = len(parts.get(part, ()))
        if part not in parts or not images or (number != count and not kind.subsets):
            findings.append(f"{folder} has {number} images in part {part!r}, expected {count}: fetch the data set again")
    for part, count in kind.defective.items() if not findings else ():
        if (number := len(kind(part, root).scored)) != count:
            findings.append(f"{folder} has {number} defects in part {part!r}, expected {count}: fetch the data set again")
    notes, title = [], kind.title
    if kind.subsets and not kind.whole(parts):
        title += " subset"
        notes.append(f"a subset: the whole has {', '.join(f'{count} ({part})' for part, count in kind.official.items())}")
    if others := sorted(path for path in folder.rglob("*.*") if path.suffix in (".jpg", ".png", ".bmp") and path not in used):
        notes.append(f"{len(others)} more images are in no part: left out, e.g. {others[0]}")
    rows = [(part, len(its), kind.official.get(part, "-"), sum(e not in bad for e in its)) for part, its in parts.items()]
    return Report(title, pd.DataFrame(rows, columns=["part", "images", "official", "good"]), findings, notes)


def state(name: str, root: AnyPath) -> str:
    """present, subset, incomplete or absent, judged by the names of its files alone."""
    kind = known(name)
    folder = Path(root) / kind.folder
    if not kind.folder:
        return "present"
    if not folder.is_dir():
        return "absent"
    try:
        parts = kind.listed(folder)
    except DataError:
        return "incomplete"
    files = {path for entries in parts.values() for entry in entries for path in (entry.image, entry.mask)}
    if whole := kind.whole(parts):
        files |= {folder / path for path in checksums(name)}
    if not files or not (whole or kind.subsets) or not all(path.is_file() for path in files):
        return "incomplete"
    return "present" if whole else "subset"


def checksums(name: str) -> dict[str, str]:
    """SHA-256 of its images and masks by path in its folder; none for ksdd2. Raises DataError if the list is not there."""
    path, above = CHECKSUMS / f"{name}.sha256", f"{known(name).folder}/"
    if name == "ksdd2":
        return {}
    if not path.is_file():
        raise DataError(f"{path} is missing: it is part of the repository; use ltcam from a checkout")
    lines = [line.split("  ", 1) for line in path.read_text().splitlines()]
    return {file.removeprefix(above): digest for digest, file in lines}


def _fault(data: Segmentation, index: int, sums: Mapping[Path, str]) -> str:
    """What is wrong with an image or its mask, in words; empty if nothing is."""
    files = data.entries[index].image, data.entries[index].mask
    try:
        for path in files:
            if path in sums and sha256(path) != sums[path]:
                return f"{path} is not the file of the data set (its SHA-256 differs): fetch it again"
        if not sums.keys() >= {*files}:
            sizes = tuple(data.image(index).shape[1:]), data.mask(index).shape
            for path in files:
                with _opened(path) as image:
                    image.verify()  # a PNG's own checksums, which decoding ignores
            if sizes[0] != sizes[1]:
                return f"{files[1]} has shape {sizes[1]}, its image {sizes[0]}: expected the same; fetch both again"
    except FileNotFoundError as error:
        return f"{error.filename} is missing: fetch the data set again"
    except DataError as error:
        return str(error)
    return ""

"""The files of the data sets: `ltcam data get` fetches them, `ltcam data check` says which are missing or damaged.

A file in `checksums` is good if its SHA-256 is the one there. Any other is decoded. A download that is cut off starts again; an
archive that was put under the data root by hand is verified and unpacked like a download.
"""

import logging
import lzma
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pandas as pd
import pooch
import yaml
from requests import RequestException
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from ltcam.data.base import DataError, Segmentation, opened
from ltcam.data.sets import CHECKSUMS, SETS, known
from ltcam.errors import UnavailableError
from ltcam.files import AnyPath, data_root, held, sha256, writing

log = logging.getLogger(__name__)
CHUNK = 1 << 20
# RuntimeError: an archive with a password, or packed in a way that Python does not know
DAMAGED = (shutil.ReadError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
_ROWS = yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text("utf-8"))  # it says what its columns mean
SOURCES = {name: SimpleNamespace(**row) for name, row in _ROWS.items()}


class Report(NamedTuple):
    title: str
    table: pd.DataFrame  # part, images, official: how many there are and in a whole copy, good: how many have no fault
    findings: list[str]  # what is wrong, each with its file and what to do


def check(name: str, root: AnyPath | None = None) -> Report:
    """What data set `name` under `root` (None: `LTCAM_DATA`) holds and what is wrong. Raises DataError if it is not there."""
    kind, root = known(name), data_root() if root is None else Path(root)
    if not kind.folder:
        return Report(kind.title, pd.DataFrame(kind.official.items(), columns=["part", "images"]), [])
    folder = kind.under(root)
    parts, sums = kind.listed(folder), {folder / path: digest for path, digest in checksums(name).items()}
    sets = {part: kind(part, root) for part, entries in parts.items() if entries}
    images = {entry: (data, i) for data in sets.values() for i, entry in enumerate(data.entries)}
    faults = thread_map(lambda image: _fault(image[0], image[1], sums), images.values(), desc="reading", disable=None)
    bad = {entry: fault for entry, fault in zip(images, faults, strict=True) if fault}
    findings = [f"{fault} (in {', '.join(part for part in parts if entry in parts[part])})" for entry, fault in bad.items()]
    if sums and not kind.subsets:
        used = {path for entry in images for path in (entry.image, entry.mask)}
        findings += [f"{path} is missing: fetch it again" for path in sums if path not in used and not path.is_file()]
        findings += [f"{path} is not one of the data set's files: remove it" for path in sorted(used - sums.keys())]
    for part, count in kind.official.items():
        number = len(parts.get(part, ()))
        if number != count and not (kind.subsets and images and part in parts):
            findings.append(f"{folder} has {number} images in part {part!r}, expected {count}: fetch the data set again")
    for part, count in kind.defective.items() if not findings else ():
        if (number := len(sets[part].scored)) != count:
            findings.append(f"{folder} has {number} defects in part {part!r}, expected {count}: fetch the data set again")
    rows = [(part, len(its), kind.official.get(part, "-"), sum(e not in bad for e in its)) for part, its in parts.items()]
    title = next((data.title for data in sets.values()), kind.title)
    return Report(title, pd.DataFrame(rows, columns=["part", "images", "official", "good"]), findings)


def _fault(data: Segmentation, index: int, sums: Mapping[Path, str]) -> str:
    """What is wrong with an image or its mask, in words; empty if nothing is."""
    files = data.entries[index].image, data.entries[index].mask
    if missing := [path for path in files if not path.is_file()]:
        return f"{missing[0]} is missing: fetch the data set again"
    if other := [path for path in files if path in sums and sha256(path) != sums[path]]:
        return f"{other[0]} is not the file of the data set (its SHA-256 differs): fetch it again"
    try:
        if not sums.keys() >= {*files}:
            data.pair(index)
            for path in files:
                with opened(path) as image:
                    image.verify()  # a PNG's own checksums, which decoding ignores
    except DataError as error:
        return str(error)
    return ""


def checksums(name: str) -> dict[str, str]:
    """SHA-256 of its images and masks by path in its folder; none of a data set without them."""
    path, above = CHECKSUMS / f"{name}.sha256", f"{known(name).folder}/"
    lines = [line.split("  ", 1) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
    return {file.removeprefix(above): digest for digest, file in lines}


def state(name: str, root: AnyPath) -> str:
    """present, subset, incomplete, absent, or damaged (a wrong list of VOC), judged by the names of its files alone."""
    kind = known(name)
    if not kind.folder:
        return "present"
    if not (folder := Path(root) / kind.folder).is_dir():
        return "absent"
    try:
        parts = kind.listed(folder)
    except DataError:  # `check` names it
        return "damaged"
    whole = kind.whole(parts)
    files = {path for entries in parts.values() for entry in entries for path in (entry.image, entry.mask)}
    files |= {folder / path for path in checksums(name) if whole}
    if not files or not (whole or kind.subsets) or not all(path.is_file() for path in files):
        return "incomplete"
    return "present" if whole else "subset"


def listing(root: AnyPath | None = None) -> pd.DataFrame:
    """Every data set: whether it is there and where, the size of its download, its terms."""
    root = data_root() if root is None else Path(root)
    rows = []
    for name, kind in SETS.items():
        source = SOURCES.get(name, SimpleNamespace(size=0, sha256="", licence="-"))
        size = ("" if source.sha256 else "about ") + tqdm.format_sizeof(source.size, "B") if source.size else "-"
        where = str(root / kind.folder) if kind.folder else "made on the fly"
        rows.append((name, kind.title, state(name, root), where, size, source.licence))
    return pd.DataFrame(rows, columns=["name", "title", "state", "where", "download", "licence"])


def get(name: str, root: AnyPath | None = None) -> Path:
    """The folder of data set `name` under `root` (None: `LTCAM_DATA`). It is fetched unless it is complete.

    Raises DataError if the folder is incomplete, nothing says where to fetch it, or an archive put there by hand is damaged.
    Raises UnavailableError if no mirror gives the archive, the disk is full, or the folder is closed or in use.
    """
    kind, root = known(name), data_root() if root is None else Path(root)
    target, found, temporary = root / kind.folder, state(name, root), root / f".{name}.partial"
    if found == "present":
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed at its end
        log.info("%s is complete at %s: nothing to fetch", kind.title, target)
        return target
    if found != "absent":
        do = "is not overwritten: move it away to fetch it anew"
        raise DataError(f"{target} is {found} (see `ltcam data check {name}`) and {do}")
    if name not in SOURCES:
        do = f"expected one of {', '.join(SOURCES)}; put its files at {target} by hand"
        raise DataError(f"{name} has no entry in ltcam/data/sources.yaml: {do}")
    archive = root / SOURCES[name].file
    with held(root, f".{name}.lock"), writing(root):
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
        try:
            temporary.mkdir()
            complete = (_unpack if archive.is_file() else _download)(archive, name, temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            archive.unlink()
            complete.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _download(archive: Path, name: str, temporary: Path) -> Path:
    """`_unpack` of the archive from the first mirror that gives it. Raises UnavailableError naming every mirror's fault."""
    source, reasons = SOURCES[name], []
    pooch.get_logger().setLevel("WARNING")
    for url in source.mirrors:
        log.info("%s: from %s", source.file, url)
        try:
            by = pooch.HTTPDownloader(sys.stderr.isatty(), CHUNK)
            fetched = pooch.retrieve(url, source.sha256 or None, source.file, temporary, downloader=by)
            Path(fetched).replace(archive)  # as if put there by hand, so that it stays if what follows is cut off
            return _unpack(archive, name, temporary)
        except (ValueError, RequestException) as error:  # the mirror's fault; an OSError of the disk is not
            archive.unlink(missing_ok=True)
            reasons.append(f"{url}: {' '.join(str(error).split())}")
    exact = f"{source.size:,} bytes, SHA-256 {source.sha256}" if source.sha256 else f"SHA-256 of its files in {CHECKSUMS.name}"
    do = f"run `ltcam data get {name}` again, or fetch it elsewhere with `curl -C - -O URL`, put it at {archive} and run it"
    raise UnavailableError(f"{source.file} ({exact}) could not be fetched ({'; '.join(reasons)}): {do}")


def _unpack(archive: Path, name: str, temporary: Path) -> Path:
    """A folder of the wanted files. Raises DataError if the archive, or a file in `checksums`, is not as published."""
    source, again = SOURCES[name], "it is damaged or another file; remove it and fetch it again"
    if source.sha256 and (digest := sha256(archive)) != source.sha256:
        fault = f"{archive.stat().st_size:,} bytes, expected {source.size:,}, and SHA-256 {digest}, expected {source.sha256}"
        raise DataError(f"{archive} has {fault}: {again}")
    sums, place = {} if source.sha256 else checksums(name), Path(tempfile.mkdtemp(dir=temporary))
    everything, wanted = place / "everything", place / "wanted"
    try:  # not by pooch: before Python 3.12 it unpacks a tar without a filter
        shutil.unpack_archive(archive, everything, filter="data" if archive.suffix == ".tar" else None)
    except DAMAGED as error:
        do = f"{again}, or unpack it by another program, as data/README.md says"
        raise DataError(f"{archive} cannot be unpacked ({error}): {do}") from error
    for path in [path for path in everything.rglob("*") if path.is_file()]:
        match = re.fullmatch(source.keep, path.relative_to(everything).as_posix())
        if match and (match[1] in sums or not sums):
            (wanted / match[1]).parent.mkdir(parents=True, exist_ok=True)
            path.rename(wanted / match[1])
    if bad := [path for path, digest in sums.items() if not (wanted / path).is_file() or sha256(wanted / path) != digest]:
        raise DataError(f"{archive} has {len(bad)} of {len(sums)} files missing or damaged, the first {bad[0]}: {again}")
    return wanted

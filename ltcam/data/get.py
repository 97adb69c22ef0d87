"""`ltcam data get`: fetch, verify and unpack the archive of a data set, completely or not at all.

A download that is cut off starts again. Over a slow link, fetch the archive with `curl -C - -O URL`, which goes on where it
stopped, put it under the data root and run the command: it is verified and unpacked like a download.
"""

import logging
import re
import shutil
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pooch
import yaml
from requests import RequestException
from tqdm import tqdm

from ltcam.data.base import DataError
from ltcam.data.check import checksums, state
from ltcam.data.sets import SETS, known
from ltcam.errors import UnavailableError
from ltcam.files import AnyPath, data_root, sha256

log = logging.getLogger(__name__)
CHUNK = 1 << 20


class Source(NamedTuple):
    """A row of sources.yaml, which says what its columns mean."""

    file: str
    size: int
    sha256: str
    mirrors: list[str]
    keep: str
    licence: str


SOURCES = {n: Source(**row) for n, row in yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text()).items()}


def get(name: str, root: AnyPath | None = None) -> Path:
    """The folder of data set `name` under `root` (None: `LTCAM_DATA`). It is fetched unless it is complete.

    Raises DataError if the folder is incomplete, or if an archive put there by hand is damaged or unsafe. Raises
    UnavailableError if no mirror gives the archive, the disk is too full or the folder cannot be written.
    """
    kind, root = known(name), data_root() if root is None else Path(root)
    target, found, temporary = root / kind.folder, state(name, root), root / f".{name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    if found == "present":
        log.info("%s is complete at %s: nothing to fetch", kind.title, target)
        return target
    if found != "absent":
        do = "is not overwritten: move it away to fetch it anew"
        raise DataError(f"{target} is {found} (see `ltcam data check {name}`) and {do}")
    source = SOURCES[name]
    archive = root / source.file
    try:
        temporary.mkdir(parents=True)
        needed, free = source.size * (1 if archive.is_file() else 2), shutil.disk_usage(root).free
        if free < needed:
            do = "make room, or set LTCAM_DATA to another disk"
            raise UnavailableError(f"{root} has {free:,} bytes free, {needed:,} are needed: {do}")
        if archive.is_file():
            _unpack(archive, name, temporary / "whole")
        else:
            _download(archive, name, temporary)
        target.parent.mkdir(parents=True, exist_ok=True)
        archive.unlink()
        (temporary / "whole").rename(target)
    except OSError as error:
        raise UnavailableError(f"{root} cannot be written ({error}): fix this and run again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def listing(root: AnyPath | None = None) -> pd.DataFrame:
    """Every data set: whether it is there and where, the size of its download, its terms."""
    root = data_root() if root is None else Path(root)
    rows = [("demo", SETS["demo"].title, "present", "made on the fly", "-", "-")]
    for name, source in SOURCES.items():
        weight = ("" if source.sha256 else "about ") + tqdm.format_sizeof(source.size, "B")
        rows.append((name, SETS[name].title, state(name, root), str(root / SETS[name].folder), weight, source.licence))
    return pd.DataFrame(rows, columns=["name", "title", "state", "where", "download", "licence"])


def _download(archive: Path, name: str, temporary: Path) -> None:
    """The archive from the first mirror that gives it, verified and unpacked.

    Raises UnavailableError naming every mirror and why it failed.
    """
    source, reasons = SOURCES[name], []
    downloader = pooch.HTTPDownloader(sys.stderr.isatty(), CHUNK)
    pooch.get_logger().setLevel("WARNING")
    for url in source.mirrors:
        log.info("%s: from %s", source.file, url)
        try:
            fetched = pooch.retrieve(url, source.sha256 or None, source.file, temporary, downloader=downloader)
            Path(fetched).replace(archive)  # as if put there by hand, so that it stays if what follows is cut off
            return _unpack(archive, name, temporary / "whole")
        except (ValueError, RequestException) as error:  # the mirror's fault; an OSError of the disk is not
            archive.unlink(missing_ok=True)
            reasons.append(f"{url}: {' '.join(str(error).split())}")
    exact = f"{source.size:,} bytes, SHA-256 {source.sha256}" if source.sha256 else "SHA-256 of its files in data/checksums"
    by_hand = f"fetch it elsewhere (`curl -C - -O URL` goes on where it stopped), put it at {archive} and run that"
    do = f"run `ltcam data get {name}` again later, or {by_hand}"
    raise UnavailableError(f"{source.file} ({exact}) could not be fetched ({'; '.join(reasons)}): {do}")


def _unpack(archive: Path, name: str, folder: Path) -> None:
    """Take the wanted members. Raises DataError if the archive, or a file that data/checksums lists, is not as published."""
    source, again = SOURCES[name], "it is damaged or another file; remove it and fetch it again"
    if source.sha256 and (digest := sha256(archive)) != source.sha256:
        fault = f"{archive.stat().st_size:,} bytes, expected {source.size:,}, and SHA-256 {digest}, expected {source.sha256}"
        raise DataError(f"{archive} has {fault}: {again}")
    sums = {} if source.sha256 else checksums(name)

    def wanted(member: str) -> str:
        match = re.fullmatch(source.keep, member)
        return match[1] if match and (match[1] in sums or not sums) else ""

    shutil.rmtree(folder, ignore_errors=True)  # another mirror's
    try:  # not by pooch: it cannot move a member to another path, and unpacks a tar without a filter before Python 3.12
        if archive.suffix == ".tar":
            with tarfile.open(archive) as tar:
                for file in tqdm(tar, desc=name, disable=None):
                    if file.isreg() and (path := wanted(file.name)):
                        tar.extract(file.replace(name=path), folder, filter="data")
        else:
            with zipfile.ZipFile(archive) as zipped:
                for entry in tqdm(zipped.infolist(), desc=name, disable=None):
                    if path := wanted(entry.filename):
                        entry.filename = path
                        zipped.extract(entry, folder)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive} cannot be unpacked ({error}): {again}") from error
    if bad := [path for path, digest in sums.items() if not (folder / path).is_file() or sha256(folder / path) != digest]:
        raise DataError(f"{archive} has {len(bad)} of {len(sums)} files missing or damaged, the first {bad[0]}: {again}")

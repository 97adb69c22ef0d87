"""An archive that is not trusted: it is verified file by file, and unpacked completely or not at all.

keep is a pattern of the members to take; its group is their path in the target. size is roughly their total in bytes. sums has
the SHA-256 of the files by path; it is empty if they are not known.
"""

import hashlib
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO

from tqdm import tqdm

from ltcam.data import DataError
from ltcam.files import AnyPath

Opener = Callable[[], IO[bytes]]
FAR_MORE = 2  # an archive may be, or unpack to, so many times the stated size


def fault(archive: AnyPath, keep: str, size: int, sums: Mapping[str, str]) -> str:
    """What is wrong with the files in an archive, in words; empty if nothing is. Raises DataError as `_contents` does."""
    with _contents(Path(archive), keep, size, sums) as files:
        bad = [path for path, digest in sums.items() if path not in files or not _is(digest, files[path])]
    return f"has {len(bad)} of {len(sums)} files missing or damaged, the first {bad[0]}" if bad else ""


def unpack(archive: AnyPath, keep: str, size: int, sums: Mapping[str, str], target: AnyPath, temporary: AnyPath) -> None:
    """Unpack into `temporary`, and rename that to `target` when all is there. Raises DataError as `_contents` does."""
    target, temporary = Path(target), Path(temporary)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with _contents(Path(archive), keep, size, sums) as files:
            for path, opener in tqdm(files.items(), desc=target.name, disable=None):
                (temporary / path).parent.mkdir(parents=True, exist_ok=True)
                with opener() as source, (temporary / path).open("wb") as file:
                    shutil.copyfileobj(source, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is(digest: str, opener: Opener) -> bool:
    with opener() as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest  # type: ignore[arg-type]


@contextmanager
def _contents(archive: Path, keep: str, size: int, sums: Mapping[str, str]) -> Iterator[dict[str, Opener]]:
    """The files to take from the archive, by their paths in the data set's folder.

    Raises DataError for an archive that is damaged, holds anything but files and folders inside itself, or unpacks to far more
    than stated.
    """
    try:
        with tarfile.open(archive) if ".tar" in archive.suffixes else zipfile.ZipFile(archive) as opened:
            taken, total = {}, 0
            for path, plain, length, opener in _tar(opened) if isinstance(opened, tarfile.TarFile) else _zip(opened):
                if not plain or PureWindowsPath(path).anchor or ".." in PureWindowsPath(path).parts:
                    raise DataError(f"{archive} holds {path!r}, a link, a device or a path outside of it: refused; remove it")
                if opener and (match := re.fullmatch(keep, path)) and (match[1] in sums or not sums):
                    taken[match[1]], total = opener, total + length
            if not 0 < total <= FAR_MORE * size:
                raise DataError(f"{archive} would unpack to {total:,} bytes, expected about {size:,}: refused; remove it")
            yield taken
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive} cannot be unpacked ({error}): it is damaged; remove it and fetch it again") from error


def _tar(archive: tarfile.TarFile) -> list[tuple[str, bool, int, Opener | None]]:
    """Path, whether it is a file or a folder, size, and how to open it if it is a file."""

    def opened(member: tarfile.TarInfo) -> IO[bytes]:
        file = archive.extractfile(tarfile.data_filter(member, "."))
        assert file is not None  # only asked of files
        return file

    return [(m.name, m.isreg() or m.isdir(), m.size, partial(opened, m) if m.isreg() else None) for m in archive]


def _zip(archive: zipfile.ZipFile) -> list[tuple[str, bool, int, Opener | None]]:
    def plain(member: zipfile.ZipInfo) -> bool:
        return stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)

    return [(m.filename, plain(m), m.file_size, None if m.is_dir() else partial(archive.open, m)) for m in archive.infolist()]

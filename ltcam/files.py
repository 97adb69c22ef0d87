"""Where things live. Nothing here depends on the working directory of a notebook or a command.

Three environment variables set the places. A relative value starts at the checkout, `~` is the home, and an empty one is unset.

`LTCAM_DATA`   the data root, laid out as the data sets' authors ship them (default: `data/` of the checkout)
`LTCAM_OUTPUT` where `results/` and `figures/` are written (default: the checkout)
`LTCAM_RUNS`   where trainings leave their checkpoints, one folder per data set (default: beside their results)
"""

import errno
import hashlib
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from filelock import FileLock, Timeout

from ltcam.errors import InputError, UnavailableError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").exists() else Path.cwd()
NOTEBOOKS = ROOT / "notebooks"
AnyPath = str | Path
log = logging.getLogger(__name__)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


def data_root() -> Path:
    return _place("LTCAM_DATA", "data")


def results(profile: str, data: str = "") -> Path:
    return _place("LTCAM_OUTPUT") / "results" / profile / data


def runs(profile: str, data: str) -> Path:
    return _place("LTCAM_RUNS") / data if os.environ.get("LTCAM_RUNS") else results(profile, data)


def figures(profile: str, data: str = "") -> Path:
    return _place("LTCAM_OUTPUT") / "figures" / profile / data


def _place(variable: str, default: str = "") -> Path:
    given = os.environ.get(variable) or default
    try:
        return ROOT / Path(given).expanduser()
    except RuntimeError as error:
        raise InputError(f"{variable}={given} begins with the home of an unknown user: expected a folder") from error


@contextmanager
def atomic(path: AnyPath, new: bool = False) -> Iterator[Path]:
    """A temporary file beside `path`. It is renamed to `path` if the block ends well, and removed if not.

    Raises UnavailableError as `writing` does. new: raises InputError, too, if `path` is there with other bytes.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if new and path.is_file() and path.read_bytes() != temporary.read_bytes():
                raise InputError(f"{path} exists and is not the same: name another file, or move it away")
            temporary.replace(path)
    finally:
        with suppress(OSError):  # where nothing could be written, there is nothing to remove
            temporary.unlink(missing_ok=True)


def write(path: AnyPath, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, "utf-8")


def clear(folder: AnyPath) -> None:
    """Remove the half-written files that killed runs left in `folder`. No other run may be writing there."""
    for leftover in Path(folder).glob(".*.partial*"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)


@contextmanager
def held(folder: AnyPath, name: str = ".lock") -> Iterator[None]:
    """Clear `folder` of partial files and hold it while the block runs. The file `name` says who holds it.

    The operating system holds the lock, not the file, so no lock is left after `kill -9`. Raises UnavailableError, naming the
    other run's process and age, if another run has the lock, or if the folder cannot be written. Where files cannot be locked,
    a warning is logged and the block runs.
    """
    path, lock = Path(folder, name), FileLock(Path(folder, name), timeout=0)
    try:
        with writing(folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            path.write_text(f"process {os.getpid()} on {platform.node()}", "utf-8")
            clear(folder)
    except Timeout as error:
        holder = "another process"
        with suppress(FileNotFoundError):  # it is being removed right now
            holder = f"{path.read_text('utf-8')}, for {timedelta(seconds=round(time.time() - path.stat().st_mtime))} now"
        said = f"{folder} is being written by {holder}"
        raise UnavailableError(f"{said}: wait for it, stop it, or write to another folder") from error
    except OSError as error:
        log.warning("%s cannot be locked (%s): make sure that no other run writes there", folder, error.strerror)
    try:
        yield
    finally:
        if lock.is_locked:
            path.unlink(missing_ok=True)  # while it is held: a run that opened it before finds it gone
            lock.release()


@contextmanager
def writing(path: AnyPath) -> Iterator[None]:
    """Raises UnavailableError, naming `path`, if the disk is full, a file would be too large, or its folder takes no files."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL + CLOSED:
            raise
        do = "name a place where files can be written, by --out or by LTCAM_OUTPUT, LTCAM_RUNS and LTCAM_DATA"
        do = "make room and run again" if error.errno in FULL else do
        raise UnavailableError(f"{path} cannot be written ({error.strerror}): {do}; complete files are kept") from error


def sha256(path: AnyPath) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

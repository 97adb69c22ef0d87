"""Where things live. Nothing here depends on the working directory of a notebook or a command.

Three environment variables set the places. A relative value starts at the checkout, `~` is the home, and an empty one is unset.

`LTCAM_DATA`   the data root, laid out as the data sets' authors ship them (default: `data/` of the checkout)
`LTCAM_OUTPUT` where `results/` and `figures/` are written (default: the checkout)
`LTCAM_RUNS`   where trainings leave their checkpoints, one folder per data set (default: beside their results)
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ltcam.errors import InputError, UnavailableError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").exists() else Path.cwd()
NOTEBOOKS = ROOT / "notebooks"
AnyPath = str | Path
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
        raise InputError(f"{variable}={given} begins with a home that is not there: expected a folder") from error


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
                raise InputError(f"{path} is there and shows something else: name another file, or move it away")
            temporary.replace(path)
    finally:
        with suppress(OSError):  # where nothing could be written, there is nothing to remove
            temporary.unlink(missing_ok=True)


def write(path: AnyPath, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text)


def clear(folder: AnyPath) -> None:
    """Remove the half-written files that killed runs left in `folder`. No other run may be writing there."""
    for leftover in Path(folder).glob(".*.partial*"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)


@contextmanager
def writing(path: AnyPath) -> Iterator[None]:
    """Raises UnavailableError, naming `path`, if the disk is full, a file would be too large, or its folder takes no files."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL + CLOSED:
            raise
        do = "make room and run again" if error.errno in FULL else "name a place where files can be written"
        raise UnavailableError(f"{path} cannot be written ({error.strerror}): {do}; complete files are kept") from error


def sha256(path: AnyPath) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

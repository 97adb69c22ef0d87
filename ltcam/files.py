"""Where things live. Nothing here depends on the working directory of a notebook or a command.

Three environment variables set the places. A relative value starts at the checkout.

`LTCAM_DATA`   the data root, laid out as the data sets' authors ship them (default: `data/` of the checkout)
`LTCAM_OUTPUT` where `results/` and `figures/` are written (default: the checkout)
`LTCAM_RUNS`   where trainings leave their checkpoints, one folder per data set (default: beside their results)
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ltcam.errors import UnavailableError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").exists() else Path.cwd()
NOTEBOOKS = ROOT / "notebooks"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def data_root() -> Path:
    return ROOT / os.environ.get("LTCAM_DATA", "data")


def results(profile: str, data: str = "") -> Path:
    return _output("results", profile, data)


def runs(profile: str, data: str) -> Path:
    return ROOT / os.environ["LTCAM_RUNS"] / data if os.environ.get("LTCAM_RUNS") else results(profile, data)


def figures(profile: str, data: str = "") -> Path:
    return _output("figures", profile, data)


def _output(kind: str, profile: str, data: str) -> Path:
    return ROOT / os.environ.get("LTCAM_OUTPUT", "") / kind / profile / data


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`. It is renamed to `path` if the block ends well, and removed if not.

    Raises UnavailableError as `writing` does.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text)


def clear(folder: Path) -> None:
    """Remove the half-written files that killed runs left in `folder`. No other run may be writing there."""
    for leftover in folder.glob(".*.partial*"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UnavailableError, naming `path`, if the disk or a quota is full or a file would be too large."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UnavailableError(
            f"{path} cannot be written ({error.strerror}): make room and run again; complete files are kept"
        ) from error


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""What ltcam raises. All errors share one root, so a caller can tell them from a bug. Each is also the builtin of its kind."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


class LtcamError(Exception):
    """The root. A message names the value, what was expected and the way out. The command line prints it as one line."""


class InputError(LtcamError, ValueError):
    """An argument, an option or the content of a file is not what was expected."""


class MissingError(LtcamError, FileNotFoundError):
    """A file that was asked for is not there."""


class UnavailableError(LtcamError, RuntimeError):
    """The machine lacks something or something failed, e.g. no source gives the weights, or a notebook stopped."""


class PackageError(LtcamError, ImportError):
    """An optional package is not installed."""


class DivergedError(LtcamError, FloatingPointError):
    """The loss of a training run is no longer finite."""


@contextmanager
def one_line(program: str) -> Iterator[None]:
    """Ends `program` with one line if the block fails for a reason that is no bug. A bug keeps its traceback."""
    try:
        yield
    except (LtcamError, PermissionError) as error:
        if isinstance(closed := error.__cause__ if isinstance(error, InputError) else error, PermissionError):
            do = "ask its owner, or set LTCAM_OUTPUT, LTCAM_RUNS or LTCAM_DATA to a folder of your own"
            sys.exit(f"{program}: {closed.filename} cannot be opened ({closed.strerror}): {do}")
        sys.exit(f"{program}: {error}")
    except RuntimeError as error:
        if not of_loader(error):
            raise
        sys.exit(f"{program}: {error}, as happens when memory runs out: run again; finished work is kept")


def of_loader(error: RuntimeError) -> bool:
    """Whether a loader process died: torch's signal handler raises this in the main process, at any line."""
    return str(error).startswith("DataLoader worker")


def companion(*packages: str) -> None:
    """Raises PackageError where a package of the extra `companion` is not installed."""
    for name in packages:
        if find_spec(name) is None:
            raise PackageError(f"{name} is not installed, only the engine's packages are: pip install 'ltcam[companion]'")

"""What ltcam raises: one family, so that a caller can tell its refusals from a bug. Each is the builtin of its kind as well."""

from importlib.util import find_spec


class LtcamError(Exception):
    """The root. The message names the value, what was expected and the way out; the command line prints it as one line."""


class InputError(LtcamError, ValueError):
    """An argument, an option or the content of a file does not fit."""


class MissingError(LtcamError, FileNotFoundError):
    """A file that was asked for is not there."""


class UnavailableError(LtcamError, RuntimeError):
    """The machine lacks something, or it failed: weights that no source gave, a notebook that stopped."""


class PackageError(LtcamError, ImportError):
    """An optional package is not installed."""


class DivergedError(LtcamError, FloatingPointError):
    """The loss of a training run is no longer finite."""


def of_loader(error: RuntimeError) -> bool:
    """Whether a loader process died: torch's signal handler raises that in the main process, wherever that is."""
    return str(error).startswith("DataLoader worker")


def companion(*packages: str) -> None:
    """Raises PackageError where a package of the extra `companion` is not installed."""
    for name in packages:
        if find_spec(name) is None:
            raise PackageError(f"{name} is not installed, only the engine's packages are: pip install 'ltcam[companion]'")

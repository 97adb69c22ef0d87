"""What made each result that is measured and not computed from others: `provenance.json` in the folder of a data set."""

from __future__ import annotations

import gzip
import json
import logging
import os
import platform
import subprocess
import time
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ltcam.errors import InputError
from ltcam.files import ROOT, AnyPath, atomic, sha256, write

PACKAGES = ("torch", "torchvision", "numpy", "pandas", "scikit-image", "scikit-learn", "matplotlib", "pillow")
NAME = "provenance.json"
log = logging.getLogger(__name__)


def load(path: AnyPath, **options: Any) -> Any:
    """A table, read by pandas with `options`, or a record (.json). Raises InputError if it was cut off."""
    try:
        found = json.loads(Path(path).read_text("utf-8")) if Path(path).suffix == ".json" else pd.read_csv(path, **options)
        if isinstance(found, pd.DataFrame) and found.empty:
            raise InputError("it has no rows")
        return found
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        do = "restore it, or delete it, so that its contents are made again"
        raise InputError(f"{path} is damaged ({error}): {do}") from error


def read(folder: AnyPath) -> dict[str, dict[str, Any]]:
    """{file: what made it} for the files of `folder`. Raises InputError if its record is damaged."""
    path = Path(folder) / NAME
    return dict(load(path)) if path.is_file() else {}


def only(path: AnyPath, asked: Sequence[Any]) -> None:
    """Note beside `path` the options that it is made with. Raises InputError if it exists and was made with others."""
    note, text = Path(f"{path}.json"), json.dumps(asked, indent=1) + "\n"
    if Path(path).is_file() and not (note.is_file() and note.read_text("utf-8") == text):
        raise InputError(f"{path} exists and was made with other options: name another folder, or move it away")
    write(note, text)


def record(folder: AnyPath, file: str, started: float, **about: Any) -> None:
    """Write down what made `file`: its checksum, this machine, and `about` as plain values. started: `time.time()` before."""
    entry = {"sha256": sha256(Path(folder) / file), **environment(), "seconds": round(time.time() - started, 1), **about}
    entries = read(folder) | {file: json.loads(json.dumps(entry, default=str))}
    lines = [f"{json.dumps(name)}: {json.dumps(entries[name], sort_keys=True)}" for name in sorted(entries)]
    write(Path(folder) / NAME, "{\n" + ",\n".join(lines) + "\n}\n")  # a line each, so that git shows what has changed


def save(table: pd.DataFrame, path: AnyPath) -> None:
    """Write `table` to `path` (.csv or .csv.gz), the same bytes on every call. No half-written file gets its name."""
    path = Path(path)
    text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
    with atomic(path) as temporary:
        temporary.write_bytes(gzip.compress(text, 6, mtime=0) if path.suffix == ".gz" else text)


def environment() -> dict[str, Any]:
    """The properties of this machine and checkout that a number may depend on."""
    cuda = torch.cuda.is_available()
    cpu = f"cpu ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"
    return {
        "commit": COMMIT,
        "dirty": DIRTY,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if cuda else cpu,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": cuda and torch.backends.cudnn.allow_tf32,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _git(*arguments: str) -> str | None:
    """What git says of this checkout. None for code outside of one, also inside another repository."""
    if not (ROOT / ".git").exists():
        return None
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, env=own, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[0]
        log.warning("results will not name the commit of %s: %s", ROOT, said)
        return None


# Read when the code is loaded, so a long run names the commit that it started from.
COMMIT = _git("rev-parse", "HEAD")
DIRTY = None if COMMIT is None else bool(_git("status", "--porcelain", "--", "ltcam", "notebooks", "data", "requirements.lock"))

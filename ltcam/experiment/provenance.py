"""A result is an `X.csv`. Its `X.json` says what made it: commit, parameters, versions, device, data, weights, time."""

import gzip
import json
import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ltcam.files import ROOT, AnyPath, atomic, sha256, write

PACKAGES = ("torch", "torchvision", "numpy", "pandas", "scikit-image", "scikit-learn", "matplotlib", "pillow")


def save(table: pd.DataFrame, path: AnyPath, started: float, **parameters: Any) -> None:
    """Write `table` to `path` (.csv or .csv.gz) and its provenance to the .json beside it. No half-written file gets its name.

    started: `time.time()` at the start of the work; parameters: what the table depended on, as plain values.
    """
    path = Path(path)
    with atomic(path) as temporary:
        packed = path.suffix == ".gz"  # counts are read back and compared, so delta keeps every digit
        text = table.to_csv(index=False, float_format=None if packed else "%.6g", lineterminator="\n").encode()
        temporary.write_bytes(gzip.compress(text, 6, mtime=0) if packed else text)  # pandas would store the temporary name
    seconds = round(time.time() - started, 1)
    record = {"rows": len(table), "sha256": sha256(path), **environment(), **parameters, "seconds": seconds}
    write(path.with_name(path.name.split(".")[0] + ".json"), json.dumps(record, indent=2, default=str) + "\n")


def made_by(path: AnyPath, parameters: dict[str, Any]) -> bool:
    """Whether `path` is as `save` left it, with these parameters."""
    record = Path(path).with_name(Path(path).name.split(".")[0] + ".json")
    if not (Path(path).is_file() and record.is_file()):
        return False
    try:
        kept = json.loads(record.read_text())
    except ValueError:  # cut off, e.g. by a power failure
        return False
    expected = json.loads(json.dumps(parameters)) | {"sha256": sha256(path)}
    return bool(expected == {name: kept.get(name) for name in expected})


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
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return None
    return done.stdout.strip()


# Read when the code is loaded, so a long run names the commit that it started from.
COMMIT = _git("rev-parse", "HEAD")
DIRTY = None if COMMIT is None else bool(_git("status", "--porcelain", "--", "ltcam", "notebooks/profiles"))

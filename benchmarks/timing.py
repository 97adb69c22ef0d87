"""Seconds and megabytes of works that are compared."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ltcam.experiment import provenance

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def keep(table: pd.DataFrame, path: Path, started: float, **about: Any) -> None:
    """Write a table, and into the folder's `provenance.json` what made it. started: `time.time()` before."""
    provenance.save(table, path)
    provenance.record(path.parent, path.name, started, **about)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    result = work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    spent = time.perf_counter() - started
    del result  # freeing it is not timed
    return spent


def turns(*works: Callable[[], object], rounds: int) -> NDArray[np.float64]:
    """(works, rounds) seconds. Works take turns, so that what else the machine does hits all alike; one more turn warms up."""
    return np.array([[seconds(work) for work in works] for _ in range(rounds + 1)][1:]).T


def memory(reset: bool = False) -> float:
    """MB held now (`reset`), or at most since then: of the GPU where there is one, else of the process (Linux)."""
    if DEVICE == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return (torch.cuda.memory_allocated() if reset else torch.cuda.max_memory_allocated()) / 2**20
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = {name: value.split()[0] for name, value in (line.split(":", 1) for line in lines) if value.strip()}
    return int(kilobytes["VmRSS" if reset else "VmHWM"]) / 2**10

"""What an interrupted evaluation has counted: a `.partial.jsonl` a process, a line a batch, [its number, its rows]."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ltcam.experiment.configs import Config
from ltcam.experiment.parallel import processes


def place(stem: Path, process: int) -> Path:
    return stem.with_name(f"{stem.name}.{process}.partial.jsonl")


def read(stem: Path) -> dict[int, list[Any]]:
    """{batch: its rows} of the batches that an interrupted call finished, in all its processes."""
    found: dict[int, list[Any]] = {}
    for path in stem.parent.glob(f"{stem.name}.*.partial.jsonl"):
        text = path.read_bytes()[: whole(path)].decode()
        found |= dict(map(json.loads, text.splitlines()))
    return found


def forget(out: Path, counted: set[Config]) -> None:
    """Remove the journals whose counts are kept: their run was killed before it could."""
    for path in out.glob("counts.*.partial.jsonl") if processes().is_main_process else ():
        rows = [row for line in path.read_bytes()[: whole(path)].splitlines() for row in json.loads(line)[1]]
        if rows and Config._make(rows[0][2:-3]) in counted:
            path.unlink()


def whole(path: Path) -> int:
    """Bytes up to the last whole line: one cut off in the writing does not count."""
    return path.read_bytes().rfind(b"\n") + 1 if path.is_file() else 0

"""What an interrupted evaluation has counted: a `.partial.jsonl` a process, a line a batch, [its number, its rows]."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ltcam.experiment.configs import Config


def place(stem: Path, process: int) -> Path:
    return stem.with_name(f"{stem.name}.{process}.partial.jsonl")


def line(number: int, rows: list[Any]) -> str:
    return f"\n{json.dumps([number, rows])}\n"  # on a line of its own: the one before it may have been cut off


def read(stem: Path) -> dict[int, list[Any]]:
    """{batch: its rows} of the batches that an interrupted call finished, in all its processes."""
    return dict(batch for path in stem.parent.glob(f"{stem.name}.*.partial.jsonl") for batch in _whole(path))


def forget(out: Path, counted: set[Config]) -> None:
    """Remove the journals whose counts are kept: their run was killed before it could."""
    for path in out.glob("counts.*.partial.jsonl"):
        rows = [row for _, some in _whole(path) for row in some]
        if rows and Config._make(rows[0][2:-3]) in counted:
            path.unlink()


def _whole(path: Path) -> Iterator[list[Any]]:
    """The lines that were not cut off in the writing."""
    for text in path.read_text(errors="replace").splitlines():
        with suppress(ValueError):
            yield json.loads(text)

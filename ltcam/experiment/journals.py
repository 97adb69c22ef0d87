"""What an interrupted evaluation has counted: one `.partial.jsonl` per process, one line [key, rows] per batch or image."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ltcam.experiment.configs import Config
from ltcam.files import AnyPath


def place(stem: AnyPath, process: int) -> Path:
    stem = Path(stem)
    return stem.with_name(f"{stem.name}.{process}.partial.jsonl")


def line(key: int | str, rows: list[Any]) -> str:
    return f"\n{json.dumps([key, rows])}\n"  # starts a new line, since the line before may be cut off


def read(stem: AnyPath) -> dict[Any, list[Any]]:
    """{key: its rows} for the batches or images that an interrupted call finished, in all its processes."""
    stem = Path(stem)
    return dict(batch for path in stem.parent.glob(f"{stem.name}.*.partial.jsonl") for batch in _whole(path))


def forget(out: AnyPath, counted: set[Config]) -> None:
    """Remove the journals whose counts are in the table. Their run was killed before it could do so."""
    for path in Path(out).glob("counts.*.partial.jsonl"):
        rows = [row for _, some in _whole(path) for row in some]
        if rows and Config(*rows[0][2:-3]) in counted:
            path.unlink()


def _whole(path: Path) -> Iterator[list[Any]]:
    """The lines that are complete."""
    for text in path.read_text(errors="replace").splitlines():
        with suppress(ValueError):
            yield json.loads(text)

"""Pictures in half the bytes: `python -m ltcam.paper.pictures NOTEBOOK ...` for those inside executed notebooks."""

import base64
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ltcam.files import write

COARSE = [round(round(v * 31 / 255) * 255 / 31) for v in range(256)]  # 32 steps a color look alike and take half the bytes


def coarse(png: bytes, **options: Any) -> bytes:
    """`png` with 32 steps a color and without transparency; options: of PIL's writer, such as dpi."""
    small = BytesIO()
    Image.open(BytesIO(png)).convert("RGB").point(COARSE * 3).save(small, "PNG", **options)
    return small.getvalue()


def shrink(notebook: Any) -> None:
    """`coarse` for every picture in the outputs of `notebook`, in place. Pictures that are coarse stay as they are."""
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = base64.b64encode(coarse(base64.b64decode(output.data["image/png"]))).decode()


if __name__ == "__main__":
    import nbformat  # seconds, which every notebook's kernel would wait for

    for path in map(Path, sys.argv[1:]):
        read = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        shrink(read)
        write(path, nbformat.writes(read) + "\n")  # type: ignore[no-untyped-call]

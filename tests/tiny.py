"""What the tests train: a small VGG16 on tiny look-alikes, once in a session."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests import lookalikes

TINY = {"weights": None, "width": 16, "hidden": 16, "size": (64, 64), "frozen": 0, "epochs": 3, "batch_size": 4, "lr": 1e-3}


def data(root: Path) -> Path:
    """VOC with images of three sizes, and tiles of noise: flat ones would give maps that are all ties."""
    lookalikes.voc(root)
    for name in ("2007_000009", "2007_000010", "2007_000012"):
        for path in root.rglob(f"{name}.*g"):
            Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    for path in root.rglob("2007_000001.*g"):
        Image.open(path).resize((61, 45), Image.Resampling.NEAREST).save(path)
    lookalikes.magnetic_tile(root)
    for i, path in enumerate(sorted((root / "magnetic_tile").rglob("*.jpg"))):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 30), dtype=np.uint8)).save(path)
    return root


def profile(notebooks: Path, name: str, recipe: dict | None = None, **settings) -> Path:
    """A folder of notebooks whose profile `tiny` has the data set `name`."""
    parts = {"test": "val"} if name == "voc2012" else {}
    settings = {"profile": "tiny", "data": name, "recipe": {**parts, **TINY, **(recipe or {})}, **settings}
    file = notebooks / "profiles" / f"tiny.{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings))  # JSON is YAML
    return notebooks

"""Seeds as files: what `ltcam export-seeds` and IRN write, read without running any code inside.

A file is a pickle in numpy's container. Only a dictionary of numpy arrays is rebuilt from it, or of torch tensors, which IRN
writes too. Anything else is refused.
"""

import importlib
import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltcam.errors import InputError, MissingError
from ltcam.files import AnyPath


def read(path: AnyPath, classes: int) -> tuple[Tensor, Tensor]:
    """keys (n,) int64, from 0, and high_res (n, H, W) float32 or float64, of the seeds in `path`.

    Raises MissingError if there is no such file. Raises InputError if it is damaged or holds anything but arrays, and for other
    shapes, classes outside [0, classes) and values outside [0, 1].
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"{path} is missing: expected the seeds of an image; run ltcam export-seeds, or name another folder")
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            if header(file)[2] != np.dtype(object):
                raise InputError("it is a plain array")
            seeds = _Unpickler(file).load().item()
        keys, maps = (torch.as_tensor(seeds[name]) for name in ("keys", "high_res"))
    except Exception as error:  # other bytes fail in many ways: EOFError, KeyError, AttributeError, UnpicklingError ...
        expected = "expected a dict of arrays keys and high_res; export it again"
        raise InputError(f"{path} holds no seeds ({error}): {expected}") from error
    if keys.ndim != 1 or keys.is_floating_point() or maps.ndim != 3 or len(keys) != len(maps) or not maps.is_floating_point():
        raise InputError(f"{path} has keys {tuple(keys.shape)} and high_res {tuple(maps.shape)}: expected (n,) and (n, H, W)")
    if any(not 0 <= key < classes for key in keys.tolist()) or len({*keys.tolist()}) < len(keys):
        raise InputError(f"{path} has the keys {keys.tolist()}: expected different classes from 0 to {classes - 1}")
    if not ((maps >= 0) & (maps <= 1)).all():
        raise InputError(f"{path} has values outside [0, 1]: expected each map over its maximum; export it again")
    return keys.long(), maps


class _Unpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and torch tensors and refuses every other global, so a pickle cannot run code."""

    arrays = (("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"))

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) in self.arrays:
            return getattr(importlib.import_module(module.replace("numpy.core", "numpy._core")), name)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return torch._utils._rebuild_tensor_v2
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda content: torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if (module, name) == ("collections", "OrderedDict"):  # of a tensor's hooks: none
            return OrderedDict
        raise InputError(f"{module}.{name} is not an array: refused")

"""What to explain: the (image, class) pairs of a user's targets, and their scores."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltcam.errors import InputError

Score = Callable[[Tensor], Tensor]
Targets = int | np.ndarray[Any, Any] | Sequence[int] | Sequence[Sequence[int]] | Tensor | Score | Sequence[Score] | None


def explained(targets: Targets, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, C), sorted pairs (P, 2) of an image and a class, and their scores (P,), for targets of `ltcam.trace`.

    A score is what is differentiated: the pair's logit. In logits (N, C, H, W) that is the mean over the places. If a target is
    a function, its class is -1, the score is its value, and the logits may have any shape (N, ...).
    """
    given: Any = _plain(targets)
    functions = [given] * len(logits) if callable(given) else given
    if functions and isinstance(functions, Sequence) and all(map(callable, functions)):
        if len(functions) != len(logits):
            raise InputError(f"{len(functions)} functions as targets of {describe(logits)}: expected one per image")
        values = [function(row) for function, row in zip(functions, logits, strict=True)]
        if wrong := [value for value in values if not isinstance(value, Tensor) or value.numel() != 1]:
            raise InputError(f"a target function gives {describe(wrong[0])}: expected a tensor of one number")
        every = torch.tensor([(i, -1) for i in range(len(values))], device=logits.device)
        return logits, every, torch.stack([value.reshape(()) for value in values])
    logits = logits.mean(dim=(2, 3)) if logits.ndim == 4 else logits
    if logits.ndim != 2:
        raise InputError(f"the model gives {describe(logits)}: expected logits (N, C)")
    pairs = torch.tensor(_pairs(targets, logits), device=logits.device)
    return logits, pairs, logits[pairs[:, 0], pairs[:, 1]]


def _pairs(targets: Any, logits: Tensor) -> list[tuple[int, int]]:
    listed, (count, classes) = _plain(logits.argmax(dim=1) if targets is None else targets), logits.shape
    if isinstance(listed, Iterable) and not isinstance(listed, Sequence):
        raise InputError(f"targets are {describe(listed)}, which has no fixed order: pass a list or a tensor")
    listed = list(listed) if isinstance(listed, Sequence) else [listed] * count
    try:
        if getattr(targets, "ndim", 0) == 2:  # rows of 0 and 1 in one tensor, array or frame
            if tuple(targets.shape) != (count, classes) or {value for row in listed for value in row} - {0, 1}:
                raise InputError(f"targets of shape {tuple(targets.shape)}: expected 0 and 1 of shape {(count, classes)}")
            listed = [[c for c, given in enumerate(row) if given] for row in listed]
        if len(listed) != count:
            raise InputError(f"targets for {len(listed)} images: expected {count}, one entry (an int or ints) per image")
        pairs = [(i, c) for i, target in enumerate(listed) for c in _classes(target)]
    except TypeError as error:
        raise InputError(f"targets {targets!r}: expected an int or ints per image") from error
    if not pairs:
        raise InputError("targets are empty: expected at least one class for at least one image")
    if out := [c for _, c in pairs if not 0 <= c < classes]:
        one = "; for label 1 pass class 0, for label 0 the function lambda logits: -logits[0]" if classes == 1 else ""
        raise InputError(f"class {out[0]} is out of range: the model has {classes} logits, expected 0 to {classes - 1}{one}")
    return pairs


def _classes(target: Any) -> list[int]:
    """One image's classes, sorted. Raises TypeError for no ints, and InputError for a row of 0 and 1: it has a class twice."""
    target = _plain(target)
    given = [*target] if isinstance(target, Collection) else [target]
    if isinstance(target, Mapping) or any(isinstance(c, bool) for c in given):
        raise TypeError
    if len(classes := sorted({index(c) for c in given})) < len(given):
        raise InputError(f"targets {given} name a class twice: expected ints per image, or one (N, C) tensor of 0 and 1")
    return classes


def _plain(value: Any) -> Any:
    """Tensors, arrays, series and frames as lists or a number. Anything else stays as it is."""
    array = np.asarray(value) if hasattr(value, "__array__") and not isinstance(value, Tensor) else value
    return array.tolist() if isinstance(array, Tensor | np.ndarray) else value


def describe(value: Any) -> str:
    """A value in an error message: a tensor's dtype and shape, or the type of anything else."""
    return f"a {value.dtype} tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"

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


def to_pairs(targets: Targets, logits: Tensor) -> Tensor:
    """(P, 2) long, sorted, on the logits' device: (image, class), for targets as `ltcam.trace` takes them.

    The logits are (N, C). If a target is a function, its class is -1 and the logits may have any shape (N, ...).
    """
    if functions := functions_of(targets, len(logits)):
        if len(functions) != len(logits):
            raise InputError(f"{len(functions)} functions as targets of {describe(logits)}: expected one per image")
        return torch.tensor([(i, -1) for i in range(len(functions))], device=logits.device)
    if logits.ndim != 2:
        raise InputError(f"the model gives {describe(logits)}: expected logits (N, C)")
    listed: Any = logits.argmax(dim=1) if targets is None else _plain(targets)
    if isinstance(listed, Iterable) and not isinstance(listed, Sequence | Tensor):
        raise InputError(f"targets are {describe(listed)}, which has no sure order: pass a list or a tensor")
    count, classes = logits.shape
    if isinstance(listed, Tensor) and listed.ndim == 2:
        if listed.shape != logits.shape or not ((listed == 0) | (listed == 1)).all():
            raise InputError(f"targets of shape {tuple(listed.shape)}: expected 0 and 1 of shape {(count, classes)}")
        listed = [torch.nonzero(row).flatten() for row in listed.cpu()]
    listed = listed.tolist() if isinstance(listed, Tensor) else listed
    listed = list(listed) if isinstance(listed, Sequence) else [listed] * count
    if len(listed) != count:
        raise InputError(f"targets for {len(listed)} images: expected {count}, one entry (an int or ints) per image")
    try:
        pairs = [(i, c) for i, target in enumerate(listed) for c in _classes(target)]
    except TypeError as error:
        raise InputError(f"targets {targets!r}: expected an int or ints per image") from error
    if not pairs:
        raise InputError("targets are empty: expected at least one class for at least one image")
    if outside := [c for _, c in pairs if not 0 <= c < classes]:
        raise InputError(f"class {outside[0]} is out of range: the model has {classes} logits, expected 0 to {classes - 1}")
    return torch.tensor(pairs, device=logits.device)


def _plain(targets: Any) -> Any:
    """Arrays, series and frames as tensors, or as lists if a tensor cannot hold them. Anything else stays as it is."""
    if not isinstance(targets, Tensor) and hasattr(targets, "__array__"):
        array = np.asarray(targets)
        targets = torch.tensor(array) if array.dtype.kind in "biuf" else array.tolist()
    return targets.item() if isinstance(targets, Tensor) and not targets.ndim else targets


def _classes(target: Any) -> list[int]:
    """One image's classes, sorted. Raises TypeError for no ints, and InputError for a row of 0 and 1: it has a class twice."""
    target = _plain(target)
    given = target.tolist() if isinstance(target, Tensor) else [*target] if isinstance(target, Collection) else [target]
    if isinstance(target, Mapping) or any(isinstance(c, bool) for c in given):
        raise TypeError
    if len(classes := sorted({index(c) for c in given})) < len(given):
        raise InputError(f"targets {given} name a class twice: expected ints per image, or one (N, C) tensor of 0 and 1")
    return classes


def scores(targets: Targets, logits: Tensor, pairs: Tensor) -> Tensor:
    """(P,): the number of each pair that is differentiated. It is the pair's logit, or its function of the image's logits."""
    if not (functions := functions_of(targets, len(logits))):
        return logits[pairs[:, 0], pairs[:, 1]]
    values = [function(row) for function, row in zip(functions, logits, strict=True)]
    if wrong := [value for value in values if not isinstance(value, Tensor) or value.numel() != 1]:
        raise InputError(f"a target function gives {describe(wrong[0])}: expected a tensor of one number")
    return torch.stack([value.reshape(()) for value in values])


def functions_of(targets: Targets, count: int) -> list[Score]:
    """The targets if they are functions of an image's logits, else nothing. One function is for all `count` images."""
    given: Any = _plain(targets)
    listed = [given] * count if callable(given) else list(given) if isinstance(given, Sequence) else []
    return listed if all(map(callable, listed)) else []


def describe(value: Any) -> str:
    """A value in an error message: a tensor's dtype and shape, or the type of anything else."""
    return f"a {value.dtype} tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"

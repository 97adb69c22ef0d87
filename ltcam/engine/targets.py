"""What to explain: the (image, class) pairs of a user's targets, and their scores."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import index
from typing import Any, SupportsFloat

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
    targets = _plain(targets)
    if functions := _functions(targets, len(logits)):
        if len(functions) != len(logits):
            raise InputError(f"{len(functions)} functions as targets of {describe(logits)}: expected one per image")
        return torch.tensor([(i, -1) for i in range(len(functions))], device=logits.device)
    if logits.ndim != 2:
        raise InputError(f"the model gives {describe(logits)}: expected logits (N, C)")
    if isinstance(targets, Iterable) and not isinstance(targets, Sequence | Tensor):
        raise InputError(f"targets are {describe(targets)}, which has no sure order: pass a list or a tensor")
    count, classes = logits.shape
    if targets is None:
        per_image = [[c] for c in logits.argmax(dim=1).tolist()]
    elif isinstance(targets, Tensor) and targets.ndim == 2:
        if targets.shape != logits.shape or not ((targets == 0) | (targets == 1)).all():
            raise InputError(f"targets of shape {tuple(targets.shape)}: expected 0 and 1 of shape {(count, classes)}")
        per_image = [torch.nonzero(row).flatten().tolist() for row in targets.cpu()]
    else:
        listed = targets.tolist() if isinstance(targets, Tensor) else targets
        listed = list(listed) if isinstance(listed, Sequence) else [listed] * count
        if len(listed) != count:
            raise InputError(f"targets for {len(listed)} images: expected {count}, one entry (an int or ints) per image")
        try:
            per_image = _multi_hot(listed, classes) or [_classes(_plain(t)) for t in listed]
        except TypeError as error:
            raise InputError(f"targets {targets!r}: expected an int or ints per image") from error
    if not any(per_image):
        raise InputError("targets are empty: expected at least one class for at least one image")
    if outside := [c for row in per_image for c in row if not 0 <= c < classes]:
        raise InputError(f"class {outside[0]} is out of range: the model has {classes} logits, expected 0 to {classes - 1}")
    return torch.tensor([(i, c) for i, row in enumerate(per_image) for c in row], device=logits.device)


def _plain(targets: Any) -> Any:
    """Arrays, series and frames as tensors, or as lists if a tensor cannot hold them. Anything else stays as it is."""
    if not isinstance(targets, Tensor) and hasattr(targets, "__array__"):
        array = np.asarray(targets)
        targets = torch.tensor(array) if array.dtype.kind in "biuf" else array.tolist()
    return targets.item() if isinstance(targets, Tensor) and not targets.ndim else targets


def _multi_hot(listed: list[Any], classes: int) -> list[list[int]]:
    """The classes of rows with 0 or 1 per logit, or nothing if the entries are no such rows. Raises InputError in doubt."""
    rows = [_plain(row) for row in listed]
    if not all((isinstance(row, Tensor) and row.ndim) or isinstance(row, list | tuple) for row in rows):
        return []
    values = [row.tolist() if isinstance(row, Tensor) else row for row in rows]
    hot = [len(row) == classes and all(isinstance(v, SupportsFloat) and v in (0, 1) for v in row) for row in values]
    # If there are two classes, a row [0, 1] may also be a list of both.
    sure = classes > 2 or any(isinstance(v, bool | float) for row in values for v in row)
    if all(hot) and (sure or any(isinstance(row, Tensor) for row in rows)):
        if not sure:
            raise InputError(f"targets {listed!r} are classes or rows of 0 and 1: pass lists of ints, or one (N, C) tensor")
        return [[c for c, v in enumerate(row) if v] for row in values]
    if any(isinstance(v, bool) for row in values for v in row) or (classes > 2 and any(hot)):
        raise InputError(f"targets {listed!r}: expected per image ints, or a row of {classes} times 0 or 1")
    return []


def _classes(target: Any) -> list[int]:
    """One image's classes, sorted, from an int or ints."""
    if isinstance(target, Mapping):
        raise InputError(f"targets have {describe(target)} for an image: expected an int or ints per image")
    return sorted({index(c) for c in (target if isinstance(target, Collection) else [target])})


def scores(targets: Targets, logits: Tensor, pairs: Tensor) -> Tensor:
    """(P,): the number of each pair that is differentiated. It is the pair's logit, or its function of the image's logits."""
    if not (functions := _functions(_plain(targets), len(logits))):
        return logits[pairs[:, 0], pairs[:, 1]]
    values = [function(row) for function, row in zip(functions, logits, strict=True)]
    if wrong := [value for value in values if not isinstance(value, Tensor) or value.numel() != 1]:
        raise InputError(f"a target function gives {describe(wrong[0])}: expected a tensor of one number")
    return torch.stack([value.reshape(()) for value in values])


def is_functions(targets: Any) -> bool:
    """Whether targets are functions of an image's logits, or one function for all images."""
    return bool(_functions(_plain(targets), 1))


def _functions(targets: Any, count: int) -> list[Score]:
    """The targets if they are functions of an image's logits. One function is for all `count` images."""
    if callable(targets):
        return [targets] * count
    listed: list[Any] = list(targets) if isinstance(targets, Sequence) else []
    return listed if all(map(callable, listed)) else []


def describe(value: Any) -> str:
    """A value in an error message: a tensor's dtype and shape, or the type of anything else."""
    return f"a {value.dtype} tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"

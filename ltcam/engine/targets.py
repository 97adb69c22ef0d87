"""What to explain: the (image, class) pairs that a user's targets name, and their scores."""

from collections.abc import Callable, Collection, Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltcam.errors import InputError

Score = Callable[[Tensor], Tensor]
Targets = int | np.ndarray[Any, Any] | Sequence[int] | Sequence[Sequence[int]] | Tensor | Sequence[Score] | None


def to_pairs(targets: Targets, logits: Tensor) -> Tensor:
    """(P, 2) long, sorted, on the logits' device: (image, class), for targets as `ltcam.trace` takes them.

    The class is -1 where the target is a function; then the logits may have any shape that begins with N, else (N, C).
    """
    if functions := _functions(targets):
        if not isinstance(logits, Tensor) or len(functions) != len(logits):
            raise InputError(f"{len(functions)} functions as targets of {describe(logits)}: expected one for each image")
        return torch.tensor([(i, -1) for i in range(len(functions))], device=logits.device)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise InputError(f"the model gives {describe(logits)}: expected logits (N, C)")
    count, classes = logits.shape
    if isinstance(targets, np.ndarray):
        targets = torch.as_tensor(targets) if targets.dtype.kind in "biuf" else targets.tolist()
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
            raise InputError(f"targets for {len(listed)} images: expected {count}, one entry (an int or ints) an image")
        try:
            per_image = [sorted({index(c) for c in (t if isinstance(t, Collection) else [t])}) for t in listed]
        except TypeError as error:
            raise InputError(f"targets {targets!r}: expected an int or ints for each image") from error
    if not any(per_image):
        raise InputError("targets are empty: expected at least one class for at least one image")
    if outside := [c for row in per_image for c in row if not 0 <= c < classes]:
        raise InputError(f"class {outside[0]} is out of range: the model has {classes} logits, expected 0 to {classes - 1}")
    return torch.tensor([(i, c) for i, row in enumerate(per_image) for c in row], device=logits.device)


def scores(targets: Targets, logits: Tensor, pairs: Tensor) -> Tensor:
    """(P,): what is differentiated for each pair, its logit or its function of the image's logits."""
    if not (functions := _functions(targets)):
        return logits[pairs[:, 0], pairs[:, 1]]
    values = [function(row) for function, row in zip(functions, logits, strict=True)]
    if wrong := [value for value in values if not isinstance(value, Tensor) or value.numel() != 1]:
        raise InputError(f"a target function gives {describe(wrong[0])}: expected a tensor of one number")
    return torch.stack([value.reshape(()) for value in values])


def _functions(targets: Targets) -> list[Score]:
    """The targets, where they are functions of an image's logits."""
    listed: list[Any] = list(targets) if isinstance(targets, Sequence) else []
    return listed if all(map(callable, listed)) else []


def describe(value: Any) -> str:
    """A value in an error message: a tensor by its dtype and shape, anything else by its type."""
    return f"a {value.dtype} tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"

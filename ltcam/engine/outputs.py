"""From what a model returns to its logits."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ltcam.engine.targets import describe
from ltcam.errors import InputError, LtcamError, of_loader

Output = Callable[[Any], Tensor]


def run(model: nn.Module, images: Tensor, output: Output | None = None) -> Tensor:
    """What `model` makes of `images`, as a tensor (N, ...): its logits.

    output  a function from what the model returns to its logits; None: the tensor itself, `.logits` (transformers), or
            "logits" and "out" of a dict (torchvision's segmentation)

    Raises InputError where the model does not run, or returns something else.
    """
    try:
        returned = model(images)
    except LtcamError:
        raise
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and of_loader(error)):
            raise
        raise InputError(
            f"the model does not run on {describe(images)} ({type(error).__name__}: {error}): expected images that fit it. "
            "Wrap one that needs more than images in a module that has the rest"
        ) from error
    logits = _found(returned) if output is None else output(returned)
    if not isinstance(logits, Tensor) or len(logits.shape) == 0 or len(logits) != len(images):
        by = "the model" if output is None else "output="
        raise InputError(
            f"{by} gives {describe(logits)}: expected logits (N, C) of the {len(images)} images. "
            "Pass output=, a function from what the model returns to them"
        )
    return logits


def by_class(logits: Tensor) -> Tensor:
    """(N, C) of logits (N, C) or (N, C, H, W), whose class is the mean over places."""
    return logits.mean(dim=(2, 3)) if isinstance(logits, Tensor) and logits.ndim == 4 else logits


def _found(returned: Any) -> Any:
    named = [returned.get(key) for key in ("logits", "out")] if isinstance(returned, Mapping) else []
    for value in [getattr(returned, "logits", None), *named]:
        if isinstance(value, Tensor) and not isinstance(returned, Tensor):
            return value
    return returned

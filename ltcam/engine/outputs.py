"""From what a model returns to its logits."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ltcam.engine.targets import describe
from ltcam.errors import InputError, LtcamError, of_loader

Output = Callable[[Any], Tensor]


def called(model: nn.Module, images: Tensor) -> Any:
    """What `model` returns for `images`. Raises InputError with the model's own words if it does not run."""
    try:
        return model(images)
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError, AttributeError) as error:
        if isinstance(error, LtcamError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and of_loader(error)):
            raise
        said = f"the model does not run on {describe(images)} ({type(error).__name__}: {error})"
        raise InputError(f"{said}: expected images that fit it, and a wrapper around a model of more inputs") from error


def logits_of(returned: Any, count: int, output: Output | None = None) -> Tensor:
    """The logits (N, ...) of `count` images in what the model returns, as `ltcam.trace` finds them. Raises InputError."""
    named = returned if isinstance(returned, Mapping) else {}
    places = (returned, getattr(returned, "logits", None), named.get("logits"), named.get("out"))
    logits = output(returned) if output else next((value for value in places if isinstance(value, Tensor)), returned)
    if not isinstance(logits, Tensor) or not logits.ndim or len(logits) != count:
        by = "the model" if output is None else "output="
        raise InputError(f"{by} gives {describe(logits)}: expected the logits (N, C) of {count} images; see output= of trace")
    return logits

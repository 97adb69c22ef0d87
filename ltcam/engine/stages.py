"""The stages S1..S5 of a CNN, and a model borrowed for a while."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ltcam.engine.targets import describe
from ltcam.engine.tricks import one_of
from ltcam.errors import InputError

Outputs = Literal["pool", "relu"]

PROBE = 160  # pixels: small, and no CNN in use is down to one pixel there


def stages(model: nn.Module, outputs: Outputs = "pool") -> dict[str, str]:
    """{"S1": module name, ...}, from shallow to deep: where the paper reads its stages.

    VGG and its like: the max-pool outputs of `features`, or with outputs="relu" what enters those pools. Other CNNs: the last
    block at each resolution; they run once on an empty image to find it. Raises InputError where nothing is found.
    """
    one_of("outputs", outputs, Outputs)
    model = unwrap(model)
    features = getattr(model, "features", None)
    if isinstance(features, nn.Sequential) and isinstance(features[-1], nn.MaxPool2d):
        found = [f"features.{i - (outputs == 'relu')}" for i, module in enumerate(features) if isinstance(module, nn.MaxPool2d)]
    elif outputs == "relu":
        raise InputError(f"stage outputs 'relu' are of VGG-like models: {type(model).__name__} has no .features with max-pools")
    else:
        found = _last_at_each_resolution(model)
    return {f"S{i}": name for i, name in enumerate(found, 1)}


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile. Raises InputError for what is no module."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is {describe(model)}: expected a torch.nn.Module")
    while isinstance(model, nn.DataParallel | DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module  # type: ignore[assignment]
    return model


@contextmanager
def borrowed(model: nn.Module, frozen: bool = True) -> Iterator[None]:
    """Eval mode and (if `frozen`) no weight gradients while the block runs, then everything as it was."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters() if frozen]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _last_at_each_resolution(model: nn.Module) -> list[str]:
    """Names of the last block at each octave of resolution, global pooling left out.

    A block is a module that halves the resolution at most once; one that does so more often is a sequence of blocks.
    """
    octaves: dict[str, int] = {}  # in the order in which modules finish

    def note(module: nn.Module, arguments: Any, output: Any, name: str) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3] > 1:
            octaves[name] = round(math.log2(output.shape[2]))

    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is None:
        raise InputError(f"{type(model).__name__} has no convolutions: pass layers=[module names]")
    empty = convolution.weight.new_zeros(1, convolution.in_channels, PROBE, PROBE)
    try:
        with torch.no_grad(), borrowed(model), ExitStack() as hooks:
            for name, module in model.named_modules():
                hooks.callback(module.register_forward_hook(partial(note, name=name)).remove)
            model(empty)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise InputError(
            f"{type(model).__name__} does not run on {PROBE} x {PROBE} pixels ({error}): pass layers=[module names]"
        ) from error
    last: dict[int, str] = {}
    for name in sorted(_blocks(model, octaves), key=list(octaves).index):
        last[octaves[name]] = name
    if len(last) < 2:
        raise InputError(f"{type(model).__name__} has no stages of falling resolution: pass layers=[module names]")
    return [name for _, name in sorted(last.items(), reverse=True)]


def _blocks(module: nn.Module, octaves: dict[str, int], prefix: str = "") -> Iterator[str]:
    for name, child in module.named_children():
        path = prefix + name
        inside = {octave for other, octave in octaves.items() if other == path or other.startswith(f"{path}.")}
        if len(inside) > 2:
            yield from _blocks(child, octaves, f"{path}.")
        elif path in octaves and not isinstance(child, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
            yield path

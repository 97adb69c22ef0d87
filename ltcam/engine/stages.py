"""The stages S1..S5 of a CNN."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import pairwise, takewhile
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ltcam.engine.lending import borrowed
from ltcam.engine.targets import describe
from ltcam.engine.tricks import one_of
from ltcam.errors import InputError

Outputs = Literal["pool", "relu"]

PROBE = 160  # pixels: small, and no CNN in use is down to one pixel there


def stages(model: nn.Module, outputs: Outputs = "pool", images: Tensor | None = None) -> dict[str, str]:
    """{"S1": module name, ...}, from shallow to deep: where the paper reads its stages.

    VGG and its like, wrapped or not: the max-pool outputs of `features`, or with outputs="relu" what enters those pools. Other
    CNNs: the last block at each resolution that runs once. They run on an empty square to find it, the same for images of any
    size, or where they refuse that on the first of `images` (N, 3, H, W). Raises InputError where nothing is found.
    """
    one_of("outputs", outputs, Outputs)
    model = unwrap(model)
    features = getattr(model, "features", None)
    # VGG itself is read without running it.
    pools = _pools(features, "features") if isinstance(features, nn.Sequential) and _pool(features[-1]) else []
    octaves, running = ({}, set()) if pools else _octaves(model, images)
    pools = pools or _wrapped(model, octaves)
    if outputs == "relu" and not pools:
        raise InputError(f"stage outputs 'relu' are of VGG-like models: {type(model).__name__} has no .features with max-pools")
    found = [pool if outputs == "pool" else before for before, pool in pools] or _last_at_each_resolution(
        model, octaves, running
    )
    return {f"S{i}": name for i, name in enumerate(found, 1)}


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile. Raises InputError for what is no module."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is {describe(model)}: expected a torch.nn.Module")
    while isinstance(model, nn.DataParallel | DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module  # type: ignore[assignment]
    return model


def _pool(module: nn.Module) -> bool:
    return isinstance(module, nn.MaxPool2d)


def _pools(features: nn.Sequential, prefix: str) -> list[tuple[str, str]]:
    """(what enters, itself) for each max-pool of a sequence, by name; none where one of them runs more than once."""
    children = [(f"{prefix}.{name}".lstrip("."), module) for name, module in features._modules.items()]
    pools = [(before, name) for (before, _), (name, module) in pairwise(children) if _pool(module)]
    distinct = len({features.get_submodule(name.rpartition(".")[2]) for _, name in pools}) == len(pools)
    return pools if distinct else []


def _wrapped(model: nn.Module, octaves: dict[str, int]) -> list[tuple[str, str]]:
    """The pools of the one sequence that holds most of the model's convolutions and has no convolution after its last pool."""
    total = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    for prefix, features in model.named_modules():
        if not isinstance(features, nn.Sequential) or 2 * sum(isinstance(m, nn.Conv2d) for m in features.modules()) <= total:
            continue
        tail = list(takewhile(lambda module: not _pool(module), reversed(list(features))))
        pools = _pools(features, prefix)
        named = prefix.rpartition(".")[2] == "features"
        ended = not any(isinstance(m, nn.Conv2d) for module in tail for m in module.modules())
        if ended and len(pools) > (0 if named else 1) and all(pool in octaves for _, pool in pools):
            return pools
    return []


def _octaves(model: nn.Module, images: Tensor | None) -> tuple[dict[str, int], set[str]]:
    """How often each module that runs once has halved the resolution, in the order in which they finish; and all that run."""
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is None:
        raise InputError(f"{type(model).__name__} has no convolutions: pass layers=[module names]")
    tries = [convolution.weight.new_zeros(1, convolution.in_channels, PROBE, PROBE)]
    tries += [] if images is None else [images[:1].detach()]
    for tried in tries:
        try:
            return _probe(model, tried)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            failed = error
    h, w = tries[-1].shape[2:]
    raise InputError(
        f"{type(model).__name__} does not run on {h} x {w} pixels ({failed}): pass layers=[module names]"
    ) from failed


def _probe(model: nn.Module, image: Tensor) -> tuple[dict[str, int], set[str]]:
    size = image.shape[2], image.shape[3]
    found: dict[str, int] = {}
    runs: Counter[str] = Counter()

    def note(module: nn.Module, arguments: Any, output: Any, name: str) -> None:
        runs[name] += 1
        if isinstance(output, Tensor) and output.ndim == 4 and _is_map(output, size):
            found[name] = round(math.log2(size[0] / output.shape[2]))

    with torch.no_grad(), borrowed(model), ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_hook(partial(note, name=name)).remove)
        model(image)
    return {name: octave for name, octave in found.items() if runs[name] == 1}, set(runs)


def _is_map(output: Tensor, size: tuple[int, int]) -> bool:
    """Whether an output has more than one place, and the image's aspect as far as whole pixels allow: (160, 160) exactly."""
    (h, w), (height, width) = output.shape[2:], size
    return h > 1 and w > 1 and (h == w if height == width else abs(h * width - w * height) <= 2 * max(size))


def _last_at_each_resolution(model: nn.Module, octaves: dict[str, int], running: set[str]) -> list[str]:
    """Names of the last block at each octave of resolution, global pooling left out.

    A block is a module that halves the resolution at most once; one that does so more often is a sequence of blocks.
    """
    last: dict[int, str] = {}
    for name in sorted(_blocks(model, octaves, running), key=list(octaves).index):
        last[octaves[name]] = name
    if len(last) < 2:
        raise InputError(f"{type(model).__name__} has no stages of falling resolution: pass layers=[module names]")
    return [name for _, name in sorted(last.items())]


def _blocks(module: nn.Module, octaves: dict[str, int], running: set[str], prefix: str = "") -> Iterator[str]:
    for name, child in module.named_children():
        path = prefix + name
        inside = {octave for other, octave in octaves.items() if other == path or other.startswith(f"{path}.")}
        if len(inside) > 2 or path not in running:  # a list of blocks, or one passed by: checkpointing calls what is inside
            yield from _blocks(child, octaves, running, f"{path}.")
        elif path in octaves and not isinstance(child, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
            yield path

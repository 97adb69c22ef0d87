"""The stages S1..S5 of a CNN, and the modules that a user's `layers` name."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise, takewhile
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ltcam.engine.borrow import borrowed, called
from ltcam.engine.shapes import is_map
from ltcam.engine.targets import describe
from ltcam.engine.tricks import one_of
from ltcam.errors import InputError

Outputs = Literal["pool", "relu"]
Layers = Sequence[str | nn.Module] | Mapping[str, str] | None

PROBE = 160  # pixels: small, but every CNN in use keeps more than one pixel there


def stages(model: nn.Module, outputs: Outputs = "pool", images: Tensor | None = None) -> dict[str, str]:
    """{"S1": module name, ...}, from shallow to deep: where the paper reads its stages.

    VGG and its like, wrapped or not: the max-pool outputs of `features`, or the inputs of those pools with outputs="relu".
    Other CNNs: the last block at each resolution that runs once. They run on an empty square, so that images of any size have
    the same stages. A model that refuses it runs on the first of `images` (N, 3, H, W). Raises InputError if none is found.
    """
    one_of("outputs", outputs, Outputs)
    model = unwrap(model)
    features = getattr(model, "features", None)
    pools: list[tuple[str, str]] = []
    if isinstance(features, nn.Sequential) and isinstance(features[-1], nn.MaxPool2d):  # VGG is read without running it
        pools = _pools(features, "features")
    octaves, running = ({}, set()) if pools else _octaves(model, images)
    pools = pools or _wrapped(model, octaves)
    if outputs == "relu" and not pools:
        raise InputError(f"stage outputs 'relu' are of VGG-like models: {type(model).__name__} has no .features with max-pools")
    found = [pool if outputs == "pool" else before for before, pool in pools] or _last_blocks(model, octaves, running)
    return {f"S{i}": name for i, name in enumerate(found, 1)}


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile. Raises InputError if there is none."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is {describe(model)}: expected a torch.nn.Module")
    while isinstance(model, nn.DataParallel | DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module  # type: ignore[assignment]
    return model


def resolved(model: nn.Module, layers: Layers, images: Tensor) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The modules that `layers` of `ltcam.trace` name, by name, and the stages if they are asked for. Raises InputError."""
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}
    by_name = isinstance(layers, Mapping)
    labels = dict(layers) if isinstance(layers, Mapping) else stages(model, images=images) if layers is None else {}
    wanted: Any = labels.values() if by_name or layers is None else layers
    if isinstance(wanted, str | nn.Module) or not isinstance(wanted, Iterable) or not wanted:
        raise InputError(f"layers={layers!r}: expected a non-empty sequence of module names or modules")
    found = {}
    for layer in wanted:
        own = [names.get(layer, "")] if isinstance(layer, nn.Module) and not by_name else [layer]
        if isinstance(layer, str) and layer not in modules and labels_in(layer) and not by_name:
            labels = labels or stages(model, images=images)
            own = [labels.get(label, label) for label in labels_in(layer)]
        for name in own:
            if not isinstance(name, str) or not name or name not in modules:
                known = f"a name in model.named_modules(), the module{f', or one of {list(labels)}' if labels else ''}"
                raise InputError(f"layer {layer!r} is not in the model: expected {known}")
            found[name] = modules[name]
    return found, labels


def labels_in(text: str) -> list[str]:
    """ "S3-S5" -> ["S3", "S4", "S5"]. Empty if the text is no label or range of labels."""
    match = re.fullmatch(r"S(\d{1,3})(?:-S(\d{1,3}))?", text)
    return [f"S{i}" for i in range(int(match[1]), int(match[2] or match[1]) + 1)] if match else []


def _pools(features: nn.Sequential, prefix: str) -> list[tuple[str, str]]:
    """The names (input's module, pool) of each max-pool of a sequence. None if a pool runs more than once."""
    children = [(f"{prefix}.{name}".lstrip("."), module) for name, module in features._modules.items()]
    pools = {(before, name): pool for (before, _), (name, pool) in pairwise(children) if isinstance(pool, nn.MaxPool2d)}
    return [*pools] if len({*pools.values()}) == len(pools) else []


def _wrapped(model: nn.Module, octaves: dict[str, int]) -> list[tuple[str, str]]:
    """The pools of the sequence that holds most of the model's convolutions, if no convolution follows its last pool."""

    def convolutions(module: nn.Module) -> int:
        return sum(isinstance(m, nn.Conv2d) for m in module.modules())

    for prefix, features in model.named_modules():
        if isinstance(features, nn.Sequential) and 2 * convolutions(features) > convolutions(model):
            tail = takewhile(lambda module: not isinstance(module, nn.MaxPool2d), reversed(list(features)))
            pools, least = _pools(features, prefix), 1 if prefix.rpartition(".")[2] == "features" else 2
            if len(pools) >= least and not any(map(convolutions, tail)) and all(pool in octaves for _, pool in pools):
                return pools
    return []


def _octaves(model: nn.Module, images: Tensor | None) -> tuple[dict[str, int], set[str]]:
    """How often each module that runs once has halved the resolution, in the order of their ends; and all modules that run."""
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is None:
        raise InputError(f"{type(model).__name__} has no convolutions: pass layers=[module names]")
    try:
        return _probe(model, convolution.weight.new_zeros(1, convolution.in_channels, PROBE, PROBE))
    except InputError as error:
        if images is None:
            raise InputError(f"no stages found: {error}; or pass layers=[module names] to trace") from error
    return _probe(model, images[:1].detach())


def _probe(model: nn.Module, image: Tensor) -> tuple[dict[str, int], set[str]]:
    size = image.shape[2], image.shape[3]
    slack = 0 if size[0] == size[1] else 2
    found: dict[str, int] = {}
    runs: Counter[str] = Counter()

    def note(module: nn.Module, arguments: Any, output: Any, name: str) -> None:
        runs[name] += 1
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1 and is_map(output.shape, size, slack):
            found[name] = round(math.log2(size[0] / output.shape[2]))

    with torch.no_grad(), borrowed(model), ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_hook(partial(note, name=name)).remove)
        called(model, image)
    return {name: octave for name, octave in found.items() if runs[name] == 1}, set(runs)


def _last_blocks(model: nn.Module, octaves: dict[str, int], running: set[str]) -> list[str]:
    """Names of the last block at each octave of resolution, without global pooling.

    A block is a module that halves the resolution at most once. A module that halves it more often is a sequence of blocks.
    """

    def blocks(module: nn.Module, prefix: str) -> Iterator[str]:
        for name, child in module.named_children():
            path = prefix + name
            inside = {octave for other, octave in octaves.items() if other == path or other.startswith(f"{path}.")}
            if len(inside) > 2 or path not in running:  # a list of blocks, or a block whose inside checkpointing calls
                yield from blocks(child, f"{path}.")
            elif path in octaves and not isinstance(child, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
                yield path

    last = {octaves[name]: name for name in sorted(blocks(model, ""), key=list(octaves).index)}
    if len(last) < 2:
        raise InputError(f"{type(model).__name__} has no stages of falling resolution: pass layers=[module names]")
    return [name for _, name in sorted(last.items())]

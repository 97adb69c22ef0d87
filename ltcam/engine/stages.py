"""A model: unwrapped, borrowed and given back as it was; its stages S1..S5; and the modules that a user's `layers` name."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import combinations, pairwise, takewhile
from threading import Lock, RLock
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from ltcam.engine.shapes import called, misfit
from ltcam.engine.targets import describe
from ltcam.engine.tricks import one_of
from ltcam.errors import InputError

Outputs = Literal["pool", "relu"]
Layers = Sequence[str | nn.Module] | Mapping[str, str] | None

PROBE = 160  # pixels: small, but every CNN in use keeps more than one pixel there
_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()  # one per module, because models may share modules
_GUARD = Lock()


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile. Raises InputError if there is none."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is {describe(model)}: expected a torch.nn.Module")
    while type(model) in (nn.DataParallel, DistributedDataParallel, OptimizedModule):  # a subclass may do more
        if model._forward_pre_hooks or model._forward_hooks:
            raise InputError(f"{type(model).__name__} has hooks of its own: register them on the module inside")
        model = cast(nn.Module, model._orig_mod if isinstance(model, OptimizedModule) else model.module)
    return model


@contextmanager
def borrowed(model: nn.Module, frozen: bool = True) -> Iterator[None]:
    """Eval mode, no compiled code and (if `frozen`) no weight gradients in the block, then everything as it was, bit for bit.

    Other threads that borrow any of its modules wait. Buffers are put back, and so are the weights of modules that have a
    train() of their own, such as LoRA layers that merge in eval mode.
    """
    with ExitStack() as back:  # what is put on it is undone from the last to the first, also if one step fails
        with _GUARD:
            locks = [_LOCKS.setdefault(m, RLock()) for m in sorted(model.modules(), key=id)]
        for lock in locks:  # always in one order, so that no two threads wait for each other
            back.enter_context(lock)
        if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules()):
            back.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code bypasses hooks
        modes = {module: module.training for module in model.modules()}
        plain, training = [nn.Module.train, nn.Module.eval], any(modes.values())
        own = [m for m in modes if plain != [getattr(function, "__func__", None) for function in (m.train, m.eval)]]
        custom = {m for module in own for m in module.modules()} if training else set()
        plainly = [m for m in modes if not isinstance(m, torch.jit.ScriptModule)]  # whose buffers are in a dictionary
        stores: list[dict[str, Any]] = [m._buffers for m in plainly] + [m._parameters for m in custom]
        back.callback(setattr, parametrize, "_cache_enabled", parametrize._cache_enabled)
        weights = [p for p in model.parameters() if p.is_leaf] if frozen else []  # copies with a history stay as they are
        for parameter in weights:
            back.callback(parameter.requires_grad_, parameter.requires_grad)
        for value in [*model.buffers(), *(p for m in custom for p in m.parameters(recurse=False))]:
            back.callback(_put_back, value, value.detach().clone())
        for store in stores:
            back.callback(_refill, store, dict(store))
        for module, mode in modes.items():
            back.callback(setattr, module, "training", mode)
        for module in custom:
            back.callback(_train_again, module, module.training)
        parametrize._cache_enabled = 0  # what is cached now would lack a gradient later
        if training:  # a model in eval mode may have special modes inside
            model.eval()
        for parameter in weights:
            parameter.requires_grad_(False)
        yield


def _train_again(module: nn.Module, mode: bool) -> None:
    if module.training != mode:
        module.train(mode)


def _refill(store: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Give `store` its `values` again."""
    if [*store] != [*values] or any(store[name] is not value for name, value in values.items()):
        store.clear()
        store.update(values)


def _put_back(value: Tensor, copy: Tensor) -> None:
    """Give `value` the bits of its `copy` again."""
    if copy.layout != torch.strided or value.shape != copy.shape:  # sparse, or resized by the run
        value.data = copy
    elif not torch.equal(value, copy):
        value.data.copy_(copy)


def stages(model: nn.Module, outputs: Outputs = "pool", images: Tensor | None = None) -> dict[str, str]:
    """{"S1": module name, ...}, from shallow to deep: where the paper reads its stages.

    VGG-like models, also wrapped or in slices: the max-pool outputs, or with outputs="relu" the inputs of those pools. Other
    CNNs: at each resolution the last block that runs once. These run on an empty square image, so that the stages do not depend
    on the images' size. If a model refuses it, the first of `images` (N, 3, H, W) is used. Raises InputError if none is found.
    """
    one_of("outputs", outputs, Outputs)
    model = unwrap(model)
    if not (pools := _pools(getattr(model, "features", None))):  # of VGG, without running it
        convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        if convolution is None:
            raise InputError(f"{type(model).__name__} has no convolutions: pass layers=[module names]")
        try:
            octaves, running = _octaves(model, convolution.weight.new_zeros(1, convolution.in_channels, PROBE, PROBE))
        except InputError as error:
            if images is None:
                raise InputError(f"no stages found: {error}; or pass layers=[module names] to trace") from error
            octaves, running = _octaves(model, images[:1].detach())
        pools = _wrapped(model, octaves)
    if outputs == "relu" and not pools:
        raise InputError(f"outputs='relu' needs a VGG-like model: {type(model).__name__} has no .features with max-pools")
    found = [pool if outputs == "pool" else before for before, pool in pools] or _last_blocks(model, octaves, running)
    return {f"S{i}": name for i, name in enumerate(found, 1)}


def resolved(model: nn.Module, layers: Layers, images: Tensor) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The modules that `layers` of `ltcam.trace` name, by name, and the stages if they are asked for. Raises InputError."""
    modules = dict(model.named_modules(remove_duplicate=False))  # a module may have several names
    labels = stages(model, images=images) if layers is None else dict(layers) if isinstance(layers, Mapping) else {}
    wanted: Any = layers if layers is not None and not isinstance(layers, Mapping) else labels.values()
    if isinstance(wanted, str | nn.Module) or not isinstance(wanted, Iterable) or not wanted:
        raise InputError(f"layers={layers!r}: expected a non-empty sequence of module names or modules")
    found = {}
    for layer in wanted:
        own = [layer]
        if wanted is layers and isinstance(layer, nn.Module):
            own = [name for name, module in modules.items() if module is layer][:1] or [""]
        elif wanted is layers and isinstance(layer, str) and labels_in(layer):
            if layer in modules:
                raise InputError(f"{layer!r} names a module and a stage: pass the module itself, or {{label: module name}}")
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


def _pools(features: Any) -> list[tuple[str, str]]:
    """The names (input's module, pool) of the max-pools of a sequence that ends in one. None if a pool runs more than once."""
    parts = [*features._modules.items()] if isinstance(features, nn.Sequential) else []
    pools = {
        (f"features.{before}", f"features.{name}"): pool
        for (before, _), (name, pool) in pairwise(parts)
        if isinstance(pool, nn.MaxPool2d)
    }
    ends, once = [*pools.values()][-1:] == [module for _, module in parts[-1:]], len({*pools.values()}) == len(pools)
    return [*pools] if ends and once else []


def _wrapped(model: nn.Module, octaves: Mapping[str, tuple[int, int]]) -> list[tuple[str, str]]:
    """The max-pools of a network whose resolution falls by them alone after its stem, if no convolution follows the last."""
    modules = dict(model.named_modules())
    leaves = [name for name in octaves if not any(modules[name].children())]
    pools = [pair for pair in pairwise(leaves) if isinstance(modules[pair[1]], nn.MaxPool2d)]
    behind = takewhile(lambda name: not isinstance(modules[name], nn.MaxPool2d), reversed(leaves))
    falls = [octaves[name] for name in leaves if octaves[name][0] != octaves[name][1]]
    alone = len(pools) > 1 and falls[-len(pools) :] == [octaves[name] for _, name in pools]
    return pools if alone and not any(isinstance(modules[name], nn.Conv2d) for name in behind) else []


def _octaves(model: nn.Module, image: Tensor) -> tuple[dict[str, tuple[int, int]], Mapping[str, int]]:
    """How often the resolution is halved (before, after) each module that runs once, in the order of their ends; and how often
    all run."""
    size, found, runs, given = image.shape[2:], dict[str, tuple[int, int]](), Counter[str](), dict[str, Tensor]()
    slack = 0 if size[0] == size[1] else 2  # pixels

    def octave(value: Any) -> int | None:
        is_map = isinstance(value, Tensor) and value.ndim == 4 and min(value.shape[2:]) > 1 and len(value) == len(image)
        return round(math.log2(size[0] / value.shape[2])) if is_map and misfit(value.shape[2:], size) <= slack else None

    def note(name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        runs[name] += 1
        before = octave(arguments[0]) if arguments else None
        if before == 0:
            given[name] = arguments[0]
        if (after := octave(output)) is not None:
            found[name] = after if before is None else before, after

    with torch.no_grad(), borrowed(model), ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_hook(partial(note, name)))
        called(model, image)
    inside = {name: {o for n, both in found.items() if n.startswith(f"{name}.") for o in both} for name in given}
    for one, other in combinations(sorted(given), 2):
        if given[one] is given[other] and not other.startswith(f"{one}.") and min(len(inside[one]), len(inside[other])) > 2:
            said = f"{type(model).__name__} gives the images to {one!r} and to {other!r}, which both have stages"
            raise InputError(f"{said}: pass layers=[module names] of each, or explain one by one")
    return {name: octaves for name, octaves in found.items() if runs[name] == 1}, runs


def _last_blocks(model: nn.Module, octaves: Mapping[str, tuple[int, int]], running: Mapping[str, int]) -> list[str]:
    """Names of the last block at each octave of resolution, without global pooling.

    A block is a module that halves the resolution at most once. A module that halves it more often is a sequence of blocks.
    """
    modules = dict(model.named_modules())
    classifier = [name for name in running if isinstance(modules[name], nn.Conv2d | nn.Linear)][-1:]
    early = [*takewhile(lambda name: name not in classifier, running)]
    maps = [n for n in early if n in octaves and not any(modules[n].children()) and not isinstance(modules[n], _DropoutNd)]

    def grouped(module: nn.Module, path: str) -> bool:
        """Whether a sequence is more than a block: maps and a head, or more than norms before what halves."""
        if type(module) is not nn.Sequential or path not in octaves:
            return type(module) is nn.Sequential and any(name.startswith(f"{path}.") for name in maps)
        own = [(child, f"{path}.{name}") for name, child in module.named_children()]
        ahead = [*takewhile(lambda part: len({*octaves.get(part[1], [0])}) == 1, own)]
        more = any("Norm" not in type(m).__name__ for child, _ in ahead for m in child.modules() if not any(m.children()))
        return own[len(ahead) :] != [] and (more or grouped(*own[len(ahead)]))

    def blocks(module: nn.Module, prefix: str) -> Iterator[str]:
        for name, child in module.named_children():
            path = prefix + name
            inside = {octave for other, both in octaves.items() if other.startswith(f"{path}.") for octave in both}
            several = len(inside.union(octaves.get(path, ()))) > (2 if path in octaves else 1)  # with a head behind it
            if several or path not in running or grouped(child, path):
                # a list of blocks; or one with the head, or whose inside checkpointing calls
                yield from blocks(child, f"{path}.")
            elif path in octaves and not isinstance(child, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
                yield path

    last = {octaves[name][1]: name for name in sorted(blocks(model, ""), key=list(octaves).index)}
    if len(last) < 2:
        do = "pass layers=[module names], or for a pair of images compute one side first (docs/models.md)"
        raise InputError(f"{type(model).__name__} has no stages of falling resolution in modules that run once: {do}")
    return [name for _, name in sorted(last.items())]

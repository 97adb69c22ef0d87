"""A model borrowed for a while: in eval mode, by one caller at a time, and given back bit for bit. And how it is called."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import Lock, RLock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ltcam.engine.targets import describe
from ltcam.errors import InputError, LtcamError, of_loader

Output = Callable[[Any], Tensor]
Store = dict[str, Any]  # tensors or None

_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()  # one per module, because models may share modules
_GUARD = Lock()


class Ours:
    """True in the forward pass of its maker. False in another thread, and if checkpointing runs the pass again."""

    def __init__(self) -> None:
        self.thread, self.over = get_ident(), False

    def __bool__(self) -> bool:
        return not self.over and get_ident() == self.thread


@contextmanager
def borrowed(model: nn.Module, frozen: bool = True) -> Iterator[None]:
    """Eval mode and (if `frozen`) no weight gradients while the block runs, then everything as it was.

    Other threads that borrow any of its modules wait. Buffers come back with the same bits. So do the weights of modules that
    have a train() of their own, such as LoRA layers that merge in eval mode.
    """
    with ExitStack() as locks:
        with _GUARD:
            wanted = [_LOCKS.setdefault(m, RLock()) for m in sorted(model.modules(), key=id)]
        for lock in wanted:  # always in one order, so that no two threads wait for each other
            locks.enter_context(lock)
        modes = {module: module.training for module in model.modules()}
        plain = [nn.Module.train, nn.Module.eval]
        own = [m for m in modes if plain != [getattr(function, "__func__", None) for function in (m.train, m.eval)]]
        training = any(modes.values())
        custom = {m for module in own for m in module.modules()} if training else set()
        stores: list[Store] = [m._buffers for m in modes] + [m._parameters for m in custom]
        kept = [(s, dict(s), {n: v.detach().clone() for n, v in s.items() if v is not None}) for s in stores]
        flags = [(p, p.requires_grad) for p in model.parameters() if frozen]
        try:
            if training:  # a model in eval mode may have special modes inside
                model.eval()
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield
        finally:
            for module, mode in modes.items():
                if module in custom and module.training != mode:
                    module.train(mode)
            for module, mode in modes.items():
                module.training = mode
            for store, values, copies in kept:
                if [*store] != [*values] or any(store[name] is not value for name, value in values.items()):
                    store.clear()
                    store.update(values)
                for name, copy in copies.items():
                    if not torch.equal(values[name], copy):
                        values[name].data.copy_(copy)
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


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

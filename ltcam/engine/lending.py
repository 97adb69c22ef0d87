"""A model borrowed for a while: in eval mode, by one caller at a time, and given back bit for bit."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock, RLock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()  # one per module, because models may share modules
_GUARD = Lock()

Store = dict[str, Tensor | None]


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
        modes = [(module, module.training) for module in model.modules()]
        custom = {m for module, _ in modes if _changes(module) for m in module.modules()} if any(t for _, t in modes) else set()
        kept = [_copy(module._buffers) for module, _ in modes] + [_copy(m._parameters) for m in custom]  # type: ignore[arg-type]
        flags = [(p, p.requires_grad) for p in model.parameters() if frozen]
        try:
            if any(training for _, training in modes):  # a model in eval mode may have special modes inside
                model.eval()
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield
        finally:
            for module, mode in modes:
                if module in custom and module.training != mode:
                    module.train(mode)
            for module, mode in modes:
                module.training = mode
            for store, values, copies in kept:
                _restore(store, values, copies)
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


def _changes(module: nn.Module) -> bool:
    """Whether a module has a train() or eval() of its own."""
    own = [getattr(method, "__func__", None) for method in (module.train, module.eval)]
    return own != [nn.Module.train, nn.Module.eval]


def _copy(store: Store) -> tuple[Store, Store, Store]:
    return store, dict(store), {name: value.detach().clone() for name, value in store.items() if value is not None}


def _restore(store: Store, values: Store, copies: Store) -> None:
    if [*store] != [*values] or any(store[name] is not value for name, value in values.items()):
        store.clear()
        store.update(values)
    for name, copy in copies.items():
        value = values[name]
        assert value is not None and copy is not None
        if not torch.equal(value, copy):
            value.data.copy_(copy)

"""This process among those that share a run, and the loader processes that it starts for itself."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ltcam.errors import UnavailableError


def processes() -> PartialState:
    """This process among those of `accelerate launch` or torchrun, or alone: nccl between GPUs, gloo between CPUs."""
    return PartialState(cpu=not torch.cuda.is_available())


def loader(data: Dataset[Any], device: torch.device, **settings: Any) -> DataLoader[Any]:
    """A DataLoader with `settings` for a network on `device`.

    On a CPU the network is the bottleneck, so loader processes would only take cores from it; tensors need none anywhere.
    """
    cuda = device.type == "cuda" and not isinstance(data, TensorDataset)
    return _Loader(data, num_workers=8 if cuda else 0, pin_memory=cuda, **settings)


class _Loader(DataLoader[Any]):
    """Says in one line what went wrong in a loader process: torch passes on its traceback, or just that it is gone."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except (ValueError, RuntimeError) as error:
            first, *rest = str(error).strip().splitlines() or [""]
            if first.startswith("Caught "):
                raise type(error)(rest[-1].partition(": ")[2]) from error
            if first.startswith("DataLoader worker"):
                raise UnavailableError(f"{first}, as when memory runs out: what is done is kept; run again") from error
            raise

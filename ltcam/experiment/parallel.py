"""The processes that share a run, and the loader processes that each of them starts."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

with warnings.catch_warnings():  # a warning in notebooks about progress bars that are not used here
    warnings.filterwarnings("ignore", "IProgress not found")
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, gather_object, reduce

__all__ = ["PartialState", "broadcast_object_list", "gather_object", "loader", "processes", "reduce"]


def processes() -> PartialState:
    """This process among those of `accelerate launch` or torchrun, or alone: nccl between GPUs, gloo between CPUs."""
    return PartialState(cpu=not torch.cuda.is_available())


def loader(data: Dataset[Any], device: torch.device, **settings: Any) -> DataLoader[Any]:
    """A DataLoader with `settings` for a network on `device`.

    On a CPU the network is the bottleneck, so loader processes would only take cores from it. Tensors never need any.
    """
    cuda = device.type == "cuda" and not isinstance(data, TensorDataset)
    return _Loader(data, num_workers=8 if cuda else 0, pin_memory=cuda, **settings)


class _Loader(DataLoader[Any]):
    """Raises an error of a loader process as it was raised there. torch would put the traceback into the message."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except (ValueError, RuntimeError) as error:
            if not str(error).startswith("Caught "):
                raise
            raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from error

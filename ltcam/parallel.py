"""This process among those that share a run, and the loader processes that it starts for itself."""

from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset, TensorDataset


def processes() -> PartialState:
    """This process among those of `accelerate launch` or torchrun, or alone: nccl between GPUs, gloo between CPUs."""
    return PartialState(cpu=not torch.cuda.is_available())


def loader(data: Dataset[Any], device: torch.device, **settings: Any) -> DataLoader[Any]:
    """A DataLoader with `settings` for a network on `device`.

    On a CPU the network is the bottleneck, so loader processes would only take cores from it; tensors need none anywhere.
    """
    cuda = device.type == "cuda" and not isinstance(data, TensorDataset)
    return DataLoader(data, num_workers=8 if cuda else 0, pin_memory=cuda, **settings)

"""The processes that share a run, the loader processes that each of them starts, and one run at a time in a folder."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from ltcam.errors import UnavailableError
from ltcam.files import AnyPath, held

with warnings.catch_warnings():  # a warning in notebooks about progress bars that are not used here
    warnings.filterwarnings("ignore", "IProgress not found")
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, gather_object, reduce

__all__ = ["Shuffled", "alone", "gather_object", "loader", "processes", "reduce"]
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def processes() -> PartialState:
    """This process among those of `accelerate launch` or torchrun, or alone: nccl between GPUs, gloo between CPUs. Raises
    UnavailableError if the environment names others that no launcher has started: it would wait for them."""
    cpu, launched = not torch.cuda.is_available(), any(name.endswith("RANK") for name in os.environ)
    left = [f"{n}={v}" for n, v in os.environ.items() if n == "LOCAL_RANK" or (cpu and n in _SIZES and v != "1")]
    if left and not (launched and "MASTER_ADDR" in os.environ):
        do = "unset them, or start all processes by `accelerate launch` or torchrun"
        raise UnavailableError(f"{', '.join(left)} without MASTER_ADDR and a RANK, perhaps left by a scheduler: {do}")
    return PartialState(cpu=cpu)


def loader(data: Dataset[Any], device: torch.device, **settings: Any) -> DataLoader[Any]:
    """A DataLoader with `settings` for a network on `device`.

    On a CPU the network is the bottleneck, so loader processes would only take cores from it.
    """
    cuda = device.type == "cuda"
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
        except ConnectionError as error:  # the process died while it handed over a batch, before torch saw it
            raise RuntimeError("DataLoader worker exited unexpectedly") from error


class Shuffled(BatchSampler):
    """The indices of this process's share of each batch. The main process draws the batches as it would alone."""

    def __iter__(self) -> Iterator[list[int]]:
        self.whole: list[list[int]] = broadcast_object_list([*super().__iter__()])
        number, own = processes().num_processes, processes().process_index
        for batch in self.whole:  # where the last one has fewer images than there are processes, some repeat an image
            yield batch[own::number] or [batch[own % len(batch)]]


@contextmanager
def alone(folder: AnyPath, name: str = ".lock") -> Iterator[None]:
    """As `ltcam.files.held`. Of several processes the main one holds the folder, and all end the block together."""
    with held(folder, name) if processes().is_main_process else nullcontext():
        yield
        processes().wait_for_everyone()

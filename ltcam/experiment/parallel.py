"""The processes that share a run, the loader processes that each of them starts, and one run at a time in a folder."""

import logging
import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch.utils.data import BatchSampler, DataLoader, Dataset

from ltcam.errors import UnavailableError
from ltcam.files import AnyPath, clear, writing

with warnings.catch_warnings():  # a warning in notebooks about progress bars that are not used here
    warnings.filterwarnings("ignore", "IProgress not found")
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, gather_object, reduce

__all__ = ["Shuffled", "alone", "gather_object", "loader", "processes", "reduce"]
log = logging.getLogger(__name__)
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def processes() -> PartialState:
    """This process among those of `accelerate launch` or torchrun, or alone: nccl between GPUs, gloo between CPUs. Raises
    UnavailableError if the environment names others that no launcher has started: it would wait for them."""
    cpu, launched = not torch.cuda.is_available(), any(name.endswith("RANK") for name in os.environ)
    left = [f"{n}={v}" for n, v in os.environ.items() if n == "LOCAL_RANK" or (cpu and n in _SIZES and v != "1")]
    if left and not (launched and "MASTER_ADDR" in os.environ):
        do = "unset them, or start all processes by `accelerate launch` or torchrun"
        raise UnavailableError(f"{', '.join(left)} without MASTER_ADDR and a RANK, as a scheduler leaves behind: {do}")
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


class Shuffled(BatchSampler):
    """The indices of this process's share of each batch. The main process draws the batches as it would alone."""

    def __iter__(self) -> Iterator[list[int]]:
        self.whole: list[list[int]] = broadcast_object_list([*super().__iter__()])
        number, own = processes().num_processes, processes().process_index
        for batch in self.whole:  # where the last one has fewer images than there are processes, some repeat an image
            yield batch[own::number] or [batch[own % len(batch)]]


@contextmanager
def alone(folder: AnyPath, name: str = ".lock") -> Iterator[None]:
    """Clear `folder` of partial files and hold it while the block runs. The file `name` says who holds it.

    The operating system holds the lock, not the file, so no lock is left after `kill -9`. Of several processes the main one
    takes it, and all end the block together. Raises UnavailableError, naming the other run's process and age, if another run
    has the lock, or if the folder cannot be written. Where files cannot be locked, a warning is logged and the block runs.
    """
    path, lock = Path(folder, name), FileLock(Path(folder, name), timeout=0)
    if processes().is_main_process:
        try:
            with writing(folder):
                path.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire()
                path.write_text(f"process {os.getpid()} on {platform.node()}")
                clear(folder)
        except Timeout as error:
            holder = "another process"
            with suppress(FileNotFoundError):  # it is being removed right now
                holder = f"{path.read_text()}, for {timedelta(seconds=round(time.time() - path.stat().st_mtime))} now"
            raise UnavailableError(
                f"{folder} is being written by {holder}: wait for it, stop it, or write to another folder"
            ) from error
        except OSError as error:
            log.warning("%s cannot be locked (%s): make sure that no other run writes there", folder, error.strerror)
    try:
        yield
        processes().wait_for_everyone()
    finally:
        if lock.is_locked:
            path.unlink(missing_ok=True)  # while it is held: a run that opened it before finds it gone
            lock.release()

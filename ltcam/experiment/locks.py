"""One run at a time in a folder of results: a second one is refused, with the first's process and age.

Two kinds, both of a folder: `run`, for as long as a command (train, evaluate, reproduce) works there, and `write`, while
`training.train` or `evaluation.evaluate` does, so that a notebook's own call is guarded too, also one whose runner was killed.
The kernel of the system holds the lock, not the file: nothing is stale after `kill -9`.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from ltcam.errors import UnavailableError
from ltcam.experiment.parallel import broadcast_object_list, processes
from ltcam.files import clear

log = logging.getLogger(__name__)


@contextmanager
def alone(folder: Path, kind: Literal["run", "write"]) -> Iterator[None]:
    """Hold `folder`, cleared, while the block runs; its `.<kind>.lock` says who does, and is removed in the end.

    Of the processes of one `accelerate launch` the main one takes the lock, for all. Raises UnavailableError, in all of them,
    where another run has it. Where files cannot be locked (or written at all) that is said and the block runs.
    """
    path, refusal = folder / f".{kind}.lock", [""]
    lock = FileLock(path, timeout=0)
    if processes().is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            path.write_text(json.dumps({"pid": os.getpid(), "host": platform.node(), "started": time.time()}))
            clear(folder)
        except Timeout:
            refusal = [f"{folder} is being written by {_holder(path)}: let it end or stop it, or write to another folder"]
        except OSError as error:
            log.warning("%s cannot be locked (%s): let no other run write there", folder, error.strerror)
    if message := broadcast_object_list(refusal)[0]:  # no other process goes on before the main one has it
        raise UnavailableError(message)
    try:
        yield
    finally:
        if lock.is_locked:
            path.unlink(missing_ok=True)  # while it is held: who opened it before finds that it is gone
            lock.release()


def _holder(path: Path) -> str:
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError):  # it is just being written, or removed
        return "another process"
    age = timedelta(seconds=round(time.time() - about["started"]))
    return f"process {about['pid']} on {about['host']}, for {age} now"

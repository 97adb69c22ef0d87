"""One run at a time in a folder. A second run is refused; the error names the first one's process and age.

The operating system holds the lock, not the file, so no lock is left after `kill -9`.
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

from filelock import FileLock, Timeout

from ltcam.errors import UnavailableError
from ltcam.experiment.parallel import broadcast_object_list, processes
from ltcam.files import AnyPath, clear

log = logging.getLogger(__name__)


@contextmanager
def alone(folder: AnyPath, name: str = ".lock") -> Iterator[None]:
    """Clear `folder` of partial files and hold it while the block runs. The file `name` says who holds it.

    Under `accelerate launch` the main process takes the lock for all. Raises UnavailableError, in all processes, if another run
    has the lock. If files cannot be locked or written there, a warning is logged and the block runs.
    """
    folder = Path(folder)
    path, refusal = folder / name, [""]
    lock = FileLock(path, timeout=0)
    if processes().is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            path.write_text(json.dumps({"pid": os.getpid(), "host": platform.node(), "started": time.time()}))
            clear(folder)
        except Timeout:
            refusal = [f"{folder} is being written by {_holder(path)}: wait for it, stop it, or write to another folder"]
        except OSError as error:
            log.warning("%s cannot be locked (%s): make sure that no other run writes there", folder, error.strerror)
    if message := broadcast_object_list(refusal)[0]:  # the other processes wait until the main one has it
        raise UnavailableError(message)
    try:
        yield
    finally:
        if lock.is_locked:
            path.unlink(missing_ok=True)  # while it is held: a run that opened it before finds it gone
            lock.release()


def _holder(path: Path) -> str:
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError):  # it is being written or removed right now
        return "another process"
    age = timedelta(seconds=round(time.time() - about["started"]))
    return f"process {about['pid']} on {about['host']}, for {age} now"

"""What is killed, in a process of its own, and the killing."""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import psutil

from ltcam import files
from ltcam.__main__ import app
from ltcam.data import get as archives
from ltcam.data.sets import KSDD2
from ltcam.experiment import training
from ltcam.paper import reproduce

# Forked from a process that has imported everything and run nothing, so that a kill costs no import.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])
TIMES = int(os.environ.get("LTCAM_FAULTS", "1"))
STARTS = 100  # of a run that is to be killed, as it may end before
SEED = int(os.environ.get("LTCAM_FAULTS_SEED", time.time_ns() % 1_000_000))


def train(recipe, out):
    training.train(recipe, Path(out))


def evaluate(checkpoint, out):
    options = ["--checkpoint", checkpoint, "--out", out, "--batch-size", "1", "--config", "gradcam:S1-S5:20"]
    app(["evaluate", *options], standalone_mode=False)


def get(root, source):
    """ "data get ksdd2" of a tiny archive, in many small pieces."""
    archives.SOURCES["ksdd2"], archives.CHUNK, KSDD2.official = source, 64, {"train": 12, "test": 8}
    archives.get("ksdd2", Path(root))


def series(notebooks):
    """The profile `tiny` of a folder of notebooks."""
    files.NOTEBOOKS = Path(notebooks)
    reproduce.reproduce("tiny")


def _run(work, arguments, folder, fatal, environment, pipe):
    """`work`, killed right before the change number `fatal` that it makes in `folder`; if 0, it tells how long and how many."""
    os.environ.update(environment)
    changes = 0

    def count(event, about):
        nonlocal changes
        writes = event == "open" and isinstance(about[2], int) and about[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")) and str(about[0]).startswith(folder):
            changes += 1
            if changes == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    started = time.time()
    pipe.send("begun")
    work(*arguments)
    pipe.send((time.time() - started, changes))


def _start(work, arguments, folder, fatal=0):
    receiver, sender = CONTEXT.Pipe(duplex=False)
    environment = {name: value for name, value in os.environ.items() if name.startswith(("LTCAM_", "no_proxy", "NO_PROXY"))}
    process = CONTEXT.Process(target=_run, args=(work, arguments, str(folder), fatal, environment, sender))
    process.start()
    sender.close()
    if receiver.recv() != "begun":
        raise AssertionError("it did not begin")
    return process, receiver


def undisturbed(work, arguments, folder):
    """Seconds that it takes, and changes of files in `folder`."""
    process, receiver = _start(work, arguments, folder)
    seconds, changes = receiver.recv()
    process.join()
    return seconds, changes


def kill(number, work, arguments, folder, seconds, changes):
    """kill -9 it once, before it has ended; returns when, in words. What `number` is killed at depends on the seed alone."""
    rng = random.Random(SEED + number)
    for _ in range(STARTS):
        fatal = rng.randint(1, changes) if rng.random() < 0.5 else 0
        moment = rng.uniform(0, seconds)
        process, receiver = _start(work, arguments, folder, fatal)
        if not fatal:
            process.join(moment)
            process.kill()
        process.join()
        receiver.close()
        if process.exitcode == -signal.SIGKILL:
            return f"seed {SEED}, kill {number}: " + (f"before change {fatal}" if fatal else f"after {moment:.3f} s")
    raise AssertionError("it always ended before the kill")


def kernels(output):
    """The notebook kernels that write to `output`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("LTCAM_OUTPUT") == str(output) and os.getpgid(process.pid) == process.pid:
                found += [process] * any("forkserver" in text for text in process.cmdline())
        except psutil.Error:
            continue
    return found

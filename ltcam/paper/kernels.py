"""Kernels that start at once: forks of one process that has imported what notebooks import, and has computed nothing."""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint
from multiprocessing import forkserver, parent_process
from multiprocessing.context import ForkServerProcess
from threading import Thread
from typing import Any

import matplotlib
import pandas as pd
from ipykernel.kernelapp import IPKernelApp
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

IMPORTED = [__name__, "ltcam.paper", "ltcam.show.figures"]  # not a backend of matplotlib, which looks for its IPython
INLINE = "module://matplotlib_inline.backend_inline"
LAUNCHER = "ipykernel_launcher"


def fork() -> None:
    """Python's kernels that this process starts from now on are forks. They import from where this process does. Raises OSError
    where the process that is forked cannot start."""
    before = dict(os.environ)
    try:
        os.environ.update(PYTHONPATH=os.pathsep.join(path or "." for path in sys.path), PYTHONSAFEPATH="1")
        forkserver.set_forkserver_preload(IMPORTED)
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    own = EntryPoint("local-provisioner", f"{__name__}:Forks", KernelProvisionerFactory.GROUP_NAME)
    KernelProvisionerFactory.instance().provisioners[own.name] = own


class Forks(LocalProvisioner):
    """Forks a kernel if its command is that of Python's."""

    async def launch_kernel(self, cmd: list[str], **options: Any) -> Any:
        if LAUNCHER not in cmd:
            return await super().launch_kernel(cmd, **options)
        own = Kernel(cmd[cmd.index(LAUNCHER) + 1 :], options.get("env") or os.environ, options.get("cwd") or ".")
        own.start()
        self.process, self.pid, self.pgid = own, own.pid, own.pid  # type: ignore[assignment]
        return self.connection_info


class Kernel(ForkServerProcess):
    """A kernel with the methods of `subprocess.Popen` that a provisioner calls. argv: what follows the launcher's name."""

    stdin = stdout = stderr = None

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: str) -> None:
        super().__init__()
        self.argv, self.env, self.cwd = argv, dict(env), cwd

    def run(self) -> None:
        os.setsid()  # so that what it starts ends with it
        os.chdir(self.cwd)
        os.environ.clear()
        os.environ.update(self.env)
        matplotlib.rcParams["backend"] = INLINE  # pyplot loads it later, when IPython is there
        pd.set_option("display.max_columns", 20)  # as pandas has it where it finds a notebook
        Thread(target=_end_with_parent, daemon=True).start()
        IPKernelApp.launch_instance([*self.argv, f"--IPKernelApp.parent_handle={os.getppid()}"])  # or it says how to connect

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int | None:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        if self.pid and self.is_alive():
            os.kill(self.pid, number)


def _end_with_parent() -> None:
    """Not with its parent for the system, which lives as long as its kernels."""
    if parent := parent_process():
        parent.join()
    os._exit(1)

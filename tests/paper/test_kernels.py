"""A notebook's kernel is a fork: it starts with everything imported, and is otherwise as one that was started by itself."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import psutil
from jupyter_client.manager import start_new_async_kernel

from ltcam.paper import kernels

ASKED = """
import json, os, sys
imported = "ltcam.show.figures" in sys.modules
import matplotlib.pyplot as plt, pandas as pd
shown = pd.get_option("display.max_columns")
print(json.dumps([imported, os.getcwd(), os.environ.get("MINE"), os.getsid(0) == os.getpid(), plt.get_backend(), shown]))
"""
STARTS = """
from jupyter_client.manager import start_new_kernel
from ltcam.paper import kernels
if __name__ == "__main__":
    kernels.fork()
    manager, _ = start_new_kernel()
    print(manager.provisioner.pid, flush=True)
    input()
"""


@asynccontextmanager
async def kernel(folder):
    """A kernel, and a function that runs code in it and returns its reply and what it printed."""
    before = dict(os.environ)
    kernels.fork()
    assert dict(os.environ) == before
    manager, client = await start_new_async_kernel(cwd=str(folder), env={**os.environ, "MINE": "own"})
    number = manager.provisioner.pid

    async def ask(code):
        said = []
        reply = await client.execute_interactive(code, timeout=60, output_hook=said.append)
        return reply["content"], "".join(message["content"].get("text", "") for message in said)

    yield manager, ask
    client.stop_channels()
    await manager.shutdown_kernel(now=True)
    assert not psutil.pid_exists(number)


def test_a_kernel_has_its_own_folder_and_surroundings_and_what_notebooks_import(tmp_path):
    async def talk():
        async with kernel(tmp_path) as (_, ask):
            return await ask(ASKED)

    assert json.loads(asyncio.run(talk())[1]) == [True, str(tmp_path), "own", True, kernels.INLINE, 20]


def test_kernels_do_not_share_what_they_change(tmp_path):
    async def talk():
        async with kernel(tmp_path) as (_, one), kernel(tmp_path) as (_, other):
            return await one("import ltcam; ltcam.changed = True"), await other("import ltcam; ltcam.changed")

    (one, _), (other, _) = asyncio.run(talk())
    assert one["status"] == "ok" and other["ename"] == "AttributeError"


def test_a_kernel_can_be_interrupted(tmp_path):
    async def talk():
        async with kernel(tmp_path) as (manager, ask):
            asked = asyncio.create_task(ask("import time; time.sleep(50)"))
            await asyncio.sleep(1)
            await manager.interrupt_kernel()
            return await asked

    assert asyncio.run(talk())[0]["ename"] == "KeyboardInterrupt"


def test_a_kernel_that_died_is_told_and_can_be_shut_down(tmp_path):
    async def talk():
        async with kernel(tmp_path) as (manager, _):
            process = psutil.Process(manager.provisioner.pid)
            process.kill()
            psutil.wait_procs([process], timeout=30)
            await manager.provisioner.send_signal(signal.SIGINT)
            return await manager.provisioner.poll(), await manager.is_alive()

    assert asyncio.run(talk()) == (-signal.SIGKILL, False)


def test_no_kernel_outlives_the_process_that_started_it(tmp_path):
    (tmp_path / "starts.py").write_text(STARTS)
    with subprocess.Popen([sys.executable, tmp_path / "starts.py"], stdin=-1, stdout=-1, text=True) as process:
        forked = psutil.Process(int(process.stdout.readline()))
        server = forked.parent()
        process.send_signal(signal.SIGKILL)
        gone, alive = psutil.wait_procs([forked, server], timeout=30)
    assert not alive and len(gone) == 2

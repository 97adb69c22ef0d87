"""What only shows in the long run: memory that grows, and runs that ought to be the same and are not."""

import shutil
import time
from dataclasses import replace

import psutil
import pytest
import torch

from ltcam.engine.config import Config
from ltcam.experiment.training import train
from tests.faults.conftest import evaluate, run_of
from tests.faults.kills import TIMES

CONFIGS = [Config("gradcam", "S1-S5", 20.0), Config("layercam", "S1-S5", 0.0), Config("fullgrad", "all")]


def test_memory_stays(trained, fault, tmp_path):
    """Fifty evaluations in one process, or five hundred: after the first fifth memory grows by less than 2%."""
    seen, sizes = fault("evaluations in one process"), []

    def run():
        for number in range(50 * TIMES):
            evaluate(trained, "val/2", CONFIGS, tmp_path / "run")
            shutil.rmtree(tmp_path / "run")
            if number in (10 * TIMES - 1, 50 * TIMES - 1):
                sizes.append(psutil.Process().memory_info().rss / 2**20)

    assert not seen.attempt(run)
    before, after = sizes
    seen.tried = 50 * TIMES
    seen.message = f"memory from {before:.0f} to {after:.0f} MB, {100 * (after / before - 1):+.2f}%"
    assert after < 1.02 * before, seen.message


@pytest.fixture
def deterministic():
    yield lambda on: torch.use_deterministic_algorithms(on)
    torch.use_deterministic_algorithms(False)


def test_deterministic_mode(voc, fault, tmp_path, deterministic):
    """Equal runs leave equal bytes, with torch's deterministic algorithms and, on a CPU, without them."""
    seen, seconds, left = fault("equal runs in deterministic mode"), {}, []
    voc = replace(voc, epochs=1)
    for number in range(2):
        for on in (False, True):
            deterministic(on)
            out, started = tmp_path / f"{on}{number}", time.perf_counter()
            assert not seen.attempt(lambda out=out: train(voc, out))
            seconds.setdefault(on, []).append(time.perf_counter() - started)
            left.append(run_of(out))
    assert left[0] and all(run == left[0] for run in left)
    seen.message = f"{min(seconds[True]) / min(seconds[False]):.2f} of the time without"

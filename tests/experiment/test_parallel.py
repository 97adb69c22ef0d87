"""Two processes by torchrun, gloo on a CPU: they train and count what one does."""

import itertools
import json
import re
import subprocess
import sys

import pytest
import torch

from ltcam import files
from ltcam.errors import UnavailableError
from ltcam.experiment import counting, parallel, provenance, training
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.trained import load_checkpoint
from tests.experiment.test_counting import CONFIGS, counted
from tests.interrupts import at_call
from tests.two_processes import quiet_recipes


def test_two_processes_train_and_count_what_one_does(checkpoint, trained, tmp_path, monkeypatch):
    """Each training is interrupted and goes on. The first two batches are of an interrupted run of one process, the others are
    dealt out. What one process alone finds to be no number stops both."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    counted(tmp_path / "counts-alone", trained, "val", CONFIGS[:2], Protocol(1))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(counting, "count_batch", at_call(3, counting.count_batch)[1])
        counted(tmp_path / "counts", trained, "val", CONFIGS[:2], Protocol(1))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.two_processes",
    ]
    done = subprocess.run([*launch, tmp_path, checkpoint], capture_output=True, text=True, timeout=300, cwd=files.ROOT)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(training, "augmentation", lambda *arguments: None)
    for name, recipe in quiet_recipes().items():
        alone, shared = (load_checkpoint(training.train(recipe, tmp_path / run)) for run in (f"{name}-alone", name))
        torch.testing.assert_close(shared.model.state_dict(), alone.model.state_dict(), rtol=0, atol=1e-5)
        assert shared.record["last"] == pytest.approx(alone.record["last"], rel=1e-5 if name == "convolutions" else 1e-2)
        assert json.loads((tmp_path / name / "run.json").read_text())["processes"] == 2
    torch.set_num_threads(threads)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["saves"] and not second["saves"]  # one writes
    assert first["seed"] != second["seed"]  # flips, scales and dropout of its own
    assert first["error"] == second["error"] and re.match(r"the loss of batch 1 of 2 \(2007_.*\) is nan at lr", first["error"])
    for name in ("counts.val.csv.gz", "logits.val.csv.gz"):
        assert (tmp_path / "counts" / name).read_bytes() == (tmp_path / "counts-alone" / name).read_bytes()
    assert provenance.read(tmp_path / "counts")["counts.val.csv.gz"]["processes"] == 2
    assert first["counted"] == second["counted"] == 2 and not list(tmp_path.rglob("*partial*"))  # of six images


@pytest.mark.parametrize(
    ("kind", "raised", "said"),
    [
        (
            ValueError,
            ValueError("Caught ValueError in DataLoader worker process 0.\nTraceback\nltcam.errors.InputError: a: b"),
            "a: b",
        ),
        (RuntimeError, ConnectionResetError("[Errno 104] Connection reset by peer"), "DataLoader worker exited unexpectedly"),
    ],
)
def test_an_error_of_a_loader_process_is_raised_as_it_was_there(kind, raised, said):
    """And one that dies in the middle of a batch is named."""

    class Bad(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise raised

    with pytest.raises(kind, match=f"^{said}$"):
        list(parallel.loader(Bad(), torch.device("cpu")))


LEFT = [
    {"WORLD_SIZE": "4"}, {"WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"}, {"WORLD_SIZE": "many"}, {"PMI_SIZE": "8"},
    {"OMPI_COMM_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, {"WORLD_SIZE": "2", "RANK": "0"}, {"LOCAL_RANK": "0"},
]  # fmt: skip


@pytest.fixture
def afresh(monkeypatch):
    """As in a new process. What accelerate sets itself is gone afterwards."""
    monkeypatch.setattr(parallel.PartialState, "_shared_state", {})
    for name in {*itertools.chain(*LEFT), "MASTER_PORT", "LOCAL_WORLD_SIZE"}:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("left", LEFT, ids=str)
def test_what_a_scheduler_left_is_named(left, afresh, monkeypatch):
    """One that waited for the others would wait for ever."""
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    named = ", ".join(f"{name}={value}" for name, value in left.items() if name not in ("MASTER_ADDR", "RANK"))
    with pytest.raises(
        UnavailableError,
        match=rf"^{named} without MASTER_ADDR and a RANK, [^\n]+: unset them, or start all .* `accelerate launch`",
    ):
        parallel.processes()
    assert not parallel.PartialState._shared_state


@pytest.mark.parametrize("left", [{}, {"WORLD_SIZE": "1"}, {"PMI_SIZE": "1"}], ids=str)
def test_one_process_is_alone(left, afresh, monkeypatch):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert parallel.processes().num_processes == 1

"""What goes wrong while a run runs: another beside it, numbers that are none, memory, loader processes, other data."""

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from PIL import Image

from ltcam import data as datasets
from ltcam import files
from ltcam.experiment import checkpoints, counting, evaluation, features, locks, parallel, seeds, training
from ltcam.experiment.configs import Config, Protocol
from ltcam.experiment.evaluation import evaluate
from ltcam.experiment.training import train
from ltcam.paper import reproduce
from tests import lookalikes
from tests.faults import kills
from tests.faults.conftest import contents, run_of
from tests.paper.test_reproduce import RECIPE

CONFIGS = [Config("gradcam"), Config("layercam", "S1-S5", 20.0)]


def hold(out, kind):
    with locks.alone(out, kind):
        os.kill(os.getpid(), signal.SIGSTOP)  # as long as the test needs it


@pytest.mark.parametrize("command", ["train", "evaluate", "reproduce"])
def test_a_second_run_is_refused(command, voc, checkpoint, fault, tmp_path, monkeypatch):
    """With the first's process and age; and after kill -9 of the first nothing is in the way."""
    monkeypatch.setenv("LTCAM_OUTPUT", str(tmp_path))
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.ksdd2(tmp_path / "data")))
    monkeypatch.setattr(reproduce, "_execute", lambda *a: None)
    out = files.results("paper", "ksdd2") if command == "reproduce" else tmp_path / "run"
    calls = {
        "train": lambda: train(voc, out),
        "evaluate": lambda: kills.evaluate(str(checkpoint), str(out)),
        "reproduce": lambda: reproduce.reproduce("paper", data="ksdd2", only="02", recipe=RECIPE),
    }
    if command != "reproduce":
        monkeypatch.setenv("LTCAM_DATA", str(checkpoint.parents[1] / "data"))
    seen = fault(f"a second `ltcam {command}` in a folder")
    first, _ = kills._start(hold, (out, "write" if command == "train" else "run"), out)
    try:
        _stopped(first.pid)
        before = contents(out)
        said = seen.attempt(calls[command], lambda: contents(out) == before)
    finally:
        first.kill()
        first.join()
    pattern = rf"{out} is being written by process {first.pid} on \S+, for 0:00:\d\d now: wait for it, stop it"
    assert re.search(pattern, said) and list(out.glob(".*.lock"))
    calls[command]()
    assert not list(out.glob(".*.lock"))


def _stopped(pid):
    while (status := psutil.Process(pid).status()) != psutil.STATUS_STOPPED:
        assert status != psutil.STATUS_ZOMBIE


def test_a_lock_is_held_while_it_matters(voc, trained, tmp_path, monkeypatch):
    """In training and in evaluation, also without a command; a folder that is done is free."""
    tried, fit, count = [], training._fit_epoch, evaluation.count

    def second(work, out):
        def working(*arguments):
            with pytest.raises(RuntimeError, match=rf"is being written by process {os.getpid()} on"), locks.alone(out, "write"):
                pass
            tried.append(out)
            return work(*arguments)

        return working

    monkeypatch.setattr(training, "_fit_epoch", second(fit, tmp_path / "a"))
    monkeypatch.setattr(evaluation, "count", second(count, tmp_path / "b"))
    evaluate(trained, "val", CONFIGS, tmp_path / "b")
    train(replace(voc, epochs=1), tmp_path / "a")
    assert set(tried) == {tmp_path / "a", tmp_path / "b"} and not list(tmp_path.rglob("*.lock"))


def test_where_nothing_can_be_locked_runs_go_on(tmp_path, monkeypatch, caplog):
    def flock(file, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with locks.alone(tmp_path, "run"):
        pass
    assert "cannot be locked (No locks available): make sure that no other run writes there" in caplog.text


def test_a_loss_that_is_no_number(voc, fault, tmp_path, monkeypatch):
    """One image of the second epoch makes it so: its batch is named, and what the first epoch left is kept and gone on with."""
    train(voc, tmp_path / "whole")
    fit, item, served, epochs = training._fit_epoch, features.Labelled.__getitem__, [], []

    def epoch(*arguments):
        epochs.append(contents(tmp_path / "run", ".pt"))
        served.clear()
        return fit(*arguments)

    def poisoned(self, index):
        served.append(self.data.entries[index].name)
        image, label = item(self, index)
        return (image * float("nan") if len(epochs) == 2 and self.augment and index == 5 else image), label

    seen = fault("a loss that is no number")
    with monkeypatch.context() as patch:
        patch.setattr(training, "_fit_epoch", epoch)
        patch.setattr(features.Labelled, "__getitem__", poisoned)
        said = seen.attempt(lambda: train(voc, tmp_path / "run"), lambda: contents(tmp_path / "run", ".pt") == epochs[1] != {})
    number = served.index("2007_000005") // 4
    names = ", ".join(served[4 * number : 4 * number + 4])
    expected = (
        f"the loss of batch {number + 1} of 2 ({names}) is nan at lr=0.001: look at these images, or train with a smaller lr"
    )
    assert said.startswith(expected) and len(served) == 4 * number + 4
    train(voc, tmp_path / "run")
    assert run_of(tmp_path / "run") == run_of(tmp_path / "whole")


def test_weights_that_are_no_numbers(voc, fault, tmp_path):
    """The last step of an epoch made them so: no loss has seen it."""
    said = fault("weights that are no numbers").attempt(
        lambda: train(replace(voc, lr=1e30, batch_size=8), tmp_path / "run"), lambda: not contents(tmp_path / "run", ".pt")
    )
    assert said.startswith("after epoch 1 the logits are not finite at lr=1e+30: train with a smaller lr")


def test_memory_of_a_gpu(trained, fault, tmp_path, monkeypatch):
    """Twice: it holds one image at a time, then none."""
    whole = evaluate(trained, "val", CONFIGS, tmp_path / "whole", Protocol(4))
    count, counts = counting._count_batch, []

    def small(trained, samples, *rest):
        if len(samples) > holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return count(trained, samples, *rest)

    seen, out = fault("CUDA out of memory"), tmp_path / "run"
    call = lambda: counts.append(evaluate(trained, "val", CONFIGS, out / str(holds), Protocol(4)))  # noqa: E731
    monkeypatch.setattr(counting, "_count_batch", small)
    holds = 1
    assert not seen.attempt(call, lambda: counts[0].equals(whole))
    holds = 0
    said = seen.attempt(call, lambda: not (out / "0" / "counts.csv.gz").exists())
    assert re.match(r"GPU memory does not hold one image \(2007_\d+, mask \(45, 60\)\): free memory", said)
    holds = 9
    pd.testing.assert_frame_equal(evaluate(trained, "val", CONFIGS, out / "0", Protocol(4)), whole)


class _Worker:
    """In a loader process, and where its file is not there yet: something happens at the third image."""

    def __init__(self, data, flag, what):
        self.data, self.flag, self.what = data, flag, what

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() and index == 2 and not self.flag.exists():
            self.flag.touch()
            self.what()
        return self.data[index]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def refuse():
    raise datasets.DataError("2007_000010.jpg cannot be read as an image (truncated): it is damaged; fetch it again")


WORKERS = {
    "a loader process that is killed": (
        die,
        r"^DataLoader worker \(pid.* \d+\) (exited unexpectedly|is killed by signal: Killed)",
    ),
    "an image that a loader process cannot read": (
        refuse,
        r"^2007_000010.jpg cannot be read .*: it is damaged; fetch it again$",
    ),
}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("name", WORKERS)
def test_loader_processes(name, voc, trained, fault, tmp_path, monkeypatch):
    """As they are used beside a GPU, in training and in evaluation; run again, both end as if nothing had been."""
    what, expected = WORKERS[name]
    monkeypatch.setenv("LTCAM_DATA", str(tmp_path / "data"))

    def loader(data, device, **settings):
        return parallel._Loader(_Worker(data, flag, what), num_workers=2, **settings)

    for module in (training, features, evaluation):
        monkeypatch.setattr(module, "loader", loader)
    (flag := tmp_path / "undisturbed").touch()
    train(voc, tmp_path / "whole")
    whole = evaluate(trained, "val", CONFIGS, tmp_path / "counts", Protocol(1))
    seen, out = fault(name), tmp_path / "run"
    flag = tmp_path / "in training"
    said = seen.attempt(lambda: train(voc, out), lambda: not contents(out, ".pt"))
    assert re.search(expected, said) and "\n" not in said
    train(voc, out)
    trained_again = run_of(out)
    assert trained_again == run_of(tmp_path / "whole")
    flag = tmp_path / "in evaluation"
    said = seen.attempt(lambda: evaluate(trained, "val", CONFIGS, out, Protocol(1)), lambda: run_of(out) == trained_again)
    assert re.search(expected, said) and "\n" not in said
    pd.testing.assert_frame_equal(evaluate(trained, "val", CONFIGS, out, Protocol(1)), whole)


def test_other_data_than_the_trainings(voc, fault, tmp_path):
    """An image of the part trained on; another part is none of its business."""
    trained = checkpoints.load_checkpoint(train(replace(voc, epochs=1), tmp_path / "run"))
    seen = fault("data that changed between training and evaluation")
    path = next((tmp_path / "data").rglob("JPEGImages/2007_000001.jpg"))
    content = path.read_bytes()
    Image.open(path).rotate(180).save(path)
    out = tmp_path / "counts"
    for call in (
        lambda: evaluate(trained, "train", CONFIGS, out),
        lambda: seeds.export(trained, "train", CONFIGS[0], out),
        lambda: trained.load("train"),
    ):
        said = seen.attempt(call, lambda: not contents(out))
        assert said.startswith("PASCAL VOC 2012 subset, part train: its files have changed since the training (fingerprint ")
    evaluate(trained, "val", CONFIGS[:1], tmp_path / "val")
    path.write_bytes(content)
    evaluate(trained, "train", CONFIGS[:1], out)


def test_held_out_data_that_changed_are_measured_anew(trained, tmp_path, caplog):
    """The training never saw them, so their fingerprint is kept with the counts."""
    evaluate(trained, "val", CONFIGS[:1], tmp_path)
    before = json.loads((tmp_path / "counts.json").read_text())["fingerprint"]
    path = next(Path(os.environ["LTCAM_DATA"]).rglob("JPEGImages/2007_000009.jpg"))
    content = path.read_bytes()
    try:
        Image.open(path).rotate(180).save(path)
        evaluate(trained, "val", CONFIGS[:1], tmp_path)
        now = datasets.load("voc2012", "val").fingerprint
    finally:
        path.write_bytes(content)
    assert "the counts are of another checkpoint, data set, protocol or code: measuring again" in caplog.text
    assert json.loads((tmp_path / "counts.json").read_text())["fingerprint"] == now != before


def test_records_that_were_cut_off(trained, fault, tmp_path):
    """As when power fails: what they are of is measured anew."""
    whole = evaluate(trained, "val", CONFIGS, tmp_path)
    counts = (tmp_path / "counts.csv.gz").read_bytes()
    (tmp_path / "counts.json").write_bytes(b"")
    seen = fault("a record of counts that is of zero bytes")
    again = lambda: (tmp_path / "counts.csv.gz").read_bytes() == counts  # noqa: E731
    assert not seen.attempt(lambda: pd.testing.assert_frame_equal(evaluate(trained, "val", CONFIGS, tmp_path), whole), again)

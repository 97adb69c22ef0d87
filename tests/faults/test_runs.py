"""What goes wrong while a run runs: another beside it, numbers that are none, memory, loader processes, other data."""

import os
import re
import signal
from dataclasses import replace
from functools import partial

import pandas as pd
import psutil
import pytest
import torch
from PIL import Image

from ltcam import data as datasets
from ltcam import files
from ltcam.engine.config import Config
from ltcam.experiment import counting, parallel, seeds, training
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.store import Store
from ltcam.experiment.trained import load_checkpoint
from ltcam.experiment.training import train
from ltcam.paper import reproduce
from tests.faults import kills
from tests.faults.conftest import contents, evaluate, run_of
from tests.faults.test_kills import one_notebook

CONFIGS = [Config("gradcam"), Config("layercam", "S1-S5", 20.0)]


def hold(out, kind):
    with parallel.alone(out, kind):
        os.kill(os.getpid(), signal.SIGSTOP)  # as long as the test needs it


@pytest.mark.parametrize("command", ["train", "evaluate", "reproduce"])
def test_a_second_run_is_refused(command, voc, checkpoint, fault, tmp_path, monkeypatch):
    """With the first's process and age; and after kill -9 of the first nothing is in the way."""
    monkeypatch.setenv("LTCAM_OUTPUT", str(tmp_path))
    monkeypatch.setattr(files, "NOTEBOOKS", one_notebook(tmp_path / "notebooks"))
    monkeypatch.setattr(reproduce, "_execute", lambda *a: None)
    out = files.results("tiny", "voc2012") if command == "reproduce" else tmp_path / "run"
    calls = {
        "train": lambda: train(replace(voc, epochs=1), out),
        "evaluate": lambda: kills.evaluate(str(checkpoint), str(out)),
        "reproduce": lambda: reproduce.reproduce("tiny"),
    }
    seen = fault(f"a second `ltcam {command}` in a folder")
    first, _ = kills._start(hold, (out, ".lock" if command == "train" else ".run.lock"), out)
    try:
        _stopped(first.pid)
        before = contents(out)
        said = seen.attempt(calls[command], lambda: contents(out) == before)
    finally:
        first.kill()
        first.join()
    pattern = rf"{out} is being written by process {first.pid} on \S+, for 0:00:\d\d now: wait for it, stop it"
    assert re.search(pattern, said) and list(out.glob(".*lock"))
    calls[command]()
    assert not list(out.glob(".*lock"))


def _stopped(pid):
    while (status := psutil.Process(pid).status()) != psutil.STATUS_STOPPED:
        assert status != psutil.STATUS_ZOMBIE


def test_a_lock_is_held_while_it_matters(voc, trained, tmp_path, monkeypatch):
    """In training and in evaluation, also without a command; a folder that is done is free."""
    tried, fit, count = [], training._fit_epoch, counting.count_batch

    def second(work, out):
        def working(*arguments):
            with pytest.raises(RuntimeError, match=rf"is being written by process {os.getpid()} on"), parallel.alone(out):
                pass
            tried.append(out)
            return work(*arguments)

        return working

    monkeypatch.setattr(training, "_fit_epoch", second(fit, tmp_path / "a"))
    monkeypatch.setattr(counting, "count_batch", second(count, tmp_path / "b"))
    evaluate(trained, "val", CONFIGS, tmp_path / "b")
    train(replace(voc, epochs=1), tmp_path / "a")
    assert set(tried) == {tmp_path / "a", tmp_path / "b"} and not list(tmp_path.rglob("*lock"))


def test_where_nothing_can_be_locked_runs_go_on(tmp_path, monkeypatch, caplog):
    def flock(file, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with parallel.alone(tmp_path):
        pass
    assert "cannot be locked (No locks available): make sure that no other run writes there" in caplog.text


def test_a_loss_that_is_no_number(voc, fault, tmp_path, monkeypatch):
    """One image of the second epoch makes it so: its batch is named, and what the first epoch left is kept and gone on with."""
    train(voc, tmp_path / "whole")
    fit, item, served, epochs = training._fit_epoch, training.Inputs.__getitem__, [], []

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
        patch.setattr(training.Inputs, "__getitem__", poisoned)
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
    count, counts = counting._count, []

    def small(trained, samples, *rest):
        if len(samples) > holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return count(trained, samples, *rest)

    seen, out = fault("CUDA out of memory"), tmp_path / "run"
    call = lambda: counts.append(evaluate(trained, "val", CONFIGS, out / str(holds), Protocol(4)))  # noqa: E731
    monkeypatch.setattr(counting, "_count", small)
    holds = 1
    assert not seen.attempt(call, lambda: counts[0].equals(whole))
    holds = 0
    said = seen.attempt(call, lambda: not list((out / "0").glob("*.gz")))
    assert re.match(r"GPU memory does not hold one image \(2007_\d+, mask \(\d\d, \d\d\)\): free memory", said)
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
        r"^DataLoader worker (\(pid.* \d+\) )?(exited unexpectedly|is killed by signal: Killed)",
    ),
    "an image that a loader process cannot read": (
        refuse,
        r"^2007_000010.jpg cannot be read .*: it is damaged; fetch it again$",
    ),
}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_loader_processes(voc, trained, fault, tmp_path, monkeypatch):
    """As they are used beside a GPU, in training and in evaluation; run again, both end as if nothing had been."""
    voc, flag, what = replace(voc, epochs=1), tmp_path, die  # nothing happens while the flag is there

    def loader(data, device, **settings):
        return parallel._Loader(_Worker(data, flag, what), num_workers=1, **settings)

    for module in (training, counting):
        monkeypatch.setattr(module, "loader", loader)
    train(voc, tmp_path / "whole")
    whole = evaluate(trained, "val", CONFIGS, tmp_path / "counts", Protocol(1))
    for number, name in enumerate(WORKERS):
        (what, expected), seen, out = WORKERS[name], fault(name), tmp_path / f"run{number}"
        flag = tmp_path / f"in training {number}"
        said = seen.attempt(lambda out=out: train(voc, out), lambda out=out: not contents(out, ".pt"))
        assert re.search(expected, said) and "\n" not in said
        train(voc, out)
        again = run_of(out)
        assert again == run_of(tmp_path / "whole")
        flag = tmp_path / f"in evaluation {number}"
        count = partial(evaluate, trained, "val", CONFIGS, out, Protocol(1))
        said = seen.attempt(count, lambda out=out, again=again: run_of(out) == again)
        assert re.search(expected, said) and "\n" not in said
        pd.testing.assert_frame_equal(count(), whole)


def test_other_data_than_the_trainings(voc, checkpoint, fault, tmp_path):
    """An image of the part trained on; another part is none of its business."""
    changed = replace(voc, epochs=1)
    os.environ["LTCAM_DATA"] = str(tmp_path / "data")  # of `voc`, and set back with it
    trained = load_checkpoint(train(changed, tmp_path / "run"))
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
    before = evaluate(trained, "val", CONFIGS, tmp_path / "val")
    path.write_bytes(content)
    evaluate(trained, "train", CONFIGS[:1], out)
    held_out = next((tmp_path / "data").rglob("JPEGImages/2007_000009.jpg"))  # never seen, so its counts are kept beside
    Image.open(held_out).rotate(180).save(held_out)
    evaluate(trained, "val", CONFIGS, tmp_path / "val")
    store = Store(tmp_path / "val")
    assert store.find(part="val") == [1, 2] == [1, *store.find(fingerprint=datasets.load("voc2012", "val").fingerprint)]
    assert len(store.frame(1)) == len(store.frame(2)) == len(before)


def test_records_that_were_cut_off(trained, fault, tmp_path):
    """As when power fails: the store is made again from its exports; a record of nothing is named."""
    whole = evaluate(trained, "val", CONFIGS, tmp_path)
    seen, left = fault("a record of counts that is of zero bytes"), run_of(tmp_path)
    call = lambda: pd.testing.assert_frame_equal(evaluate(trained, "val", CONFIGS, tmp_path), whole)  # noqa: E731
    (tmp_path / "counts.sqlite").write_bytes(b"")
    assert not seen.attempt(call, lambda: run_of(tmp_path) == left)
    (tmp_path / "provenance.json").write_bytes(b"")
    said = seen.attempt(call, lambda: run_of(tmp_path) == left)
    assert said.startswith(f"{tmp_path}/provenance.json is damaged (Expecting value: line 1 column 1 (char 0)): restore it, or")
    (tmp_path / "provenance.json").unlink()
    assert not seen.attempt(call, lambda: run_of(tmp_path) == left)

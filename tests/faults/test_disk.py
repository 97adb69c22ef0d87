"""A disk that fills: a limit of the system on the size of a file, so that a write really stops half way."""

import resource
from contextlib import contextmanager

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from ltcam.data import get
from ltcam.engine.config import Config
from ltcam.experiment import provenance, training
from ltcam.files import atomic
from tests.faults.conftest import contents, evaluate, run_of

CONFIGS = [Config("gradcam"), Config("layercam", "S1-S5", 20.0)]
MORE = [Config("gradcam", "S1-S5", float(delta)) for delta in range(99)]  # more than fits into a file's free pages


@contextmanager
def room(size):
    """No file grows beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full(fault, size, call, folder, expected):
    """`call` with no room says `expected` and leaves the files as they were; with room it goes well."""

    def crowded():
        with room(size):
            call()

    before = contents(folder)
    said = fault.attempt(crowded, lambda: contents(folder) == before)
    assert expected in said and "cannot be written (File too large): make room and run again" in said
    assert not fault.lost
    call()


def test_a_checkpoint(voc, fault, tmp_path, monkeypatch):
    training.train(voc, tmp_path / "whole")
    fit, epochs = training._fit_epoch, iter(range(1))
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(training, "_fit_epoch", lambda *a: (next(epochs), fit(*a))[1])
        training.train(voc, tmp_path / "cut")
    assert "last.pt" in contents(tmp_path / "cut")
    out = tmp_path / "cut"
    full(fault("disk full while a checkpoint is written"), 5000, lambda: training.train(voc, out), out, f"{out}/")
    assert run_of(out) == run_of(tmp_path / "whole")


def test_the_counts_of_a_batch(trained, fault, tmp_path):
    whole = evaluate(trained, "val", CONFIGS, tmp_path / "whole")
    out, seen = tmp_path / "cut", fault("disk full while an evaluation keeps its batches")
    evaluate(trained, "val", CONFIGS[:1], out)

    def crowded():
        with room((out / "counts.sqlite").stat().st_size):
            evaluate(trained, "val", CONFIGS * 2 + MORE, out)

    before = contents(out)
    said = seen.attempt(crowded, lambda: contents(out) == before)
    assert said.startswith(f"{out}/counts.sqlite: ") and said.endswith("; make room or wait, and run again")
    pd.testing.assert_frame_equal(evaluate(trained, "val", CONFIGS, out), whole)
    assert run_of(out) == run_of(tmp_path / "whole") and not list(out.glob("*partial*"))


def test_an_export(trained, fault, tmp_path):
    evaluate(trained, "val", CONFIGS[:1], tmp_path)
    seen, before = fault("disk full while counts are exported"), contents(tmp_path)

    def crowded():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(provenance, "atomic", narrow)
            evaluate(trained, "val", CONFIGS, tmp_path)

    @contextmanager
    def narrow(path):
        with room(100), atomic(path) as temporary:
            yield temporary

    said = seen.attempt(crowded, lambda: contents(tmp_path) == before)
    assert said.startswith(f"{tmp_path}/counts.val.csv.gz cannot be written (File too large): make room and run again")
    assert len(evaluate(trained, "val", CONFIGS, tmp_path)) == 16


def test_a_table(fault, tmp_path):
    path = tmp_path / "table.csv"
    provenance.save(pd.DataFrame({"a": [1.0]}), path)
    table = pd.DataFrame({"a": range(1000)})
    full(fault("disk full while a CSV is written"), 1000, lambda: provenance.save(table, path), tmp_path, str(path))
    assert pd.read_csv(path).equals(table)


def test_a_figure(fault, tmp_path):
    from ltcam.show import heatmaps

    def save():
        figure = plt.figure()
        figure.add_subplot().plot(range(9))
        heatmaps.save(figure, tmp_path / "fig")
        plt.close(figure)

    save()
    full(fault("disk full while a figure is written"), 1000, save, tmp_path, f"{tmp_path}/fig.png")


def test_a_download(ksdd2, fault, tmp_path):
    """Nothing half stays, and what was there does."""
    root, seen = tmp_path / "there", fault("disk full while a data set is fetched")

    def crowded():
        with room(1000):
            get.get("ksdd2", root)

    said = seen.attempt(crowded, lambda: contents(root) == {})
    assert f"{root} cannot be written (File too large): make room and run again" in said
    assert get.get("ksdd2", root) == root / "KolektorSDD2"

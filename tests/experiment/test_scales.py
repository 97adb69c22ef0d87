"""Scales and flips in evaluation and seeds, on the demo: against `explain` of every view, and what they cost."""

import copy
import dataclasses
import json
import logging

import numpy as np
import pandas as pd
import pytest
import torch
from skimage.filters import threshold_otsu
from torch.nn.functional import interpolate
from typer.testing import CliRunner

from ltcam import data as datasets
from ltcam import explain, trace
from ltcam.__main__ import app
from ltcam.errors import InputError
from ltcam.experiment import counting, seeds
from ltcam.experiment.checkpoints import load_checkpoint
from ltcam.experiment.configs import Config, Protocol, configurations
from ltcam.experiment.evaluation import evaluate
from ltcam.experiment.probe import behaviour
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.seed_scores import Tally, of_checkpoint
from ltcam.experiment.training import train
from tests.experiment.test_training import TINY

SCALES = (0.5, 1.0, 1.5)
CONFIGS = [
    Config("gradcam", "S1-S5", 20.0),
    Config("fullgrad", "all", 20.0),
    Config("layercam", "S1-S5", 0.0, normalize="minmax", fuse="max"),
    Config("layercam", "S1-S5", 0.0, normalize="minmax", fraction=0.3),
    Config("layercam", "S3-S5", None, normalize="tanh", refine="S3-S5:8"),
    Config("gradcam", "S1-S5", 20.0, fuse="prod"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return train(Recipe(data="demo", test="test", **TINY), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def run(checkpoint):
    """In float64, so that every pixel is on its side of a threshold."""
    trained = load_checkpoint(checkpoint)
    return dataclasses.replace(trained, model=copy.deepcopy(trained.model).double())


@pytest.fixture
def few(run, monkeypatch):
    """The first images of the part that have a class, alone."""
    behaviour()  # which traces its own probe, once in a process
    whole = datasets.load("demo", "test")
    chosen = whole.labels.any(dim=1).nonzero().flatten().tolist()[:5]
    monkeypatch.setattr(type(whole), "scored", property(lambda self: chosen))
    return whole


def by_hand(run, sample, config, size):
    """(P, *size): `explain` of every view at the network's size, over its maximum, and turned back; then the mean, resized."""
    height, width = run.size
    largest = datasets.preprocess(sample.image, (round(height * 1.5), round(width * 1.5)))[None].double()
    total = 0
    for scale in SCALES:
        view = interpolate(largest, (round(height * scale), round(width * scale)), mode="bilinear", antialias=True)
        for flips in ([], [3]):
            traced = trace(run.model, view.flip(flips), sample.label[None], fullgrad=config.method == "fullgrad")
            maps = explain(traced, **dataclasses.asdict(config.options) | {"layers": config.selection, "size": run.size})
            maps = maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)
            total = total + maps.flip([dim - 1 for dim in flips])
    return interpolate((total / 6)[:, None], size, mode="bilinear")[:, 0]


def test_counts_are_those_of_the_mean_of_every_view(run, few, tmp_path):
    counts = evaluate(run, "test", CONFIGS, tmp_path, Protocol(4, scales=SCALES, flip=True))
    keys = zip(counts["name"], counts["class"], configurations(counts), strict=True)
    found, pairs = dict(zip(keys, counts[["tp", "fp", "fn"]].to_numpy(), strict=True)), 0
    differ = pixels = 0
    for sample in (few[i] for i in few.scored):
        classes, valid = sample.label.nonzero().flatten().tolist(), sample.mask.numpy() != 255
        for config in CONFIGS:
            heat = by_hand(run, sample, config, tuple(sample.mask.shape))
            for c, heatmap in zip(classes, heat.double().numpy(), strict=True):
                cut = threshold_otsu(heatmap) if config.fraction is None else config.fraction * heatmap.max()
                predicted, truth = heatmap > cut, sample.mask.numpy() == c + 1
                expected = [(predicted & truth).sum(), (predicted & valid & ~truth).sum(), (~predicted & truth).sum()]
                difference = np.abs(found[sample.name, c, config] - expected)
                differ, pixels, pairs = differ + difference[:2].sum(), pixels + predicted.size, pairs + 1
    assert pairs == len(found) and differ <= 1e-4 * pixels  # maps are float32: a pixel at the threshold may fall to either side


def test_seeds_are_the_mean_of_every_view_and_scored_as_they_are_written(run, tmp_path):
    data = datasets.load("demo", "test")
    tallies = of_checkpoint(run, "test", CONFIGS[:3], Protocol(8, scales=SCALES, flip=True))
    for number, config in enumerate(CONFIGS[:3]):
        out, tally = tmp_path / str(number), Tally(len(data.classes))
        seeds.export(run, "test", config, out, Protocol(8, scales=SCALES, flip=True))
        for sample in data:
            found = np.load(out / f"{sample.name}.npy", allow_pickle=True).item() if sample.label.any() else {}
            maps = torch.from_numpy(found.get("high_res", np.zeros((0, *sample.mask.shape), np.float32)))
            tally.add(maps, torch.from_numpy(found.get("keys", np.zeros(0, np.int64))), sample.mask)
        assert (tally.curve() - tallies[config].curve()).abs().max() < 0.1 and tally.curve().max() > 1
        sample = next(s for s in data if s.label.any())
        found = np.load(out / f"{sample.name}.npy", allow_pickle=True).item()
        for name, size in (("high_res", sample.mask.shape), ("cam", [-(-n // 4) for n in sample.mask.shape])):
            expected = by_hand(run, sample, config, tuple(size))
            np.testing.assert_allclose(found[name], expected / expected.amax(dim=(1, 2), keepdim=True), atol=1e-4)


def test_the_printed_cost_is_the_sum_of_the_pixels(run, few, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    traced, real = [], trace
    for module in (counting, seeds):
        monkeypatch.setattr(module, "trace", lambda m, images, *a, **k: traced.append(images.shape) or real(m, images, *a, **k))

    def paid():
        """Pixels and traces of an image, in those of one at scale 1."""
        pixels, count = sum(n * h * w for n, _, h, w in traced), sum(n for n, *_ in traced)
        traced.clear()
        return pixels / run.size[0] / run.size[1], count

    evaluate(run, "test", CONFIGS[:1], tmp_path / "plain", Protocol(2))
    once = paid()
    assert once == (5, 5) and "traces" not in caplog.text
    evaluate(run, "test", CONFIGS[:1], tmp_path / "scaled", Protocol(2, scales=SCALES, flip=True))
    assert paid() == (5 * 7, 5 * 6)
    assert caplog.messages[-1] == (
        "scales 0.5, 1, 1.5, each mirrored too: 6 traces of an image, 7 times the pixels of one at scale 1"
    )
    seeds.export(run, "test", CONFIGS[0], tmp_path / "seeds", Protocol(2, scales=(1.0, 1.5)))
    images = int(few.labels.any(dim=1).sum())
    assert paid() == (images * 3.25, images * 2)
    assert caplog.messages[-1] == "scales 1, 1.5: 2 traces of an image, 3.25 times the pixels of one at scale 1"
    of_checkpoint(run, "test", CONFIGS, Protocol(2, flip=True))
    assert paid() == (5 * 2, 5 * 2)  # an image with a class that is not scored is no image for seeds either
    assert caplog.messages[-1] == "scales 1, each mirrored too: 2 traces of an image, 2 times the pixels of one at scale 1"


def test_predicted_classes_are_those_of_scale_1(run, few, tmp_path):
    """At the scale of the network, whatever the views are: so other scales never change what is claimed."""
    views = {"scales": (1.0, 2.0), "flip": True}
    counts = evaluate(run, "test", CONFIGS[:1], tmp_path, Protocol(4, labels="predicted", **views))
    expected = set()
    for sample in (few[i] for i in few.scored):
        large = datasets.preprocess(sample.image, (run.size[0] * 2, run.size[1] * 2))[None].double()
        logits = run.model(interpolate(large, run.size, mode="bilinear", antialias=True))[0]
        claimed = (logits > 0) | (logits == logits.max()) | (sample.label > 0)
        expected |= {(sample.name, c) for c in claimed.nonzero().flatten().tolist()}
    assert set(zip(counts["name"], counts["class"], strict=True)) == expected


def test_kept_counts_and_seeds_of_other_views_are_never_taken_for_each_other(run, few, tmp_path, caplog):
    """Counts without views are as they were before there were any, so they name none."""
    out = tmp_path / "counts"
    plain = evaluate(run, "test", CONFIGS[:1], out, Protocol(4))
    record, bytes_ = json.loads((out / "counts.json").read_text()), (out / "counts.csv.gz").read_bytes()
    assert record["layout"] == "contiguous" and not {"scales", "flip"} & {*record}
    evaluate(run, "test", CONFIGS[:1], out, Protocol(4, scales=(1,), flip=False))
    assert "measuring again" not in caplog.text
    for views in ({"scales": SCALES}, {"flip": True}, {"scales": (1.5,)}, {}):
        caplog.clear()
        found = evaluate(run, "test", CONFIGS[:1], out, Protocol(4, **views))
        assert "measuring again" in caplog.text and found.equals(plain) == (not views)
        caplog.clear()
        evaluate(run, "test", CONFIGS[:1], out, Protocol(4, **views))
        assert "measuring again" not in caplog.text
    assert (out / "counts.csv.gz").read_bytes() == bytes_
    for first, other, named in (({}, {"flip": True}, "scales, flip"), ({"flip": True}, {}, "scales, flip"), *SOME):
        folder = tmp_path / f"seeds{first}{other}"
        seeds.export(run, "test", CONFIGS[0], folder, Protocol(**first))
        with pytest.raises(InputError, match=rf"has \.npy files of another {named}: pass another --out"):
            seeds.export(run, "test", CONFIGS[0], folder, Protocol(**other))
        seeds.export(run, "test", CONFIGS[0], folder, Protocol(**first))


SOME = [({"scales": (0.5,)}, {"scales": (0.75,)}, "scales")]


def test_wrong_views():
    for wrong in ({"scales": ()}, {"scales": (0,)}, {"scales": 1.5}, {"flip": 1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Protocol(**wrong)


def test_the_commands(checkpoint, tmp_path):
    def called(*arguments):
        done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return done

    views, config = ["--scale", 1, "--scale", 1.5, "--flip"], "layercam:S1-S5:0"
    for name, chosen in (("plain", []), ("views", views)):
        called("evaluate", "--checkpoint", checkpoint, "--config", config, "--out", tmp_path / name, *chosen)
        called("export-seeds", "--checkpoint", checkpoint, "--part", "test", "--out", tmp_path / "seeds" / name, *chosen)
        called("eval-seeds", "--checkpoint", checkpoint, "--part", "test", "--out", tmp_path / "scored" / name, *chosen)
    for place in ("counts.json", "../seeds/{}/seeds.json", "../scored/{}/seeds.json"):
        plain, found = (json.loads((tmp_path / name / place.format(name)).read_text()) for name in ("plain", "views"))
        assert (found["scales"], found["flip"]) == ([1.0, 1.5], True) and "scales" not in plain
    for file in ("{}/scores.csv", "scored/{}/seeds.csv"):
        plain, found = (pd.read_csv(tmp_path / file.format(name)) for name in ("plain", "views"))
        assert plain.shape == found.shape and not plain.equals(found)
    folder = ["--folder", tmp_path / "seeds" / "views", "--data", "demo", "--part", "test"]
    called("eval-seeds", *folder, "--out", tmp_path / "read")
    read, scored = (pd.read_csv(tmp_path / f / "seeds.csv") for f in ("read", "scored/views"))
    assert read["best_mIoU"].iloc[0] == pytest.approx(scored["best_mIoU"].iloc[0], abs=0.01)
    for wrong in (["--flip"], ["--scale", "1"]):
        with pytest.raises(InputError, match="without --config, --scale, --flip"):
            called("eval-seeds", *folder, *wrong)

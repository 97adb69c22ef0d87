import copy
import dataclasses
import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ltcam import data as datasets
from ltcam import explain, trace
from ltcam.__main__ import app
from ltcam.errors import InputError
from ltcam.experiment import seeds
from ltcam.experiment.checkpoints import load_checkpoint
from ltcam.experiment.configs import Config, Protocol
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.seeds import export
from ltcam.experiment.training import train
from ltcam.paper import beyond
from tests import lookalikes
from tests.experiment.test_training import TINY

CONFIG = Config.parse("gradcam:S1-S5:20")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Trained on images of two sizes, one of them 45 x 61."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patched:
        root = lookalikes.voc(folder / "data")
        for path in root.rglob("2007_000001.*g"):
            Image.open(path).resize((61, 45), Image.Resampling.NEAREST).save(path)
        patched.setenv("LTCAM_DATA", str(root))
        yield train(Recipe(data="voc2012", test="val", **TINY), folder)


@pytest.fixture(scope="module")
def run(checkpoint):
    return load_checkpoint(checkpoint)


def load(path):
    return np.load(path, allow_pickle=True).item()


def labelled(maps, keys, threshold):
    """What IRN's steps make of seeds: 0 where no map exceeds the threshold, else the class of the largest plus 1."""
    padded = np.pad(maps, ((1, 0), (0, 0), (0, 0)), mode="constant", constant_values=threshold)
    return np.pad(keys + 1, (1, 0), mode="constant")[np.argmax(padded, axis=0)]


@pytest.mark.parametrize("text", ["gradcam:S1-S5:20", "fullgrad:all", "layercam"])
def test_irns_steps_read_the_masks_of_explain(run, tmp_path, text):
    config, data = Config.parse(text), datasets.load("voc2012", "train")
    assert export(run, "train", config, tmp_path, Protocol(3)) == len(data) == len(list(tmp_path.glob("*.npy")))
    assert len(set(data.sizes)) == 2 and set(data.labels.sum(dim=1).tolist()) == {1, 2}
    for sample in data:
        found = load(tmp_path / f"{sample.name}.npy")
        image = datasets.preprocess(sample.image, run.size)[None]
        traced = trace(run.model, image, sample.label[None], fullgrad=config.method == "fullgrad")
        maps = explain(traced, config.method, config.selection, config.delta, tuple(sample.mask.shape)).numpy()
        expected = maps / maps.max(axis=(1, 2), keepdims=True).clip(1e-30)
        np.testing.assert_allclose(found["high_res"], expected, atol=1e-4)
        both = [labelled(m, k, 0.3) for m, k in ((found["high_res"], found["keys"]), (expected, traced.pairs[:, 1].numpy()))]
        assert (both[0] != both[1]).mean() < 1e-3  # of batches of three and of one: they round differently
        assert set(np.unique(both[0])) <= {0, *(int(c) + 1 for c in sample.label.nonzero())} != {0}


def test_a_file_holds_what_the_format_says(run, tmp_path):
    export(run, "train", CONFIG, tmp_path)
    for sample in datasets.load("voc2012", "train"):
        found, (height, width) = load(tmp_path / f"{sample.name}.npy"), sample.mask.shape
        count = int(sample.label.sum())
        assert list(found) == ["keys", "cam", "high_res"] and found["keys"].dtype == np.int64
        assert found["keys"].tolist() == sample.label.nonzero().flatten().tolist()
        assert found["cam"].shape == (count, np.ceil(height / 4), np.ceil(width / 4))
        assert found["high_res"].shape == (count, height, width)
        for maps in (found["cam"], found["high_res"]):
            assert maps.dtype == np.float32 and maps.min() >= 0 and np.isin(maps.max(axis=(1, 2)), (0, 1)).all() and maps.any()


def test_a_file_holds_nothing_but_arrays(run, tmp_path):
    class Arrays(pickle.Unpickler):
        def find_class(self, module, name):
            assert (module, name) in {
                ("numpy._core.multiarray", "_reconstruct"), ("numpy.core.multiarray", "_reconstruct"),
                ("numpy", "ndarray"), ("numpy", "dtype"),
            }  # fmt: skip
            return super().find_class(module, name)

    export(run, "train", CONFIG, tmp_path)
    file = io.BytesIO((tmp_path / "2007_000000.npy").read_bytes())
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    assert {type(value) for value in Arrays(file).load().item().values()} == {np.ndarray}


def test_an_interrupted_export_goes_on(run, tmp_path, monkeypatch):
    """Cut off in the middle of a file, whose name then stays free."""
    export(run, "train", CONFIG, tmp_path / "whole", Protocol(2))
    save, written = np.save, []

    def cut_off(path, seeds, allow_pickle):
        if len(written) == 5:
            path.write_bytes(b"\x93NUMPY")
            raise KeyboardInterrupt
        written.append(path)
        save(path, seeds, allow_pickle=allow_pickle)

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", cut_off)
        with pytest.raises(KeyboardInterrupt):
            export(run, "train", CONFIG, tmp_path / "cut", Protocol(2))
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("*.npy")}
    assert len(there) == 5 and all(load(path) for path in there) and not list((tmp_path / "cut").glob(".*"))
    assert "finished" not in json.loads((tmp_path / "cut" / "seeds.json").read_text())
    traced = []
    monkeypatch.setattr(
        seeds, "trace", lambda model, images, *a, **k: traced.append(len(images)) or trace(model, images, *a, **k)
    )
    assert export(run, "train", CONFIG, tmp_path / "cut", Protocol(2)) == 8 and sum(traced) == 4
    assert sum(path.stat().st_mtime_ns == before for path, before in there.items()) == 4
    for path in (tmp_path / "whole").glob("*.npy"):
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()
    record = tmp_path / "cut" / "seeds.json"
    written_at = record.stat().st_mtime_ns
    assert export(run, "train", CONFIG, tmp_path / "cut", Protocol(3)) == 8 and sum(traced) == 4
    assert record.stat().st_mtime_ns == written_at


def test_what_is_lacking_is_written(run, tmp_path):
    export(run, "train", CONFIG, tmp_path)
    gone, record = tmp_path / "2007_000003.npy", tmp_path / "seeds.json"
    gone.unlink()
    export(run, "train", CONFIG, tmp_path)
    assert gone.is_file()
    about = json.loads(record.read_text())
    del about["finished"]  # as if cut off after the last file
    record.write_text(json.dumps(about))
    export(run, "train", CONFIG, tmp_path)
    assert "finished" in json.loads(record.read_text())


def test_the_record_says_what_seeds_are_made_of(run, tmp_path):
    export(run, "train", CONFIG, tmp_path)
    record = json.loads((tmp_path / "seeds.json").read_text())
    assert record["files"] == 8 and record["data"] == "PASCAL VOC 2012 subset" and record["part"] == "train"
    assert (record["method"], record["layers"], record["delta"]) == ("gradcam", "S1-S5", 20)
    assert {"fingerprint", "checkpoint", "probe", "commit", "dirty", "versions", "recipe", "finished"} <= record.keys()


@pytest.mark.parametrize("change", ["part", "method, delta", "checkpoint", "probe", "record"])
def test_seeds_of_other_settings_are_refused(run, tmp_path, monkeypatch, change):
    trained, part, config = run, "train", CONFIG
    export(trained, part, config, tmp_path)
    message = rf"has \.npy files of another {change}: pass another --out, or delete them"
    if change == "part":
        part, message = "val", "of another part, fingerprint: pass"
    elif change == "method, delta":
        config = Config.parse("layercam:S1-S5:40")
    elif change == "checkpoint":
        trained = dataclasses.replace(trained, sha256="another")
    elif change == "probe":
        monkeypatch.setattr(seeds, "behaviour", lambda: "another")
    else:
        (tmp_path / "seeds.json").unlink()
        message = "files of another data, part"
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        export(trained, part, config, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_wrong_configuration_leaves_the_folder_free(run, tmp_path):
    for wrong, message in (("gradcam:S9", "'S9'"), ("scam", "method 'scam' is unknown"), ("gradcam:S5:100", "delta=100")):
        with pytest.raises(ValueError, match=message):
            export(run, "train", Config.parse(wrong), tmp_path)
    assert export(run, "train", CONFIG, tmp_path) == 8


def test_an_image_without_a_class_has_no_file(tmp_path, monkeypatch):
    """Nor does it matter whether a defect's mask is empty: it has a label."""
    monkeypatch.setattr("ltcam.data.magnetic_tile.EMPTY", frozenset({"MT_Break/exp1_num_1000"}))
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.magnetic_tile(tmp_path / "data")))
    trained = load_checkpoint(train(Recipe(data="magnetic_tile", **{**TINY, "epochs": 1}), tmp_path / "run"))
    named = set()
    for part in ("train", "test"):
        data = datasets.load("magnetic_tile", part)
        broken = {entry.name for entry in data.entries if entry.kind == "Break"}
        assert export(trained, part, CONFIG, tmp_path / part) == len(broken) < len(data)
        assert {f"MT_Break/{path.stem}" for path in (tmp_path / part / "MT_Break").glob("*.npy")} == broken
        named |= broken
        with pytest.raises(ValueError, match="of another delta"):
            export(trained, part, Config.parse("gradcam:S1-S5:40"), tmp_path / part)
    assert "MT_Break/exp1_num_1000" in named and len(named) == 30


def test_a_map_without_evidence_is_zero(run, tmp_path):
    blind = copy.deepcopy(run)
    torch.nn.init.zeros_(blind.model.classifier[-1].weight)
    export(blind, "train", CONFIG, tmp_path)
    found = load(tmp_path / "2007_000000.npy")
    assert not found["high_res"].any() and not found["cam"].any() and not labelled(found["high_res"], found["keys"], 0.3).any()


def test_the_command(checkpoint, tmp_path):
    """The part trained on and the paper's LTGrad-CAM, if nothing else is asked."""
    command = ["export-seeds", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "seeds")]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0 and done.output == f"{tmp_path / 'seeds'}: 8 images\n"
    record = json.loads((tmp_path / "seeds" / "seeds.json").read_text())
    assert (record["part"], record["method"], record["layers"], record["delta"]) == ("train", "gradcam", "S1-S5", 20)
    asked = [*command[:-1], str(tmp_path / "val"), "--part", "val", "--config", "layercam", "--batch-size", "4"]
    assert CliRunner().invoke(app, asked, catch_exceptions=False).output == f"{tmp_path / 'val'}: 6 images\n"
    best = [*command[:-1], str(tmp_path / "best"), "--best"]
    assert CliRunner().invoke(app, best, catch_exceptions=False).output == f"{tmp_path / 'best'}: 8 images\n"
    record, (config, views) = json.loads((tmp_path / "best" / "seeds.json").read_text()), beyond.BEST["argmax"]
    assert (record["method"], record["fuse"], record["refine"]) == (config.method, config.fuse, config.refine)
    assert record.get("flip", False) is views.flip and record["size"] == list(beyond.fitted(views, (64, 64)).size or (64, 64))
    with pytest.raises(InputError, match="--best has its own configuration and views: expected no"):
        CliRunner().invoke(app, [*best, "--flip"], catch_exceptions=False)
    with pytest.raises(ValueError, match="is not a configuration"):
        CliRunner().invoke(app, [*command, "--config", "gradcam:S5:x"], catch_exceptions=False)

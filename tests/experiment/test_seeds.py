"""Seeds as IRN's steps read them, and as this library reads those of others."""

import copy
import dataclasses
import io
import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from ltcam import data as datasets
from ltcam import explain, trace
from ltcam.__main__ import app
from ltcam.engine.config import Config
from ltcam.errors import InputError, MissingError
from ltcam.experiment import counting, seeds
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.seeds import export, read
from ltcam.paper import beyond
from tests.experiment.test_counting import by_views, double

CONFIG = Config.parse("gradcam:S1-S5:20")


def load(path):
    return np.load(path, allow_pickle=True).item()


def labelled(maps, keys, threshold):
    """What IRN's steps make of seeds: 0 where no map exceeds the threshold, else the class of the largest plus 1."""
    padded = np.pad(maps, ((1, 0), (0, 0), (0, 0)), mode="constant", constant_values=threshold)
    return np.pad(keys + 1, (1, 0), mode="constant")[np.argmax(padded, axis=0)]


@pytest.mark.parametrize("text", ["gradcam:S1-S5:20", "fullgrad:all", "layercam"])
def test_irns_steps_read_the_masks_of_explain(trained, tmp_path, text):
    config, data = Config.parse(text), datasets.load("voc2012", "train")
    assert export(trained, "train", config, tmp_path, Protocol(3)) == len(data) == len(list(tmp_path.glob("*.npy")))
    assert len(set(data.sizes)) > 1 and set(data.labels.sum(dim=1).tolist()) == {1, 2}
    for sample in data:
        found = load(tmp_path / f"{sample.name}.npy")
        image = datasets.preprocess(sample.image, trained.size)[None]
        traced = trace(trained.model, image, sample.label[None], fullgrad=config.method == "fullgrad")
        maps = explain(traced, config.method, config.layers, config.delta, tuple(sample.mask.shape)).numpy()
        expected = maps / maps.max(axis=(1, 2), keepdims=True).clip(1e-30)
        np.testing.assert_allclose(found["high_res"], expected, atol=1e-4)
        both = [labelled(m, k, 0.3) for m, k in ((found["high_res"], found["keys"]), (expected, traced.pairs[:, 1].numpy()))]
        assert (both[0] != both[1]).mean() < 1e-3  # of batches of three and of one: they round differently
        assert set(np.unique(both[0])) <= {0, *(int(c) + 1 for c in sample.label.nonzero())} != {0}


def test_a_file_holds_what_the_format_says(trained, tmp_path):
    export(trained, "train", CONFIG, tmp_path)
    for sample in datasets.load("voc2012", "train"):
        found, (height, width) = load(tmp_path / f"{sample.name}.npy"), sample.mask.shape
        count = int(sample.label.sum())
        assert list(found) == ["keys", "cam", "high_res"] and found["keys"].dtype == np.int64
        assert found["keys"].tolist() == sample.label.nonzero().flatten().tolist()
        assert found["cam"].shape == (count, np.ceil(height / 4), np.ceil(width / 4))
        assert found["high_res"].shape == (count, height, width)
        for maps in (found["cam"], found["high_res"]):
            assert maps.dtype == np.float32 and maps.min() >= 0 and np.isin(maps.max(axis=(1, 2)), (0, 1)).all() and maps.any()


def test_a_file_holds_nothing_but_arrays(trained, tmp_path):
    class Arrays(pickle.Unpickler):
        def find_class(self, module, name):
            assert (module, name) in {
                ("numpy._core.multiarray", "_reconstruct"), ("numpy.core.multiarray", "_reconstruct"),
                ("numpy", "ndarray"), ("numpy", "dtype"),
            }  # fmt: skip
            return super().find_class(module, name)

    export(trained, "train", CONFIG, tmp_path)
    file = io.BytesIO((tmp_path / "2007_000000.npy").read_bytes())
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    assert {type(value) for value in Arrays(file).load().item().values()} == {np.ndarray}


def test_an_interrupted_export_goes_on(trained, tmp_path, monkeypatch):
    """Cut off in the middle of a file, whose name then stays free."""
    export(trained, "train", CONFIG, tmp_path / "whole", Protocol(2))
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
            export(trained, "train", CONFIG, tmp_path / "cut", Protocol(2))
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("*.npy")}
    assert len(there) == 5 and all(load(path) for path in there) and not list((tmp_path / "cut").glob(".*"))
    assert "finished" not in json.loads((tmp_path / "cut" / "seeds.json").read_text())
    traced, real = [], seeds.maps_of_batch
    monkeypatch.setattr(
        seeds, "maps_of_batch", lambda t, samples, *rest: traced.append(len(samples)) or real(t, samples, *rest)
    )
    assert export(trained, "train", CONFIG, tmp_path / "cut", Protocol(2)) == 8 and sum(traced) == 4
    assert sum(path.stat().st_mtime_ns == before for path, before in there.items()) == 4
    for path in (tmp_path / "whole").glob("*.npy"):
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()
    record = tmp_path / "cut" / "seeds.json"
    written_at = record.stat().st_mtime_ns
    assert export(trained, "train", CONFIG, tmp_path / "cut", Protocol(3)) == 8 and sum(traced) == 4
    assert record.stat().st_mtime_ns == written_at


def test_what_is_lacking_is_written(trained, tmp_path):
    export(trained, "train", CONFIG, tmp_path)
    gone, record = tmp_path / "2007_000003.npy", tmp_path / "seeds.json"
    whole, other = gone.read_bytes(), tmp_path / "2007_000004.npy"
    for broken in (b"", whole[:-9], whole[:40], None):
        gone.unlink()
        if broken is not None:
            gone.write_bytes(broken)
        before = other.stat().st_mtime_ns
        export(trained, "train", CONFIG, tmp_path, Protocol(1))
        assert read(gone, 20)[0].tolist() == load(gone)["keys"].tolist() and other.stat().st_mtime_ns == before
    about = json.loads(record.read_text())
    del about["finished"]  # as if cut off after the last file
    record.write_text(json.dumps(about))
    export(trained, "train", CONFIG, tmp_path)
    assert "finished" in json.loads(record.read_text())


def test_the_record_says_what_seeds_are_made_of(trained, tmp_path):
    export(trained, "train", CONFIG, tmp_path)
    record = json.loads((tmp_path / "seeds.json").read_text())
    assert record["files"] == 8 and record["data"] == "PASCAL VOC 2012 subset" and record["part"] == "train"
    assert record["config"] == "gradcam:S1-S5:20" and record["counts"] == counting.COUNTS
    assert {"fingerprint", "checkpoint", "decoded", "commit", "dirty", "versions", "finished"} <= record.keys()


OTHERS = {
    "part, fingerprint, decoded": {"part": "val"}, "config": {"config": Config.parse("layercam:S1-S5:40")}, "checkpoint": {},
    "counts": {}, "scales, flip": {"protocol": Protocol(flip=True)}, "size": {"protocol": Protocol(size=(96, 64))},
    "checkpoint, data, part": {},
}  # fmt: skip


@pytest.mark.parametrize("change", OTHERS)
def test_seeds_of_other_settings_are_refused(change, trained, tmp_path, monkeypatch):
    export(trained, "train", CONFIG, tmp_path)
    if change == "checkpoint":
        trained = dataclasses.replace(trained, sha256="another")
    elif change == "counts":
        monkeypatch.setattr(counting, "COUNTS", 9)
    elif change == "checkpoint, data, part":
        (tmp_path / "seeds.json").unlink()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=rf"has \.npy files of another {change}.*: pass another --out, or delete them"):
        export(trained, **{"part": "train", "config": CONFIG, "out": tmp_path, **OTHERS[change]})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("name", "value"), [("tiles", 40), ("flip", True), ("border", "masked")])
def test_seeds_of_several_views_are_not_those_of_one(name, value, trained, tmp_path):
    """One view names less than several, and all that it names is theirs too."""
    export(trained, "train/2", CONFIG, tmp_path, Protocol(**{name: value}))
    with pytest.raises(InputError, match=rf"has \.npy files of another .*{name}: pass another --out, or delete them"):
        export(trained, "train/2", CONFIG, tmp_path)


def test_a_wrong_configuration_leaves_no_seeds(trained, tmp_path):
    with pytest.raises(InputError, match="'S9'"):
        export(trained, "train", Config.parse("gradcam:S9"), tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def test_seeds_are_the_mean_of_every_view(trained, tmp_path):
    model, protocol = double(trained), Protocol(8, scales=(0.5, 1.0, 1.5), flip=True)
    export(model, "val/2", CONFIG, tmp_path, protocol)
    for sample in model.load("val/2"):
        found, image = load(tmp_path / f"{sample.name}.npy"), datasets.preprocess(sample.image, (96, 96))
        for name, size in (("high_res", sample.mask.shape), ("cam", [-(-n // 4) for n in sample.mask.shape])):
            blank = sample._replace(image=image, mask=torch.zeros(*size))
            expected = by_views(model, blank, CONFIG, protocol.scales, True)
            np.testing.assert_allclose(found[name], expected / expected.amax(dim=(1, 2), keepdim=True), atol=1e-4)


def test_an_image_without_a_class_has_no_file(tiles, tmp_path, monkeypatch):
    """Nor does it matter whether a defect's mask is empty: it has a label."""
    data = tiles.load("test")
    broken = {entry.name for entry in data.entries if entry.kind == "Break"}
    monkeypatch.setattr("ltcam.data.sets.MagneticTile.empty", frozenset(sorted(broken)[:1]))
    assert export(tiles, "test", CONFIG, tmp_path) == len(broken) < len(data)
    assert {path.relative_to(tmp_path).as_posix().removesuffix(".npy") for path in tmp_path.rglob("*.npy")} == broken
    with pytest.raises(InputError, match="of another config"):
        export(tiles, "test", Config.parse("gradcam:S1-S5:40"), tmp_path)


def test_a_map_without_evidence_is_zero(trained, tmp_path):
    blind = dataclasses.replace(trained, model=copy.deepcopy(trained.model))
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
    assert (record["part"], record["config"]) == ("train", "gradcam:S1-S5:20")
    asked = [*command[:-1], str(tmp_path / "val"), "--part", "val", "--config", "layercam", "--batch-size", "4"]
    assert CliRunner().invoke(app, asked, catch_exceptions=False).output == f"{tmp_path / 'val'}: 6 images\n"
    best = [*command[:-1], str(tmp_path / "best"), "--best"]
    assert CliRunner().invoke(app, best, catch_exceptions=False).output == f"{tmp_path / 'best'}: 8 images\n"
    record, (config, views) = json.loads((tmp_path / "best" / "seeds.json").read_text()), beyond.BEST["argmax"]
    assert record["config"] == str(config) and not record.get("flip")
    assert record["size"] == list(beyond.enlarged(views, (64, 64)) or (64, 64))
    with pytest.raises(InputError, match="--best has its own configuration and views: expected no"):
        CliRunner().invoke(app, [*best, "--flip"], catch_exceptions=False)
    with pytest.raises(ValueError, match="is not a configuration"):
        CliRunner().invoke(app, [*command, "--config", "gradcam:S5:x"], catch_exceptions=False)


class Harmful:
    def __reduce__(self):
        return print, ("harm",)


def written(path, content):
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    return path


def test_a_file_that_holds_code_or_no_seeds_is_refused(tmp_path, capsys):
    good = {"keys": np.array([0, 3]), "cam": np.zeros((2, 1, 1), np.float32), "high_res": np.ones((2, 3, 4), np.float32)}
    keys, maps = read(written(tmp_path / "good.npy", good), 4)
    assert keys.tolist() == [0, 3] and maps.shape == (2, 3, 4)
    tensors = good | {"keys": torch.tensor([0, 3]), "cam": torch.zeros(2, 1, 1)}  # as IRN writes them
    keys, maps = read(written(tmp_path / "irn.npy", tensors), 4)
    assert keys.tolist() == [0, 3] and maps.shape == (2, 3, 4)
    for wrong, said in (
        ({**good, "more": Harmful()}, r"builtins.print is not an array: refused"),
        ({**good, "keys": pd.Series([0, 3])}, "is not an array: refused"),
        ({"keys": good["keys"]}, "holds no seeds"),
        ([1, 2], "holds no seeds"),
        (
            {**good, "keys": np.array([0])},
            r"has keys a torch.int64 tensor \(1,\) and high_res a torch.float32 tensor \(2, 3, 4\)",
        ),
        ({**good, "keys": np.array([0.0, 3.0])}, r"has keys a torch.float64 tensor \(2,\)"),
        ({**good, "high_res": np.ones((2, 3, 4), int)}, r"a torch.int64 tensor \(2, 3, 4\): expected ints \(n,\) and floats"),
        (
            {**good, "high_res": np.full((2, 3, 4), 255, np.uint8)},
            r"uint8 .*: expected .* floats \(n, H, W\), uint8 divided by 255",
        ),
        ({**good, "high_res": np.ones((2, 3, 4), bool)}, r"a torch.bool tensor"),
        ({**good, "keys": np.array([0, 4])}, r"has the keys \[0, 4\]: expected different classes from 0 to 3"),
        ({**good, "keys": np.array([-1, 3])}, "has the keys"),
        ({**good, "keys": np.array([3, 3])}, "has the keys"),
        ({**good, "high_res": np.full((2, 3, 4), 1.1, np.float32)}, r"values outside \[0, 1\]"),
        ({**good, "high_res": np.full((2, 3, 4), np.nan, np.float32)}, r"values outside \[0, 1\]"),
    ):
        with pytest.raises(InputError, match=said):
            read(written(tmp_path / "wrong.npy", wrong), 4)
    np.save(tmp_path / "plain.npy", np.ones(3))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-40])
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(good))
    for name in ("plain", "cut", "raw"):
        with pytest.raises(InputError, match=f"{name}.npy holds no seeds .*: expected a dict of arrays keys and high_res"):
            read(tmp_path / f"{name}.npy", 4)
    with pytest.raises(MissingError, match=r"none\.npy is missing: expected the seeds of an image"):
        read(tmp_path / "none.npy", 4)
    assert capsys.readouterr().out == ""


def test_a_tensor_whose_bytes_hold_code_is_refused(tmp_path, capsys):
    class Nested:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (pickle.dumps(Harmful()),)

    content = {"keys": Nested(), "high_res": np.ones((1, 2, 2), np.float32)}
    with pytest.raises(InputError, match="holds no seeds"):
        read(written(tmp_path / "nested.npy", content), 4)
    assert capsys.readouterr().out == ""

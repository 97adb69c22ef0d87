from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ltcam import files
from ltcam.__main__ import app
from ltcam.data import DataError
from ltcam.errors import InputError, MissingError
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.trained import load_checkpoint
from ltcam.experiment.training import train
from ltcam.files import sha256
from tests import lookalikes, tiny
from tests.tiny import TINY


def test_what_a_checkpoint_holds(checkpoint, trained):
    assert trained.recipe.data == "voc2012" and trained.size == (64, 64) and len(trained.classes) == 20
    assert trained.sha256 == sha256(checkpoint) and not trained.model.training
    assert trained.record["fingerprint"] == trained.load("train").fingerprint and trained.record["source"]["name"] == "random"


def test_a_checkpoint_that_is_missing_or_another_file_is_named(tmp_path):
    with pytest.raises(MissingError, match=r"no weights at .*checkpoint.pt"):
        load_checkpoint(Path("nowhere") / "checkpoint.pt")
    torch.save({"features.0.weight": torch.ones(1)}, tmp_path / "vgg.pth")
    with pytest.raises(InputError, match=r"vgg.pth is not a checkpoint of ltcam train"):
        load_checkpoint(tmp_path / "vgg.pth")


def test_data_that_changed_since_the_training_are_refused(trained, looks):
    """Of the part trained on; another part is none of its business."""
    path = next(looks.rglob("JPEGImages/2007_000002.jpg"))
    content = path.read_bytes()
    try:
        Image.open(path).rotate(180).save(path)
        with pytest.raises(
            InputError, match=r"part train: its files have changed since the training \(fingerprint .* then, .* now\)"
        ):
            trained.load("train")
        trained.load("val")
    finally:
        path.write_bytes(content)
    trained.load("train")


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """KSDD2 with a profile, a checkpoint trained on it, and a function that empties all masks of a part."""
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.ksdd2(tmp_path / "data")))
    monkeypatch.setenv("LTCAM_OUTPUT", str(tmp_path / "out"))
    monkeypatch.setattr(files, "NOTEBOOKS", tiny.profile(tmp_path / "notebooks", "ksdd2", {"epochs": 1}))
    path = train(Recipe(data="ksdd2", **TINY | {"epochs": 1}), tmp_path / "run")

    def empty(part):
        for mask in (tmp_path / "data" / "KolektorSDD2" / part).glob("*_GT.png"):
            Image.new("L", (23, 63)).save(mask)

    return path, empty


@pytest.mark.parametrize("command", ["train", "evaluate", "export-seeds", "eval-seeds"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_part_without_a_class_is_named(part, command, clean, tmp_path):
    checkpoint, empty = clean
    options = ["--checkpoint", str(checkpoint), "--part", part, "--out", str(tmp_path / "left")]
    empty(part)
    said = rf"^KSDD2 subset has no image with a class in part '{part}': complete it, or name another part$"
    if command == "train":
        options = ["--data", "ksdd2", "--profile", "tiny", "--subset"]
    elif part == "train":
        said = "its files have changed since the training"
    for _ in range(2):
        with pytest.raises(DataError, match=said):
            CliRunner().invoke(app, [command, *options], catch_exceptions=False)
        assert not [*(tmp_path / "left").glob("*.csv"), *(tmp_path / "left").glob("*.npy")]


def test_a_hold_out_of_one_image_is_refused(clean, tmp_path, monkeypatch):
    for image in sorted((tmp_path / "data" / "KolektorSDD2" / "train").glob("1*.png"))[2:]:
        image.unlink()
    with pytest.raises(
        DataError, match=r"^part 'train' of ksdd2 is one image or group: a hold-out needs at least two; complete it$"
    ):
        CliRunner().invoke(app, ["train", "--data", "ksdd2", "--profile", "tiny", "--tune", "--subset"], catch_exceptions=False)

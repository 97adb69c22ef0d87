from pathlib import Path

import pytest
import torch
from PIL import Image

from ltcam.errors import InputError, MissingError
from ltcam.experiment.trained import load_checkpoint
from ltcam.files import sha256


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

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model
from typer.testing import CliRunner

from ltcam import Refine, explain, trace
from ltcam.__main__ import app
from ltcam.data import preprocess
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.training import train
from ltcam.show import picture
from tests.experiment.test_training import TINY


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def resnet(tmp_path):
    torch.manual_seed(0)
    torch.save(get_model("resnet18", num_classes=3).state_dict(), tmp_path / "resnet.pth")
    return tmp_path / "resnet.pth"


def test_a_state_dict_of_a_torchvision_model(photo, resnet):
    model = picture.classifier("resnet18", resnet)
    pixels, name, maps = picture.heatmaps(photo, model, "1", "gradcam", "S3-S5", 20, per_stage=True)
    assert name == "1" and list(maps) == ["S3", "S4", "S5", "gradcam, S3-S5, δ=20"]
    traced = trace(model[0], preprocess(pixels, (224, 224))[None], 1)
    assert torch.equal(maps["gradcam, S3-S5, δ=20"], explain(traced, "gradcam", "S3-S5", 20, (60, 90))[0])
    assert torch.equal(maps["S4"], explain(traced, "gradcam", "S4", 20, (60, 90))[0])
    _, _, maps = picture.heatmaps(photo, model, "1", "layercam", None, None, per_stage=True, refine="S4-S5:9")
    refined = explain(traced, "layercam", size=(60, 90), refine=Refine("S4-S5", 9))[0]
    assert torch.equal(maps["layercam, all stages, refined S4-S5:9:8:1"], refined)
    assert torch.equal(maps["S4"], explain(traced, "layercam", "S4", size=(60, 90))[0])
    _, name, maps = picture.heatmaps(photo, model, "", "fullgrad", None, None)
    assert name == str(int(traced.logits.argmax())) and list(maps) == ["fullgrad, all stages"]


def test_the_command(photo, resnet, tmp_path):
    out = tmp_path / "heat.png"
    command = ["explain", str(photo), "--model", "resnet18", "--checkpoint", str(resnet), "--out", str(out)]
    done = CliRunner().invoke(app, [*command, "--class", "2", "--layers", "S1-S5", "--delta", "20", "--per-stage"])
    assert done.exit_code == 0 and done.output == f"{out}: 2\n"
    with Image.open(out) as image:
        assert image.width > 5 * image.height and np.array(image.convert("RGB")).std() > 10
    before = out.read_bytes()
    for wrong, message in (
        (["--class", "cat"], "class 'cat' is unknown: expected an index or one of 0, 1, 2"),
        (["--class", "7"], "class 7 is out of range"),
        (["--method", "eigencam"], "method 'eigencam' is unknown"),
        (["--layers", "S9"], "layer 'S9' was not traced"),
        (["--refine", "S5:x"], "refine='S5:x' is no way to spread a map"),
        (["--model", "resnet19"], "model 'resnet19' is not in torchvision"),
        (["--model", "resnet50"], "does not fit resnet50: expected its state dict"),
    ):
        with pytest.raises(ValueError, match=message):
            CliRunner().invoke(app, [*command, *wrong], catch_exceptions=False)
    with pytest.raises(ValueError, match=r"--out .*heat.txt is not a picture"):
        CliRunner().invoke(app, [*command, "--out", str(tmp_path / "heat.txt")], catch_exceptions=False)
    assert out.read_bytes() == before
    photo.write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_a_checkpoint_of_ltcam_train_and_a_class_by_name(photo, tmp_path):
    path = train(Recipe(data="demo", **{**TINY, "epochs": 1, "batch_size": 20, "frozen": 5}), tmp_path / "run")
    model = picture.classifier("vgg16", path)
    assert model[2] == (64, 64)
    assert picture.heatmaps(photo, model, "stain", "layercam", "S5", None)[1] == "stain"


def test_weights_out_of_reach(monkeypatch):
    def unreachable(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(picture, "get_model", unreachable)
    with pytest.raises(RuntimeError, match=r"resnet18.*\.pth is out of reach \(no route to host\).* pass --checkpoint"):
        picture.classifier("resnet18", None)

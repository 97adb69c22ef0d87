import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model
from typer.testing import CliRunner

from ltcam import Config, Refine, explain, trace
from ltcam.__main__ import app
from ltcam.data import preprocess
from ltcam.errors import InputError
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
    pixels, name, maps = picture.maps(photo, model, "1", Config("gradcam", "S3-S5", 20), per_stage=True)
    assert name == "1" and list(maps) == ["S3", "S4", "S5", "gradcam:S3-S5:20"]
    traced = trace(model[0], preprocess(pixels, (224, 224))[None], 1)
    assert torch.equal(maps["gradcam:S3-S5:20"], explain(traced, "gradcam", "S3-S5", 20, (60, 90))[0])
    assert torch.equal(maps["S4"], explain(traced, "gradcam", "S4", 20, (60, 90))[0])
    _, _, maps = picture.maps(photo, model, "1", Config("layercam", "all", refine=Refine("S4-S5", 9)), per_stage=True)
    refined = explain(traced, "layercam", size=(60, 90), refine=Refine("S4-S5", 9))[0]
    assert torch.equal(maps["layercam:all,refine=S4-S5:9:8:1"], refined)
    assert torch.equal(maps["S4"], explain(traced, "layercam", "S4", size=(60, 90))[0])
    how = {"normalize": "max", "fuse": "max", "per": "channel", "compare": "gt"}
    _, _, maps = picture.maps(photo, model, "1", Config("layercam", "S3-S4", 30, **how))
    assert torch.equal(*maps.values(), explain(traced, "layercam", "S3-S4", 30, (60, 90), **how)[0])
    _, name, maps = picture.maps(photo, model, "", Config("fullgrad", "all"))
    assert name == str(int(traced.logits.argmax())) and list(maps) == ["fullgrad:all"]


def test_crops_of_a_photo(photo, resnet):
    """At its own size, with each stage's map too. The class that is not named is that of the whole photo in one view."""
    network, classes, size = picture.classifier("resnet18", resnet)
    pixels, name, maps = picture.maps(photo, (network, classes, size), "", Config("gradcam", "S3-S5", 20), True, tiles=64)
    _, whole, plain = picture.maps(photo, (network, classes, size), "", Config("gradcam", "S3-S5", 20), True)
    assert name == whole and list(maps) == list(plain)
    images = preprocess(pixels, (60, 90))[None]
    for title, layers in (("S4", "S4"), ("gradcam:S3-S5:20", "S3-S5")):
        crops = [explain(trace(network, images[..., x : x + 64], int(name)), "gradcam", layers, 20)[0] for x in (0, 26)]
        expected, often = torch.zeros(60, 90), torch.zeros(60, 90)
        for x, crop in zip((0, 26), crops, strict=True):
            expected[:, x : x + 64] += crop
            often[:, x : x + 64] += 1
        assert torch.allclose(maps[title], expected / often, atol=1e-5 * float(expected.max()))
    _, _, same = picture.maps(photo, (network, classes, size), "", Config("gradcam", "S3-S5", 20), True, tiles=90)
    assert all(torch.equal(same[title], plain[title]) for title in plain)


def test_the_command(photo, resnet, tmp_path):
    out = tmp_path / "heat.png"
    command = ["explain", str(photo), "--model", "resnet18", "--checkpoint", str(resnet), "--out", str(out)]
    done = CliRunner().invoke(app, [*command, "--class", "2", "--config", "gradcam:S1-S5:20", "--per-stage"])
    assert done.exit_code == 0 and done.output == f"{out}: 2\n"
    with Image.open(out) as image:
        assert image.width > 4 * image.height and np.array(image.convert("RGB")).std() > 10
    out.unlink()
    done = CliRunner().invoke(app, [*command, "--class", "2", "--tiles", "64"])
    assert done.output == f"{out}: 2; 2 crops, 0.153 times the pixels of one view\n"  # 2 x 60 x 64 / 224 x 224
    before = out.read_bytes()
    for wrong, message in (
        (["--tiles", "0"], "tiles=0: expected a whole number, at least 1"),
        (["--class", "cat"], "class 'cat' is unknown: expected an index or one of 0, 1, 2"),
        (["--class", "7"], "class 7 is out of range"),
        (["--config", "eigencam"], "method 'eigencam' is unknown"),
        (["--config", "gradcam:S9"], "layer 'S9' was not traced"),
        (["--config", "gradcam,refine=S5:x"], "refine='S5:x' is no way to spread a map"),
        (["--model", "resnet19"], "model 'resnet19' is no classifier of torchvision: expected e.g. vgg16"),
        (["--model", "fasterrcnn_resnet50_fpn"], "model 'fasterrcnn_resnet50_fpn' is no classifier of torchvision"),
        (["--model", "fcn_resnet50"], r"does not fit fcn_resnet50: expected its state dict \(Error.* Missing key"),
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
    assert picture.maps(photo, model, "stain", Config("layercam"))[1] == "stain"


def test_weights_out_of_reach(monkeypatch):
    def unreachable(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(picture, "get_model", unreachable)
    with pytest.raises(RuntimeError, match=r"resnet18.*\.pth cannot be reached \(no route to host\).* pass --checkpoint"):
        picture.classifier("resnet18", None)


def test_pretrained_weights_are_taken_where_they_can_be_had(monkeypatch, capsys):
    made, asked = get_model("resnet18", weights=None), []

    def reached(name, weights):
        asked.append(weights)
        sys.stdout.write("Downloading: ... to a place on this machine")
        sys.stderr.write("100%")
        if len(asked) > 1:
            raise OSError("no route to host")
        return made

    monkeypatch.setattr(picture, "get_model", reached)
    model, classes, size = picture.pretrained("resnet18")
    assert model is made and not model.training and "tabby" in classes and size == (224, 224)
    assert picture.pretrained("resnet18") is None
    assert [str(weights) for weights in asked] == ["ResNet18_Weights.IMAGENET1K_V1"] * 2
    assert capsys.readouterr() == ("", "")
    with pytest.raises(InputError, match="model 'resnet19' is no classifier"):  # a wrong name is not a host that is down
        picture.pretrained("resnet19")


@pytest.mark.parametrize("name", ["nope.jpg", "."])
def test_no_image_is_said_without_a_word_of_data_sets(name, resnet, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        CliRunner().invoke(
            app, ["explain", str(tmp_path / name), "--model", "resnet18", "--checkpoint", str(resnet)], catch_exceptions=False
        )
    assert str(error.value) == f"no image at {tmp_path / name}: expected a photograph there"


WRAPPED = {
    "DataParallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "Lightning": lambda state: {"epoch": 3, "state_dict": {f"model.{name}": value for name, value in state.items()}},
    "torchvision's references": lambda state: {"model": state, "epoch": 3},
    "a compiled model in DataParallel": lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
    "a dictionary": lambda state: {"model_state_dict": state},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_a_state_dict_is_found_in_what_others_save(how, resnet, tmp_path):
    state = torch.load(resnet, weights_only=True)
    torch.save(WRAPPED[how](state), tmp_path / "wrapped.pth")
    model, classes, _ = picture.classifier("resnet18", str(tmp_path / "wrapped.pth"))
    assert list(classes) == ["0", "1", "2"] and all(
        torch.equal(state[name], value) for name, value in model.state_dict().items()
    )


def test_names_that_differ_otherwise_are_said(resnet, tmp_path):
    torch.save({f"net.{name}": value for name, value in torch.load(resnet, weights_only=True).items()}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r'net.pth does not fit resnet18: .*Missing key\(s\) in state_dict: "conv1.weight"'):
        picture.classifier("resnet18", tmp_path / "net.pth")


@pytest.mark.parametrize("auxiliary", [False, True])
def test_a_segmentation_network_needs_no_download(auxiliary, photo, tmp_path, monkeypatch):
    torch.manual_seed(0)
    made = get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=3)
    if auxiliary:
        made = get_model("fcn_resnet50", weights=None, weights_backbone=None, num_classes=3, aux_loss=True)
    torch.save(made.state_dict(), tmp_path / "dense.pth")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("it downloads"))
    model = picture.classifier("fcn_resnet50" if auxiliary else "lraspp_mobilenet_v3_large", tmp_path / "dense.pth")
    assert picture.maps(str(photo), model, "2", Config("gradcam", "all", 20))[1] == "2"

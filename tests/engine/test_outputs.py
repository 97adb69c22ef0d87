"""Models that return something else than one tensor of logits, or need more than images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget
from torch import nn

from ltcam import CAM, trace


class Net(nn.Module):
    """Logits at every place, returned as `wrap` says."""

    def __init__(self, wrap):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.wrap = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 1), wrap

    def forward(self, x):
        return self.wrap(self.head(self.conv(x).relu()))


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: {"out": y, "aux": 0}, lambda y: SimpleNamespace(logits=y)])
def test_a_class_of_dense_logits_is_its_mean(images, wrap):
    expected = trace(Net(lambda y: y.mean(dim=(2, 3))), images, 3, ["conv"]).gradient("conv")
    assert torch.allclose(trace(Net(wrap), images, 3, ["conv"]).gradient("conv"), expected)


def test_output_and_masks(images):
    net, mask = Net(lambda y: [{"masks": row} for row in y]), torch.zeros(64, 64)
    mask[:20, :30] = 1
    with pytest.raises(ValueError, match=r"the model gives a list: expected the logits .*see output="):
        trace(net, images, 1, ["conv"])

    def output(rows):
        return torch.stack([(row["masks"] * mask).sum(dim=(1, 2)) for row in rows])

    ours = trace(net, images, 1, ["conv"], output=output).gradient("conv")
    target = SemanticSegmentationTarget(1, np.asarray(mask))
    theirs = trace(Net(lambda y: {"out": y}), images, [target] * 3, ["conv"]).gradient("conv")
    assert torch.allclose(ours, theirs) and CAM(net, ["conv"], output=output)(images, [1, 1, 1]).shape == (3, 64, 64)


@pytest.mark.parametrize("error", [TypeError, AssertionError, IndexError])
def test_what_the_model_said_is_named(images, error):
    def fail(y):
        raise error("missing 'age'")

    with pytest.raises(
        ValueError,
        match=rf"does not run on .* \({error.__name__}: missing 'age'\).*and wrap a model that needs more inputs",
    ):
        trace(Net(fail), images, 1, ["conv"])


@pytest.mark.parametrize("option", ["output", "reshape"])
def test_an_option_that_is_no_function(images, option):
    with pytest.raises(ValueError, match=f"{option}='logits': expected a function of"):
        trace(Net(lambda y: y), images, 1, ["conv"], **{option: "logits"})

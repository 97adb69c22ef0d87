"""What is timed is the same: heatmaps of ours and the peers', before they are compared in seconds."""

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.models import vgg16

from benchmarks import peers
from ltcam.evaluation import Config


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    return vgg16(weights=None, num_classes=300, init_weights=False).eval(), torch.rand(2, 3, 64, 64)


def flat(found):
    """(maps, H, W) of a list of stacks of maps."""
    return torch.cat([torch.as_tensor(m if torch.is_tensor(m) else np.asarray(m)).detach().reshape(-1, 64, 64) for m in found])


def test_torch_cam_is_asked_for_the_same_heatmaps(setting):
    model, images = setting
    configs = [Config("gradcam", "S1-S5"), Config("gradcam", "S1-S5", 0.0), Config("layercam", "S1-S5", 60.0)]
    mine, theirs = flat(peers.ours(model, images, configs, 2)), flat(peers.torch_cam(model, images, configs, 2))
    mine = mine.view(3, 2, 2, 64, 64).transpose(1, 2).reshape(-1, 64, 64)  # image, class -> class, image
    assert mine.shape == theirs.shape and mine.amax(dim=(1, 2)).min() > 0
    assert ((mine - theirs).abs().amax(dim=(1, 2)) <= 1e-4 * mine.amax(dim=(1, 2))).all()


def test_pytorch_grad_cam_and_captum_and_the_floor_do_the_work(setting):
    model, images = setting
    assert flat(peers.captum(model, images, peers.STAGES, 1)).shape == (10, 64, 64)
    assert flat(peers.pytorch_grad_cam(model, images, peers.STAGES, 1)).shape == (10, 64, 64)
    truncated = flat(peers.pytorch_grad_cam(model, images, [Config("layercam", "S1-S5", d) for d in (None, 20.0)], 1))
    assert truncated.shape == (4, 64, 64) and not torch.equal(truncated[:2], truncated[2:])
    bare = peers.floor(model, images, peers.STAGES, 2)
    assert [len(gradients) for gradients in bare] == [5, 5] and bare[0][0].shape == (2, 64, 32, 32)


def test_ratios_are_of_one_turn():
    times = [("t", name, turn, s, 1.0) for turn, row in enumerate([(9, 9), (1, 2), (1, 4), (1, 3)], -1) for name, s in
             zip(("floor", "ltcam"), row, strict=True)]  # fmt: skip
    table = peers.ratios(pd.DataFrame(times, columns=["task", "library", "turn", "seconds", "MB"])).set_index("library")
    assert table.loc["ltcam", ["over floor", "over floor, min", "over floor, max"]].tolist() == [3, 2, 4]
    assert table.loc["ltcam", "over ltcam"] == 1 and table.loc["ltcam", "seconds"] == 3

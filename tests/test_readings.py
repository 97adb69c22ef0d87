"""The readings that ltcam does not have, and pytorch-grad-cam at its defaults beside ltcam, on a network of random weights."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from pytorch_grad_cam.utils.image import scale_cam_image
from torchvision.models import vgg16

from benchmarks import readings
from ltcam import METHODS, layerize
from ltcam.data import Sample


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(0)
    return torch.rand(2, 4, 5, 5), torch.randn(2, 4, 5, 5)


def test_grad_cam_plus_plus_is_ltcams_without_a_change(tensors):
    torch.testing.assert_close(readings.plus_plus()(*tensors), METHODS["gradcam++"](*tensors))


def test_grad_cam_plus_plus_with_an_epsilon_is_pytorch_grad_cams(tensors):
    weights = GradCAMPlusPlus.get_cam_weights(None, None, None, None, *(t.numpy() for t in tensors))
    expected = np.maximum((weights[..., None, None] * tensors[0].numpy()).sum(axis=1), 0)
    np.testing.assert_allclose(readings.plus_plus(eps=1e-6)(*tensors), expected, rtol=1e-5, atol=1e-6)


def test_grad_cam_plus_plus_with_the_sum_of_a_g3_by_hand():
    activation, gradient = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[2.0, -1.0]]]])
    ours = readings.OTHERS["Grad-CAM++ with the sum of A G^3"][1](activation, gradient)
    weight = 4 / (8 + 8 - 2) * 2  # alpha = G^2 / (2 G^2 + 1 * 8 - 2 * 1), times the one positive gradient
    torch.testing.assert_close(ours, weight * activation[:, 0])


def test_alphas_that_sum_to_one_weigh_a_channel_by_a_mean_of_its_positive_gradients():
    gradient = torch.tensor([[[[1.0, 1.0], [-5.0, 0.0]]]])
    activation = torch.full((1, 1, 2, 2), 3.0)
    torch.testing.assert_close(readings.plus_plus(whole=True)(activation, gradient), torch.full((1, 2, 2), 3.0))  # mean 1


def test_a_sum_is_a_mean_times_the_places(tensors):
    torch.testing.assert_close(readings.summed(*tensors), 25 * METHODS["gradcam"](*tensors))


def test_rows_are_made_of_their_stages():
    found = {row: (s.start, s.stop) for row, config in readings.OURS.items() if config.method != "fullgrad"
             for s in [readings.chosen(config)]}  # fmt: skip
    assert found["S1"] == (0, 1) and found["S5"] == found["Grad-CAM++"] == (4, 5) and found["S3+S4+S5"] == (2, 5)
    assert found["LTGrad-CAM(l=5, δ=20)"] == (0, 5) and len(readings.OURS) == 15


def test_pytorch_grad_cam_is_ltcam_with_scaled_stages():
    torch.manual_seed(0)
    model, images = vgg16(weights=None, num_classes=20).eval(), torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        top = model(images).argmax(dim=1)
    ours, theirs = readings.ours(model, images, top), readings.theirs(model, images)
    assert {row for _, row in theirs} == {*readings.OURS}
    with GradCAM(model, [model.features[30]]) as peer:
        np.testing.assert_allclose(theirs["pytorch-grad-cam", "S5"][0][0], peer(images, None), atol=1e-5)
    for row in ("S5", "S3+S4+S5", "LTGrad-CAM(l=5, δ=20)", "Layer-CAM(l=5, δ=0)"):
        maps, how = ours.get(("stages min-maxed", row)) or ours["ltcam", row]
        whole = scale_cam_image(layerize(maps, (224, 224), normalize=how).numpy())
        assert np.abs(whole - theirs["pytorch-grad-cam", row][0][0].numpy()).max() < 2e-3
    third = ours["Layer-CAM of the ReLU and the enlarged gradient", "Layer-CAM(l=1, δ=0)"][0][0]
    assert third.shape == (2, 14, 14)  # before the pool


def test_a_class_that_is_not_explained_is_missed():
    mask = torch.tensor([[1, 1, 3], [0, 0, 255]], dtype=torch.uint8)  # classes 0 and 2, background and void
    label = torch.tensor([True, False, True])
    sample = Sample(torch.zeros(3, 2, 3), label, mask, "a")
    heat = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    pairs, values = readings.scored([sample], torch.tensor([0]), {("ltcam", "S5"): ([heat], "none")})
    assert [pair["class"] for pair in pairs] == [0, 2]
    assert [value.tolist() for value in values] == [[[2, 1, 0]], [[0, 0, 1]]]

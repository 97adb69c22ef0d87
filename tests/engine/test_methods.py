"""Numbers worked out by hand on a toy of one pair and two channels of 2 x 2."""

import re

import pytest
import torch

from ltcam.engine.methods import (
    METHODS,
    cam,
    constant_in_space,
    fullgrad,
    gradcam,
    gradcam_plus_plus,
    hirescam,
    layercam,
    sim,
    xgradcam,
)
from ltcam.errors import InputError

A = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[4.0, 3.0], [2.0, 1.0]]]])
G = torch.tensor([[[[2.0, 2.0], [-2.0, 2.0]], [[-1.0, 0.0], [0.0, -3.0]]]])


def test_cam():
    # the gradient of a mean over four places and weights 8 and -4: 8 A_1 - 4 A_2 = [[-8, 4], [16, 28]], then the ReLU
    gradient = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    assert cam(A, gradient).tolist() == [[[0, 4], [16, 28]]]


def test_cam_refuses_a_gradient_that_varies():
    said = "CAM needs global average pooling and one linear layer after it: use gradcam, or head='gap'"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        cam(A, G)


def test_constant_in_space_is_up_to_rounding_of_the_pairs_largest_gradient():
    gradient = torch.tensor([[[[1.0, 1.0]], [[1e-6, 9e-6]]], [[[4.0, 4.0]], [[-2.0, -2.0]]]], dtype=torch.float64)
    assert constant_in_space(gradient) and constant_in_space(torch.zeros(1, 2, 3, 3))
    gradient[0, 1, 0, 1] = 1.2e-5
    assert not constant_in_space(gradient)


WRONG = {
    "a torch.float32 tensor (2, 2, 2)": A[0],
    "a torch.int64 tensor (1, 2, 2, 2)": A.long(),
    "a torch.float32 tensor (0, 2, 2, 2)": A[:0],
    "a list": A.tolist(),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("is_a", WRONG)
def test_what_a_method_cannot_take_is_refused(name, is_a):
    for pair in ((WRONG[is_a], G), (A, WRONG[is_a])):
        with pytest.raises(InputError, match=f"^{re.escape(f'a method is given {is_a}: expected floats (P, K, h, w)')}$"):
            METHODS[name](*pair)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (2, 2, 1, 1), (1, 2, 1, 2), (1, 3, 1, 1), (1, 2, 1, 1)])
def test_what_is_not_of_one_layer_is_refused(name, shape):
    """Of FullGrad's biases there is one a channel."""
    if name == "fullgrad" and shape == (1, 2, 1, 1):
        assert fullgrad(torch.ones(shape), G).shape == (1, 2, 2)
        return
    said = (
        f"a method is given a torch.float32 tensor {shape} and a torch.float32 tensor (1, 2, 2, 2): expected those of one layer"
    )
    with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
        METHODS[name](torch.ones(shape), G)


def test_xgradcam():
    # sum G A = 2 + 4 - 6 + 8 = 8 over sum A = 10, and -4 - 3 = -7 over 10: 0.8 A_1 - 0.7 A_2
    assert torch.allclose(xgradcam(A, G), torch.tensor([[[0.0, 0.0], [1.0, 2.5]]]))


def test_xgradcam_leaves_out_a_channel_that_sums_to_zero():
    activation = torch.cat([A[:, :1], torch.tensor([[[[1.0, -1.0], [2.0, -2.0]]]])], dim=1)
    assert torch.allclose(xgradcam(activation, G), 0.8 * A[:, 0])


def test_hirescam():
    # G * A = [[2, 4], [-6, 8]] + [[-4, 0], [0, -3]], then the ReLU
    assert hirescam(A, G).tolist() == [[[0, 4], [0, 5]]]


def test_gradcam():
    # channel means 1 and -1: A_1 - A_2 = [[-3, -1], [1, 3]], then the ReLU
    assert gradcam(A, G).tolist() == [[[0, 0], [1, 3]]]


def test_layercam():
    # positive gradients times activations, summed: channel 2 has none
    assert layercam(A, G).tolist() == [[[2, 4], [0, 8]]]


def test_sim():
    # the positive gradients alone, summed: channel 2 has none
    assert sim(A, G).tolist() == sim(-A, G).tolist() == [[[2, 2], [0, 2]]]


def test_layercam_clips_negative_sums():
    assert layercam(-A, G).tolist() == [[[0, 0], [0, 0]]]


def test_gradcam_plus_plus():
    # channel 1: S = 10, alpha = 4 / (2 * 4 + 10 * 8) = 1 / 22 where G = 2, so the weight is 3 * 2 / 22; channel 2: none
    assert torch.allclose(gradcam_plus_plus(A, G), 6 / 22 * A[:, 0])


def test_gradcam_plus_plus_where_the_denominator_vanishes():
    activation, gradient = torch.tensor([[[[1.0, -2.0]]]]), torch.full((1, 1, 1, 2), 2.0)  # 2 + (1 - 2) * 2 = 0
    assert gradcam_plus_plus(activation, gradient).tolist() == [[[4, 0]]]


def test_gradcam_of_one_channel():
    assert gradcam(A[:, :1], G[:, :1]).tolist() == A[:, 0].tolist()  # whose gradient has a mean of 1


def test_fullgrad():
    # b = (1, 2): |G b| = [[2, 2], [2, 2]] and [[2, 0], [0, 6]]; minimum 0, maximum 6 over both; the sum over channels / 6
    expected = torch.tensor([[[4.0, 2.0], [2.0, 8.0]]]) / 6
    assert torch.allclose(fullgrad(torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), G), expected)


def test_fullgrad_per_channel():
    # |G b| as above: channel 1 is constant, hence zero; channel 2 is [[2, 0], [0, 6]] / 6
    expected = torch.tensor([[[2.0, 0.0], [0.0, 6.0]]]) / 6
    assert torch.allclose(fullgrad(torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), G, per_channel=True), expected)


def test_fullgrad_subtracts_the_layers_minimum():
    # |G b| = 1, 2, 3, 5 over both channels: (x - 1) / 4, summed over channels
    gradient = torch.tensor([[[[1.0, -2.0]], [[3.0, 5.0]]]])
    assert torch.allclose(fullgrad(torch.ones(1, 2, 1, 1), gradient), torch.tensor([[[0.5, 1.25]]]))


def test_fullgrad_has_the_same_map_and_a_gradient_where_a_graph_is_kept():
    bias, gradient = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1), torch.tensor([[[[3.0, -1.0]], [[0.5, 4.0]]]])
    plain, kept = fullgrad(bias, gradient), fullgrad(bias, gradient.requires_grad_())
    assert torch.equal(plain, kept.detach())
    torch.testing.assert_close(plain, torch.tensor([[[2 / 7, 1.0]]]))  # |G b| is 3, 1, 1 and 8: over 7, less 1 each
    kept[0, 0, 0].backward()
    torch.testing.assert_close(gradient.grad[0, 0, 0, 0], torch.tensor(1 / 7))


def test_fullgrad_of_a_constant_term_is_zero():
    assert fullgrad(torch.ones(1, 2, 1, 1), torch.full((3, 2, 4, 4), -2.0)).eq(0).all()


@pytest.mark.parametrize("name", METHODS)
def test_pairs_do_not_mix(name):
    generator = torch.Generator().manual_seed(0)
    activation, gradient = (torch.randn(4, 5, 3, 3, generator=generator) for _ in range(2))
    gradient = gradient.mean(dim=(2, 3), keepdim=True).expand(4, 5, 3, 3) if name == "cam" else gradient
    together = METHODS[name](activation, gradient)
    alone = torch.cat([METHODS[name](activation[i : i + 1], gradient[i : i + 1]) for i in range(4)])
    assert together.shape == (4, 3, 3)
    assert torch.allclose(together, alone, rtol=1e-5, atol=1e-7)
    assert (together >= 0).all()

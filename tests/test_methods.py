"""Numbers worked out by hand on a toy of one pair and two channels of 2 x 2."""

import pytest
import torch

from ltcam.methods import METHODS, fullgrad, gradcam, gradcam_plus_plus, layercam, method

A = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[4.0, 3.0], [2.0, 1.0]]]])
G = torch.tensor([[[[2.0, 2.0], [-2.0, 2.0]], [[-1.0, 0.0], [0.0, -3.0]]]])


def test_gradcam():
    # channel means 1 and -1: A_1 - A_2 = [[-3, -1], [1, 3]], then the ReLU
    assert gradcam(A, G).tolist() == [[[0, 0], [1, 3]]]


def test_layercam():
    # positive gradients times activations, summed: channel 2 has none
    assert layercam(A, G).tolist() == [[[2, 4], [0, 8]]]


def test_layercam_clips_negative_sums():
    assert layercam(-A, G).tolist() == [[[0, 0], [0, 0]]]


def test_gradcam_plus_plus():
    # channel 1: S = 10, alpha = 4 / (2 * 4 + 10 * 8) = 1 / 22 where G = 2, so the weight is 3 * 2 / 22; channel 2: none
    assert torch.allclose(gradcam_plus_plus(A, G), 6 / 22 * A[:, 0])


def test_gradcam_plus_plus_where_the_denominator_vanishes():
    activation, gradient = torch.full((1, 1, 1, 1), -1.0), torch.full((1, 1, 1, 1), 2.0)  # 2 + (-1) * 2 = 0
    assert gradcam_plus_plus(activation, gradient).isfinite().all()


def test_fullgrad():
    # b = (1, 2): |G b| = [[2, 2], [2, 2]] and [[2, 0], [0, 6]]; minimum 0, maximum 6 over both; the sum over channels / 6
    expected = torch.tensor([[[4.0, 2.0], [2.0, 8.0]]]) / 6
    assert torch.allclose(fullgrad(torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), G), expected)


def test_fullgrad_subtracts_the_layers_minimum():
    # |G b| = 1, 2, 3, 5 over both channels: (x - 1) / 4, summed over channels
    gradient = torch.tensor([[[[1.0, -2.0]], [[3.0, 5.0]]]])
    assert torch.allclose(fullgrad(torch.ones(1, 2, 1, 1), gradient), torch.tensor([[[0.5, 1.25]]]))


def test_fullgrad_of_a_constant_term_is_zero():
    assert fullgrad(torch.ones(1, 2, 1, 1), torch.full((3, 2, 4, 4), -2.0)).eq(0).all()


@pytest.mark.parametrize("name", METHODS)
def test_pairs_do_not_mix(name):
    generator = torch.Generator().manual_seed(0)
    activation, gradient = (torch.randn(4, 5, 3, 3, generator=generator) for _ in range(2))
    together = METHODS[name](activation, gradient)
    alone = torch.cat([METHODS[name](activation[i : i + 1], gradient[i : i + 1]) for i in range(4)])
    assert together.shape == (4, 3, 3)
    assert torch.allclose(together, alone, rtol=1e-5, atol=1e-7)
    assert (together >= 0).all()


def test_unknown_method():
    with pytest.raises(ValueError, match=r"'scorecam' is unknown: expected one of gradcam, gradcam\+\+, layercam, fullgrad"):
        method("scorecam")

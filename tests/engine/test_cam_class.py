"""The class that a pytorch-grad-cam user recognises."""

import pytest
import torch
from pytorch_grad_cam.utils.model_targets import (
    BinaryClassifierOutputTarget,
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
)
from torch import nn

from ltcam import CAM, Config, explain, trace


def test_is_the_functional_way_over_its_maximum(tiny, images):
    expected = explain(trace(tiny, images, [0, 1, 2]), "gradcam", delta=20)
    with CAM(tiny, delta=20) as cam:
        found = cam(images, [0, 1, 2])
        assert torch.equal(cam.logits, trace(tiny, images).logits)
    assert torch.allclose(found, expected / expected.amax(dim=(1, 2), keepdim=True))
    assert found.shape == (3, 64, 64) and found.min() >= 0 and (found.amax(dim=(1, 2)) == 1).all()


@pytest.mark.parametrize("layers", [["S5"], ["features.30"], "module"])
def test_target_layers(tiny, images, layers):
    chosen = [tiny.features[30]] if layers == "module" else layers
    expected = explain(trace(tiny, images), "layercam", "S5")
    assert torch.allclose(CAM(tiny, chosen, "layercam")(images), expected / expected.amax(dim=(1, 2), keepdim=True))


def test_that_librarys_targets(tiny, images):
    by_class = CAM(tiny)(images, [1, 1, 3])
    assert torch.equal(CAM(tiny)(images, [ClassifierOutputTarget(c) for c in (1, 1, 3)]), by_class)
    softmax = trace(tiny, images, [ClassifierOutputSoftmaxTarget(2)] * 3, ["S5"])
    assert softmax.pairs.tolist() == [[0, -1], [1, -1], [2, -1]]
    alone = images[:1].clone()
    kept = {}
    with torch.enable_grad():
        handle = tiny.features[30].register_forward_hook(lambda m, a, out: kept.update(out=out.requires_grad_()))
        score = tiny(alone).softmax(dim=-1)[0, 2]
        handle.remove()
    (gradient,) = torch.autograd.grad(score, kept["out"])
    assert torch.allclose(softmax.gradient("features.30")[:1], gradient, rtol=1e-4, atol=1e-8)
    binary = nn.Sequential(tiny, nn.Linear(4, 1), nn.Flatten(0))  # logits (N,)
    low, high = (CAM(binary, [tiny.features[23]])(images, [BinaryClassifierOutputTarget(c)] * 3) for c in (0, 1))
    assert not torch.equal(low, high)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([lambda row: row[0]] * 2, "2 functions as targets of a torch.float32 tensor (3, 4): expected one per image"),
        ([lambda row: row] * 3, "a target function gives a torch.float32 tensor (4,): expected a tensor of one number"),
        ([lambda row: 1.0] * 3, "a target function gives a float: expected a tensor of one number"),
        ([[0, 1], [0], [1]], "4 targets for 3 images: expected one per image"),
        ([[0, 1], [0], []], "3 targets for 3 images: expected one per image"),
    ],
)
def test_wrong_targets(tiny, images, targets, message):
    with pytest.raises(ValueError) as error:
        CAM(tiny)(images, targets)
    assert message in str(error.value)


def test_a_tiny_map_still_peaks_at_1_and_an_empty_one_stays_empty(tiny, images):
    with torch.no_grad():
        tiny.classifier[6].weight[0] *= 1e-25
        tiny.classifier[6].weight[1] = 0
    assert 0 < explain(trace(tiny, images, 0), "layercam").max() < 1e-20
    assert CAM(tiny, method="layercam")(images, 0).amax(dim=(1, 2)).tolist() == [1, 1, 1]
    assert CAM(tiny, method="layercam")(images, 1).eq(0).all()


def test_options_are_checked_when_it_is_made(tiny):
    with pytest.raises(ValueError, match="method 'eigencam' is unknown"):
        CAM(tiny, method="eigencam")
    with pytest.raises(ValueError, match="normalize='max' with fullgrad"):
        CAM(tiny, method="fullgrad", normalize="max")
    with pytest.raises(TypeError, match="aug_smooth"):
        CAM(tiny, aug_smooth=True)
    assert CAM(tiny, fuse="max").config == Config(layers="all", fuse="max")


def test_the_users_exception_passes_through_the_context_manager(tiny):
    with pytest.raises(KeyError), CAM(tiny):
        raise KeyError


def test_fullgrad(tiny, images):
    expected = explain(trace(tiny, images, fullgrad=True), "fullgrad")
    assert torch.allclose(CAM(tiny, method="fullgrad")(images), expected / expected.amax(dim=(1, 2), keepdim=True))


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "fullgrad"])
def test_create_graph_reaches_weights_and_images(tiny, images, method):
    images.requires_grad_()
    traced = trace(tiny, images, [[0, 2], [1], [3]], fullgrad=True, create_graph=True)
    plain = trace(tiny, images, [[0, 2], [1], [3]], fullgrad=True)
    maps = explain(traced, method, delta=20)
    assert torch.allclose(maps, explain(plain, method, delta=20), rtol=1e-4, atol=1e-5 * maps.max().item())
    assert not explain(plain, method).requires_grad and all(p.grad is None for p in tiny.parameters())
    maps.sum().backward()
    assert images.grad.abs().sum() > 0 and tiny.features[0].weight.grad.abs().sum() > 0
    assert tiny.classifier[6].weight.grad.abs().sum() > 0


def test_create_graph_gradient_is_the_difference_quotient(tiny, images):
    tiny.double()
    images = images[:1].double()
    weight = tiny.classifier[6].weight

    def total():
        return explain(trace(tiny, images, 0, ["S4", "S5"], create_graph=True), "hirescam").double().sum()

    (gradient,) = torch.autograd.grad(total(), weight)
    place = tuple(x.item() for x in (gradient.abs() == gradient.abs().max()).nonzero()[0])
    before = total()
    with torch.no_grad():
        weight[place] += 1e-2
    assert ((total() - before) / 1e-2).item() == pytest.approx(gradient[place].item(), rel=1e-3)
    assert CAM(tiny, create_graph=True)(images).requires_grad

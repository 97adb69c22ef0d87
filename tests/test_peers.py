"""Native-size maps against independent implementations, on VGG16 at 224: within 1e-5 of the map's maximum."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torchcam.methods import GradCAM as TorchCamGradCAM
from torchcam.methods import LayerCAM as TorchCamLayerCAM

from ltcam import trace
from ltcam.cam import layer_maps
from ltcam.methods import gradcam_plus_plus
from ltcam.models import stages, vgg16

CLASS = 7


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    model = vgg16(20, weights=None, hidden=64).eval()
    with torch.no_grad():
        for parameter in model.features.parameters():  # away from zero, so that no map is
            parameter.add_(0.01 * torch.randn_like(parameter))
    image = torch.randn(1, 3, 224, 224)
    return model, image, trace(model, image, CLASS)


def close(ours, theirs):
    theirs = torch.as_tensor(np.asarray(theirs)).reshape(ours.shape)
    assert ours.max() > 0
    return (ours - theirs).abs().max() <= 1e-5 * theirs.max()


@pytest.mark.parametrize("stage", ["S1", "S3", "S5"])
def test_captum_gradcam(setting, stage):
    model, image, traced = setting
    layer = model.get_submodule(stages(model)[stage])
    theirs = LayerGradCam(model, layer).attribute(image, target=CLASS, relu_attributions=True)
    assert close(layer_maps(traced, "gradcam", stage)[stages(model)[stage]], theirs.detach())


@pytest.mark.parametrize(("name", "peer"), [("gradcam", TorchCamGradCAM), ("layercam", TorchCamLayerCAM)])
def test_torchcam(setting, name, peer):
    model, image, traced = setting
    with peer(model, list(stages(model).values())) as extractor:
        maps = extractor(CLASS, model(image), normalized=False)
    for layer, theirs in zip(stages(model).values(), maps, strict=True):
        assert close(layer_maps(traced, name)[layer], theirs)


def by_pytorch_grad_cam(peer, model, image, layer, activation, gradient):
    with peer(model, [model.get_submodule(layer)]) as cam:
        return np.maximum(cam.get_cam_image(image, None, [CLASS], activation.numpy(), gradient.numpy(), False), 0)


@pytest.mark.parametrize(("name", "peer"), [("gradcam", GradCAM), ("layercam", LayerCAM)])
def test_pytorch_grad_cam(setting, name, peer):
    model, image, traced = setting
    for layer, ours in layer_maps(traced, name).items():
        theirs = by_pytorch_grad_cam(peer, model, image, layer, traced.activation(layer), traced.gradient(layer))
        assert close(ours, theirs)


def test_pytorch_grad_cam_plus_plus(setting):
    """It adds 1e-6 to a denominator in squared gradients: compared at a scale, and for gradients, where that is nothing."""
    model, image, traced = setting
    for layer in traced.layers:
        activation, gradient = traced.activation(layer), traced.gradient(layer)
        gradient = 1e3 * gradient / gradient.abs().max()
        gradient = torch.where(gradient.abs() > 1, gradient, 0)
        assert close(
            gradcam_plus_plus(activation, gradient),
            by_pytorch_grad_cam(GradCAMPlusPlus, model, image, layer, activation, gradient),
        )


def test_pytorch_grad_cam_end_to_end(setting):
    """Its own forward, backward and hooks too: what it makes of our gradients is not enough."""
    model, image, traced = setting
    layer = model.features[30]
    with GradCAM(model, [layer]) as cam:
        cam(image, [ClassifierOutputTarget(CLASS)])
        activation, gradient = (
            x[0].detach() for x in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients)
        )
        raw = cam.get_cam_image(image, layer, [CLASS], activation.numpy(), gradient.numpy(), False)
    assert close(layer_maps(traced, "gradcam", "S5")["features.30"], np.maximum(raw, 0))

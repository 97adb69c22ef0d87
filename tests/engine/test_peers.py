"""Native-size maps against independent implementations, on VGG16 at 224: within 1e-5 of the map's maximum."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from pytorch_grad_cam import FullGrad, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, RefineCAM, XGradCAM
from pytorch_grad_cam.utils.image import scale_accross_batch_and_channels
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torchcam.methods import CAM as TorchCamCAM
from torchcam.methods import GradCAM as TorchCamGradCAM
from torchcam.methods import LayerCAM as TorchCamLayerCAM

from ltcam import Config, explain, layerize, trace
from ltcam.engine import cam
from ltcam.engine.methods import fullgrad, gradcam_plus_plus, xgradcam
from ltcam.engine.stages import stages
from ltcam.experiment.vgg16 import vgg16

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


def layer_maps(traced, name, layers=None):
    return cam.layer_maps(traced, Config(name, layers or "all"))


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


@pytest.mark.parametrize(("name", "peer"), [("gradcam", GradCAM), ("layercam", LayerCAM), ("hirescam", HiResCAM)])
def test_pytorch_grad_cam(setting, name, peer):
    model, image, traced = setting
    for layer, ours in layer_maps(traced, name).items():
        theirs = by_pytorch_grad_cam(peer, model, image, layer, traced.activation(layer), traced.gradient(layer))
        assert close(ours, theirs)


def test_pytorch_grad_cam_xgradcam(setting):
    """It adds 1e-7 to the sum of a channel: compared at a scale where that is nothing."""
    model, image, traced = setting
    for layer in traced.layers:
        activation, gradient = 1e4 * traced.activation(layer), traced.gradient(layer)
        assert close(xgradcam(activation, gradient), by_pytorch_grad_cam(XGradCAM, model, image, layer, activation, gradient))


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


def test_pytorch_grad_cam_fullgrad_normalises_each_channel(setting):
    """Its terms are an oracle for per_channel=True only. It adds 1e-7 to a maximum: compared where that is nothing."""
    model, image, _ = setting
    terms = trace(model, image, CLASS, fullgrad=True).biases[:13]
    for term, bias in zip(terms, FullGrad(model, []).bias_data, strict=True):
        gradient = 1e8 * term.gradient / term.gradient.abs().max()
        product = np.abs(bias[None, :, None, None] * gradient.numpy())
        theirs = scale_accross_batch_and_channels(product, product.shape[:1:-1]).sum(axis=1)
        assert close(fullgrad(term.bias.view(1, -1, 1, 1), gradient, per_channel=True), theirs)


def test_torchcam_cam():
    torch.manual_seed(0)
    model, image = vgg16(20, "gap", None).eval(), torch.randn(1, 3, 224, 224)
    torch.nn.init.uniform_(model.features[28].bias, 0, 1)
    torch.nn.init.uniform_(model.classifier.weight, 0, 1)
    with TorchCamCAM(model, "features.30", "classifier") as extractor:
        theirs = extractor(CLASS, model(image), normalized=False)[0]
    assert close(layer_maps(trace(model, image, CLASS), "cam", "S5")["features.30"], theirs.detach().clamp(min=0))


def test_pytorch_grad_cam_refinecam(setting):
    """RefineCAM's product is our geometric mean to the power of the number of layers. It then scales the map to [0, 1]."""
    model, image, _ = setting
    target, layers = [ClassifierOutputTarget(CLASS)], [model.get_submodule(stages(model)[stage]) for stage in ("S3", "S5")]
    refined = RefineCAM(model, layers, base_method=LayerCAM)
    theirs = refined(image, target)
    alone = [torch.from_numpy(cam(image, target)) for cam in refined.base_cam_per_layer]
    ours = layerize(alone, (224, 224), "prod") ** len(layers)
    assert close((ours - ours.amin()) / (ours.amax() - ours.amin()), theirs)


def test_zoomcam_as_its_authors_code_does(setting):
    """The sum of A G over channels, the ReLU, over its maximum, upsampled, and the largest of all layers."""
    _, _, traced = setting
    maps = []
    for name in traced.layers:
        m = (traced.activation(name) * traced.gradient(name)).sum(dim=1, keepdim=True).clamp(min=0)
        assert m.amin() == 0  # their code subtracts it
        maps.append(torch.nn.Upsample((224, 224), mode="bilinear")(m / m.amax())[:, 0])
    torch.testing.assert_close(explain(traced, "hirescam", fuse="max", normalize="max"), torch.stack(maps).amax(dim=0))


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

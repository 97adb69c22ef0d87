"""What the docstrings say of other libraries, measured: by which option ltcam does as they do, and how far it is without."""

import pytest
import torch
from pytorch_grad_cam import GradCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch.nn import functional as F

from ltcam import CAM, Config, explain, layerize, trace
from ltcam.engine.cam import fused, layer_maps, maps_of
from ltcam.engine.tricks import normalized
from ltcam.engine.views import Maps
from ltcam.experiment.vgg16 import vgg16

CLASS = 3


@pytest.fixture(scope="module")
def setting():
    """Double precision, and logits so large that what the others add to a denominator is nothing."""
    torch.manual_seed(0)
    model = vgg16(4, weights=None, width=8, hidden=16).double().eval()
    with torch.no_grad():
        for parameter in model.features.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        model.classifier[6].weight.mul_(1e9)
    return model, torch.randn(1, 3, 128, 128, dtype=torch.float64)


def apart(ours, theirs):
    """The largest difference of two maps, each over its maximum."""
    return (ours / ours.max() - theirs / theirs.max()).abs().max().item()


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]


def their_fullgrad(model, image, align_corners):
    """Srinivas and Fleuret's map by their formula: |gradient x bias| of each convolution and |gradient x image|, min-maxed."""
    outputs, x = [], image.clone().requires_grad_()
    hooks = [m.register_forward_hook(lambda m, _, out: outputs.append((m.bias, out))) for m in convolutions(model)]
    hooks += [m.register_forward_hook(lambda m, _, out: out.clone()) for m in convolutions(model)]  # what follows is in place
    logit = model(x)[0, CLASS]
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(logit, [x, *(out for _, out in outputs)])
    terms = [gradients[0] * image, *(g * b[:, None, None] for (b, _), g in zip(outputs, gradients[1:], strict=True))]
    total = torch.zeros(image.shape[2:], dtype=image.dtype)
    for term in (t.abs() for t in terms):
        scaled = (term - term.min()) / (term.max() - term.min() + 1e-6)
        total += F.interpolate(scaled, image.shape[2:], mode="bilinear", align_corners=align_corners)[0].sum(dim=0)
    return total.detach()


def test_fullgrad_is_the_references_with_its_resizing(setting):
    model, image = setting
    traced = trace(model, image, CLASS, fullgrad=True)
    reference = their_fullgrad(model, image, align_corners=True)
    assert apart(explain(traced, "fullgrad", align_corners=True)[0], reference) < 1e-6  # maps are float32
    assert apart(explain(traced, "fullgrad")[0], their_fullgrad(model, image, align_corners=False)) < 1e-6
    assert 0.02 < apart(explain(traced, "fullgrad")[0], reference) < 0.2
    with CAM(model, method="fullgrad", align_corners=True) as cam:
        assert apart(cam(image, CLASS)[0], reference) < 1e-6


@pytest.mark.parametrize("fuse", ["sum", "max"])
def test_counting_resizes_so_too(setting, fuse):
    model, image = setting
    traced = trace(model, image, CLASS)
    config = Config("gradcam", "all", 20, fuse=fuse, align_corners=True)
    maps = maps_of(traced, [config])
    ((_, (found,)),) = Maps(traced.pairs, traced.logits, maps).heatmaps([0], (90, 70))
    maps = maps[config]
    expected = fused(maps, config, (90, 70))
    assert torch.allclose(found, expected) and not torch.allclose(found, layerize(list(maps.values()), (90, 70), fuse))
    assert torch.equal(expected[..., 0, 0], layerize([m[..., :1, :1] for m in maps.values()], (1, 1), fuse)[..., 0, 0])


@pytest.mark.parametrize(("method", "peer"), [("gradcam", GradCAM), ("layercam", LayerCAM)])
@pytest.mark.parametrize("indices", [(16, 23, 30), (30,)])
def test_cam_gives_pytorch_grad_cams_maps_with_minmax(setting, method, peer, indices):
    model, image = setting
    layers = [model.features[i] for i in indices]
    with peer(model, layers) as cam:
        theirs = torch.from_numpy(cam(image.clone(), [ClassifierOutputTarget(CLASS)]))[0]
    assert (CAM(model, layers, method, normalize="minmax")(image, CLASS)[0] - theirs).abs().max() < 1e-4
    assert (CAM(model, layers, method, normalize="minmax", fuse="mean")(image, CLASS)[0] - theirs).abs().max() < 1e-4
    plain = (CAM(model, layers, method)(image, CLASS)[0] - theirs).abs().max()
    assert plain > 0.05  # the sum of unscaled maps; of one layer, what is left of its minimum


@pytest.mark.parametrize(
    ("layers", "scaled"),
    [("S1-S5", 3), ("S1-S4", 2), ("S1-S3", 1), ("S3-S5", 1), ("S2-S4", 1), ("S1-S2", 0), ("S4-S5", 0), ("S3", 0)],
)
def test_the_stages_that_tanh_scales(setting, layers, scaled):
    model, image = setting
    maps = layer_maps(trace(model, image, CLASS), Config("layercam", layers)).values()
    found = normalized(list(maps), "tanh")
    expected = [m / m.max() for m in maps]
    expected = [torch.tanh(2 * m) if number < scaled else m for number, m in enumerate(expected)]
    assert all(torch.allclose(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("stage", ["S1", "S2", "S3", "S4", "S5"])
def test_layer_cams_code_resizes_a_stage_and_min_maxes_it(setting, stage):
    """With neither tanh nor fusion."""
    model, image = setting
    traced = trace(model, image, CLASS)
    name = traced.stages[stage]
    summed = (traced.activation(name) * traced.gradient(name).relu()).sum(dim=1)
    theirs = F.interpolate(summed[None], (128, 128), mode="bilinear", align_corners=False)[0]
    theirs = (theirs - theirs.min()) / (theirs.max() - theirs.min() + 1e-8)
    assert (CAM(model, [stage], "layercam", normalize="minmax")(image, CLASS) - theirs).abs().max() < 1e-6

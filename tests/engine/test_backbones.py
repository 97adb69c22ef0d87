"""Any CNN: stages and LTGrad-CAM on what torchvision and timm have, and on models in every wrapping and precision."""

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchvision.models import VisionTransformer, get_model

from ltcam import explain, trace
from ltcam.engine.stages import stages, unwrap
from ltcam.experiment.vgg16 import vgg16
from tests.engine.test_trace import Net

STAGES = {
    "torchvision/vgg11_bn": ["features.3", "features.7", "features.14", "features.21", "features.28"],
    "torchvision/alexnet": ["features.2", "features.5", "features.12"],
    "torchvision/resnet18": ["relu", "layer1", "layer2", "layer3", "layer4"],
    "torchvision/densenet121": ["features.relu0", *(f"features.denseblock{i}" for i in (1, 2, 3)), "features.norm5"],
    "torchvision/efficientnet_b0": [f"features.{i}" for i in (1, 2, 3, 5, 8)],
    "torchvision/convnext_tiny": [f"features.{i}" for i in (1, 3, 5, 7)],
    "torchvision/mobilenet_v3_small": [f"features.{i}" for i in (0, 1, 3, 8, 12)],
    "torchvision/googlenet": ["conv1", "conv3", "inception3b", "inception4e", "inception5b"],
    "torchvision/squeezenet1_1": ["features.1", "features.4", "features.7", "features.12"],
    "timm/resnet18": ["act1", "layer1", "layer2", "layer3", "layer4"],
    "timm/inception_v3": ["Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"],
    "timm/convnext_atto": ["stages.0", "stages.1", "stages.2", "norm_pre"],
    "timm/regnetx_002": ["stem", "s1", "s2", "s3", "final_conv"],
    "timm/mobilenetv4_conv_small": ["bn1", "blocks.0", "blocks.1", "blocks.2", "blocks.4"],
}


def build(name):
    library, name = name.split("/")
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model(name, num_classes=7).eval()
    return get_model(name, num_classes=7, **({"init_weights": False} if name == "googlenet" else {})).eval()


@pytest.mark.parametrize("name", STAGES)
def test_stages_and_ltgradcam(name):
    model = build(name)
    found = stages(model)
    assert list(found.values()) == STAGES[name] and list(found) == [f"S{i + 1}" for i in range(len(found))]
    images = torch.randn(2, 3, 128, 128)
    traced = trace(model, images, [0, 1])
    assert traced.layers == STAGES[name]
    sizes = [traced.activation(layer).shape[2] for layer in traced.layers]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    maps = explain(traced, "gradcam", delta=20)
    assert maps.shape == (2, 128, 128) and maps.isfinite().all() and (maps.amax(dim=(1, 2)) > 0).all()
    alone = explain(trace(model, images[1:], [1]), "gradcam", delta=20)
    assert torch.allclose(maps[1:], alone, rtol=1e-2, atol=1e-3 * alone.max().item())


def test_relu_stages(tiny):
    assert list(stages(tiny, "relu").values()) == [f"features.{i}" for i in (3, 8, 15, 22, 29)]
    assert all(isinstance(tiny.get_submodule(name), nn.ReLU) for name in stages(tiny, "relu").values())
    with pytest.raises(ValueError, match="outputs='relu' needs a VGG-like model: ResNet has no"):
        stages(build("torchvision/resnet18"), "relu")
    with pytest.raises(ValueError, match="outputs='conv' is unknown: expected 'pool' or 'relu'"):
        stages(tiny, "conv")


def test_relu_stages_are_traced_by_their_labels(tiny, images):
    traced = trace(tiny, images, 0, stages(tiny, "relu"))
    assert traced.select("S5") == ["features.29"] and traced.activation("features.29").shape[2:] == (4, 4)
    assert not torch.equal(explain(traced, "gradcam"), explain(trace(tiny, images, 0), "gradcam"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), "Sequential has no convolutions: pass layers="),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2)),
            r"does not run on a torch.float32 tensor \(1, 3, 160, 160\)",
        ),
        (Net(nn.ReLU()), "Net has no stages of falling resolution"),
    ],
)
def test_models_without_stages(model, message):
    with pytest.raises(ValueError, match=message):
        stages(model)


def vit():
    torch.manual_seed(0)
    model = VisionTransformer(image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=4)
    nn.init.normal_(model.heads.head.weight)
    return model.eval()


def test_vision_transformer_without_reshape(images):
    with pytest.raises(ValueError, match=r"tensor \(3, 17, 8\): expected \(N, K, h, w\) of 3 images; for tokens pass reshape="):
        trace(vit(), images, 0, ["encoder.layers.encoder_layer_0"])
    with pytest.raises(ValueError, match=r"tensor \(3, 17\).*; pass another reshape="):
        trace(vit(), images, 0, ["encoder.layers.encoder_layer_0"], reshape=lambda tokens: tokens[:, :, 0])
    with pytest.raises(ValueError, match="VisionTransformer has no stages of falling resolution"):
        trace(vit(), images, 0)


def agree(found, expected, tolerance=1e-5):
    assert expected.max() > 0
    return (found - expected).abs().max() <= tolerance * expected.max()


@pytest.mark.parametrize("method", ["gradcam", "layercam", "fullgrad"])
def test_frozen_channels_last_and_wrapped_models_give_the_same(tiny, images, method):
    def maps(model, images=images):
        return explain(trace(model, images, [0, 1, 2], fullgrad=True), method, delta=20)

    expected = maps(tiny)
    assert torch.equal(maps(nn.DataParallel(tiny)), expected)
    assert torch.equal(maps(torch.compile(tiny)), expected)
    assert torch.equal(maps(tiny.requires_grad_(False)), expected)
    last = images.contiguous(memory_format=torch.channels_last)
    assert agree(maps(tiny.to(memory_format=torch.channels_last), last), expected, 1e-4)


def test_compiled_parts_are_seen_inside(tiny, images):
    expected = trace(tiny, images, 0)
    tiny.features = torch.compile(tiny.features, backend="eager")
    tiny(images)  # compiled by now
    traced = trace(tiny, images, 0, ["features._orig_mod.30"])
    assert torch.equal(traced.gradient("features._orig_mod.30"), expected.gradient("features.30"))
    tiny.features = tiny.features._orig_mod
    tiny.compile(backend="eager")
    tiny(images)
    assert torch.equal(trace(tiny, images, 0).gradient("features.30"), expected.gradient("features.30"))


def test_unwrap(tiny):
    assert unwrap(torch.compile(nn.DataParallel(tiny))) is tiny and unwrap(tiny) is tiny
    assert stages(nn.DataParallel(tiny)) == stages(tiny)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["gradcam", "layercam", "fullgrad"])
def test_half_precision(tiny, images, dtype, method):
    expected = explain(trace(tiny, images, [0, 1, 2], fullgrad=True), method)
    with torch.autocast("cpu", dtype):
        traced = trace(tiny, images, [0, 1, 2], fullgrad=True)
        inside = explain(traced, method)
    assert traced.activation("features.30").dtype == dtype and inside.dtype == torch.float32
    assert torch.equal(inside, explain(traced, method))  # not in half precision inside autocast either
    rest = explain(trace(tiny.to(dtype), images.to(dtype), [0, 1, 2], fullgrad=True), method)
    for found in (inside, rest):
        assert found.dtype == torch.float32
        assert np.corrcoef(found.flatten(), expected.flatten())[0, 1] > 0.95


def test_small_gradients_in_float16(tiny, images):
    """Below 6e-8 there is nothing in float16."""
    expected = trace(tiny, images, 0).gradient("features.4")
    found = trace(tiny.half(), images.half(), 0).gradient("features.4")
    assert 0 < expected.abs().max() < 1e-7 and (found - expected).abs().mean() < 0.3 * expected.abs().mean()
    with torch.no_grad():
        tiny.classifier[6].weight *= 1e4
    with pytest.raises(ValueError, match="float16 cannot hold the gradient at 'features"):
        trace(tiny, images.half(), 0)


def test_a_model_of_another_dtype_is_refused(tiny, images):
    with pytest.raises(ValueError, match=r"images are torch.float32, the model is torch.bfloat16: convert one"):
        trace(tiny.to(torch.bfloat16), images, 0)


def test_no_relu_at_all(images):
    net = Net(nn.Identity())
    maps = explain(trace(net, images, [0, 1, 2], ["conv"]), "gradcam", delta=0)
    assert maps.shape == (3, 64, 64) and maps.max() > 0


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
def test_torchscript_is_refused(tiny, images):
    with pytest.raises(ValueError, match="a TorchScript model takes no hooks on its layers: pass the eager model"):
        trace(torch.jit.trace(tiny, images), images, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_cuda(dtype):
    torch.manual_seed(0)
    model, images = vgg16(4, weights=None, width=4, hidden=16).cuda().eval(), torch.randn(2, 3, 64, 64).cuda()
    expected = explain(trace(model, images, 0), "gradcam")
    with torch.autocast("cuda", dtype):
        found = explain(trace(model, images, 0), "gradcam")
    assert np.corrcoef(found.cpu().flatten(), expected.cpu().flatten())[0, 1] > 0.98


def test_fullgrad_sees_inside_a_batch_norm_that_does_more(images):
    """timm's is its activation too."""
    model = build("timm/mobilenetv4_conv_small")
    model.bn1.bias.data.fill_(0.1)  # a new model has none but zeros, which are no terms
    traced = trace(model, images, 0, fullgrad=True)
    assert "bn1" in [term.name for term in traced.biases] and traced.residual.abs().max() < 1e-4

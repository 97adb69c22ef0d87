"""Layers that keep their channels last, or tokens: refused by name, and right through the ready reshapes."""

from functools import partial

import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer, resnet18
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from ltcam import channels_last, explain, tokens_to_map, trace
from ltcam.engine.shapes import is_channels_last

SWIN = {"patch_size": [4, 4], "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": [4, 4], "num_classes": 4}
MODELS = {
    "swin": lambda: SwinTransformer(**SWIN),
    "swin_v2": lambda: SwinTransformer(**SWIN, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2),
    "timm": lambda: timm.models.SwinTransformer(
        64, 4, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(2, 2), num_classes=4
    ),
    "convnext": lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], layer_scale=1.0, num_classes=4),
}
LAST = [
    ("swin", "features.1.0"), ("swin", "features.3.0.norm2"), ("swin", "features.3.0.mlp.0"), ("swin_v2", "features.3"),
    ("timm", "layers.1"), ("timm", "layers.1.blocks.0"), ("convnext", "features.3.0.block.2"),
    ("convnext", "features.3.0.block.4"),
]  # fmt: skip


def build(name):
    torch.manual_seed(0)
    return MODELS[name]().eval()


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
@pytest.mark.parametrize(("name", "layer"), LAST)
def test_channels_last_is_refused_and_read_through_reshape(name, layer, size):
    if name == "timm" and size != (64, 64):
        pytest.skip("of one size")
    model, images = build(name), torch.randn(2, 3, *size)
    with pytest.raises(ValueError, match=rf"layer '{layer}' gives .*, its channels last: pass reshape=ltcam.channels_last"):
        trace(model, images, 0, [layer])
    traced = trace(model, images, [1, 2], [layer], reshape=channels_last)
    with GradCAM(model, [model.get_submodule(layer)], lambda x: x.permute(0, 3, 1, 2)) as cam:
        cam(images, [ClassifierOutputTarget(c) for c in (1, 2)])
        theirs = cam.activations_and_grads
        assert torch.allclose(traced.activation(layer), theirs.activations[0], atol=1e-6)
        assert torch.allclose(traced.gradient(layer), theirs.gradients[0], rtol=1e-4, atol=1e-7)
    assert explain(traced, "gradcam", delta=20).shape == (2, *size)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (75, 50)])
def test_channels_first_is_what_it_was(size):
    """With as many channels as rows, too, and where reshape says that it is."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    for model, layers in ((resnet18(num_classes=3).eval(), ["layer1", "layer4", "avgpool"]), (net, ["0", "1", "2"])):
        images = torch.randn(2, 3, *size)
        plain = trace(model, images, 1, layers)
        said = trace(model, images, 1, layers, reshape=lambda x: x)
        assert all(torch.equal(plain.gradient(name), said.gradient(name)) for name in layers)
    assert not is_channels_last((2, 8, 8, 8), (64, 64)) and is_channels_last((2, 8, 8, 9), (64, 64))


def vit(size=64):
    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=size, patch_size=16, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=4
    )
    nn.init.normal_(model.heads.head.weight)
    return model.eval()


@pytest.mark.parametrize(
    "make", [vit, lambda: timm.models.VisionTransformer(64, 16, embed_dim=8, depth=2, num_heads=2, reg_tokens=2)]
)
def test_tokens(make):
    torch.manual_seed(0)
    model, images = make().eval(), torch.randn(2, 3, 64, 64)
    layer = "encoder.layers.encoder_layer_1.ln_1" if hasattr(model, "encoder") else "blocks.1.norm1"
    traced = trace(model, images, [1, 2], [layer], reshape=tokens_to_map)
    with GradCAM(model, [model.get_submodule(layer)], lambda t: t[:, -16:].reshape(2, 4, 4, 8).permute(0, 3, 1, 2)) as cam:
        cam(images, [ClassifierOutputTarget(c) for c in (1, 2)])
        assert torch.allclose(traced.gradient(layer), cam.activations_and_grads.gradients[0], rtol=1e-4, atol=1e-7)


class Wide(nn.Module):
    """Tokens of an image that is not square: a class token and the patches."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(3, 6, 8, 8), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(torch.cat([x.mean(dim=1, keepdim=True), x.relu()], dim=1)).amax(dim=1))


def test_tokens_of_an_image_that_is_not_square():
    """13 x 15 patches and a class token are as many as 14 x 14."""
    model, images = Wide().eval(), torch.randn(1, 3, 104, 120)
    with pytest.raises(ValueError, match=r"tokens of 104 x 120 pixels are no square grid: pass partial\(tokens_to_map, grid="):
        trace(model, images, 0, ["norm"], reshape=tokens_to_map)
    traced = trace(model, images, 0, ["norm"], reshape=partial(tokens_to_map, grid=(13, 15)))
    by_hand = trace(model, images, 0, ["norm"], reshape=lambda t: t[:, 1:].reshape(1, 13, 15, 6).movedim(3, 1))
    assert torch.equal(traced.activation("norm"), by_hand.activation("norm"))
    with pytest.raises(ValueError, match="196 tokens do not form a grid of 20 x 20"):
        trace(model, images, 0, ["norm"], reshape=partial(tokens_to_map, grid=(20, 20)))


def test_a_batch_that_is_not_of_the_images(images):
    """Windows, crops and (T, N, K) tokens."""

    class Crops(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(torch.cat(x.split(32, dim=2))).mean(dim=(2, 3)).unflatten(0, (2, -1)).mean(dim=0)

    with pytest.raises(ValueError, match=r"'conv' gives .*\(6, 4, 30, 62\): expected \(N, K, h, w\) of 3 images"):
        trace(Crops(), images, 0, ["conv"])


@pytest.mark.parametrize("reshape", [channels_last, tokens_to_map])
def test_the_reshapes_refuse_other_shapes(reshape):
    with pytest.raises(ValueError, match=r"got a torch.float32 tensor \(2, 3\): expected one tensor"):
        reshape(torch.zeros(2, 3))

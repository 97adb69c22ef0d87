"""Twelve situations out of the threads of other libraries, written anew: a right value, or a refusal that names the way out."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, SemanticSegmentationTarget
from torch import nn
from torch.nn import functional as F
from torchvision.models import SwinTransformer, VisionTransformer

import ltcam


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Net(nn.Module):
    """Two convolutions and a linear layer. `wrap` is what it makes of its logits."""

    def __init__(self, wrap=lambda logits: logits):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.head, self.wrap = nn.Linear(8, 4), wrap

    def forward(self, x):
        return self.wrap(self.head(self.two(self.one(x).relu()).relu().mean(dim=(2, 3))))


def pictures(n=2):
    return torch.randn(n, 3, 32, 32)


def by_hand(model, layer, images, score):
    """Grad-CAM's map (N, h, w) by one hook and one call of autograd."""
    kept = []

    def start(module, arguments, output):
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()

    with layer.register_forward_hook(start):
        returned = model(images)
    (gradient,) = torch.autograd.grad(score(returned), kept[0])
    return (gradient.mean(dim=(2, 3), keepdim=True) * kept[0]).sum(dim=1).relu().detach()


def gradcam(model, images, target, layer, **options):
    traced = ltcam.trace(model, images, target, [layer], **options)
    (name,) = traced.layers
    return ltcam.METHODS["gradcam"](traced.activation(name), traced.gradient(name))


def the_same(found, expected):
    return expected.max() > 0 and torch.allclose(found, expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


def test_a_swin_layer_has_its_channels_last():
    model = SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4], num_classes=4).eval()
    images, name = pictures(), "features.3.1.norm2"
    with pytest.raises(ltcam.LtcamError, match=r"its channels last: pass reshape=ltcam\.channels_last"):
        gradcam(model, images, 1, name)
    layer = model.get_submodule(name)
    with GradCAM(model, [layer], reshape_transform=lambda x: x.permute(0, 3, 1, 2)) as theirs:
        expected = torch.as_tensor(theirs(images, [ClassifierOutputTarget(1)] * 2))
    found = ltcam.CAM(model, [name], reshape=ltcam.channels_last)(images, [1, 1])
    assert expected.max() > 0 and np.corrcoef(found.flatten(), expected.flatten())[0, 1] > 0.999


def test_a_vision_transformer_gives_tokens():
    model = VisionTransformer(32, 8, 2, 2, 16, 16, num_classes=4).eval()
    nn.init.normal_(model.heads.head.weight)  # a new one is zero
    images, name = pictures(), "encoder.layers.encoder_layer_1.ln_1"
    with pytest.raises(ltcam.LtcamError, match=r"for tokens pass reshape=ltcam\.tokens_to_map"):
        gradcam(model, images, 1, name)
    kept = []
    with model.get_submodule(name).register_forward_hook(lambda m, x, y: kept.append(y)):
        score = model(images)[:, 1].sum()
    (gradient,) = torch.autograd.grad(score, kept[0])
    weights = gradient[:, 1:].mean(dim=1, keepdim=True)
    expected = (weights * kept[0][:, 1:]).sum(dim=2).view(2, 4, 4).relu().detach()
    assert the_same(gradcam(model, images, 1, name, reshape=ltcam.tokens_to_map), expected)


def test_the_model_returns_an_object_with_logits():
    model, images = Net(lambda logits: SimpleNamespace(loss=None, logits=logits)), pictures()
    expected = by_hand(model, model.two, images, lambda returned: returned.logits[:, 2].sum())
    assert the_same(gradcam(model, images, 2, "two"), expected)


def test_the_model_returns_two_outputs():
    model, images = Net(lambda logits: (logits, -logits)), pictures()
    with pytest.raises(ltcam.LtcamError, match=r"the model gives a tuple: expected the logits .* see output= of trace"):
        gradcam(model, images, 2, "two")
    expected = by_hand(model, model.two, images, lambda returned: returned[1][:, 2].sum())
    assert the_same(gradcam(model, images, 2, "two", output=lambda returned: returned[1]), expected)


def test_the_model_needs_two_inputs():
    class Both(Net):
        def forward(self, x, age):
            return super().forward(x) * age

    class WithAge(nn.Module):
        def __init__(self, model, age):
            super().__init__()
            self.model, self.age = model, age

        def forward(self, x):
            return self.model(x, self.age)

    model, images, age = Both(), pictures(), torch.tensor([[2.0], [3.0]])
    with pytest.raises(ltcam.LtcamError, match=r"does not run on .*missing 1 required .*'age'.*wrap a model"):
        gradcam(model, images, 2, "two")
    expected = by_hand(WithAge(model, age), model.two, images, lambda logits: logits[:, 2].sum())
    assert the_same(gradcam(WithAge(model, age), images, 2, "model.two"), expected)


def test_the_backbone_is_frozen():
    model, images = Net(), pictures()
    expected = gradcam(model, images, 2, "two")
    for parameter in [*model.one.parameters(), *model.two.parameters()]:
        parameter.requires_grad_(False)
    assert the_same(gradcam(model, images, 2, "two"), expected)
    assert [p.requires_grad for p in model.parameters()] == [False] * 4 + [True] * 2


def test_a_validation_loop_runs_under_no_grad():
    model, images = Net(), pictures()
    expected = by_hand(model, model.two, images, lambda logits: logits[:, 2].sum())
    with torch.no_grad():
        assert the_same(gradcam(model, images, 2, "two"), expected) and not torch.is_grad_enabled()


@pytest.mark.parametrize("method", ["gradcam", "fullgrad"])
def test_a_relu_works_in_place_on_the_layer(method):
    class Dense(Net):
        def __init__(self, inplace):
            super().__init__()
            self.inplace = inplace

        def forward(self, x):
            x = F.relu(self.one(x), self.inplace)
            return self.head(F.relu(self.two(x), self.inplace).mean(dim=(2, 3)))

    model, other, images = Dense(True), Dense(False), pictures()
    other.load_state_dict(model.state_dict())
    found, expected = (
        ltcam.explain(ltcam.trace(m, images, 2, ["one", "two"], fullgrad=method == "fullgrad"), method) for m in (model, other)
    )
    assert the_same(found, expected)
    traced = ltcam.trace(model, images, 2, ["two"])
    assert traced.activation("two").min() < 0  # the layer's output, not what the ReLU made of it


def test_fullgrad_of_an_auxiliary_head_that_runs_in_training_only():
    class Aux(Net):
        def __init__(self):
            super().__init__()
            self.aux = nn.Sequential(nn.Conv2d(6, 3, 1), nn.Flatten(), nn.Linear(3 * 16 * 16, 4))

        def forward(self, x):
            logits = super().forward(x)
            return (logits, self.aux(self.one(x))) if self.training else logits

    model, images = Aux().double().train(), pictures().double()
    traced = ltcam.trace(model, images, [0, 2], ["one", "two"], fullgrad=True)
    assert [term.name for term in traced.biases] == ["one", "two", "head"] and model.training
    assert traced.residual.abs().max() < 1e-12 and ltcam.explain(traced, "fullgrad").amax(dim=(1, 2)).min() > 0


def test_one_max_pool_is_used_after_every_convolution():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.pool = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1), nn.MaxPool2d(2)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            x = self.pool(self.two(self.pool(self.one(x).relu())).relu())
            return self.head(x.mean(dim=(2, 3)))

    model, images = Shared(), pictures()
    with pytest.raises(ltcam.LtcamError, match="layer 'pool' runs more than once"):
        gradcam(model, images, 2, "pool")
    assert ltcam.stages(model) == {"S1": "one", "S2": "two"}
    expected = by_hand(model, model.two, images, lambda logits: logits[:, 2].sum())
    assert the_same(gradcam(model, images, 2, "S2"), expected)


@pytest.mark.parametrize("method", [name for name in ltcam.METHODS if name not in ("cam", "fullgrad")])
def test_a_class_without_evidence_has_a_map_of_zeros(method):
    model, images = Net(), pictures()
    with torch.no_grad():
        model.head.weight[1] = -model.head.weight[1].abs()
    layer = nn.ReLU()
    model.two = nn.Sequential(model.two, layer)
    found = ltcam.CAM(model, ["two.1"], method)(images, [1, 1])
    assert found.shape == (2, 32, 32) and (found == 0).all()


def test_a_segmentation_network_gives_logits_per_pixel():
    class Segmenting(Net):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return {"out": F.interpolate(self.head(self.two(self.one(x).relu()).relu()), x.shape[2:], mode="bilinear")}

    model, images, mask = Segmenting(), pictures(), np.zeros((32, 32), np.float32)
    mask[4:20, 8:30] = 1
    expected = by_hand(model, model.two, images, lambda returned: returned["out"][:, 2].mean(dim=(1, 2)).sum())
    assert the_same(gradcam(model, images, 2, "two"), expected)
    expected = by_hand(model, model.two, images, lambda returned: (returned["out"][:, 2] * torch.as_tensor(mask)).sum())
    assert the_same(gradcam(model, images, SemanticSegmentationTarget(2, mask), "two"), expected)


def test_the_table_in_the_docs_names_each_of_the_twelve():
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    listed = re.findall(r"`(test_[a-z_]+)` \|", text)
    here = [name for name in globals() if name.startswith("test_")]
    assert listed == here[:-1] and len(listed) == 12

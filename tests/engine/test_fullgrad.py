"""FullGrad finds every bias, whoever adds it: equal functions have equal maps, and input and bias terms add up to the logit."""

import copy
import warnings
from itertools import pairwise

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import ResNet, get_model
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FrozenBatchNorm2d

from ltcam import explain, trace


def randomised(model, std=None):
    """Statistics and biases away from those of a new model; eval mode, float64."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.double().state_dict().items():
        if tensor.is_floating_point() and (tensor.ndim < 2 or std):
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(
                values.abs() * 0.2 + 0.9 if "var" in name or (tensor.ndim == 1 and "weight" in name) else values * (std or 0.1)
            )
    return model.eval()


def resnet():
    torch.manual_seed(0)
    return randomised(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5))


def changed(model, change):
    """A copy with every batch norm replaced."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, change(module))
    return model


def frozen(module):
    new = FrozenBatchNorm2d(module.num_features, module.eps).double()
    new.load_state_dict(module.state_dict(), strict=False)
    return new


class ByHand(nn.Module):
    """Batch norm as x * scale, then an in-place sum."""

    def __init__(self, module):
        super().__init__()
        self.scale = module.weight.detach() * (module.running_var + module.eps).rsqrt()
        self.shift = module.bias.detach() - module.running_mean * self.scale

    def forward(self, x):
        x = x * self.scale[:, None, None]
        x += self.shift[:, None, None]
        return x


def folded(model):
    model = copy.deepcopy(model)
    for parent in [model, *model.modules()]:
        children = list(parent.named_children())
        for (one, conv), (other, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, one, fuse_conv_bn_eval(conv, norm))
                setattr(parent, other, nn.Identity())
    return model


def total(traced):
    found = (traced.inputs[0] * traced.inputs[1]).flatten(1).sum(dim=1)
    for term in traced.biases:
        bias = term.bias.view(1, -1, *[1] * (term.gradient.ndim - 2)) if term.bias.ndim == 1 else term.bias
        found = found + (bias * term.gradient).flatten(1).sum(dim=1)
    return found


@pytest.mark.parametrize("delta", [None, 20])
def test_one_function_has_one_map(delta):
    model, images = resnet(), torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = trace(model, images, [[0, 1], [3]], fullgrad=True)
    assert len(plain.biases) > 10
    for other in (changed(model, frozen), changed(model, ByHand), folded(model)):
        found = trace(other, images, [[0, 1], [3]], fullgrad=True)
        assert len(found.biases) == len(plain.biases) and [b.stage for b in found.biases] == [b.stage for b in plain.biases]
        for layers in (None, "S3", "S4-S5"):
            expected = explain(plain, "fullgrad", layers, delta)
            assert expected.max() > 0 and torch.allclose(
                explain(found, "fullgrad", layers, delta), expected, rtol=1e-4, atol=1e-5
            )


def test_the_biases_of_resnet_are_those_of_its_batch_norms_in_frozen_ones():
    model, images = resnet(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    names = [b.name for b in trace(model, images, 0, fullgrad=True).biases]
    assert [b.name for b in trace(changed(model, frozen), images, 0, fullgrad=True).biases] == names


class Functional(nn.Module):
    """Convolutions, sums and a linear layer that are no modules; a bias that varies in space, and one in a concatenation."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Parameter(torch.randn(6, 7, 3, 3))
        self.bias, self.place = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(1, 6, 14, 14))
        self.more, self.last = nn.Parameter(torch.randn(1, 1, 14, 14)), nn.Parameter(torch.randn(4, 6))

    def forward(self, x):
        x = 1 - (x - 0.5) / 0.25
        x = F.relu(F.conv2d(x, self.one, self.bias)) + self.place
        x = torch.cat([F.pad(x[:, :, 1:-1, 1:-1], (1, 1, 1, 1), value=0.3), self.more.expand(len(x), -1, -1, -1)], dim=1)
        x = F.relu(F.conv2d(F.max_pool2d(x, 2), weight=self.two, bias=self.bias))
        return torch.addmm(self.bias[:4], x.mean(dim=(2, 3)), self.last.T)


def net(*middle, head=8):
    return nn.Sequential(nn.Conv2d(3, 6, 3), *middle, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(1), nn.LazyLinear(4))


KINDS = {
    "transposed": lambda: net(nn.ReLU(), nn.ConvTranspose2d(6, 5, 3, 2)),
    "functional": Functional,
    "group norm": lambda: net(nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.GroupNorm(3, 6)),
    "instance norm": lambda: net(nn.InstanceNorm2d(6, affine=True)),
    "instance norm, running": lambda: net(nn.InstanceNorm2d(6, affine=True, track_running_stats=True)),
    "batch statistics": lambda: net(nn.BatchNorm2d(6, track_running_stats=False)),
    "layer norm, channels last": lambda: net(Last(nn.LayerNorm(6), nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7))),
    "layer norm of all": lambda: net(nn.LayerNorm([6, 14, 14])),
    "root mean square": lambda: net(Last(nn.RMSNorm(6))),
    "reflecting padding": lambda: net(nn.LeakyReLU(0.1), nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")),
    "convolutions in 1-D": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(1), nn.LazyLinear(4)),
}  # fmt: skip


class Last(nn.Sequential):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_complete(kind, create_graph):
    torch.manual_seed(0)
    model, images = KINDS[kind](), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    images = images[:1] if kind == "batch statistics" else images  # of which more would mix
    targets = [[0, 1], [3]][: len(images)]
    model.eval()(images.float())
    layer = next((n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)), None)
    model = randomised(model, std=0.3)
    if layer is None:  # nothing to hook that is a map
        model = nn.Sequential(nn.Identity(), model)
        layer = "0"
    traced = trace(model, images, targets, [layer], fullgrad=True, create_graph=create_graph)
    logits = traced.logits[traced.pairs[:, 0], traced.pairs[:, 1]]
    assert torch.allclose(total(traced), logits, rtol=1e-6, atol=1e-9) and traced.residual.abs().max() < 1e-9
    if kind != "convolutions in 1-D":
        assert explain(traced, "fullgrad", delta=20).isfinite().all()


def test_convnext_is_read_on_its_last_axis():
    """Block norms and linear layers of (N, h, w, K): their terms are maps of K channels."""
    torch.manual_seed(0)
    model = timm.create_model("convnext_atto", num_classes=4, ls_init_value=1.0).eval()
    with pytest.warns(
        UserWarning, match=r"FullGrad is \d.*% from complete, between .* the model is not piecewise linear there"
    ):
        traced = trace(model, torch.randn(1, 3, 64, 64), 0, fullgrad=True)
    sizes = {t.name: (t.gradient.shape[1], t.gradient.shape[2]) for t in traced.biases if t.gradient.ndim == 4}
    assert len(sizes) > 10 and all(h in (16, 8, 4, 2, 1) and k >= 40 for k, h in sizes.values())
    assert explain(traced, "fullgrad").shape == (1, 64, 64)


BENT = ["torchvision/efficientnet_b0", "torchvision/mobilenet_v3_small"]
STRAIGHT = [
    "torchvision/alexnet", "torchvision/vgg11_bn", "torchvision/resnext50_32x4d", "torchvision/densenet121",
    "torchvision/squeezenet1_1", "torchvision/googlenet", "torchvision/shufflenet_v2_x0_5", "torchvision/mnasnet0_5",
    "timm/regnetx_002",
]  # fmt: skip


def residual(name):
    torch.manual_seed(0)
    library, name = name.split("/")
    model = timm.create_model(name, num_classes=5) if library == "timm" else get_model(name, num_classes=5, weights=None, **(
        {"init_weights": False} if name == "googlenet" else {}
    ))  # fmt: skip
    model = randomised(model).float()
    return trace(model, torch.randn(1, 3, 96, 96), 1, fullgrad=True).residual.abs().max().item()


@pytest.mark.parametrize("name", BENT)
def test_the_residual_of_a_model_that_is_not_piecewise_linear(name):
    with pytest.warns(UserWarning, match=r"FullGrad is \d.*% from complete") as caught:
        found = residual(name)
    assert len(caught) == 1 and found > 1e-4 and f"{found:.2%}" in str(caught[0].message)


@pytest.mark.parametrize("name", STRAIGHT)
def test_no_residual_of_a_piecewise_linear_one(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert residual(name) < 1e-4


class Hidden(nn.Module):
    """A bias that no function of torch is given: written into a tensor."""

    def forward(self, x):
        y = x.clone()
        y[:, 0] = 1.5
        return y


def hidden(*between):
    torch.manual_seed(0)
    head = [nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)]
    model, images = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), *between, *head), torch.randn(2, 3, 12, 12)
    model(images)
    return model, images


def test_a_missed_bias_is_a_warning_that_says_where():
    model, images = hidden(Hidden())
    for layers, place in (
        (["0", "3"], "layer '0' and layer '3'"),
        (["3"], "the image and layer '3'"),
        (["0"], "layer '0' and the logits"),
    ):
        with pytest.warns(
            UserWarning, match=rf"FullGrad is \d.*% from complete, between {place}: .* or a bias is not added by"
        ) as caught:
            traced = trace(model, images, 0, layers, fullgrad=True)
        assert len(caught) == 1 and caught[0].filename == __file__
        missing = traced.logits[:, 0].double() - total(traced)
        assert torch.equal(missing.abs() > 1e-3, traced.residual.abs() > 1e-4) and missing.abs().min() > 1e-3
    assert trace(model, images, 0, ["0", "3"]).residual is None


def test_curvature_is_a_warning_that_says_where():
    model, images = hidden(nn.SiLU())
    with pytest.warns(
        UserWarning, match=r"from complete, between layer '0' and layer '3': the model is not piecewise linear there"
    ):
        trace(model, images, 0, ["0", "3"], fullgrad=True)
    model, images = hidden()
    with pytest.warns(UserWarning, match=r"between layer '2' and the logits"):  # of the target
        trace(model, images, [lambda row: row.softmax(0)[1]] * 2, ["0", "2"], fullgrad=True)


@pytest.mark.parametrize("seed", range(3))
def test_rounding_where_the_terms_cancel_is_no_missed_bias(seed):
    """The score of a network without biases is about 0, though its input term adds up large numbers of both signs."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1, bias=False))
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        score, features = model(images), model[:3](images)
        model[3].weight -= score * features / features.square().sum()
    traced = trace(model, images, 0, ["0"], fullgrad=True)
    value, gradient = traced.inputs
    assert (value * gradient).abs().sum() > 1e5 * traced.logits.abs().max()
    assert traced.residual.abs() < 1e-4

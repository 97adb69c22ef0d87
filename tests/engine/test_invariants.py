"""What holds for every model: the logits are its own, a layer's gradient is autograd's, one function has one set of stages."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torchvision import models as tv
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.googlenet import GoogLeNet
from torchvision.models.resnet import BasicBlock

from ltcam import channels_last, explain, tokens_to_map, trace
from ltcam.engine.stages import stages, unwrap
from ltcam.experiment.vgg16 import vgg16
from tests.engine.test_borrow import Net
from tests.engine.test_situations import Against, ByAttribute, ByHook, ByList, Named, Normalizing, Scaled, Twice, block, encoder

SIZE = 64


class Convolution(nn.Module):
    """As Hugging Face's ResNetConvLayer; the parts are torchvision's."""

    def __init__(self, convolution, normalization, activation=None):
        super().__init__()
        self.convolution, self.normalization, self.activation = convolution, normalization, activation or nn.Identity()

    def forward(self, x):
        return self.activation(self.normalization(self.convolution(x)))


class Basic(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.shortcut = Convolution(*of.downsample) if of.downsample else nn.Identity()
        self.layer = nn.Sequential(Convolution(of.conv1, of.bn1, nn.ReLU()), Convolution(of.conv2, of.bn2))
        self.activation = nn.ReLU()

    def forward(self, x):
        return self.activation(self.layer(x) + self.shortcut(x))


class Stage(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.layers = nn.Sequential(*map(Basic, blocks))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Embedder(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.embedder, self.pooler = Convolution(of.conv1, of.bn1, nn.ReLU()), of.maxpool

    def forward(self, x):
        return self.pooler(self.embedder(x))


class Encoder(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.stages = nn.ModuleList(map(Stage, (of.layer1, of.layer2, of.layer3, of.layer4)))

    def forward(self, x):
        for stage in self.stages:
            x = stage(x)
        return SimpleNamespace(last_hidden_state=x)


class HuggingFace(nn.Module):
    """embedder, encoder.stages[i].layers[j], pooler, classifier, as in their ResNetForImageClassification."""

    def __init__(self, of):
        super().__init__()
        self.resnet = nn.Module()
        self.resnet.embedder, self.resnet.encoder, self.resnet.pooler = Embedder(of), Encoder(of), of.avgpool
        self.classifier = nn.Sequential(nn.Flatten(), of.fc)

    def forward(self, x):
        x = self.resnet.encoder(self.resnet.embedder(x)).last_hidden_state
        return SimpleNamespace(logits=self.classifier(self.resnet.pooler(x)))


def resnet():
    return tv.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4).eval()


def dense():
    return tv.DenseNet(8, (2, 2, 2), 8, num_classes=4).eval()


def vgg():
    return vgg16(4, weights=None, width=16, hidden=16).eval()


def convnext():
    kinds = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 1)]
    return ConvNeXt(kinds, layer_scale=1.0, num_classes=4).eval()


def chain(model):
    """The parts of a network that runs one after the other."""
    parts = [*model.children()]
    if isinstance(model, tv.ResNet):
        return [*parts[:-1], nn.Flatten(), parts[-1]]
    if isinstance(model, tv.DenseNet):
        return [*model.features, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.classifier]
    pool = getattr(model, "avgpool", nn.AdaptiveAvgPool2d(1))
    return [*model.features, pool, *([] if isinstance(model, ConvNeXt) else [nn.Flatten()]), *model.classifier]


def grouped(parts, *cuts):
    """`parts` in groups: one more begins at each cut."""
    cuts = [0, *[cut % len(parts) for cut in cuts], len(parts)]
    return nn.Sequential(*(nn.Sequential(*parts[a:b]) for a, b in pairwise(cuts))).eval()


def nested(parts, size=2):
    """Pairs, pairs of pairs, and so on."""
    while len(parts) > size:
        parts = [nn.Sequential(*parts[i : i + size]) for i in range(0, len(parts), size)]
    return nn.Sequential(*parts).eval()


GROUPINGS = {
    "resnet18": (lambda: tv.resnet18(num_classes=4).eval(), {"Hugging Face": HuggingFace}),
    "vgg": (vgg, {}),
    "dense": (dense, {}),
    "mobilenet": (lambda: tv.mobilenet_v2(num_classes=4, width_mult=0.35).eval(), {}),
    "efficientnet": (lambda: tv.efficientnet_b0(num_classes=4).eval(), {}),
    "convnext": (convnext, {}),
}


@pytest.mark.parametrize("name", GROUPINGS)
def test_one_function_in_several_groupings_has_one_set_of_stages(name):
    torch.manual_seed(0)
    make, more = GROUPINGS[name]
    plain, images = make(), torch.rand(1, 3, SIZE, SIZE)
    parts = chain(plain)
    flat = nn.Sequential(*parts).eval()
    expected = trace(flat, images, 1)
    others = {"plain": plain, "pairs": nested(parts), "threes": nested(parts, 3), "wrapped": nn.Sequential(flat)}
    for cut in (2, len(parts) // 2, -5):  # a group of a stem, of halves, of a head with what is before it
        others[str(cut)] = grouped(parts, cut)
    others |= {kind: model(plain) for kind, model in more.items()}
    heat = explain(expected, "gradcam", delta=20)
    assert len(expected.stages) >= 3 and heat.max() > 0
    for kind, model in others.items():
        if (name, kind) == ("dense", "plain"):
            continue  # its last ReLU is no module
        found = trace(model.eval(), images, 1)
        assert torch.equal(found.logits, expected.logits), kind
        assert list(found.stages) == list(expected.stages), (kind, found.stages)
        for label, layer in expected.stages.items():
            assert torch.equal(found.features(found.stages[label]), expected.features(layer)), (kind, label, found.stages)
        assert torch.equal(explain(found, "gradcam", delta=20), heat), kind


def compiled_part():
    model = encoder(4)
    model[1] = torch.compile(model[1], backend="eager")
    return model


def in_place():
    model = encoder(4)
    model.compile(backend="eager")
    return model


def weight_norm():
    model = encoder(4)
    nn.utils.parametrizations.weight_norm(model[1][0])
    return model


def swin():
    return tv.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=4).eval()


def vit():
    model = tv.VisionTransformer(SIZE, 16, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=4)
    nn.init.normal_(model.heads.head.weight)
    return model.eval()


def checkpointed():
    model = timm.create_model("resnet10t", num_classes=4)
    model.set_grad_checkpointing(True)
    return model.eval()


# What makes a model; its layers, where these are not the stages; `reshape=`.
MODELS = {
    "resnet18": (resnet, None, None),
    "vgg16": (vgg, None, None),
    "densenet": (dense, None, None),
    "convnext": (convnext, None, None),
    "squeezenet1_1": (lambda: tv.squeezenet1_1(num_classes=4), None, None),
    "shufflenet_v2_x0_5": (lambda: tv.shufflenet_v2_x0_5(num_classes=4), None, None),
    "mobilenet_v2": (lambda: tv.mobilenet_v2(num_classes=4, width_mult=0.35), None, None),
    "mobilenet_v3_small": (lambda: tv.mobilenet_v3_small(num_classes=4), None, None),
    "mnasnet0_5": (lambda: tv.mnasnet0_5(num_classes=4), None, None),
    "regnet_y_400mf": (lambda: tv.regnet_y_400mf(num_classes=4), None, None),
    "googlenet": (lambda: GoogLeNet(4, init_weights=False), None, None),
    "swin": (swin, ["features.1", "features.3"], channels_last),
    "vit": (vit, ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1.ln_1"], tokens_to_map),
    "a checkpointed one of timm": (checkpointed, None, None),
    "Hugging Face": (lambda: HuggingFace(resnet()), None, None),
    "groups": (lambda: nested(chain(resnet()), 3), None, None),
    "data parallel": (lambda: nn.DataParallel(encoder(4)), None, None),
    "compiled": (lambda: torch.compile(encoder(4), backend="eager"), None, None),
    "compiled in place": (in_place, None, None),
    "a compiled part": (compiled_part, None, None),
    "a wrapper": (lambda: Normalizing(encoder(4)), None, None),
    "a subclass of a wrapper": (lambda: Scaled(encoder(4)), None, None),
    "a dictionary": (lambda: Named(encoder(4), "logits"), None, None),
    "dense logits": (lambda: Named(encoder(4), "places"), None, None),
    "an attribute": (ByAttribute, ["first", "second"], None),
    "a hook": (ByHook, ["first", "second"], None),
    "a list": (ByList, ["first", "second"], None),
    "a low-rank part": (Net, ["one", "two"], None),
    "a second name": (Twice, ["top", "body.0"], None),
    "a parametrization": (weight_norm, None, None),
    "one side of a pair": (lambda: Against(encoder(4).double(), torch.rand(2, 3, SIZE, SIZE).double()), ["encoder.1"], None),
    "a stem alone": (lambda: nn.Sequential(block(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), ["0"], None),
}


def plainly(model, images, names, pairs, reshape):
    """The logits and each layer's gradient (P, ...) by plain hooks, pair by pair, if weights require gradients."""
    for module in model.modules():
        if hasattr(module, "grad_checkpointing"):
            module.grad_checkpointing = False

    def keep(name, output):
        kept[name] = output
        if not isinstance(model, ByAttribute | ByHook):  # whose other readers would read the clone
            return output.clone()  # what follows may change it in place

    kept, of = {}, dict(model.named_modules(remove_duplicate=False))
    handles = [of[n].register_forward_hook(lambda module, arguments, output, n=n: keep(n, output)) for n in names]
    with torch.compiler.set_stance("force_eager"):
        logits = logits_of(model(images.clone().requires_grad_()))
    for handle in handles:
        handle.remove()
    gradients = {name: [] for name in names}
    for i, c in pairs.tolist():
        found = torch.autograd.grad(logits[i, c], [kept[name] for name in names], retain_graph=True)
        for name, gradient in zip(names, found, strict=True):
            gradients[name].append(gradient[i : i + 1])
    made = {name: torch.cat(rows) for name, rows in gradients.items()}
    return logits.detach(), {name: reshape(gradient) if reshape else gradient for name, gradient in made.items()}


def logits_of(returned):
    logits = returned["logits"] if isinstance(returned, dict) else getattr(returned, "logits", returned)
    logits = logits[:, None] if logits.ndim == 1 else logits
    return logits.mean(dim=(2, 3)) if logits.ndim == 4 else logits


@pytest.mark.filterwarnings("ignore:FullGrad is")  # of models that are not piecewise linear
@pytest.mark.parametrize("name", MODELS)
def test_the_logits_are_the_models_and_the_gradients_autograds_whatever_the_options(name):
    torch.manual_seed(0)
    make, layers, reshape = MODELS[name]
    model, images = make().double().eval(), torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64)
    torch.manual_seed(0)
    other = unwrap(make().double().eval())
    with torch.no_grad():
        own = logits_of(model(images))
    classes = own.shape[1]
    names = layers or [*stages(model).values()]
    several = [[0, classes - 1], [classes // 2]] if classes > 2 else 0
    targets = {"one": 0, "several": several, "largest": None}
    options = {"plain": {}, "fullgrad": {"fullgrad": True}, "create_graph": {"create_graph": True}}
    chosen = {"given": layers, "all": names, "last": names[-1:]}
    for target, option, some in (
        ("one", "plain", "given"), ("several", "fullgrad", "all"), ("largest", "create_graph", "last"),
        ("several", "plain", "last"), ("several", "create_graph", "given"), ("one", "fullgrad", "last"),
    ):  # fmt: skip
        traced = trace(model, images, targets[target], chosen[some], reshape=reshape, **options[option])
        logits, expected = plainly(other, images, traced.layers, traced.pairs, reshape)
        torch.testing.assert_close(traced.logits.detach(), own, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(logits, own, rtol=1e-12, atol=1e-12)
        assert len(traced.layers) == len(chosen[some] or names)
        for layer in traced.layers:
            torch.testing.assert_close(traced.gradient(layer).detach(), expected[layer], rtol=1e-7, atol=1e-12)
            assert expected[layer].abs().max() > 0

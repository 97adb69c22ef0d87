"""Against peers, and against the papers' formulas as float64 loops; the weights are what a baseline hands to `weighted`."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from captum.attr import LRP
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule
from pytorch_grad_cam import AblationCAM, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.nn import functional as F

from ltcam import channels_last, tokens_to_map, trace
from ltcam.engine import baselines
from ltcam.engine.baselines import BASELINES, ablationcam, liftcam, relevancecam, scorecam
from ltcam.engine.methods import weighted
from ltcam.errors import InputError


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """More only wait for each other on tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    """Built like VGG: S1 is features.2, S2 is features.8."""

    def __init__(self, *above, outputs=6):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
            nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        )  # fmt: skip
        fc = [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, outputs)]
        self.above = nn.Sequential(*(above or fc))

    def forward(self, x):
        return self.above(self.features(x))


def filled(model, seed=0):
    """Random weights, biases and statistics in float64, large enough for every nonlinearity to matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.double().state_dict().items():
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * (0.5 if tensor.ndim > 1 else 0.3)
            tensor.copy_(values.abs() + 0.5 if "var" in name else values)
    return model.eval()


@pytest.fixture
def net():
    return filled(Net())


@pytest.fixture
def pictures():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def weights(monkeypatch):
    """A baseline's (P, K) weights in place of its maps."""

    def of(baseline, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(baselines, "weighted", lambda weights, activation: weights)
            return baseline(*arguments, **options)

    return of


def chain(model, layer):
    """The modules above a layer, one after the other, none in place."""
    modules = [deepcopy(m) for m in [*model.features, *model.above]][int(layer.split(".")[1]) + 1 :]
    for module in modules:
        module.inplace = False
    return modules


def below(model, layer, x):
    return model.features[: int(layer.split(".")[1]) + 1](x).detach()


LAYERS = ["features.0", "features.1", "features.2", "features.3", "features.4", "features.5", "features.8"]
EVERY = [[0, 1, 2, 3, 4, 5]] * 3


def rescaled(modules, a, c):
    """DeepLIFT's multipliers from the reference 0, by the rescale rule, module by module: contributions (K, h, w)."""
    values = [(a, torch.zeros_like(a))]
    for module in modules:
        values.append((module(values[-1][0]), module(values[-1][1])))
    multiplier = F.one_hot(torch.tensor([c]), values[-1][0].shape[1]).double()
    for module, (x, r), (y, s) in zip(modules[::-1], values[-2::-1], values[:0:-1], strict=True):
        same = (x - r).abs() < 1e-10
        gradient = torch.autograd.functional.vjp(module, x, multiplier)[1]
        if isinstance(module, nn.ReLU):
            multiplier = torch.where(same, gradient, multiplier * (y - s) / torch.where(same, 1, x - r))
        elif isinstance(module, nn.MaxPool2d):
            share = torch.zeros_like(x)
            for n, k, i, j in np.ndindex(*y.shape):
                at = (n, k, slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2))
                top = max(y[n, k, i, j], s[n, k, i, j])
                share[at] += (top - s[n, k, i, j]) * multiplier[n, k, i, j] * first(x[at])
                share[at] += (y[n, k, i, j] - top) * multiplier[n, k, i, j] * first(r[at])
            multiplier = torch.where(same, gradient, share / torch.where(same, 1, x - r))
        else:
            multiplier = gradient
    return (a * multiplier)[0].detach()


def first(window):
    """1 at the first maximum of a window, where a max-pool takes it from."""
    mask = torch.zeros_like(window).flatten()
    mask[window.flatten().argmax()] = 1
    return mask.view(window.shape)


def relevance(modules, a, start):
    """The z+ rule with each linear module as a dense matrix: relevance (K, h, w) at a, from `start` at the logits."""
    values = [a]
    for module in modules:
        values.append(module(values[-1]))
    r = start
    for module, x, y in zip(modules[::-1], values[-2::-1], values[:0:-1], strict=True):
        if isinstance(module, nn.Conv2d | nn.Linear | nn.AvgPool2d | nn.AdaptiveAvgPool2d | nn.MaxPool2d):
            matrix = torch.autograd.functional.jacobian(module, x).reshape(y.numel(), x.numel())
            parts = (matrix * x.flatten()).clamp(min=0) if not isinstance(module, nn.MaxPool2d) else matrix
            total = parts.sum(dim=1)
            r = (torch.where(total > 0, r.flatten() / total, 0)[:, None] * parts).sum(dim=0)
        elif isinstance(module, nn.BatchNorm2d):
            r = torch.where(x.flatten() != 0, r.flatten(), 0)
        r = r.reshape(x.shape)
    return r[0].detach()


def start_of(logits, c, contrastive=True):
    """As published, but from the magnitude of the target's logit."""
    count = logits.shape[1]
    others = -1 / (count - 1) if contrastive else 0
    return torch.tensor([[1.0 if n == c else others for n in range(count)]], dtype=torch.float64) * logits[0, c].abs()


# LIFT-CAM


@pytest.mark.parametrize("layer", LAYERS)
def test_liftcam_adds_up(net, pictures, weights, layer):
    """Contributions are all of the logit's change when the layer falls silent."""
    found = weights(liftcam, net, pictures, EVERY, layer).view(3, 6, -1).sum(dim=2)
    rest, activation = nn.Sequential(*chain(net, layer)), below(net, layer, pictures)
    assert torch.allclose(found, rest(activation) - rest(torch.zeros_like(activation)), atol=1e-12)


@pytest.mark.parametrize("layer", ["features.0", "features.4"])  # below all others, and above the first pool
def test_liftcam_against_loops(net, pictures, weights, layer):
    found = weights(liftcam, net, pictures, EVERY, layer)
    for weight, (i, c) in zip(found, np.ndindex(3, 6), strict=True):
        expected = rescaled(chain(net, layer), below(net, layer, pictures[i : i + 1]), c)
        assert torch.allclose(weight, expected.sum(dim=(1, 2)), atol=1e-12)


def test_liftcam_of_a_linear_head_is_gradient_times_activation(pictures):
    model = filled(Net(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 6)))
    traced = trace(model, pictures, EVERY)
    a, g = traced.activation("features.8"), traced.gradient("features.8")
    expected = weighted((g * a).sum(dim=(2, 3)), a)
    assert expected.max() > 0
    assert torch.allclose(liftcam(model, pictures, EVERY), expected, atol=1e-12)


def test_liftcam_with_relus_out_of_place(net, pictures):
    other = deepcopy(net)
    for module in other.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    assert torch.equal(liftcam(net, pictures, EVERY, "features.1"), liftcam(other, pictures, EVERY, "features.1"))


def test_liftcam_uses_a_module_below_the_layer_again(net, pictures):
    shared = deepcopy(net)
    shared.features[5] = shared.features[1]
    assert torch.equal(liftcam(net, pictures, 1, "features.4"), liftcam(shared, pictures, 1, "features.4"))


class Functional(Net):
    def forward(self, x):
        return self.above[5](F.relu(self.above[2](self.above[:2](self.features(x)))))


@pytest.mark.parametrize(
    "model",
    [
        Functional(),
        Net(nn.Flatten(), nn.Linear(24, 8), nn.GELU(), nn.Linear(8, 6)),
        Net(nn.Flatten(), nn.Linear(24, 6), nn.Softmax(dim=1)),
    ],
    ids=["functional ReLU", "GELU", "softmax"],
)
def test_liftcam_refuses_what_does_not_add_up(model, pictures):
    for c in range(6):  # whichever way the sum is off
        with pytest.raises(ValueError, match=r"no DeepLIFT rule above 'features.8' .* choose a later layer"):
            liftcam(filled(model), pictures, c)


@pytest.mark.parametrize("kind", ["overlapping max-pool", "largest place", "backward hook"])
def test_liftcam_adds_up_too(net, pictures, weights, kind):
    if kind == "overlapping max-pool":
        net = filled(Net(nn.Conv2d(6, 6, 1), nn.MaxPool2d(2, stride=1, padding=1), nn.Flatten(), nn.Linear(54, 6)))
    elif kind == "largest place":
        net = filled(Net(nn.Conv2d(6, 6, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 6)))
    else:
        net.above[3].inplace = False
        net.above[3].register_full_backward_hook(lambda *_: None)
    found, activation = weights(liftcam, net, pictures, EVERY).view(3, 6, -1).sum(dim=2), net.features(pictures).detach()
    assert torch.allclose(found, (net.above(activation) - net.above(torch.zeros_like(activation))), atol=1e-12)


def test_liftcam_of_a_module_that_runs_twice(net, pictures):
    """Each run by itself, as if it were two modules."""
    expected = liftcam(net, pictures, 0, "features.2")
    net.above[3] = net.features[5]
    assert torch.equal(liftcam(net, pictures, 0, "features.2"), expected)


def test_liftcam_passes_other_errors_on(net, pictures):
    net.above[5].register_forward_hook(fails_with_gradients)
    with pytest.raises(RuntimeError, match="the user's"):
        liftcam(net, pictures)


def fails_with_gradients(module, arguments, output):
    if len(output) != 3:
        raise RuntimeError("the user's")


# Relevance-CAM


@pytest.mark.parametrize("contrastive", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_relevancecam_against_dense_matrices(net, pictures, weights, layer, contrastive):
    found = weights(relevancecam, net, pictures, [[0, 1, 2], [], [3]], layer, contrastive=contrastive)
    logits = net(pictures).detach()
    assert logits[0, :3].min() < 0 < logits[0, :3].max()
    for weight, (i, c) in zip(found, [(0, 0), (0, 1), (0, 2), (2, 3)], strict=True):
        start = start_of(logits[i : i + 1], c, contrastive)
        expected = relevance(chain(net, layer), below(net, layer, pictures[i : i + 1]), start)
        assert torch.allclose(weight, expected.sum(dim=(1, 2)), atol=1e-12)


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)])
def test_relevancecam_through_an_average_of_both_signs(pictures, weights, pool):
    model, image = filled(Net(nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), pool, nn.Flatten(), nn.Linear(6, 6))), pictures[:1]
    found = weights(relevancecam, model, image, 2)
    expected = relevance(chain(model, "features.8"), below(model, "features.8", image), start_of(model(image).detach(), 2))
    assert torch.allclose(found[0], expected.sum(dim=(1, 2)), atol=1e-12)


@pytest.mark.parametrize("layer", LAYERS)
def test_relevancecam_keeps_relevance(pictures, weights, layer):
    """All that starts arrives, as every unit has a positive input here; the contrastive start sums to nothing."""
    net = filled(Net(), seed=2)
    values = net(pictures).detach().abs().flatten()
    assert torch.allclose(weights(relevancecam, net, pictures, EVERY, layer, contrastive=False).sum(dim=1), values)
    assert torch.allclose(weights(relevancecam, net, pictures, EVERY, layer).sum(dim=1), 0 * values, atol=1e-12)


def test_relevancecam_against_captum(net, pictures, weights):
    """Its z+ rule without biases, from positive logits, where it starts. It does not know Flatten: above that."""
    rest, activation = nn.Sequential(*chain(net, "features.8")), below(net, "features.8", pictures)
    logits = rest(activation)
    positive = [(i, c) for i, c in np.ndindex(3, 6) if logits[i, c] > 0]
    assert len(positive) > 4
    for i, c in positive:
        peer = deepcopy(rest[2:])
        peer[0].rule, peer[3].rule = Alpha1_Beta0_Rule(set_bias_to_zero=True), Alpha1_Beta0_Rule(set_bias_to_zero=True)
        theirs = LRP(peer).attribute(rest[:2](activation[i : i + 1]).requires_grad_(), target=c).detach()
        assert torch.allclose(weights(relevancecam, net, pictures[i : i + 1], c, contrastive=False), theirs, atol=1e-6)


def test_relevancecam_passes_a_relu_on_the_logits(pictures, weights):
    model = filled(Net(nn.Flatten(), nn.Linear(24, 6), nn.ReLU()))
    model.above[1].bias.data -= 2
    logits = model(pictures[:1]).detach()
    assert logits.min() == 0
    found = weights(relevancecam, model, pictures[:1])
    expected = relevance(
        chain(model, "features.8"), below(model, "features.8", pictures[:1]), start_of(logits, logits.argmax())
    )
    assert torch.allclose(found[0], expected.sum(dim=(1, 2)), atol=1e-12)


class Views(Net):
    def forward(self, x):
        x = torch.cat([F.adaptive_max_pool2d(self.features(x), 1).squeeze(3)], dim=1)
        x = x.view(-1, 2, 3).transpose(1, 2).reshape(-1, 6)  # not contiguous, and back again
        return self.above[2:](x.view(-1, 3, 2).permute(0, 2, 1).unsqueeze(3).reshape(-1, 6))


def test_relevancecam_passes_views(pictures):
    views, plain = filled(Views()), filled(Net())
    plain.above[0] = nn.MaxPool2d(2)
    assert torch.equal(relevancecam(views, pictures, EVERY), relevancecam(plain, pictures, EVERY))


class Residual(Net):
    def forward(self, x):
        x = self.features(x)
        return self.above(x + x.flip(1))


class Mean(Net):
    def forward(self, x):
        return self.above[2:](self.features(x).mean(dim=(2, 3)))


class Keyword(Net):
    def forward(self, x):
        return self.above[3:](self.above[2](input=self.above[:2](self.features(x))))


class Odd(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) - 1


@pytest.mark.parametrize(
    ("model", "node"),
    [
        (Residual(), "AddBackward0"),
        (Mean(), "MeanBackward1"),
        (Keyword(), "AddmmBackward0"),
        (Net(nn.GELU(), nn.Flatten(), nn.Linear(24, 6)), "GeluBackward0"),
        (Net(Odd(6, 2, 1), nn.Flatten(), nn.Linear(8, 6)), "SubBackward0"),
    ],
    ids=["residual", "functional mean", "keyword argument", "GELU", "subclass"],
)
def test_relevancecam_refuses_what_it_has_no_rule_for(model, node, pictures):
    with pytest.raises(ValueError, match=f"no relevance rule for {node} above 'features.8'"):
        relevancecam(filled(model), pictures)


def test_relevancecam_of_one_logit(pictures, weights):
    model = filled(Net(outputs=1), seed=2)
    with pytest.raises(ValueError, match="pass contrastive=False"):
        relevancecam(model, pictures, 0)
    found = weights(relevancecam, model, pictures, 0, contrastive=False)
    assert torch.allclose(found.sum(dim=1), model(pictures)[:, 0].abs())


# Score-CAM and Ablation-CAM


@pytest.mark.parametrize("layer", LAYERS)
def test_scorecam_against_loops(net, pictures, layer):
    """Baseline and softmax over channels as published."""
    with torch.no_grad():
        net.features[0].weight[2] = 0  # a constant channel below features.3
    found = scorecam(net, pictures, EVERY, layer)
    for map_, (i, c) in zip(found, np.ndindex(3, 6), strict=True):
        activation, scores = below(net, layer, pictures[i : i + 1])[0], []
        for channel in activation:
            mask = F.interpolate(channel[None, None], size=(8, 8), mode="bilinear")
            mask = (mask - mask.min()) / (mask.max() - mask.min()) if mask.max() > mask.min() else 0 * mask
            scores.append(net(pictures[i : i + 1] * mask)[0, c] - net(torch.zeros_like(pictures[:1]))[0, c])
        alpha = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
        expected = sum(w * channel for w, channel in zip(alpha, activation, strict=True)).clamp(min=0)
        assert torch.allclose(map_, expected, atol=1e-12)


def test_scorecam_against_pytorch_grad_cam(net, pictures):
    """At a layer of the images' size, where its align_corners=True changes nothing."""
    net, pictures = net.float(), pictures.float()
    activation = trace(net, pictures, [0, 3, 5], ["features.1"]).activation("features.1")
    with ScoreCAM(net, [net.features[1]]) as cam:
        targets = [ClassifierOutputTarget(c) for c in (0, 3, 5)]
        theirs = cam.get_cam_image(pictures, net.features[1], targets, activation.numpy(), None)
    assert np.allclose(scorecam(net, pictures, [0, 3, 5], "features.1"), np.maximum(theirs, 0), atol=1e-5 * theirs.max())


@pytest.mark.parametrize("layer", LAYERS)
def test_ablationcam_against_loops(net, pictures, layer):
    rest, logits = nn.Sequential(*chain(net, layer)), net(pictures)
    assert logits.min() < 0 < logits.max()
    for map_, (i, c) in zip(ablationcam(net, pictures, EVERY, layer), np.ndindex(3, 6), strict=True):
        activation, expected = below(net, layer, pictures[i : i + 1]), 0
        for k in range(activation.shape[1]):
            without = activation.clone()
            without[:, k] = 0
            expected = expected + (logits[i, c] - rest(without)[0, c]) / logits[i, c].abs() * activation[0, k]
        assert torch.allclose(map_, expected.clamp(min=0), atol=1e-12)


class Skip(Net):
    def forward(self, x):
        x = self.features(x)
        return self.above(x + self.tap(x))


def test_ablationcam_of_one_branch(pictures):
    """What the layer passes on unchanged goes on elsewhere as it is."""
    model = Skip()
    model.tap = nn.Identity()
    model = filled(model)
    activation, logits, expected = model.features(pictures), model(pictures), 0
    for k in range(6):
        without = activation.clone()
        without[:, k] = 0
        drop = (logits - model.above(activation + without))[:, 1] / logits[:, 1].abs()
        expected = expected + drop[:, None, None] * activation[:, k]
    assert torch.allclose(ablationcam(model, pictures, 1, "tap"), expected.clamp(min=0), atol=1e-12)


def test_ablationcam_against_pytorch_grad_cam(net, pictures):
    """For positive logits: it divides by them as they are."""
    net, pictures = net.float(), pictures.float()
    best = net(pictures).argmax(dim=1).tolist()
    assert net(pictures).amax(dim=1).min() > 0
    activation = trace(net, pictures, best).activation("features.8")
    ours = ablationcam(net, pictures, best)
    with AblationCAM(net, [net.features[8]]) as cam:
        targets = [ClassifierOutputTarget(c) for c in best]
        theirs = cam.get_cam_image(pictures, net.features[8], targets, activation.numpy(), None)
    assert np.allclose(ours, np.maximum(theirs, 0), atol=1e-5 * theirs.max())


def test_ablationcam_where_the_logit_is_zero():
    """y = sum A_1 - sum A_2 = 0: without A_1 it is -4, without A_2 4, so the map is ReLU(4 A_1 - 4 A_2)."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]])[:, :, None, None])
        model[3].weight.copy_(torch.tensor([[4.0, -4.0]]))
    image = torch.tensor([[[4.0, 0], [0, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]])[None]
    assert ablationcam(model, image, 0, "0").tolist() == [[[12, 0], [0, 0]]]


@pytest.mark.parametrize("baseline", [scorecam, ablationcam])
def test_a_forward_a_channel_serves_all_classes(net, pictures, baseline):
    sizes = []
    net.above.register_forward_hook(lambda module, arguments, output: sizes.append(len(output)))
    one = baseline(net, pictures, [[0, 1], [], [2]], batch_size=4)
    assert sizes == [3, 4, 2, 4, 2]  # the trace, then 6 channels of each image that has a class
    assert torch.allclose(one, baseline(net, pictures, [[0, 1], [], [2]]), atol=1e-12)
    for wrong in (0, -1, 2.0, "4", None, True):
        with pytest.raises(InputError, match=f"batch_size={wrong!r}: expected a whole number, at least 1"):
            baseline(net, pictures, batch_size=wrong)


# All of them


@pytest.mark.parametrize("name", BASELINES)
def test_many_classes_at_once_are_as_one_by_one(net, pictures, name):
    together = BASELINES[name](net, pictures, [[4, 0], [], [5]], "features.2")
    alone = [BASELINES[name](net, pictures[i : i + 1], c, "features.2") for i, c in ((0, 0), (0, 4), (2, 5))]
    assert together.shape == (3, 4, 4)
    assert together.dtype == pictures.dtype
    assert together.min() >= 0 < together.max()
    assert torch.allclose(together, torch.cat(alone), atol=1e-12)


@pytest.mark.parametrize("name", BASELINES)
def test_layers_and_callers_of_any_kind(net, pictures, name):
    expected = BASELINES[name](net, pictures, layer="features.8")
    with torch.no_grad():
        assert torch.equal(BASELINES[name](nn.DataParallel(net), pictures), expected)
    assert torch.equal(BASELINES[name](net, pictures.requires_grad_(), layer=net.features[8]), expected)
    assert pictures.grad is None
    assert not expected.requires_grad


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the compiler's
def test_compiled_parts(net, pictures):
    expected = [baseline(net, pictures) for baseline in BASELINES.values()]
    net.requires_grad_(False).features.compile(backend="eager")
    net.above.compile(backend="eager")
    for gradients in (True, False):  # each compiled without hooks
        with torch.set_grad_enabled(gradients):
            net(pictures)
    for baseline, maps in zip(BASELINES.values(), expected, strict=True):
        assert torch.equal(baseline(net, pictures), maps)


def state(model):
    return [(m, dict(vars(m)), list(m._forward_hooks) + list(m._forward_pre_hooks)) for m in model.modules()]


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("name", BASELINES)
def test_the_model_is_left_as_it_was(net, pictures, name, failing):
    net.train()
    net.above[2].eval()
    net.features[3].weight.requires_grad_(False)
    if failing:
        net.above[5].register_forward_hook(fails_with_gradients)
    before, values = state(net), deepcopy(net.state_dict())
    flags = [p.requires_grad for p in net.parameters()]
    if failing:
        with pytest.raises(RuntimeError, match="the user's"):
            BASELINES[name](net, pictures, [[0, 1], [1], [2]])
    else:
        BASELINES[name](net, pictures)
    assert state(net) == before
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, values[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", BASELINES)
def test_refusals(net, pictures, name):
    for options in ({"layer": "S1-S2"}, {"targets": [lambda logits: logits[0]] * 3}):
        with pytest.raises(ValueError, match="a baseline explains a class by one layer"):
            BASELINES[name](net, pictures, **options)
    with pytest.raises(ValueError, match="layer 'nowhere' is not in the model"):
        BASELINES[name](net, pictures, layer="nowhere")
    with pytest.raises(ValueError, match="class 6 is out of range"):
        BASELINES[name](net, pictures, 6)


@pytest.mark.parametrize("name", BASELINES)
def test_vgg16(tiny, images, name):
    maps = BASELINES[name](tiny, images[:1], [[0, 1, 2, 3]], "S3")
    assert maps.shape == (4, 8, 8)
    assert maps.min() >= 0
    assert maps.isfinite().all()
    assert maps.max() > 0


class Axes(nn.Module):
    """Channels last, or tokens after a class token, and back: layers with an output that `reshape` brings to (N, K, h, w)."""

    def __init__(self, tokens):
        super().__init__()
        self.one, self.tap, self.two, self.head = nn.Conv2d(3, 5, 3), nn.Identity(), nn.Conv2d(5, 4, 3), nn.Linear(4, 6)
        self.tokens, self.relu = tokens, nn.ReLU()

    def forward(self, x):
        x = self.relu(self.one(x))
        n, k, h, w = x.shape
        x = x.permute(0, 2, 3, 1)
        if self.tokens:
            x = self.tap(torch.cat([x.new_ones(n, 1, k), x.flatten(1, 2)], dim=1))[:, 1:].reshape(n, h, w, k)
        else:
            x = self.tap(x)
        return self.head(self.two(x.permute(0, 3, 1, 2)).relu().mean(dim=(2, 3)))


@pytest.mark.parametrize("method", [scorecam, ablationcam])
@pytest.mark.parametrize(("tokens", "reshape"), [(False, channels_last), (True, partial(tokens_to_map, grid=(6, 6)))])
def test_a_layer_through_reshape_has_the_map_of_its_channels(method, tokens, reshape, pictures):
    torch.manual_seed(0)
    model = Axes(tokens).double().eval()
    expected = method(model, pictures, EVERY, "relu")
    assert expected.max() > 0
    assert torch.allclose(method(model, pictures, EVERY, "tap", batch_size=2, reshape=reshape), expected, atol=1e-12)
    with pytest.raises(ValueError, match="pass reshape="):
        method(model, pictures, EVERY, "tap")

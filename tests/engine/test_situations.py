"""Situations that people ran into elsewhere. The right value comes from another way: autograd by hand, finite differences, or
the same function written otherwise."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from ltcam import explain, explain_scales, stages, tokens_to_map, trace
from ltcam.engine.baselines import ablationcam, liftcam, relevancecam, scorecam
from ltcam.errors import InputError


def by_autograd(model, images, c, name):
    """The gradient at the output of a module, by a plain hook on a model whose weights require gradients."""
    kept = {}
    with torch.enable_grad():
        handle = dict(model.named_modules())[name].register_forward_hook(lambda m, a, out: kept.update(out=out))
        model.eval()
        logits = model(images.clone().requires_grad_())
        handle.remove()
        return torch.autograd.grad(logits[:, c].sum(), kept["out"])[0]


def block(a, b):
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU())


class Kept(nn.Module):
    """A block that keeps its output as an attribute, which the model reads beside the returned value."""

    def __init__(self, a, b):
        super().__init__()
        self.inner = block(a, b)

    def forward(self, x):
        self.last = self.inner(x)
        return self.last


class ByAttribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = Kept(3, 4), block(4, 4), nn.Linear(8, 3)

    def forward(self, x):
        deep = self.second(self.first(x))
        return self.head(torch.cat([deep.amax((2, 3)), self.first.last.square().mean((2, 3))], dim=1))


class ByHook(nn.Module):
    """As a U-Net that finds its skips by forward hooks of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head, self.kept = block(3, 4), block(4, 4), nn.Linear(8, 3), []
        self.first.register_forward_hook(lambda module, arguments, output: self.kept.append(output))

    def forward(self, x):
        self.kept.clear()
        deep = self.second(self.first(x))
        return self.head(torch.cat([deep.amax((2, 3)), self.kept[0].square().mean((2, 3))], dim=1))


class ByList(ByAttribute):
    """A dictionary outside of the module tree takes the features."""

    def __init__(self):
        super().__init__()
        self.second = Kept(4, 4)

    def forward(self, x):
        self.second(self.first(x))
        return self.head(torch.cat([self.second.last.amax((2, 3)), self.first.last.square().mean((2, 3))], dim=1))


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [ByAttribute, ByHook, ByList])
@pytest.mark.parametrize("options", [{}, {"fullgrad": True}, {"create_graph": True}])
def test_features_that_leave_a_module_beside_its_return_value(kind, options, images):
    torch.manual_seed(0)
    model = kind().eval()
    for names in (["first"], ["first", "second"]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a square is not piecewise linear
            traced = trace(model, images, 1, names, **options)
        for name in names:
            expected = by_autograd(model, images, 1, name)
            torch.testing.assert_close(traced.gradient(name).detach(), expected)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


class Odd(nn.Module):
    """A small network with one thing that is hard to give back."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.a, self.b, self.head = kind, block(3, 4), block(4, 4), nn.Linear(4, 3)
        if kind == "resized":
            self.register_buffer("seen", torch.zeros(0))
        elif kind != "scripted":
            self.register_buffer("seen", getattr(torch.eye(4), f"to_sparse_{kind}")())
        if kind == "scripted":
            self.b = torch.jit.script(self.b)

    def forward(self, x):
        y = self.b(self.a(x)).mean((2, 3))
        if self.kind == "resized":
            self.seen.resize_(4).copy_(y.detach()[0])
        elif self.kind != "scripted":
            y = (self.seen @ y.t()).t()
        return self.head(y)


def state(model):
    modes = [m.training for m in model.modules()]
    buffers = [b.to_dense().clone() for b in model.buffers()]
    return modes, [p.requires_grad for p in model.parameters()], [p.grad for p in model.parameters()], buffers


def same(before, after):
    return before[:3] == after[:3] and all(map(torch.equal, before[3], after[3]))


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:FutureWarning", "ignore:.*torch.jit.script:DeprecationWarning", "ignore:Sparse CSR:UserWarning"
)
@pytest.mark.parametrize("kind", ["coo", "csr", "resized", "scripted"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_model_that_is_hard_to_give_back_is_given_back(kind, fails, images):
    torch.manual_seed(0)
    model = Odd(kind).train()
    before = state(model)
    if fails:
        with pytest.raises(InputError):
            trace(model, images, 99, ["a"])
    else:
        found = trace(model, images, 1, ["a"]).gradient("a")
    assert same(before, state(model)) and not any(m._forward_hooks for m in model.modules())
    if not fails:
        torch.testing.assert_close(found, by_autograd(model, images, 1, "a"))


def test_one_step_of_giving_back_that_fails_stops_no_other(images):
    class Stubborn(nn.Module):
        def train(self, mode=True):
            if mode and getattr(self, "asked", False):
                raise RuntimeError("not again")
            self.asked = True
            return super().train(mode)

    model = nn.Sequential(block(3, 4), Stubborn(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model[1].forward = lambda x: x
    model.train()
    with pytest.raises(RuntimeError, match="not again"):
        trace(model, images, 1, ["0"])
    assert all(p.requires_grad for p in model.parameters()) and not any(m._forward_hooks for m in model.modules())


def test_weights_of_inference_mode_are_refused_as_they_are(images):
    with torch.inference_mode():
        model = nn.Sequential(block(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(InputError, match="inference mode"):
        trace(model, images, 1, ["0"])
    assert [p.requires_grad for p in model.parameters()] == before


def resnets():
    """One function, its blocks in several groups."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    r = resnet18(num_classes=4).eval()
    stem, tail = (r.conv1, r.bn1, r.relu, r.maxpool), (r.avgpool, nn.Flatten(), r.fc)
    return r, {
        "flat": nn.Sequential(*stem, r.layer1, r.layer2, r.layer3, r.layer4, *tail),
        "deep and head": nn.Sequential(*stem, r.layer1, r.layer2, nn.Sequential(r.layer3, r.layer4, *tail)),
        "last and head": nn.Sequential(*stem, r.layer1, r.layer2, r.layer3, nn.Sequential(r.layer4, *tail)),
        "pairs": nn.Sequential(*stem, nn.Sequential(r.layer1, r.layer2), nn.Sequential(r.layer3, r.layer4), *tail),
        "stem and layer1": nn.Sequential(nn.Sequential(*stem, r.layer1), r.layer2, r.layer3, r.layer4, *tail),
        "two": nn.Sequential(nn.Sequential(*stem, r.layer1, r.layer2, r.layer3), nn.Sequential(r.layer4, *tail)),
    }


def test_one_function_has_one_set_of_stages_however_its_blocks_are_grouped():
    plain, grouped = resnets()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = trace(plain, images, 1)
    heat = explain(expected, "gradcam", delta=20)
    for name, model in grouped.items():
        found = trace(model.eval(), images, 1)
        assert torch.equal(found.logits, expected.logits), name
        assert list(found.stages) == list(expected.stages), (name, found.stages)
        for label, layer in expected.stages.items():
            torch.testing.assert_close(found.features(found.stages[label]), expected.features(layer), msg=f"{name} {label}")
        torch.testing.assert_close(explain(found, "gradcam", delta=20), heat)
    assert stages(plain) == {"S1": "relu", "S2": "layer1", "S3": "layer2", "S4": "layer3", "S5": "layer4"}


def small(*more):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), *more, nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Softplus(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    return net.double().eval()


@pytest.mark.filterwarnings("ignore:FullGrad is")
@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d, lambda k: nn.GroupNorm(2, k)])
def test_a_loss_on_fullgrads_map_has_the_gradient_of_finite_differences(norm):
    model = small(*([norm(4)] if norm else []))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = torch.rand(8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(create_graph=False):
        traced = trace(model, images, 1, ["2" if norm else "1"], fullgrad=True, create_graph=create_graph)
        maps = [bias.value * bias.gradient for bias in traced.biases if bias.gradient.ndim == 4]
        return sum((m.abs().sum(1)[0] * weights).sum() for m in maps)

    parameters = list(model.parameters())
    found = torch.autograd.grad(loss(create_graph=True), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, found, strict=True):
        for place in ([0] * parameter.ndim, [-1] * parameter.ndim):
            with torch.no_grad():
                value, step = parameter[tuple(place)].item(), 1e-5
                parameter[tuple(place)] = value + step
                above = loss().item()
                parameter[tuple(place)] = value - step
                below = loss().item()
                parameter[tuple(place)] = value
            got = 0.0 if gradient is None else gradient[tuple(place)].item()
            assert got == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-6)


def test_targets_that_look_at_places_are_refused_beside_views(images):
    model = nn.Sequential(block(3, 4), nn.Conv2d(4, 2, 1))
    mask = torch.zeros(16, 16)
    mask[:8] = 1
    target = lambda logits: (logits[1] * mask).sum()  # noqa: E731
    assert explain_scales(model, images, target, layers=["0"], scales=(1.0,), flip=False).shape == (2, 16, 16)
    for views in ({"flip": True, "scales": (1.0,)}, {"flip": False, "scales": (1.0, 1.5)}, {}):
        with pytest.raises(InputError, match="reads single pixels"):
            explain_scales(model, images, target, layers=["0"], **views)
    assert explain_scales(model, images, 1, layers=["0"]).shape == (2, 16, 16)  # a class has no place


class Tokens(nn.Module):
    """Patches of 8 x 8 pixels as tokens, after `more` others."""

    def __init__(self, more=1):
        super().__init__()
        self.patch, self.mix, self.head = nn.Conv2d(3, 4, 8, 8), nn.Linear(4, 4), nn.Linear(4, 3)
        self.first = nn.Parameter(torch.zeros(1, more, 4))

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), tokens], dim=1)
        return self.head(self.mix(tokens).relu().mean(1))


def test_a_grid_of_tokens_that_does_not_fit_is_refused():
    from functools import partial

    images = torch.rand(1, 3, 64, 64)
    reshape = partial(tokens_to_map, grid=(8, 8))
    assert trace(Tokens(), images, 1, ["mix"], reshape=reshape).features("mix").shape == (1, 4, 8, 8)
    assert trace(Tokens(20), images, 1, ["mix"], reshape=reshape).features("mix").shape == (1, 4, 8, 8)
    with pytest.raises(InputError, match="grid="):  # 84 tokens: the largest square is 9 x 9
        trace(Tokens(20), images, 1, ["mix"], reshape=tokens_to_map)
    for views in ({}, {"scales": (2.0,)}, {"scales": (1.0, 2.0), "flip": False}):
        with pytest.raises(InputError, match="grid"):
            explain_scales(Tokens(), images, 1, layers=["mix"], reshape=reshape, **views)
    assert explain_scales(Tokens(), images, 1, layers=["mix"], reshape=tokens_to_map).shape == (1, 64, 64)


class Signal(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.n, kind = n, {1: nn.Conv1d, 3: nn.Conv3d}[n]
        self.conv, self.head = kind(3, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        x = x.flatten(2) if self.n == 1 else x[:, :, None]
        return self.head(self.conv(x).relu().flatten(2).mean(2))


@pytest.mark.parametrize("n", [1, 3])
def test_fullgrad_of_signals_and_volumes_is_refused(n, images):
    reshape = (lambda x: x[:, :, None]) if n == 1 else (lambda x: x.flatten(2, 3))
    traced = trace(Signal(n), images, 1, ["conv"], reshape=reshape)
    assert explain(traced, "gradcam").shape == (2, 16, 16)
    with pytest.raises(InputError, match="FullGrad"):
        explain(trace(Signal(n), images, 1, ["conv"], fullgrad=True, reshape=reshape), "fullgrad")


class Normalizing(nn.Module):
    """Gives every attribute of the model inside, also those of a compiled one."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x):
        return self.inner((x - 0.5) / 0.25)


class Scaled(nn.DataParallel):
    def forward(self, x):
        return 3 * self.module(x)


def test_the_logits_are_those_of_the_model_however_it_is_wrapped(images):
    torch.manual_seed(0)
    inner = nn.Sequential(block(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    compiled = torch.compile(inner, backend="eager")
    hooked = torch.compile(inner, backend="eager")
    hooked.register_forward_pre_hook(lambda module, arguments: (2 * arguments[0],))
    parallel = nn.DataParallel(inner)
    parallel.register_forward_pre_hook(lambda module, arguments: (2 * arguments[0],))
    for model in (inner, compiled, nn.DataParallel(inner), Normalizing(inner), Normalizing(compiled), Scaled(inner)):
        name = next(n for n, m in model.named_modules() if m is inner[0]) if isinstance(model, Normalizing | Scaled) else "0"
        expected = model(images).detach()
        torch.testing.assert_close(trace(model, images, 1, [name]).logits, expected)
    for model in (hooked, parallel):
        with pytest.raises(InputError, match="hooks"):
            trace(model, images, 1, ["0"])


def test_weights_that_a_parametrization_caches_keep_their_gradient(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    nn.utils.parametrizations.weight_norm(model[0])
    plain = [g.clone() for g in torch.autograd.grad(model(images).sum(), list(model.parameters()))]
    for before in (False, True):
        with parametrize.cached():
            if before:
                model(images)
            trace(model, images, 1, ["0"])
            found = torch.autograd.grad(model(images).sum(), list(model.parameters()), allow_unused=True)
        for gradient, expected in zip(found, plain, strict=True):
            torch.testing.assert_close(gradient, expected)


class Half(nn.Module):
    """A float16 body under a float32 probability."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x).float().softmax(dim=1)


@pytest.mark.parametrize("sure", [7.0, 9.2, 12.0])
def test_a_float16_body_under_a_float32_score(sure, images):
    torch.manual_seed(0)
    body = nn.Sequential(block(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).half()
    with torch.no_grad():
        body[-1].bias.copy_(torch.tensor([sure, 0.0]))
    images = images.half().float()
    wide = Half(copy.deepcopy(body).float())
    expected = trace(wide, images, 0, ["body.0"]).gradient("body.0")
    found = trace(Half(body), images.half(), 0, ["body.0"]).gradient("body.0")
    assert found.abs().max() > 0
    both = torch.stack([expected.flatten(), found.float().flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.999 and found.float().norm() == pytest.approx(expected.norm().item(), rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_gradient_that_is_no_number_is_named(dtype, images):
    class Root(nn.Module):
        def forward(self, x):
            return torch.sqrt((x - x.detach()).square())  # finite, and 0 / 0 in its gradient

    model = nn.Sequential(block(3, 4), Root(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).to(dtype)
    with pytest.raises(InputError, match="gradient at '0' is NaN or infinite"):
        trace(model, images.to(dtype), 1, ["0"])


def test_ablation_reaches_those_who_read_the_features_in_another_way(images):
    torch.manual_seed(0)
    model, found = ByAttribute().eval(), []
    for c in range(3):
        with torch.no_grad():
            y, whole, drops = model.first(images), model(images)[:, c], []
            for k in range(y.shape[1]):
                less = y.clone()
                less[:, k] = 0
                both = torch.cat([model.second(less).amax((2, 3)), less.square().mean((2, 3))], dim=1)
                drops.append((whole - model.head(both)[:, c]) / whole.abs())
        expected = (torch.stack(drops, dim=1)[:, :, None, None] * y).sum(1).relu()
        found.append(ablationcam(model, images, c, "first"))
        torch.testing.assert_close(found[-1], expected, rtol=1e-4, atol=1e-5)
    assert torch.stack(found).max() > 0.01


class Named(nn.Module):
    """Its logits under a name, per place or in an object."""

    def __init__(self, inner, how):
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, x):
        logits = self.inner(x)
        return {
            "logits": {"logits": logits},
            "object": type("Output", (), {"logits": logits})(),
            "places": logits[..., None, None],
        }[self.how]


@pytest.mark.parametrize("how", ["logits", "object", "places"])
@pytest.mark.parametrize("method", [liftcam, relevancecam, scorecam, ablationcam])
def test_baselines_read_every_output_that_trace_reads(how, method, images):
    torch.manual_seed(0)
    inner = nn.Sequential(*block(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    if how == "places" and method is relevancecam:
        pytest.skip("its rules know no mean over places")
    expected = method(inner, images, 1, "1")
    torch.testing.assert_close(method(Named(inner, how), images, 1, "inner.1"), expected)


def test_weights_with_a_history_are_explained_as_they_are(images):
    """As the adapted copies of meta-learning: no leaves."""
    torch.manual_seed(0)
    plain = nn.Sequential(block(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    adapted = copy.deepcopy(plain)
    for module, other in zip(adapted.modules(), plain.modules(), strict=True):
        for name, weight in other._parameters.items():
            if weight is not None:
                module._parameters[name] = 1.0 * weight
    found = trace(adapted, images, 1, ["0"])
    torch.testing.assert_close(found.gradient("0"), trace(plain, images, 1, ["0"]).gradient("0"))
    assert all(p.requires_grad and p.grad_fn is not None for p in adapted.parameters())


def test_weights_that_the_first_run_makes_are_refused_until_it_ran(images):
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3)).eval()
    with pytest.raises(InputError, match="lazy weights, which its first run makes: run it once"):
        trace(model, images, 1, ["0"])
    model(images)
    assert trace(model, images, 1, ["0"]).gradient("0").shape == (2, 4, 14, 14)


def test_a_counter_or_a_prior_does_not_speak_for_the_models_dtype(images):
    model = nn.Sequential(block(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    expected = trace(model, images, 1, ["0"]).gradient("0")
    for first in (nn.Parameter(torch.zeros(1, dtype=torch.long), requires_grad=False), nn.Parameter(torch.ones(1).double())):
        other = copy.deepcopy(model)
        other._parameters["first"] = first
        assert next(other.parameters()) is first
        torch.testing.assert_close(trace(other, images, 1, ["0"]).gradient("0"), expected)
    with pytest.raises(InputError, match=r"images are torch\.float32, the model is torch\.float64: convert one"):
        trace(model.double(), images, 1, ["0"])


@pytest.mark.parametrize("how", ["register_hook", "retain_grad"])
def test_a_model_that_asks_for_gradients_of_its_own_is_told_the_way_out(how, images):
    class Asking(nn.Module):
        def forward(self, x):
            x.register_hook(lambda gradient: None) if how == "register_hook" else x.retain_grad()
            return x

    model = nn.Sequential(block(3, 4), Asking(), block(4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    with pytest.raises(InputError, match="pass create_graph=True, which keeps the gradients that the model asks for"):
        trace(model, images, 1, ["2"])
    found = trace(model, images, 1, ["2"], create_graph=True).gradient("2")
    torch.testing.assert_close(found.detach(), by_autograd(model, images, 1, "2"))


def test_a_module_that_is_named_like_a_stage_has_one_meaning(images):
    def down(a, b):
        return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())

    model = nn.Module()
    for name, part in (("S2", down(3, 4)), ("S1", down(4, 4)), ("top", down(4, 4)), ("head", nn.Linear(4, 3))):
        setattr(model, name, part)
    model.forward = lambda x: model.head(model.top(model.S1(model.S2(x))).mean((2, 3)))
    images = nn.functional.interpolate(images, size=(64, 64))
    for layers in (["S1"], ["top", "S2"]):
        with pytest.raises(InputError, match="names a module and a stage: pass the module itself"):
            trace(model, images, 1, layers)
    by_module = trace(model, images, 1, [model.S1]).features("S1")
    assert torch.equal(trace(model, images, 1, {"first": "S1"}).features("S1"), by_module)
    traced = trace(model, images, 1)
    assert traced.stages == {"S1": "S2", "S2": "S1", "S3": "top"}
    with pytest.raises(InputError, match="'S1' names a traced module and another stage"):
        explain(traced, "gradcam", "S1")
    assert explain(traced, "gradcam", "S1-S3").shape == (2, 64, 64)


class Pair(nn.Module):
    """A siamese network: the distance of two embeddings by one encoder. Both images are one argument, or one each."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x, other=None):
        other = x.flatten(1, -3)[:, 3:] if other is None else other
        return -(self.encoder(x.flatten(1, -3)[:, :3]) - self.encoder(other)).square().sum(1)


class Against(nn.Module):
    """The module of docs/models.md: one side of a pair is computed before."""

    def __init__(self, encoder, other):
        super().__init__()
        self.encoder = encoder
        with torch.no_grad():
            self.other = encoder(other)

    def forward(self, images):
        return -(self.encoder(images) - self.other).square().sum(1)


def down(a, b):
    return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())


def encoder(classes=3):
    return nn.Sequential(
        down(3, 4), down(4, 4), down(4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    ).eval()  # fmt: skip


def test_a_siamese_pair_is_explained_against_its_other_side(images):
    torch.manual_seed(0)
    pair, other = Pair(encoder()).eval(), torch.rand(2, 3, 16, 16)
    found = trace(Against(pair.encoder, other), images, layers=["encoder.1"]).gradient("encoder.1")
    kept = []
    handle = pair.encoder[1].register_forward_hook(lambda module, arguments, output: kept.append(output))
    expected = torch.autograd.grad(pair(images, other).sum(), kept[0])[0]
    handle.remove()
    torch.testing.assert_close(found, expected)
    twins = torch.cat([images, other], dim=1)
    for layers in (["encoder.1"], None):
        with pytest.raises(InputError, match=r"once.*for a pair of images compute one side first"):
            trace(pair, twins, 0, layers)
    with pytest.raises(InputError, match=r"missing 1 required .*: pass images that fit it, and wrap a model"):
        trace(Two(pair.encoder), images, 0, ["encoder.1"])
    for wrong in ((images, other), torch.stack([images, other], dim=1)):
        with pytest.raises(InputError, match="pairs need a module around the model"):
            trace(pair, wrong, 0, ["encoder.1"])


class Two(Pair):
    def forward(self, x, other):
        return super().forward(x, other)


class Ensemble(nn.Module):
    def __init__(self, *members, before=None):
        super().__init__()
        self.before, self.members = before or nn.Identity(), nn.ModuleList(members)

    def forward(self, x):
        x = self.before(x)
        return torch.stack([member(x) for member in self.members]).mean(0)


def test_an_ensemble_has_no_stages_of_the_last_member_alone():
    from torchvision.models import alexnet, resnet18

    torch.manual_seed(0)
    images = torch.rand(1, 3, 64, 64)
    same, other = Ensemble(encoder(), encoder()), Ensemble(alexnet(num_classes=3), resnet18(num_classes=3))
    normalized = Ensemble(encoder(), encoder(), before=nn.BatchNorm2d(3))
    for model in (same, other, normalized):
        for layers in (None, ["S2"]):
            with pytest.raises(InputError, match=r"'members.0' and to 'members.1'.*: pass layers=.* of each, or explain one"):
                trace(model.eval(), images, 1, layers)
    names = ["members.0.2", "members.1.2"]
    found = explain(trace(same, images, 1, names), "gradcam")
    alone = sum(explain(trace(member, images, 1, ["2"]), "gradcam") for member in same.members)
    torch.testing.assert_close(found, alone / 2)  # a sum of logits has the sum of the maps
    assert list(stages(nn.Sequential(encoder(), nn.Linear(3, 3))).values()) == ["0.0", "0.1", "0.2"]


class Detector(nn.Module):
    """Boxes and scores of each image, as torchvision's detectors return."""

    def __init__(self):
        super().__init__()
        self.features, self.score = down(3, 4), nn.Conv2d(4, 1, 1)

    def forward(self, x):
        scores = self.score(self.features(x)).flatten(1).sigmoid()
        return [{"boxes": torch.zeros(len(s), 4), "scores": s} for s in scores]


def test_a_detector_is_told_how_its_boxes_are_explained(images):
    torch.manual_seed(0)
    model = Detector().eval()
    with pytest.raises(InputError, match=r"gives a list: .*; for boxes pass output=lambda found: (.*)$") as error:
        trace(model, images, 0, ["features"])
    said = eval(str(error.value).partition("output=")[2])  # the way out as it is said
    found = trace(model, images, 0, ["features"], output=said).gradient("features")
    y = model.features(images).detach().requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(model.score(y).sigmoid().sum(), y)[0])


@pytest.mark.parametrize("shape", [(2, 3, 16), (2, 3, 4, 16, 16), (3, 16)])
def test_signals_and_volumes_are_told_of_the_module_around(shape):
    with pytest.raises(InputError, match=r"\(N, 3, H, W\); signals, volumes and pairs need a module around the model \(docs/"):
        trace(encoder(), torch.rand(shape), 0, ["0"])


class Twice(nn.Module):
    """The layer `top` is `body.1` too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = encoder()
        self.top = self.body[1]

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("fullgrad", [False, True])
def test_a_module_has_the_same_map_by_its_second_name(fullgrad, images):
    model = Twice().eval()
    expected = trace(model, images, 1, ["body.1"], fullgrad)
    method = "fullgrad" if fullgrad else "gradcam"
    for layers, name in ((["top"], "top"), ({"deep": "top"}, "deep"), ([model.top], "body.1"), (["top.0"], "top.0")):
        found = trace(model, images, 1, layers, fullgrad)
        if name == "top.0":
            torch.testing.assert_close(found.gradient("top.0"), by_autograd(model, images, 1, "body.1.0"))
        else:
            torch.testing.assert_close(explain(found, method, name), explain(expected, method, "body.1"))


def test_a_squeezed_head_of_one_logit_is_one_class(images):
    class Squeezed(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.inner, self.how = inner, how

        def forward(self, x):
            return self.how(self.inner(x))

    torch.manual_seed(0)
    inner = encoder(1)
    for how, some in ((lambda y: y.squeeze(1), images), (lambda y: y.squeeze(), images), (lambda y: y.squeeze(), images[:1])):
        expected, model = trace(inner, some, 0, ["2"]), Squeezed(how).eval()
        for targets in (0, None, lambda logits: logits[0]):
            found = trace(model, some, targets, ["inner.2"])
            torch.testing.assert_close(found.gradient("inner.2"), expected.gradient("2"))
            assert torch.equal(found.logits, model(some).reshape(-1, 1))
        torch.testing.assert_close(scorecam(model, some, 0, "inner.1"), scorecam(inner, some, 0, "1"))
    with pytest.raises(
        InputError, match=r"class 1 is out of range: .*; for label 1 pass class 0, for label 0 the function (.*)$"
    ) as error:
        trace(inner, images, [0, 1], ["2"])
    against = trace(inner, images, eval(str(error.value).partition("the function ")[2]), ["2"])
    torch.testing.assert_close(against.gradient("2"), -trace(inner, images, 0, ["2"]).gradient("2"))
    with pytest.raises(InputError, match=r"class 3 is out of range: the model has 3 logits, expected 0 to 2$"):
        trace(encoder(), images, 3, ["2"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_saturated_probability_is_no_black_map(dtype, images):
    """p = 1 up to rounding: its gradient, p (1 - p), is zero, or only what rounding made of it."""
    torch.manual_seed(0)
    inner, images = encoder(2).to(dtype), images.to(dtype)

    def sure(bias, head):
        with torch.no_grad():
            inner[-1].bias.copy_(torch.tensor([bias, 0.0]))
        return nn.Sequential(inner, head).eval()

    said = r"a score of [01] is saturated, so it has no gradient: explain the logit before the softmax or sigmoid"
    for head in (nn.Softmax(1), nn.Sigmoid(), nn.LogSoftmax(1)):
        for targets in (0, [[0], [1]], None, lambda y: y[0], *([1] if isinstance(head, nn.Softmax) else [])):
            with pytest.raises(InputError, match=said):
                trace(sure(800.0, head), images, targets, ["0.0"])
    wide = copy.deepcopy(inner).double()
    with torch.no_grad():
        wide[-1].bias.copy_(torch.tensor([3.0, 0.0]))
    expected = trace(nn.Sequential(wide, nn.Softmax(1)), images.double(), 0, ["0.0"]).gradient("0.0")
    found = trace(sure(3.0, nn.Softmax(1)), images, 0, ["0.0"]).gradient("0.0")
    assert torch.corrcoef(torch.stack([found.double().flatten(), expected.flatten()]))[0, 1] > 0.99
    for constant in (torch.zeros(2, 3), torch.tensor([[1.5, 1.0, 0.0]] * 2), torch.tensor([[-1.0, 1.0, 0.0]] * 2)):
        at = nn.Sequential(encoder(), Shifted(constant)).eval()  # no probabilities
        assert trace(at, images.float(), 1, ["0.0"]).gradient("0.0").abs().max() > 0


class Shifted(nn.Module):
    """Logits of given values, with the gradient of what it is given."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, x):
        return self.values + x - x.detach()

"""What a trace leaves of a model: nothing. Compared bit by bit, with the training step that follows."""

import copy
import threading

import pytest
import torch
from torch import nn

from ltcam import explain, explain_scales, trace
from ltcam.engine.baselines import ablationcam, scorecam
from ltcam.engine.stages import stages


class Lora(nn.Conv2d):
    """As in loralib: the low-rank part is merged into the weight in eval mode, and taken out again."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.a, self.b, self.merged = (
            nn.Parameter(torch.randn(9, 2)),
            nn.Parameter(torch.randn(2, self.weight.numel() // 9)),
            False,
        )

    def part(self):
        return (self.a @ self.b).view(self.weight.shape) / 3

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            with torch.no_grad():
                self.weight.data += (-1 if mode else 1) * self.part()
            self.merged = not mode
        return self

    def forward(self, x):
        return self._conv_forward(x, self.weight if self.merged else self.weight + self.part(), self.bias)


class Counting(nn.Module):
    """Writes into one buffer and replaces another in every forward pass, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(dim=(0, 2, 3))
        return x


class Frozen(nn.BatchNorm2d):
    """Its train() leaves it in eval mode."""

    def train(self, mode=True):
        return super().train(False)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.count = Lora(3, 6, 3), nn.BatchNorm2d(6), Counting()
        self.two, self.fixed, self.drop = Lora(6, 6, 3), Frozen(6), nn.Dropout(0.2)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.count(self.norm(self.one(x)).relu())
        return self.head(self.drop(self.fixed(self.two(nn.functional.max_pool2d(x, 2))).relu().mean(dim=(2, 3))))


def state(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [(id(p), p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        [m.training for m in model.modules()],
        [getattr(m, "merged", None) for m in model.modules()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
    )


def same(one, other):
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    for (a, b, c), (x, y, z) in zip(one[1], other[1], strict=True):
        assert (a, b) == (x, y) and (c is z is None or torch.equal(c, z))
    return one[2:] == other[2:]


def step(model):
    """A training step with dropout and momentum: what it makes of the weights."""
    torch.manual_seed(5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    nn.functional.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def interrupt(*_):
    raise KeyboardInterrupt


def fails(model, images):
    with pytest.raises(ValueError, match="out of range"):
        trace(model, images, 9, ["two"])


def interrupted(model, images):
    handle = model.fixed.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trace(model, images, 0, ["two"], fullgrad=True)
    handle.remove()


def threads(model, images):
    found, errors = {}, []

    def work(i):
        try:
            found[i] = explain(trace(model, images, i % 3, ["one", "two"], fullgrad=i > 1), "gradcam", delta=20)
        except BaseException as error:
            errors.append(error)

    every = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in every:
        thread.start()
    for thread in every:
        thread.join()
    assert not errors
    for i in range(4):
        assert torch.equal(found[i], explain(trace(copy.deepcopy(model), images, i % 3, ["one", "two"]), "gradcam", delta=20))


USES = {
    "trace": lambda model, images: trace(model, images, 0, ["one", "two"]),
    "fullgrad": lambda model, images: trace(model, images, 0, ["one"], fullgrad=True),
    "create_graph": lambda model, images: trace(model, images, 0, ["one"], create_graph=True),
    "stages": lambda model, images: stages(model),
    "scorecam": lambda model, images: scorecam(model, images, 0, "two"),
    "fails": fails,
    "interrupted": interrupted,
    "threads": threads,
}


@pytest.mark.parametrize("mode", ["train", "eval", "mixed", "unmerged in eval"])
@pytest.mark.parametrize("use", USES)
def test_the_model_and_its_next_step_are_those_without(use, mode):
    torch.manual_seed(0)
    model = Net().train(mode in ("train", "mixed"))
    if mode == "mixed":
        model.two.eval()
        model.norm.eval()
        model.head.weight.requires_grad_(False)
        model.head.bias.grad = torch.ones(3)
    if mode == "unmerged in eval":
        model.one.train()
        model.one.training = False
    untouched = copy.deepcopy(model)
    untouched.head.bias.grad = None if model.head.bias.grad is None else model.head.bias.grad.clone()  # not copied
    before = state(model)
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    USES[use](model, images)
    assert same(before, state(model)) and images.grad is None and images.requires_grad
    after, expected = step(model), step(untouched)
    assert all(torch.equal(after[name], expected[name]) for name in expected)


def test_merged_is_what_is_explained():
    """The map of the model as its own eval() makes it."""
    torch.manual_seed(0)
    model, images = Net(), torch.randn(2, 3, 16, 16)
    plain = copy.deepcopy(model).eval()
    assert torch.equal(trace(model, images, 0, ["two"]).gradient("two"), trace(plain, images, 0, ["two"]).gradient("two"))
    assert not model.one.merged and plain.one.merged


def test_a_part_in_one_thread_and_the_whole_in_another():
    torch.manual_seed(0)
    model, images, errors = Net(), torch.randn(2, 3, 16, 16), []
    whole = nn.Sequential(nn.Identity(), model)
    before = state(whole)

    def work(net, layer):
        try:
            for _ in range(5):
                trace(net, images, 0, [layer])
        except BaseException as error:
            errors.append(error)

    every = [threading.Thread(target=work, args=a) for a in ((model, "two"), (whole, "1.two")) * 2]
    [t.start() for t in every]
    [t.join() for t in every]
    assert not errors and same(before, state(whole))


def test_another_threads_forward_is_not_taken_for_ours(tiny, images):
    """It runs while the hooks are there."""
    expected, errors = trace(tiny, images, 0), []

    def other(*_):
        handle.remove()
        thread = threading.Thread(target=lambda: errors.append(tiny(images[:1]).shape))
        thread.start()
        thread.join()

    handle = tiny.features[16].register_forward_hook(other)
    traced = trace(tiny, images, 0, fullgrad=True)
    assert errors == [(1, 4)] and all(torch.equal(traced.gradient(n), expected.gradient(n)) for n in traced.layers)


def stopped(*_, **__):
    raise ArithmeticError("stopped")


FAILING = {  # what stops a trace, and where
    "a hook": lambda model, images: [model.fixed.register_forward_hook(stopped), trace(model, images, 0, ["two"])],
    "a target": lambda model, images: trace(model, images, stopped, ["two"], fullgrad=True),
    "output": lambda model, images: trace(model, images, 0, ["two"], output=stopped),
    "reshape": lambda model, images: trace(model, images, 0, ["two"], reshape=stopped),
    "a backward": lambda model, images: trace(model, images, 0, ["two"], output=Until(gradients=0)),
    "the second backward": lambda model, images: trace(model, images, [[0, 1]] * 2, ["two"], output=Until(gradients=1)),
    "a view": lambda model, images: explain_scales(model, images, 0, layers=["two"], output=Until(1)),
    "a channel": lambda model, images: ablationcam(model, images, 0, "two", reshape=Until(3)),
}


class Until:
    """Hands on what it is given, until it has been called, or its gradient has arrived, more often than this."""

    def __init__(self, calls=99, gradients=99):
        self.calls, self.gradients = calls, gradients

    def __call__(self, x):
        self.calls -= 1
        y = x.clone() if self.calls >= 0 else stopped()
        if y.requires_grad:
            y.register_hook(self.arrived)
        return y

    def arrived(self, gradient):
        self.gradients -= 1
        return gradient if self.gradients >= 0 else stopped()


@pytest.mark.parametrize("mode", ["train", "mixed"])
@pytest.mark.parametrize("place", FAILING)
def test_whatever_fails_the_model_is_as_before(place, mode):
    torch.manual_seed(0)
    model, images = Net().train(), torch.randn(2, 3, 16, 16)
    if mode == "mixed":
        model.two.eval()
        model.head.weight.requires_grad_(False)
        model.head.bias.grad = torch.ones(3)
    untouched, before, handles = copy.deepcopy(model), state(model), len(model.fixed._forward_hooks)
    with pytest.raises(ArithmeticError, match="stopped"):
        FAILING[place](model, images)
    if place == "a hook":
        assert len(model.fixed._forward_hooks) == handles + 1  # the user's own
        model.fixed._forward_hooks.clear()
    assert same(before, state(model))
    if mode == "train":
        after, expected = step(model), step(untouched)
        assert all(torch.equal(after[name], expected[name]) for name in expected)


class Guarded(torch.Tensor):
    """A tensor with one operation that fails while `armed`."""

    armed = ""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if cls.armed and func.__name__ == cls.armed:
            stopped()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class Weight(nn.Parameter):
    armed = False

    def requires_grad_(self, requires_grad=True):
        return stopped() if self.armed else super().requires_grad_(requires_grad)


class Stuck(nn.Module):
    """Its mode, its buffer or its weight cannot be given back."""

    def __init__(self, what):
        super().__init__()
        self.what, self.armed = what, False
        self.register_buffer("first", torch.zeros(2))
        self.register_buffer("stuck", torch.zeros(2).as_subclass(Guarded) if what == "buffer" else torch.zeros(2))
        self.register_buffer("last", torch.zeros(2))
        self.weight = Weight(torch.ones(1)) if what == "weight" else nn.Parameter(torch.ones(1))

    def __setattr__(self, name, value):
        if name == "training" and value and getattr(self, "armed", False) and self.what == "mode":
            stopped()
        super().__setattr__(name, value)

    def train(self, mode=True):
        if mode and self.armed and self.what == "train":
            stopped()
        return super().train(mode)

    def forward(self, x):
        for buffer in (self.first, self.stuck, self.last):
            buffer.data += 1
        self.armed = self.what in ("mode", "train")
        Guarded.armed = "equal" if self.what == "buffer" else ""
        self.weight.armed = True
        return x * self.weight


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("what", ["mode", "train", "buffer", "weight"])
def test_where_one_thing_cannot_be_given_back_all_others_are(what, fails):
    torch.manual_seed(0)
    model, images = nn.Sequential(Net(), Stuck(what)).train(), torch.randn(2, 3, 16, 16)
    before = state(model)
    try:
        with pytest.raises(ArithmeticError, match="stopped"):
            trace(model, images, 99 if fails else 0, ["0.two"])
    finally:
        Guarded.armed, model[1].armed = "", False
    left = state(model)
    names = {"buffer": ["1.stuck"]}.get(what, [])
    assert [name for name in before[0] if not torch.equal(before[0][name], left[0][name])] == names
    changed = [i for i, (one, other) in enumerate(zip(before[1], left[1], strict=True)) if one[:2] != other[:2]]
    assert [name for i, (name, _) in enumerate(model.named_parameters()) if i in changed] == ["1.weight"] * (what == "weight")
    modes = [name for (name, _), one, other in zip(model.named_modules(), before[2], left[2], strict=True) if one != other]
    assert modes == ["1"] * (what == "mode") and before[3:] == left[3:]

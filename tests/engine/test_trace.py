import pytest
import torch
from torch import nn

from ltcam import trace
from ltcam.engine.stages import stages


def by_hand(model, image, c, name):
    """A and G of one image, one class and one layer, by splitting `features` at it."""
    index = int(name.split(".")[1]) + 1
    activation = model.features[:index](image).detach().requires_grad_()
    logits = model.classifier(model.avgpool(model.features[index:](activation.clone())).flatten(1))
    return activation.detach(), torch.autograd.grad(logits[0, c], activation)[0]


def test_activations_and_gradients_of_a_multi_label_batch(tiny, images):
    traced = trace(tiny, images, [[2, 0], [1], [3, 1, 0]])
    assert traced.pairs.tolist() == [[0, 0], [0, 2], [1, 1], [2, 0], [2, 1], [2, 3]]
    assert traced.layers == list(stages(tiny).values())
    assert torch.allclose(traced.logits, tiny(images), atol=1e-6)
    for p, (i, c) in enumerate(traced.pairs.tolist()):
        for name in traced.layers:
            activation, gradient = by_hand(tiny, images[i : i + 1], c, name)
            assert torch.allclose(traced.activation(name)[p], activation[0], atol=1e-6)
            assert torch.allclose(traced.gradient(name)[p], gradient[0], atol=1e-3 * gradient.abs().max())
            assert not traced.activation(name).requires_grad and not traced.gradient(name).requires_grad


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["features.99"], "'features.99' is not in the model"),
        ([nn.ReLU()], "is not in the model"),
        ([], "expected a non-empty sequence"),
        ("features.4", "expected a non-empty sequence"),
        (nn.ReLU(), "expected a non-empty sequence"),
        (["classifier.0"], r"'classifier.0' gives a torch.float32 tensor \(3, 16\): expected \(N, K, h, w\)"),
    ],
)
def test_wrong_layers(tiny, images, layers, message):
    with pytest.raises(ValueError, match=message):
        trace(tiny, images, 0, layers)


def test_wrong_images(tiny, images):
    with pytest.raises(ValueError, match="NaN or infinity"):
        trace(tiny, images.masked_fill(images > 3, torch.nan), 0)
    with pytest.raises(ValueError, match=r"uint8 tensor \(3, 3, 64, 64\): expected floats"):
        trace(tiny, images.to(torch.uint8), 0)
    with pytest.raises(ValueError, match=r"tensor \(3, 64, 64\): expected floats \(N, 3, H, W\)"):
        trace(tiny, images[0], 0)
    with pytest.raises(ValueError, match="images are on cpu, the model is on meta"):
        trace(tiny.to("meta"), images, 0)


def test_layers_by_module_in_the_order_they_run(tiny, images):
    assert trace(tiny, images, 0, [tiny.features[23], "features.4"]).layers == ["features.4", "features.23"]
    traced = trace(tiny, images, 0, ["S4", "features.4"])
    assert traced.layers == ["features.4", "features.23"]
    assert traced.stages == {"S1": "features.4", "S4": "features.23"}
    assert traced.select("S4") == ["features.23"]
    with pytest.raises(ValueError, match="'S5' was not traced"):
        traced.select("S5")
    with pytest.raises(ValueError, match=r"'features.30' was not traced"):
        traced.gradient("features.30")


class Net(nn.Module):
    """A convolution, then whatever `tail` does before the logits."""

    def __init__(self, tail):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.unused = nn.Conv2d(4, 4, 1)
        self.tail = tail

    def forward(self, x):
        return self.tail(self.conv(x)).mean(dim=(2, 3))


def test_a_layer_that_does_not_run(images):
    with pytest.raises(ValueError, match="'unused' did not run"):
        trace(Net(nn.ReLU()), images, 0, ["unused"])


def test_models_without_gradients(images):
    class Detach(nn.Module):
        def forward(self, x):
            return x.detach()

    with pytest.raises(ValueError, match="carry no gradient"):
        trace(Net(Detach()), images, 0, ["conv"])

    class Ignore(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x) + Ignore.constant

    Ignore.constant = torch.ones((), requires_grad=True)
    with pytest.raises(ValueError, match="no gradient reaches layer 'conv'"):
        trace(Net(Ignore()), images, 0, ["conv"])
    with torch.inference_mode(), pytest.raises(ValueError, match=r"outside torch.inference_mode"):
        trace(Net(nn.ReLU()), images, 0, ["conv"])
    with torch.inference_mode():
        made_inside = images + 1
    with pytest.raises(ValueError, match=r"outside torch.inference_mode"):
        trace(Net(nn.ReLU()), made_inside, 0, ["conv"])


def test_weight_gradients_are_never_computed(tiny, images):
    """While the model runs no weight asks for a gradient, so none is computed and nothing is kept for it."""
    seen = []
    tiny.features[10].register_forward_hook(lambda *_: seen.extend(p.requires_grad for p in tiny.parameters()))
    trace(tiny, images, 0, fullgrad=True)
    assert len(seen) == 32 and not any(seen)


def test_the_model_runs_in_eval_mode(tiny, images):
    expected = trace(tiny, images, 0)
    traced = trace(tiny.train(), images, 0)  # its dropout would change every gradient
    assert torch.equal(traced.logits, expected.logits)
    assert torch.equal(traced.gradient("features.4"), expected.gradient("features.4"))


def test_a_bias_belongs_to_the_stage_it_leads_to(tiny, images):
    ends = {4: (0, 2), 9: (5, 7), 16: (10, 12, 14), 23: (17, 19, 21), 30: (24, 26, 28)}
    expected = {f"features.{i}": f"features.{end}" for end, convs in ends.items() for i in convs}
    for layers in (None, ["S4", "S5"]):
        found = {b.name: b.stage for b in trace(tiny, images, 0, layers, fullgrad=True).biases if b.gradient.ndim == 4}
        assert found == expected
    by_conv = trace(tiny, images, 0, ["features.0", "features.2"], fullgrad=True)
    assert [b.stage for b in by_conv.biases[:2]] == ["features.0", "features.2"]
    by_name = trace(tiny, images, 0, ["features.9", "features.30"], fullgrad=True)
    assert [b.stage for b in by_name.biases[:13]] == ["features.9"] * 4 + ["features.30"] * 9


def test_a_shared_module_gives_a_bias_term_each_time(images):
    conv = nn.Conv2d(4, 4, 1)
    terms = trace(Net(nn.Sequential(conv, nn.ReLU(), conv)), images, 0, ["conv"], fullgrad=True).biases
    assert [t.name for t in terms] == ["conv", "tail.0", "tail.0#2"]


class Biased(nn.Module):
    """Convolutions with and without bias, batch norms with and without affine part, in-place ReLUs, linear biases."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8, affine=False), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 81, 7), nn.ReLU(inplace=True), nn.Linear(7, 5))

    def forward(self, x):
        return self.head(self.body(x))

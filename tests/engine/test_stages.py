"""Default stages and hooks in models that are wrapped, share modules, checkpoint, or have one size."""

import subprocess
import sys

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import DenseNet, get_model

from ltcam import explain, stages, trace


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x - 0.1) / 0.5)


def flat(model):
    return nn.Sequential(model.features, nn.Sequential(model.avgpool, nn.Flatten(), model.classifier))


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn", "alexnet"])
def test_a_wrapped_vgg_has_the_bare_ones_stages(name):
    torch.manual_seed(0)
    model, images = get_model(name, num_classes=4).eval(), torch.randn(1, 3, 96, 96)
    bare = stages(model)
    for wrapped, prefix in ((Wrapper(model), "inner."), (nn.Sequential(nn.Identity(), model), "1.")):
        assert stages(wrapped) == {label: prefix + layer for label, layer in bare.items()}
    assert stages(Wrapper(model), "relu") == {label: f"inner.{layer}" for label, layer in stages(model, "relu").items()}
    assert stages(flat(model)) == {label: layer.replace("features", "0") for label, layer in bare.items()}
    expected = explain(trace(model, images, 1), "gradcam", delta=20)
    assert torch.equal(explain(trace(flat(model).eval(), images, 1), "gradcam", delta=20), expected)


def test_stages_skip_what_runs_more_than_once():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
            self.pool, self.relu, self.head = nn.MaxPool2d(2), nn.ReLU(), nn.Linear(6, 3)

        def forward(self, x):
            for conv in (self.a, self.b, self.c):
                x = self.pool(self.relu(conv(x)))
            return self.head(x.mean(dim=(2, 3)))

    pool = nn.MaxPool2d(2)
    head = nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    sequence = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Conv2d(4, 4, 3), nn.ReLU(), pool, head)
    for model, expected in ((Shared(), ["a", "b", "c"]), (sequence, ["1", "4"])):
        assert list(stages(model).values()) == expected
        assert explain(trace(model, torch.randn(1, 3, 32, 32), 0), "gradcam").shape == (1, 32, 32)


def test_a_model_of_one_size_is_tried_on_the_images():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 96, 3)
    )
    with pytest.raises(ValueError, match=r"does not run on a torch.float32 tensor \(1, 3, 160, 160\).*pass layers="):
        stages(model)
    assert list(trace(model, torch.randn(2, 3, 32, 48), 0).stages.values()) == ["1", "3"]


def test_checkpointing_changes_no_map():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    for make in (
        lambda on: DenseNet(8, (2, 2), 8, num_classes=4, memory_efficient=on),
        lambda on: timm.create_model("resnet18", num_classes=4),
    ):
        plain, memory = make(False).eval(), make(True).eval()
        memory.load_state_dict(plain.state_dict())
        if hasattr(memory, "set_grad_checkpointing"):
            memory.set_grad_checkpointing(True)
        one, other = (trace(m, images, [[0, 1], [2]], fullgrad=True) for m in (plain, memory))
        assert len(one.stages) == len(other.stages) and len(one.biases) == len(other.biases)
        for method in ("gradcam", "layercam", "fullgrad"):
            assert torch.allclose(explain(one, method, delta=20), explain(other, method, delta=20), rtol=1e-4, atol=1e-6)


def test_reentrant_checkpointing_is_refused_by_name():
    class Reentrant(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            return checkpoint(lambda y: self.b(y).relu(), self.a(x), use_reentrant=True).mean(dim=(2, 3))

    with pytest.raises(ValueError, match="checkpoint"):
        trace(Reentrant(), torch.randn(1, 3, 16, 16), 0, ["a"])


def test_importing_changes_no_filter_of_warnings():
    run = "import warnings, torch, torchvision, numpy; before = list(warnings.filters); import ltcam, ltcam.engine.baselines; "
    done = subprocess.run([sys.executable, "-c", run + "print(before == warnings.filters)"], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr

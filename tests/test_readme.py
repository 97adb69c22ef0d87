import re

import torch
from torchvision.models import resnet18

from ltcam import paths, training


def test_the_readmes_python_runs(output):
    """On a tiny model where `make reproduce` leaves the demo's."""
    recipe = training.Recipe(data="demo", weights=None, width=16, hidden=16, frozen=5, epochs=1)
    training.train(recipe, paths.results("demo", "demo"))
    ten_lines, own_model = re.findall(r"```python\n(.*?)```", (paths.ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(ten_lines, names)
    assert names["heatmaps"].shape == names["plain"].shape == (2, 160, 160)
    names |= {"model": resnet18(num_classes=3), "images": torch.randn(2, 3, 64, 64), "targets": [0, 2]}
    exec(own_model, names)
    assert names["heatmaps"].shape == names["sharp"].shape == (2, 64, 64) and names["heatmaps"].max() == 1

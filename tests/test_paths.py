"""A path may be a str or a Path, and a whole number numpy's, wherever a function takes one."""

import importlib
import inspect
import json
import pkgutil
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import ltcam
from ltcam import files, layerize
from ltcam.data import preprocess
from ltcam.data.base import read
from ltcam.data.checks import check
from ltcam.experiment import checkpoints, evaluation, provenance, seeds, training, weights
from ltcam.experiment.configs import Config, Protocol
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.vgg16 import vgg16
from ltcam.paper.kept import Kept
from ltcam.show import picture

COMMANDS = ("ltcam.__main__.", "ltcam.show.data_app.")  # typer makes the Path
RESULTS = ("Entry", "Trained", "Source")  # what a function gives back, with Paths in it


def public():
    """{name: signature} of every function, class and method of ltcam without an underscore."""
    for module in pkgutil.walk_packages(ltcam.__path__, "ltcam."):
        made = importlib.import_module(module.name)
        for name, value in vars(made).items():
            if getattr(value, "__module__", "") == module.name and not name.startswith("_") and callable(value):
                yield f"{module.name}.{name}", value
                if inspect.isclass(value):
                    methods = {n: v for n, v in vars(value).items() if inspect.isfunction(v) and not n.startswith("_")}
                    yield from ((f"{module.name}.{name}.{n}", method) for n, method in methods.items())


def test_every_public_function_takes_both():
    only_path = []
    for name, value in public():
        if name.startswith(COMMANDS) or name.rpartition(".")[2] in RESULTS or not hasattr(value, "__annotations__"):
            continue
        try:
            parameters = inspect.signature(value).parameters.values()
        except ValueError:
            continue
        written = [
            p.annotation if isinstance(p.annotation, str) else inspect.formatannotation(p.annotation) for p in parameters
        ]
        only_path += [name for text in written if "Path" in text and "AnyPath" not in text and "str | " not in text]
    assert only_path == []


def test_they_work_with_a_str(tmp_path, monkeypatch):
    """From the weights to the seeds, with numpy's numbers in recipe, protocol and configuration."""
    monkeypatch.setenv("LTCAM_DATA", str(tmp_path))
    folder = str(tmp_path / "a {run} é")
    torch.save(
        {"module." + k: v for k, v in vgg16(2, weights=None, width=16, hidden=16).state_dict().items()}, f"{tmp_path}/w.pth"
    )
    weight = weights.load(f"{tmp_path}/w.pth")["module.features.0.weight"]
    assert torch.equal(vgg16(2, weights=f"{tmp_path}/w.pth", width=16).features[0].weight, weight)
    recipe = Recipe(
        weights=None, width=np.int64(16), hidden=np.int64(16), frozen=np.int64(5), epochs=np.int64(1), batch_size=np.int32(70),
        lr=np.float32(0.001), seed=np.arange(2)[1], size=list(np.array([32, 48])),
    )  # fmt: skip
    assert (recipe.size, recipe.seed) == ((32, 48), 1)
    assert json.loads(json.dumps(asdict(recipe)))["batch_size"] == 70
    path = training.train(recipe, folder)
    trained = checkpoints.load_checkpoint(str(path))
    config = Config("gradcam", "S1-S5", np.int64(20))
    counts = evaluation.evaluate(trained, "test", [config], folder, Protocol(np.int64(8), size=(np.int64(32), np.int64(48))))
    assert len(counts) and json.loads((path.parent / "counts.json").read_text())["batch_size"] == 8
    again = evaluation.evaluate(trained, "test", [Config("gradcam", "S1-S5", 20.0)], folder, Protocol(8, size=(32, 48)))
    pd.testing.assert_frame_equal(counts, again)
    assert Kept(folder).title == "demo (generated)"
    assert seeds.export(trained, "test", config, str(tmp_path / "seeds"), Protocol(np.int64(30))) > 0
    provenance.save(pd.DataFrame({"a": [1]}), str(tmp_path / "t.csv"), 0)
    assert files.sha256(str(tmp_path / "t.csv")) == files.sha256(tmp_path / "t.csv")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    assert read(str(tmp_path / "photo.png"), "RGB").shape == (30, 40, 3)
    out = str(tmp_path / "heat.png")
    assert picture.draw(str(tmp_path / "photo.png"), out, "vgg16", str(path), "spot", "gradcam", None, 20, False) == "spot"
    assert check("demo", str(tmp_path)).title == "demo (generated)"


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8])
def test_numpys_whole_numbers_are_sizes(kind):
    size = (kind(6), kind(8))
    assert layerize([torch.ones(1, 2, 2)], size).shape == (1, 6, 8)
    assert preprocess(torch.zeros(3, 4, 4, dtype=torch.uint8), size).shape == (3, 6, 8)
    assert vgg16(kind(3), weights=None, width=kind(16), hidden=kind(16)).classifier[6].out_features == 3
    for wrong in (np.bool_(True), np.float64(2.0)):
        with pytest.raises(ltcam.LtcamError, match=r"expected \(H, W\), whole numbers"):
            layerize([torch.ones(1, 2, 2)], (wrong, 2))

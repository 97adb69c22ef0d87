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
from ltcam.data.get import check
from ltcam.engine.config import Config
from ltcam.experiment import counting, provenance, seeds, training
from ltcam.experiment import trained as trained_model
from ltcam.experiment.protocol import Protocol, Way
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.store import Store
from ltcam.experiment.vgg16 import load, vgg16
from ltcam.show import picture

COMMANDS = ("ltcam.__main__.", "ltcam.show.datasets.")  # typer makes the Path
RESULTS = ("Entry", "Trained")  # what a function gives back, with Paths in it


def public():
    """{name: signature} of every function, class and method of ltcam without an underscore."""
    for module in pkgutil.walk_packages(ltcam.__path__, "ltcam."):
        if module.name.count(".") > 1 and module.name.endswith("__main__"):
            continue  # it runs
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


def test_they_work_with_a_str(study, tmp_path):
    """From the weights to the seeds, with numpy's numbers in recipe, protocol and configuration."""
    folder = str(tmp_path / "a {run} é")
    torch.save(
        {"module." + k: v for k, v in vgg16(2, weights=None, width=16, hidden=16).state_dict().items()}, f"{tmp_path}/w.pth"
    )
    weight = load(f"{tmp_path}/w.pth")["module.features.0.weight"]
    assert torch.equal(vgg16(2, weights=f"{tmp_path}/w.pth", width=16).features[0].weight, weight)
    recipe = Recipe(
        "voc2012", test="val", weights=None, width=np.int64(16), hidden=np.int64(16), frozen=np.int64(5), epochs=np.int64(1),
        batch_size=np.int32(4), lr=np.float32(0.001), seed=np.arange(2)[1], size=list(np.array([32, 48])),
    )  # fmt: skip
    assert (recipe.size, recipe.seed) == ((32, 48), 1)
    assert json.loads(json.dumps(asdict(recipe)))["batch_size"] == 4
    trained = trained_model.load_checkpoint(str(training.train(recipe, folder)))
    same = {
        Config("gradcam", "S1-S5", np.int64(20)): Protocol(np.int64(8), size=(np.int64(32), np.int64(48))),
        Config("gradcam", "S1-S5", 20.0): Protocol(8, size=(32, 48)),
    }
    data, kept = trained.load("val"), Store(folder)
    numbers = [kept.open(counting.identity(trained, data, protocol), "counts.csv.gz") for protocol in same.values()]
    assert len({*numbers}) == len(same) == 1  # they are equal
    counting.measure(kept, numbers[0], trained, data, [Way(config) for config in same], Protocol(8, size=(32, 48)))
    assert len(kept.read(numbers[0], list(same)).pairs) and json.loads((tmp_path / folder / "provenance.json").read_text())
    assert seeds.export(trained, "val", Config(), str(tmp_path / "seeds"), Protocol(np.int64(30))) == 6
    assert seeds.of_folder(str(tmp_path / "seeds"), data).images == 6
    provenance.save(pd.DataFrame({"a": [1]}), str(tmp_path / "t.csv"))
    assert files.sha256(str(tmp_path / "t.csv")) == files.sha256(tmp_path / "t.csv")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    assert read(str(tmp_path / "photo.png"), "RGB").shape == (30, 40, 3)
    model = picture.classifier("vgg16", f"{tmp_path}/a {{run}} é/checkpoint.pt")
    assert picture.maps(f"{tmp_path}/photo.png", model, "cat", Config("gradcam", "all", 20))[1] == "cat"
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

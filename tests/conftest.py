import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from ltcam import files
from ltcam.data import SETS
from ltcam.engine.config import Config
from ltcam.engine.refine import Refine
from ltcam.experiment import scores
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.study import Study
from ltcam.experiment.trained import Trained, load_checkpoint
from ltcam.experiment.training import train
from ltcam.experiment.vgg16 import vgg16
from ltcam.paper import beyond, breakdown, registry
from tests import lookalikes
from tests import tiny as small

TINY = small.TINY | {"size": [64, 64], "epochs": 2}
TOY = {
    "profile": "toy", "data": "voc2012", "seeds": [0, 1], "recipe": {"train": "train", "test": "val", **TINY}, "deltas": [20],
    "varied": ["LTGrad-CAM"], "ablated": 1, "chosen_on": 4, "drawn_on": 4,
}  # fmt: skip
FAR = beyond.Best(Config("hirescam", "S4-S5", 0.0, fuse="prod", refine=Refine("S4-S5", 8)), 2.0)
NEAR = beyond.Best(Config("gradcam", "S3-S5"))
DRAWS = 40


@pytest.fixture(autouse=True, scope="session")
def no_results_of_the_user():
    """A test that names no folder of its own must not write into the one that the user keeps trainings or results in."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("LTCAM_RUNS", "LTCAM_OUTPUT"):
            patch.delenv(variable, raising=False)
        yield


@pytest.fixture
def tiny():
    """VGG16's 31 modules at a sixteenth of its width, random weights, in eval mode."""
    torch.manual_seed(0)
    return vgg16(4, weights=None, width=16, hidden=16).eval()


@pytest.fixture(scope="session")
def _trained(tmp_path_factory):
    """The one checkpoint that all tests share, its data root, and what was loaded from it. None of them is to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTCAM_DATA", str(small.data(folder / "data")))
        path = train(Recipe(data="voc2012", test="val", **small.TINY), folder / "run")
    return path, folder / "data", load_checkpoint(path)


@pytest.fixture
def looks(_trained, monkeypatch) -> Path:
    """The data root of `tiny.data`."""
    monkeypatch.setenv("LTCAM_DATA", str(_trained[1]))
    return _trained[1]


@pytest.fixture
def checkpoint(_trained, looks) -> Path:
    return _trained[0]


@pytest.fixture
def trained(_trained, looks) -> Trained:
    return _trained[2]


@pytest.fixture
def tiles(looks) -> Trained:
    """A model of defects, which some images do not have; its weights are random."""
    torch.manual_seed(0)
    model = vgg16(1, weights=None, width=16, hidden=16).eval()
    return Trained(model, Recipe(data="magnetic_tile", **small.TINY), ("defect",), (64, 64), {}, "tiles")


@pytest.fixture
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def real_data():
    """The folder of real images, where there is one."""
    root = files.data_root().resolve()
    if not ((root / "magnetic_tile").is_dir() and (root / "VOCdevkit").is_dir()):
        pytest.skip(f"no real images in {root}: set LTCAM_DATA to a folder with VOCdevkit/VOC2012 and magnetic_tile")
    return root


@pytest.fixture
def real(real_data, monkeypatch):
    monkeypatch.setenv("LTCAM_DATA", str(real_data))
    return real_data


@pytest.fixture(scope="session")
def series(tmp_path_factory):
    """A folder with look-alikes of VOC 2012 and with every table of two tiny trainings on them: profile "toy"."""
    root = tmp_path_factory.mktemp("series")
    lookalikes.voc(root / "data")
    (root / "notebooks" / "profiles").mkdir(parents=True)
    (root / "notebooks" / "profiles" / "toy.voc2012.yaml").write_text(yaml.safe_dump(TOY))
    with pytest.MonkeyPatch.context() as patch:
        toy(patch, root, root)
        made = Study("toy", "voc2012")
        made.train()
        for name in registry.names(made):
            registry.make(name, made)
    return root


@pytest.fixture
def study(series, tmp_path, monkeypatch) -> Study:
    """The study of `series`, with its tables and checkpoints, in a folder of its own."""
    shutil.copytree(series / "results", tmp_path / "results")
    shutil.copytree(series / "notebooks", tmp_path / "notebooks")
    toy(monkeypatch, series, tmp_path)
    return Study("toy", "voc2012")


def toy(patch, root, output):
    """Few draws, a larger input that is not much larger, and ladders of few steps, so that all tables are made in seconds."""
    patch.setenv("LTCAM_DATA", str(root / "data"))
    patch.setenv("LTCAM_OUTPUT", str(output))
    patch.setattr(files, "NOTEBOOKS", output / "notebooks")
    for kind in SETS.values():
        patch.setattr(kind, "larger", (96, 96))
    patch.setattr(beyond, "BEST", {"otsu": FAR, "argmax": NEAR})
    for function in (scores.draws, breakdown.correlated):
        patch.setattr(function, "__defaults__", (DRAWS,))


@pytest.fixture
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LTCAM_OUTPUT", str(tmp_path))
    return tmp_path


@pytest.fixture
def chromium():
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (browser and driver):
        pytest.skip("no chromium and chromedriver on this machine: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as opened:
        yield opened


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A kernel that ends at once, under the name that the notebooks ask for."""
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "Foreign", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))

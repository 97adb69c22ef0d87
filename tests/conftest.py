import json
import shutil
from pathlib import Path

import pytest
import torch

from ltcam import files
from ltcam.experiment.vgg16 import vgg16


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

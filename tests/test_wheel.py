"""The package as it is installed from a wheel, with no checkout around it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from ltcam.data.sets import CHECKSUMS, MagneticTile
from ltcam.files import ROOT
from tests import lookalikes


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the unpacked wheel."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("no setuptools, the build backend of pyproject.toml: pip install setuptools")
    source, place = (tmp_path_factory.mktemp(name) for name in ("source", "site"))
    shutil.copytree(ROOT / "ltcam", source / "ltcam", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-W", "ignore", "-c", run, str(place)], cwd=source, check=True, capture_output=True)
    with zipfile.ZipFile(next(place.glob("*.whl"))) as wheel:
        wheel.extractall(place)
    return place


@pytest.fixture
def installed(site, tmp_path):
    """Runs it in an empty folder with the data of LTCAM_DATA, or none."""

    def run(*arguments, data="nowhere"):
        environment = {**os.environ, "PYTHONPATH": str(site), "LTCAM_DATA": str(tmp_path / data), "OMP_NUM_THREADS": "1"}
        (tmp_path / "empty").mkdir(exist_ok=True)
        command = [sys.executable, "-P", *arguments]
        return subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, check=False)

    return run


def test_the_wheel_has_all_that_the_package_reads(site):
    given = {
        path.relative_to(ROOT) for path in (ROOT / "ltcam").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert given == {path.relative_to(site) for path in (site / "ltcam").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "ltcam", "train", "--data", "demo"],
        ["-m", "ltcam", "reproduce", "--profile", "real"],
        ["-m", "ltcam.paper", "paper", "voc2012"],
    ],
)
def test_what_wants_a_checkout_says_so_in_one_line(command, installed, tmp_path):
    done = installed(*command)
    said = (
        r"ltcam(\.paper)?: \S+/profiles has no profiles: train and reproduce need a checkout of the repository: run them .*\n"
    )
    assert done.returncode == 1 and re.fullmatch(said, done.stderr), done.stderr
    assert not [*(tmp_path / "empty").iterdir()]


def test_the_data_sets_are_the_same_as_in_a_checkout(installed, tmp_path):
    """Also those whose files are told by their checksums, and whose split is that of the whole set. Empty files will do."""
    paths = [tmp_path / line.split("  ")[1] for line in (CHECKSUMS / "magnetic_tile.sha256").read_text().splitlines()]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    done = installed("-m", "ltcam", "data", "list", data=".")
    assert re.search(r"magnetic_tile +Magnetic tile +present", done.stdout), done.stderr
    for path in paths[::3]:
        path.unlink()
    run = "from pathlib import Path; from ltcam.data.sets import MagneticTile; "
    run += "print(*(e.name for e in MagneticTile.listed(Path('../magnetic_tile'))['test']))"
    expected = [entry.name for entry in MagneticTile.listed(tmp_path / "magnetic_tile")["test"]]
    assert len(expected) > 200 and installed("-c", run).stdout.split() == expected


def test_it_explains_an_image(installed, tmp_path):
    lookalikes.voc(tmp_path)
    image = next((tmp_path / "VOCdevkit/VOC2012/JPEGImages").iterdir())
    run = "import torch; from torchvision.models import resnet18; torch.save(resnet18().state_dict(), 'r.pt')"
    assert installed("-c", run).returncode == 0
    done = installed("-m", "ltcam", "explain", str(image), "--model", "resnet18", "--checkpoint", "r.pt", "--class", "3")
    assert done.returncode == 0 and (tmp_path / "empty" / "heat.png").stat().st_size > 1000, done.stderr

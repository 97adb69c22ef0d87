import re
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from ltcam.files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA_NAMES = {"torch": "pytorch"}


def requirement(text):
    name, bound = re.fullmatch(r"([a-z0-9-]+)>=([0-9.]+)", text).groups()
    return CONDA_NAMES.get(name, name), bound


def test_environment_yml_asks_for_what_pyproject_asks():
    conda = [
        d for d in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"] if isinstance(d, str) and d != "pip"
    ]
    asked = dict(requirement(d) for d in [*PROJECT["dependencies"], *EXTRAS["companion"]])
    asked["python"] = PROJECT["requires-python"].removeprefix(">=")
    assert dict(requirement(d) for d in conda) == asked


def test_the_lock_has_all_of_it_with_hashes_and_no_index():
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=[a-z])", lock.strip())
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"index-url|find-links|file:|https?:|torch==2\.13\.0", lock)
    locked = {m[1]: Version(m[2]) for m in re.finditer(r"^([a-z0-9-]+)==([^ ]+)", lock, re.MULTILINE)}
    for asked in map(
        Requirement,
        [*PROJECT["dependencies"], *EXTRAS["companion"], *EXTRAS["test"]],
    ):
        assert locked[asked.name] in asked.specifier

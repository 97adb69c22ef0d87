"""What keeps counts, and what does not: the probe of the code as it is, and of copies with a changed line."""

import os
import shutil
import subprocess
import sys

import pytest

from ltcam import files
from ltcam.experiment.probe import behaviour

CALL = "from ltcam.experiment.probe import behaviour; print(behaviour())"


@pytest.mark.parametrize(
    ("file", "before", "after", "same"),
    [
        ("engine/methods.py", "    return gradient * activation\n", "    return gradient * activation  # a comment\n", True),
        ("engine/methods.py", "    return gradient * activation\n", "    return -gradient * activation\n", False),
        ("data/demo.py", "SEED = 2308", "SEED = 2309", False),
    ],
)
def test_a_comment_keeps_the_counts_and_a_changed_sign_does_not(file, before, after, same, tmp_path):
    shutil.copytree(files.ROOT / "ltcam", tmp_path / "ltcam", ignore=shutil.ignore_patterns("__pycache__"))
    copy = tmp_path / "ltcam" / file
    text = copy.read_text()
    assert text.count(before) == 1
    copy.write_text(text.replace(before, after))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", CALL], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert (done.stdout.strip() == behaviour()) == same

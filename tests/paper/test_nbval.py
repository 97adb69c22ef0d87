"""Strict nbval really compares: a changed output or a golden value moved beyond its tolerance makes it fail."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest

from ltcam import files

CELL = """
from ltcam.paper import golden
import pandas as pd
table = pd.DataFrame({"row": ["a"], "mIoU": [10.3]})
print(golden("table1", table, "%s"))
"""
CELLS = {  # the source of each, and the output that is committed
    "good": (CELL % "near", "table1: within tolerance\n"),
    "moved": (CELL % "far", "table1: within tolerance\n"),
    "changed": (CELL % "near", "table1: within reach\n"),
    "measured": ("# NBVAL_IGNORE_OUTPUT\nprint(id(table))", "of another machine\n"),
    "silent": ("table = None", ""),
    "drawn": ("import matplotlib.pyplot\nprint(1)", "1\n"),
}


@pytest.fixture
def toy(tmp_path):
    """A checkout of its own with the golden values 10.0 and, for another profile, 9.7."""
    shutil.copytree(files.ROOT / "ltcam", tmp_path / "ltcam", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(files.ROOT / "pyproject.toml", tmp_path)
    shutil.copy(files.NOTEBOOKS / "conftest.py", tmp_path)
    for profile, value in (("near", 10.0), ("far", 9.7)):
        folder = tmp_path / "data" / "golden" / profile
        folder.mkdir(parents=True)
        (folder / "table1.csv").write_text(f"row,mIoU\na,{value}\n")
    return tmp_path


def test_a_changed_output_and_a_golden_value_beyond_its_tolerance_fail(toy, foreign):
    """Beside another kernel of the same name, and where matplotlib has no place for its cache."""
    cells = []
    for count, (name, (source, said)) in enumerate(CELLS.items(), 1):
        cells.append(nbformat.v4.new_code_cell(source, execution_count=count, id=name))
        cells[-1].outputs = [nbformat.v4.new_output("stream", name="stdout", text=said)] if said else []
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), toy / "toy.ipynb")
    options = ["--nbval", "--nbval-current-env", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(toy)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-rf", str(toy)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(toy), "MPLCONFIGDIR": str(toy / "toy.ipynb" / "below")},
    )  # fmt: skip
    failed = [int(line.split("::Cell ")[1].split()[0]) for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert done.returncode == 1 and [[*CELLS][number] for number in failed] == ["moved", "changed"], done.stdout
    assert "mIoU is 10.3 in row 0, expected 9.7" in done.stdout and "2 failed, 4 passed" in done.stdout
    assert "nbval: 6 of 6 cells ran, 4 have outputs that are compared" in done.stdout

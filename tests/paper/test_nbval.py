"""Strict nbval really compares: a changed output or a golden value moved beyond its tolerance makes it fail."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest

from ltcam import files

NOTEBOOK = """
from ltcam.paper import golden
import pandas as pd
table = pd.DataFrame({"row": ["a"], "mIoU": [%s]})
print(golden.check(table, "table1", "toy"))
"""


def nbval(folder):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    options = ["--nbval", "--nbval-current-env", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(folder)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder)], capture_output=True, text=True, env=environment, check=False
    )


@pytest.fixture
def toy(tmp_path):
    """A checkout of its own with one notebook, its committed output and its golden value 10.0."""
    shutil.copytree(files.ROOT / "ltcam", tmp_path / "ltcam", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(files.ROOT / "pyproject.toml", tmp_path)
    shutil.copy(files.NOTEBOOKS / "conftest.py", tmp_path)
    (tmp_path / "data" / "golden" / "toy").mkdir(parents=True)
    (tmp_path / "data" / "golden" / "toy" / "table1.csv").write_text("row,mIoU\na,10.0\n")

    def write(value, text="within tolerance\n"):
        cell = nbformat.v4.new_code_cell(NOTEBOOK % value, execution_count=1, id="a")
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
        measured = nbformat.v4.new_code_cell("# NBVAL_IGNORE_OUTPUT\nprint(id(table))", execution_count=2, id="b")
        measured.outputs = [nbformat.v4.new_output("stream", name="stdout", text="of another machine\n")]
        silent = nbformat.v4.new_code_cell("table = None", execution_count=3, id="c")
        notebook = nbformat.v4.new_notebook(
            cells=[cell, measured, silent], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        )
        nbformat.write(notebook, tmp_path / "toy.ipynb")
        return tmp_path

    return write


def test_unchanged_passes_beside_another_kernel(toy, foreign):
    folder = toy(10.3)
    done = nbval(folder)
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout
    assert "nbval: 3 of 3 cells ran, 1 have outputs that are compared" in done.stdout


def test_a_golden_value_beyond_its_tolerance_fails(toy):
    folder = toy(10.3)
    golden = folder / "data" / "golden" / "toy" / "table1.csv"
    golden.write_text(golden.read_text().replace("10.0", "9.7"))
    done = nbval(folder)
    assert done.returncode == 1 and "1 failed" in done.stdout and "mIoU" in done.stdout, done.stdout


def test_a_changed_output_fails(toy):
    folder = toy(10.3, "within reach\n")
    done = nbval(folder)
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout

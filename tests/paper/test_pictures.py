"""Pictures in executed notebooks take half the bytes, and look alike."""

import base64
import runpy
import sys
from io import BytesIO

import nbformat
import numpy as np
import pytest
from PIL import Image

from ltcam import files
from ltcam.paper.pictures import COARSE, coarse, shrink

NOTEBOOKS = sorted([*files.NOTEBOOKS.glob("*.ipynb"), *files.ROOT.glob("results/[pr]*/notebooks/*.ipynb")])


def png(values):
    drawn = BytesIO()
    Image.fromarray(values).save(drawn, "PNG")
    return drawn.getvalue()


def pixels(drawn):
    return np.asarray(Image.open(BytesIO(drawn)))


def pictures(notebook):
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]


def test_a_picture_has_32_steps_a_color():
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    small = coarse(png(values), dpi=(150, 150))
    assert len(set(COARSE)) == 32 and {COARSE[0], COARSE[255]} == {0, 255} and set(np.unique(pixels(small))) == set(COARSE)
    assert np.abs(pixels(small).astype(int) - values).max() <= 4 and len(small) < 0.85 * len(png(values))
    assert coarse(small) == coarse(coarse(small)) and round(Image.open(BytesIO(small)).info["dpi"][0]) == 150


def test_a_notebook_keeps_all_but_its_pictures(tmp_path, monkeypatch):
    data = {"image/png": base64.b64encode(png(np.full((2, 2, 3), 100, np.uint8))).decode(), "text/plain": "a figure"}
    outputs = [nbformat.v4.new_output("display_data", data), nbformat.v4.new_output("stream", text="said")]
    cells = [nbformat.v4.new_markdown_cell("text"), nbformat.v4.new_code_cell("x", outputs=outputs)]
    path = tmp_path / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    expected = nbformat.read(path, 4)
    shrink(expected)
    monkeypatch.setattr(sys, "argv", ["pictures", str(path)])
    runpy.run_path(files.PACKAGE / "paper" / "pictures.py", run_name="__main__")
    assert nbformat.read(path, 4) == expected and path.read_text().endswith("}\n")
    (small,) = pictures(expected)
    assert np.unique(pixels(small)) == [COARSE[100]]
    assert expected.cells[1].outputs[0].data["text/plain"] == "a figure" and expected.cells[1].outputs[1].text == "said"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_committed_pictures_are_coarse(path):
    assert all(set(np.unique(pixels(drawn))) <= set(COARSE) for drawn in pictures(nbformat.read(path, 4)))

"""The runner where papermill and Jupyter would go elsewhere: braces in a path, and another `python3` kernel."""

import sys

import nbformat

from ltcam import files
from ltcam.paper import reproduce


def test_this_interpreter_runs_and_braces_are_part_of_a_path(foreign, tmp_path, monkeypatch):
    cells = [
        nbformat.v4.new_code_cell("profile = 'demo'", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("import sys; print(sys.executable, profile)"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    checkout, output = tmp_path / "a {checkout} é", tmp_path / "an {output} {0} é"
    (checkout / "profiles").mkdir(parents=True)
    (checkout / "profiles" / "demo.demo.yaml").write_text("{profile: demo, data: demo, recipe: {}}")
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), checkout / "00_a.ipynb")
    monkeypatch.setattr(files, "NOTEBOOKS", checkout)
    monkeypatch.setenv("LTCAM_OUTPUT", str(output))
    (done,) = reproduce.reproduce("demo")
    assert done == output / "results" / "demo" / "notebooks" / "00_a.demo.ipynb"
    assert nbformat.read(done, 4).cells[-1].outputs[0].text == f"{sys.executable} demo\n"

"""What `pytest --nbval` relies on: it skips cells without a count in silence, and compares what is there."""

import ast
import re

import nbformat
import pandas as pd
import pytest
import yaml

from ltcam import files
from ltcam.experiment.recipe import Recipe
from ltcam.paper import golden

NOTEBOOKS = sorted(files.NOTEBOOKS.glob("*.ipynb"))
PROFILES = sorted((files.NOTEBOOKS / "profiles").glob("*.yaml"))


def code(notebook):
    return [c for c in nbformat.read(notebook, 4).cells if c.cell_type == "code"]


def parameters(notebook):
    (cell,) = [c for c in code(notebook) if "parameters" in c.metadata.get("tags", [])]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_committed_as_it_ran(notebook):
    cells = code(notebook)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert not [o for c in cells for o in c.outputs if o.output_type == "error"]
    assert nbformat.read(notebook, 4).metadata.kernelspec.name == "python3"
    assert not [c for c in cells if c.source.rstrip().endswith(";")]
    assert not [c for c in cells if {"nbval-skip", "raises-exception"} & set(c.metadata.get("tags", []))]
    assert not re.search(r'[" (=](/[a-z]+){2}', notebook.read_text().replace("\\/", "/").replace("</", "<"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_measured_cells_are_followed_by_their_check(notebook):
    """Each notebook compares golden values, in a cell whose output is compared."""
    checks = [c for c in code(notebook) if ".check(" in c.source]
    assert checks and all("NBVAL_IGNORE_OUTPUT" not in c.source for c in checks)
    assert all("within tolerance" in "".join(o.get("text", "") for o in c.outputs) for c in checks)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_parameters_are_plain_values_that_default_to_the_demo(notebook):
    values = parameters(notebook)
    assert (values.get("profile", "demo"), values["data"]) == ("demo", "demo")
    demo = yaml.safe_load((files.NOTEBOOKS / "profiles" / "demo.demo.yaml").read_text())
    assert "recipe" not in values or values["recipe"] == demo["recipe"]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_profiles_are_recipes(profile):
    values = yaml.safe_load(profile.read_text())
    assert f"{values['profile']}.{values['data']}.yaml" == profile.name
    Recipe(data=values["data"], **values["recipe"])


def test_one_pass_over_the_demo_measures_what_notebook_08_varies():
    values = {n.stem: parameters(n) for n in NOTEBOOKS}
    expected = {name: values["08_ablations"][name] for name in ("deltas", "varied", "protocols")}
    takers = [name for name in values if "series" in values[name]]
    assert len(takers) == 5 and all(values[name]["series"] == expected for name in takers)


def test_golden_values_are_compared_within_a_tolerance():
    table = pd.read_csv(files.ROOT / "data" / "golden" / "demo" / "table1.csv")
    assert golden.check(table, "table1", "demo") == "within tolerance"
    assert golden.check(table.assign(mIoU=table["mIoU"] + 0.49), "table1", "demo") == "within tolerance"
    with pytest.raises(AssertionError, match="mIoU"):
        golden.check(table.assign(mIoU=table["mIoU"] + 0.51), "table1", "demo")
    with pytest.raises(AssertionError, match="row"):
        golden.check(table.assign(row="x"), "table1", "demo")
    with pytest.raises(AssertionError):
        golden.check(table.iloc[:3], "table1", "demo")
    assert golden.check(table[["row", "mIoU"]], "table1", "demo") == "within tolerance"  # of what was asked
    with pytest.raises(AssertionError, match="unknown"):
        golden.check(table.assign(unknown=1.0), "table1", "demo")
    assert golden.check(table, "table1", "real") == "no golden values of table1 for profile real"


def test_a_profile_sets_what_one_notebook_means_by_a_name():
    """A value of a profile goes to every notebook with a parameter of that name; but for the shared ones that is one."""
    shared = {"profile", "data", "recipe", "folds", "batch_size", "deltas"}
    takers = {
        name: [n.stem for n in NOTEBOOKS if name in parameters(n)] for p in PROFILES for name in yaml.safe_load(p.read_text())
    }
    assert {name: len(notebooks) for name, notebooks in takers.items() if name not in shared} == dict.fromkeys(
        takers.keys() - shared, 1
    )

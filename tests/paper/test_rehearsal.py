"""What `ltcam reproduce --profile paper --data ksdd2` does, on 120 files in the authors' layout, with one seed and epoch.

Both settings, both cuts, every table, and images without a defect. A small network, and the notebooks in this process.
"""

import os
import shutil
import sys

import pytest
import yaml

from ltcam import files
from ltcam.experiment.study import Study
from ltcam.paper import RESULTS, reproduce
from ltcam.paper.registry import names, stale
from tests import lookalikes
from tests.conftest import TINY, toy
from tests.paper.test_reproduce import here

TRAIN, TEST = 36, 24  # images, each with its mask
pytestmark = pytest.mark.skipif("LTCAM_REHEARSAL" not in os.environ, reason="it takes minutes: make rehearsal")


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """The root of what the command left, and the names of the notebooks that it executed."""
    root, ran = tmp_path_factory.mktemp("rehearsal"), []
    lookalikes.ksdd2(root / "data", TRAIN, TEST)
    (root / "notebooks" / "profiles").mkdir(parents=True)
    for path in (files.ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"):
        shutil.copy(path, root / "notebooks")
    settings = yaml.safe_load((files.ROOT / "notebooks/profiles/paper.ksdd2.yaml").read_text())
    settings |= {"profile": "toy", "seeds": [0], "recipe": settings["recipe"] | TINY | {"epochs": 1, "bfloat16": False}}
    (root / "notebooks" / "profiles" / "toy.ksdd2.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        toy(patch, root, root)
        patch.setattr(reproduce.papermill, "execute_notebook", here(ran))
        patch.setattr("matplotlib.pyplot.show", lambda: sys.modules["matplotlib.pyplot"].close("all"))
        reproduce.reproduce("toy", data="ksdd2", subset=True)
        yield ran


@pytest.fixture(params=["sigmoid", "softmax"])
def study(rehearsed, request):
    return Study("toy", "ksdd2", loss=request.param)


def test_every_notebook_and_table_is_there_and_the_tables_come_from_what_git_keeps(rehearsed, study):
    folder = files.data_root() / "KolektorSDD2"
    assert len([*folder.rglob("[0-9]*[0-9T].png")]) == 2 * (TRAIN + TEST) == 120
    assert len(rehearsed) >= 9 and len([*study.figures.parent.rglob("fig3.png")]) == 1
    assert {RESULTS[name].file for name in names(study)} <= {path.name for path in study.out.iterdir()}
    assert {"cuts", "shares", "sweep_share", "claims_share", "clean"} <= {*names(study)}
    store = study.out / "counts.sqlite"
    store.rename(study.out / "gone")
    try:
        assert stale(Study("toy", "ksdd2", kept=True, loss=study.loss)) == {}
    finally:
        store.unlink()
        (study.out / "gone").rename(store)

"""The paper: its printed numbers, its claims, and the notebook series that measures them.

Open `tables.py` first: it has the configuration of each table row and the number printed there. `registry.py` lists all tables.
`claims.yaml` has what the paper claims, and `claims.py` judges it. `reproduce.py` runs the notebooks. This wing may import
`experiment`, `data` and `engine`.
"""

from ltcam.errors import companion

companion("pandas", "papermill", "yaml")

import logging

from ltcam.engine.config import Config
from ltcam.experiment.study import Study
from ltcam.paper import ablations, areas, beyond, breakdown, claims, clean, defects, gradients, joint, shares, tables  # noqa: F401 - they register tables
from ltcam.paper.claims import judged
from ltcam.paper.registry import RESULTS, check, golden, make, shown
from ltcam.paper.tables import SEVEN, beside, settings

__all__ = ["RESULTS", "SEVEN", "Config", "Study", "beside", "check", "golden", "judged", "make", "open", "settings", "shown"]


def open(profile: str, data: str) -> Study:
    """The trainings of data set `data` that notebook 01 left for `profile`. Measurements are logged on stderr."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    study = Study(profile, data)
    study.trainings  # noqa: B018 - raises if there are none
    return study

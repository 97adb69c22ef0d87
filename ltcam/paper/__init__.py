"""The paper: its printed numbers, its claims, and the notebook series that measures them.

Open `tables.py` first: it has the configuration of each table row and the number printed there. `claims.py` lists what the
paper claims, and `judging.py` judges it. `reproduce.py` runs the notebooks, and they call `run.py`. This wing may import
`experiment`, `data` and `engine`.
"""

from ltcam.errors import companion

companion("pandas", "papermill", "yaml")

from ltcam.experiment.configs import Config  # noqa: E402 - after what it needs
from ltcam.paper.run import Run, open, train  # noqa: E402
from ltcam.paper.tables import SEVEN  # noqa: E402

__all__ = ["SEVEN", "Config", "Run", "open", "train"]

"""The paper: its printed numbers, its claims, and the notebook series that measures them.

Open `tables.py` first: which configuration each row of a table is, and the number printed there. `claims.py` says what the
paper claims, `judging.py` judges it, `reproduce.py` runs the notebooks. May import `experiment`, `data` and `engine`.
"""

from ltcam.errors import companion

companion("pandas", "papermill", "yaml")

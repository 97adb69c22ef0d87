"""From a recipe to scores: train, evaluate, count pixels, score, and say how sure a score is.

Open `study.py` first: all trainings of a data set, measured alike. `training.py` makes a checkpoint, `evaluation.py` counts
pixels with it, `metrics.py` and `intervals.py` make scores of the counts. May import `data` and `engine`.
"""

from ltcam.errors import companion

companion("accelerate", "pandas", "sklearn", "yaml")

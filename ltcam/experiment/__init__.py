"""From a recipe to scores: train, evaluate, count pixels, score, and say how sure a score is.

Open `study.py` first: all trainings of a data set, measured alike. `training.py` makes a checkpoint by a `recipe.py`,
`evaluation.py` counts pixels with it, `metrics.py` and `intervals.py` make scores of these. May import `data` and `engine`.
"""

from ltcam.errors import companion

companion("accelerate", "pandas", "sklearn", "yaml")

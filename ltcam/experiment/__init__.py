"""From a recipe to scores: train, count pixels, score, and say how certain a score is.

Open `study.py` first: it measures all trainings of a data set alike. `training.py` makes a checkpoint by a `recipe.py`.
`counting.py` counts pixels with it, `store.py` keeps them, and `scores.py` turns them into scores. This wing may import `data`
and `engine`.
"""

from ltcam.errors import companion

companion("accelerate", "pandas", "sklearn", "yaml")

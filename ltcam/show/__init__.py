"""Everything to look at: figures, and the picture of `ltcam explain`.

Open `figures.py` first: it has every figure of the series, drawn by `heatmaps.py` and `charts.py`. docs/conf.py makes the book.
This wing may import every other wing. None imports this one.
"""

from ltcam.errors import companion

companion("matplotlib", "seaborn", "yaml")

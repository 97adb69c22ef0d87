"""Everything to look at: figures, the picture of `ltcam explain`, the site, and the generated parts of README and docs.

Open `plotting.py` first: it draws the paper's figures. `report.py` makes the site, and `readme.py` the generated texts. This
wing may import every other wing. None imports this one.
"""

from ltcam.errors import companion

companion("jinja2", "latex2mathml", "matplotlib", "nbconvert", "seaborn")

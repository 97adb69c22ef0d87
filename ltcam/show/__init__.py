"""What one looks at: figures, the picture of `ltcam explain`, the site, and the generated parts of README and docs.

Open `plotting.py` first: the paper's figures. `report.py` makes the site, `readme.py` the generated texts. May import
every other wing; none imports this one.
"""

from ltcam.errors import companion

companion("jinja2", "latex2mathml", "matplotlib", "nbconvert", "seaborn")

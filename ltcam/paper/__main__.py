"""`python -m ltcam.paper [--check] PROFILE DATA ...`: the tables of kept counts, as `make tables` checks them."""

import sys

from ltcam.errors import LtcamError
from ltcam.paper.registry import main

try:
    sys.exit(main(sys.argv[1:]))
except LtcamError as error:
    sys.exit(f"ltcam.paper: {error}")

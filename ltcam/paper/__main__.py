"""`python -m ltcam.paper [--check] PROFILE DATA ...`: the tables of kept counts, as `make tables` checks them."""

import sys

from ltcam.paper.registry import main

sys.exit(main(sys.argv[1:]))

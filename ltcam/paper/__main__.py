"""`python -m ltcam.paper [--check] PROFILE DATA ...`: the tables of kept counts, as `make tables` checks them.

With --softmax it first trains the setting of the paper, and counts all that its tables read.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from ltcam.errors import one_line
from ltcam.experiment.study import Study
from ltcam.paper.registry import stale
from ltcam.paper.reproduce import whole


def main(arguments: Sequence[str]) -> int:
    """Make the tables of kept counts again; returns 1 if one cannot be made or, with --check, differs from its file."""
    parser = argparse.ArgumentParser(prog="python -m ltcam.paper", description="Make the tables of kept counts again.")
    parser.add_argument("--check", action="store_true", help="write nothing; name the tables that differ, and fail if any does")
    parser.add_argument("--softmax", action="store_true", help="train the setting of the paper, and measure its tables")
    parser.add_argument("pairs", nargs="+", metavar="PROFILE DATA", help="which results, e.g. paper voc2012")
    given, failed = parser.parse_args(arguments), False
    if len(given.pairs) % 2:
        parser.error(f"{' '.join(given.pairs)} is not pairs of a profile and a data set; give e.g. paper voc2012 real ksdd")
    for profile, data in zip(given.pairs[::2], given.pairs[1::2], strict=True):
        if given.softmax:
            whole([Study(profile, data, loss="softmax")])
        studies = [Study(profile, data, True, loss="softmax")] if given.softmax else Study(profile, data, kept=True).both
        for study in studies:
            for file, reason in stale(study, write=not given.check).items():
                failed |= reason != "written"
                sys.stdout.write(f"{study.out / file}: {reason}\n")
            sys.stdout.write(f"{profile} {data}, {study.loss}: {len(study.made)} tables\n")
    return int(failed)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with one_line("ltcam.paper"):
        sys.exit(main(sys.argv[1:]))

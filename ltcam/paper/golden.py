"""Golden values of the demo profile: trained numbers differ a little across machines, so they are compared in a tolerance."""

import pandas as pd

from ltcam.files import ROOT

TOLERANCE = 0.5


def check(table: pd.DataFrame, name: str, profile: str, tolerance: float = TOLERANCE) -> str:
    """ "within tolerance", or for a profile without golden values a word that says so.

    Compares the columns of `table` with those of `data/golden/<profile>/<name>.csv`: numbers within `tolerance` (points),
    everything else exactly. Raises AssertionError saying what is off.
    """
    path = ROOT / "data" / "golden" / profile / f"{name}.csv"
    if not path.is_file():
        return f"no golden values of {name} for profile {profile}"
    expected = pd.read_csv(path).reindex(columns=table.columns)
    pd.testing.assert_frame_equal(table.reset_index(drop=True), expected, check_dtype=False, rtol=0, atol=tolerance, obj=name)
    return "within tolerance"

"""Golden values of the demo profile. Trained numbers differ a little between machines, so a tolerance is allowed."""

import pandas as pd

from ltcam.files import ROOT

TOLERANCE = 0.5


def check(table: pd.DataFrame, name: str, profile: str, tolerance: float = TOLERANCE) -> str:
    """Returns "within tolerance", or says that the profile has no golden values.

    Compares the columns of `table` with those of `data/golden/<profile>/<name>.csv`: numbers within `tolerance` (points),
    everything else exactly. Raises AssertionError that names what is off.
    """
    path = ROOT / "data" / "golden" / profile / f"{name}.csv"
    if not path.is_file():
        return f"no golden values of {name} for profile {profile}"
    expected = pd.read_csv(path).reindex(columns=table.columns)
    pd.testing.assert_frame_equal(table.reset_index(drop=True), expected, check_dtype=False, rtol=0, atol=tolerance, obj=name)
    return "within tolerance"

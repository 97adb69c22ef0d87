"""From a heatmap to a mask: Otsu's threshold (Sec. 3.1), by scikit-image."""

import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu


def otsu_mask(heatmap: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The pixels of a non-negative heatmap (H, W) above Otsu's threshold (256 bins).

    None where the map is constant, up to the rounding that resizing a constant leaves.
    """
    exact = heatmap.astype(np.float64)  # float32 cannot tell 256 bins apart in a nearly constant map
    if np.ptp(exact) <= 8 * np.finfo(np.float32).eps * exact.max():
        return np.zeros(heatmap.shape, dtype=bool)
    mask: NDArray[np.bool_] = exact > threshold_otsu(exact)  # type: ignore[no-untyped-call]
    return mask

"""From a heatmap to a mask: Otsu's threshold (Sec. 3.1), by scikit-image."""

import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu


def otsu_mask(heatmap: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The pixels of a heatmap (H, W) above Otsu's threshold (256 bins); none where the map is constant."""
    if heatmap.min() == heatmap.max():
        return np.zeros(heatmap.shape, dtype=bool)
    mask: NDArray[np.bool_] = heatmap > threshold_otsu(heatmap)  # type: ignore[no-untyped-call]
    return mask

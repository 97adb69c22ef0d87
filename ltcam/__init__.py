"""Class activation maps sharp enough to segment with: layerization and truncation (arXiv 2308.02118)."""

import warnings

from ltcam.cam import CAM, explain
from ltcam.errors import LtcamError
from ltcam.methods import METHODS
from ltcam.tracing import Trace, trace
from ltcam.tricks import layerize, truncate

__all__ = ["CAM", "METHODS", "LtcamError", "Trace", "explain", "layerize", "trace", "truncate"]
__version__ = "0.1.0"

# accelerate, which evaluation imports, warns in a notebook of progress bars that nobody here draws.
warnings.filterwarnings("ignore", "IProgress not found")

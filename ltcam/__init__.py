"""Class activation maps that are sharp enough for segmentation: layerization and truncation (arXiv 2308.02118)."""

from ltcam.engine.cam import CAM, explain
from ltcam.engine.config import Config
from ltcam.engine.methods import METHODS
from ltcam.engine.refine import Refine
from ltcam.engine.shapes import channels_last, tokens_to_map
from ltcam.engine.stages import stages
from ltcam.engine.trace import Trace, trace
from ltcam.engine.tricks import layerize, truncate
from ltcam.engine.views import explain_scales
from ltcam.errors import LtcamError

__all__ = [
    "CAM", "METHODS", "Config", "LtcamError", "Refine", "Trace", "channels_last", "explain", "explain_scales", "layerize",
    "stages", "tokens_to_map", "trace", "truncate",
]  # fmt: skip
__version__ = "0.1.0"

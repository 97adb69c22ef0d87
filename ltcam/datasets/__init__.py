"""The data sets by name. All give (image, multi-hot label, mask, name)."""

from ltcam.datasets.base import DataError, Sample, Segmentation, preprocess
from ltcam.datasets.demo import Demo
from ltcam.datasets.ksdd import KSDD
from ltcam.datasets.ksdd2 import KSDD2
from ltcam.datasets.magnetic_tile import MagneticTile
from ltcam.datasets.voc import VOC2012
from ltcam.paths import data_root

__all__ = ["NAMES", "DataError", "Sample", "Segmentation", "load", "preprocess"]

NAMES = ("demo", "voc2012", "magnetic_tile", "ksdd", "ksdd2")


def load(name: str, part: str, annotations: bool = False) -> Segmentation:
    """Part `part` of the data set `name` under `LTCAM_DATA`: "train" or "test"; for voc2012 the name of its list, for ksdd one
    of `ltcam.datasets.ksdd.PARTS`.

    annotations: image labels from the XML of voc2012, not from its masks. Raises DataError for an unknown name or part, for
    annotations of another data set, or data that are not there.
    """
    if annotations and name != "voc2012":
        raise DataError(f"data set {name!r} has no annotations: expected 'voc2012', or annotations=False")
    match name:
        case "demo":
            return Demo(part)
        case "voc2012":
            return VOC2012(part, data_root(), annotations)
        case "magnetic_tile":
            return MagneticTile(part, data_root())
        case "ksdd":
            return KSDD(part, data_root())
        case "ksdd2":
            return KSDD2(part, data_root())
    raise DataError(f"data set {name!r} is unknown: expected one of {', '.join(NAMES)}")

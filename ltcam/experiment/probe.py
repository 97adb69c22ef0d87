"""A fingerprint of behaviour: the pixel counts of a fixed probe.

Kept counts stay valid as long as the code gives the same counts on the probe. So a moved comment keeps them, and a changed sign
does not.
"""

import hashlib
import json
from functools import cache
from typing import get_args

import torch

from ltcam import data as datasets
from ltcam.engine.tricks import Fuse, Normalize
from ltcam.experiment.checkpoints import Trained
from ltcam.experiment.configs import Config, Protocol
from ltcam.experiment.counting import count
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.vgg16 import Head, vgg16

SIZE = (64, 64)
LT = Config("gradcam", "S1-S5", 20.0)
PLAIN = ["gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "sim"]
CONFIGS = [
    *(Config(m, layers, delta) for m in PLAIN for layers in ("S5", "S1-S5") for delta in (None, 0, 20)),
    *(Config("fullgrad", layers, delta) for layers in ("all", "S4-S5") for delta in (None, 0, 20)),
    *(LT._replace(fuse=fuse) for fuse in get_args(Fuse)),
    *(LT._replace(normalize=normalize) for normalize in get_args(Normalize)),
    *(config._replace(per="channel") for config in (LT, LT._replace(method="layercam"), Config("fullgrad", "all", 20.0))),
    LT._replace(compare="gt"),
    LT._replace(refine="S3-S5:8"),
    Config("fullgrad", "all", align_corners=True),
    LT._replace(fraction=0.35),
]


@cache
def behaviour() -> str:
    """SHA-256 of the counts of two images of the demo by a small network with random weights, in float64 on the CPU.

    Every method and option that `PLAIN` and `CONFIGS` name takes part.
    """
    data = datasets.load("demo", "test")
    samples = [data[i] for i in data.scored[:2]]
    samples = [s._replace(image=datasets.preprocess(s.image, SIZE)) for s in samples]

    def counts(head: Head, configs: list[Config], protocol: Protocol) -> list[list[object]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = vgg16(len(data.classes), head, weights=None, hidden=16, width=16).double().eval()
        return count(Trained(model, Recipe(), data.classes, SIZE, {}), samples, [(configs, protocol)])[0]

    found = [counts("fc", CONFIGS, Protocol()), counts("gap", [Config("cam")], Protocol())]
    found += [counts("fc", [LT], protocol) for protocol in (Protocol(labels="predicted"), Protocol(outputs="relu"))]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()

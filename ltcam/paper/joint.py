"""Which reading of the paper comes nearest to its numbers: classifier, labels, scale of the stages and their outputs, in full.

This is exploratory. The readings differ in what the text leaves open, and the best of many is near by chance alone. So the
best is chosen on some rows and told on others, and compared with what a shuffled paper would give. One training of a softmax
and one of a sigmoid stand behind it, made on the same machine: seed 0 of each.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd

from ltcam.engine.config import Config
from ltcam.engine.stages import Outputs
from ltcam.engine.tricks import Normalize
from ltcam.experiment.protocol import Labels, Loss, Protocol
from ltcam.experiment.scores import Floats, draws, ends
from ltcam.experiment.study import AGAIN, Study
from ltcam.paper.ablations import tau
from ltcam.paper.registry import Need, make, result
from ltcam.paper.tables import ROWS, margin, published

SCALES: tuple[Normalize, ...] = ("none", "minmax", "tanh")
LABELS: tuple[Labels, ...] = ("true", "predicted", "top")
PERMUTED = 10_000
PRINTED = {
    row: (number, config) for number in (1, 2, 3) for row, config in ROWS[number].items()
    if row != "Grad-CAM++" and config not in [c for n in range(1, number) for c in ROWS[n].values()]
}  # fmt: skip
FULL = [config for _, config in PRINTED.values()]  # Tables 1 to 3, each row once, without Grad-CAM++
EARLY = np.array([number < 3 for number, _ in PRINTED.values()])  # the rows of Tables 1 and 2


class Reading(NamedTuple):
    """What the text leaves open."""

    loss: Loss
    labels: Labels
    scale: Normalize
    outputs: Outputs


EVERY = [Reading(*each) for each in product(get_args(Loss), LABELS, SCALES, get_args(Outputs))]


def scaled(config: Config, scale: Normalize) -> Config:
    """`config` with its stages scaled before their sum. FullGrad scales its own, and a single stage needs no scale."""
    fused = "-" in config.layers and config.method != "fullgrad"
    return replace(config, normalize=scale) if fused else config


CONFIGS = list(dict.fromkeys(scaled(config, scale) for scale in SCALES for config in FULL))
BESIDE: dict[str, tuple[str, dict[str, Any]]] = {  # at the defaults alone: a row, and what is read otherwise
    "each channel scaled": ("FullGrad", {"per_channel": True}),
    "each channel scaled, δ=0": ("LTFullGrad(δ=0)", {"per_channel": True}),
    "δ of the maximum": ("LTGrad-CAM(l=5, δ=20)", {"by": "fraction of the maximum"}),
}


def otherwise() -> dict[str, tuple[Config, Config]]:
    """The configuration of each row of `BESIDE`, as it is and as it is read otherwise."""
    return {name: (PRINTED[row][1], replace(PRINTED[row][1], **how)) for name, (row, how) in BESIDE.items()}


def protocols(study: Study) -> dict[Outputs, Protocol]:
    return {outputs: replace(study.protocol, outputs=outputs) for outputs in get_args(Outputs)}


def needs(study: Study) -> list[Need]:
    own, others = [Need(CONFIGS, protocol=protocol, seeds=1) for protocol in protocols(study).values()], [*otherwise().values()]
    return [*own, Need([config for pair in others for config in pair], seeds=1)]


def scores(study: Study) -> dict[Reading, Floats]:
    """The mIoU of the 14 rows in every reading, (rows, 1 + draws, 1), of seed 0 of each setting."""
    found, field = dict[Reading, Floats](), Study(study.profile, study.data, study.kept)
    again = any((folder / AGAIN / "run.json").is_file() for folder in (field.out, field.runs))
    trained: dict[Loss, tuple[Study, str]] = {
        "softmax": (study, study.names[0]), "sigmoid": (field, AGAIN if again else field.names[0])
    }  # fmt: skip
    for (loss, (own, name)), labels, (outputs, protocol) in product(trained.items(), LABELS, protocols(study).items()):
        drawn = draws(own.of_training(name, CONFIGS, protocol=replace(protocol, labels=labels)), "mIoU")
        for scale in SCALES:
            found[Reading(loss, labels, scale, outputs)] = np.stack([drawn[scaled(config, scale)] for config in FULL])
    return found


@result("Which reading of the paper comes nearest", needs, losses=("softmax",), tables=(3,))
def joint(study: Study) -> pd.DataFrame:
    """One row per reading, the nearest first: distance, the mean difference from the printed mIoU over the 14 rows, in points;
    tau, Kendall's rank correlation with them; each with its interval over images. distance12 and distance3 are the distances
    on the rows of Tables 1 and 2, and on those of Table 3 alone. gain: of LTGrad-CAM (δ=0) over Grad-CAM, in points, with its
    interval. Then our score of every row."""
    rows, numbers, (plain, lt) = [], printed(), map([*PRINTED].index, ("S5", "LTGrad-CAM(l=5, δ=0)"))
    for reading, ours in scores(study).items():
        off = np.abs(ours - numbers[:, None, None])
        about = {**reading._asdict(), **ends(off.mean(axis=0), "distance", "low", "high")}
        about |= {"distance12": off[EARLY, 0].mean(), "distance3": off[~EARLY, 0].mean()}
        about |= ends(tau(numbers, ours), "tau", "tau_low", "tau_high")
        about |= ends(ours[lt] - ours[plain], "gain", "gain_low", "gain_high")
        rows.append(about | dict(zip(PRINTED, ours[:, 0, 0], strict=True)))
    return pd.DataFrame(rows).sort_values("distance", kind="stable")


@result("Is the nearest reading near by chance?", losses=("softmax",), tables=(3,))
def guards(study: Study) -> pd.DataFrame:
    """Whether the nearest reading is more than one of many. Columns what, reading, value, beside, tried (how many readings).

    chosen on 1 and 2, chosen on 3: the nearest reading on some rows, its distance on the others, and beside it the least
    distance that any reading has there. tau, distance: the best of all readings, and beside it the share of 10,000 shuffles of
    the printed numbers among the rows to which the best reading is as near.
    """
    table, rng = make("joint", study), np.random.default_rng(0)
    named, ours = table[list(Reading._fields)].agg(", ".join, axis=1), table[list(PRINTED)].to_numpy()
    rows = []
    for chosen, told, what in (("distance12", "distance3", "chosen on 1 and 2"), ("distance3", "distance12", "chosen on 3")):
        at = int(table[chosen].argmin())
        rows.append([what, named.iloc[at], table[told].iloc[at], table[told].min()])
    shuffled = np.stack([printed(), *(rng.permutation(printed()) for _ in range(PERMUTED))])
    taus = (_signs(shuffled) @ _signs(ours).T / len(_signs(ours)[0])).max(axis=1)
    near = np.abs(shuffled[:, None] - ours).mean(axis=2).min(axis=1)
    rows.append(["tau", named.iloc[int(table["tau"].argmax())], taus[0], (taus[1:] >= taus[0]).mean()])
    rows.append(["distance", named.iloc[int(table["distance"].argmin())], near[0], (near[1:] <= near[0]).mean()])
    return pd.DataFrame(rows, columns=["what", "reading", "value", "beside"]).assign(tried=len(table))


@result("What other readings do to single rows", needs, losses=("softmax",), tables=(3,))
def single(study: Study) -> pd.DataFrame:
    """`BESIDE`, on the held-out part in seed 0: row, the printed mIoU, ours, and ours in the other reading with its change."""
    both, rows, numbers = otherwise(), [], dict(zip(PRINTED, printed(), strict=True))
    drawn = draws(study.counts([config for pair in both.values() for config in pair], seeds=1), "mIoU")
    for name, (usual, other) in both.items():
        row = BESIDE[name][0]
        about = {"reading": name, "row": row, "paper": numbers[row], "ours": drawn[usual][0].mean()}
        rows.append(about | ends(drawn[other]) | margin(drawn[other] - drawn[usual]))
    return pd.DataFrame(rows)


def printed() -> Floats:
    """The paper's mIoU of the 14 rows, in percent."""
    return np.array([published(number).loc[row, "mIoU"] for row, (number, _) in PRINTED.items()])


def _signs(values: Floats) -> Floats:
    """(n, rows) -> (n, pairs of rows): the sign of each difference."""
    first, second = np.triu_indices(values.shape[1], 1)
    return np.sign(values[:, first] - values[:, second])

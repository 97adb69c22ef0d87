"""The second cut, beside Otsu's threshold: a share of each map's maximum, chosen on training images.

A share is chosen for each configuration in each training, by the headline score on images that this training has seen. Folds
so stay apart. With one class an image this is what the field does: a pixel is background where the map is below a constant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from ltcam.engine.config import Config
from ltcam.experiment.scores import Counts, draws, ends
from ltcam.experiment.study import Study
from ltcam.paper.registry import Need, measure, result
from ltcam.paper.tables import ROWS, SWEEP, margin

SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7)
CUT = list(dict.fromkeys([*(config for rows in ROWS.values() for config in rows.values()), *SWEEP]))


def at(configs: Iterable[Config], share: float) -> list[Config]:
    """`configs` cut at a share of the maximum."""
    return [replace(config, fraction=share) for config in configs]


def every(configs: Iterable[Config]) -> list[Config]:
    """`configs` cut at every share."""
    return [own for share in SHARES for own in at(configs, share)]


def chosen(study: Study, name: str) -> dict[Config, float]:
    """The best share of each configuration of `CUT` on images that the training `name` was trained on."""
    (training, _), first = needs(study), study.settings["chosen_on"]
    if not study.kept:
        measure(study, [training])  # with all that other tables read there
    counts = study.of_training(name, every(CUT), "train", first=first)
    scores = {config: values[0].mean() for config, values in draws(counts, study.metric, 1).items()}
    return {c: max(SHARES, key=lambda share, c=c: scores[replace(c, fraction=share)]) for c in CUT}  # type: ignore[misc]


def needs(study: Study) -> list[Need]:
    """All shares of the tables' rows, and of the sweep the chosen one, which another pass has to tell before."""
    rows = list(dict.fromkeys(config for number in (3, 4) for config in ROWS[number].values()))
    mine = lambda name: [own for c, share in chosen(study, name).items() for own in at([c], share)]  # noqa: E731
    return [Need(every(CUT), "train", first=study.settings["chosen_on"]), Need(every(rows), own=mine)]


def counts(study: Study, configs: Iterable[Config]) -> Counts:
    """The counts of `configs` at the chosen shares, under their names without a share."""
    configs, parts = list(configs), []
    for name, seed in study.trainings[["name", "seed"]].itertuples(index=False):
        shares = chosen(study, name)
        found = study.of_training(name, [replace(c, fraction=shares[c]) for c in configs])
        parts.append(Counts(found.pairs.assign(training=seed, fold=""), tuple(configs), found.values))
    return Counts.join(parts)


@result("The second cut: a share of the maximum", needs, losses=("softmax",))
def shares(study: Study) -> pd.DataFrame:
    """The headline score of each row of Tables 3 and 4, with its interval: at Otsu's threshold; at the chosen share, and its
    change from Otsu's; at the share that would have been best on the held-out part (best, at best_share). share: the mean over
    trainings of the chosen ones."""
    rows = ROWS[3]
    otsu, own = (draws(found, study.metric) for found in (study.counts(rows.values()), counts(study, rows.values())))
    hindsight = {c: v[0].mean() for c, v in draws(study.counts(every(rows.values())), study.metric, 1).items()}
    picked = [chosen(study, name) for name in study.names]
    table = []
    for row, config in rows.items():
        best = max(SHARES, key=lambda share, c=config: hindsight[replace(c, fraction=share)])  # type: ignore[misc]
        about = {
            "row": row,
            **ends(otsu[config], "otsu", "otsu_low", "otsu_high"),
            "share": np.mean([p[config] for p in picked]),
        }
        about |= ends(own[config]) | margin(own[config] - otsu[config])
        table.append(about | {"best": hindsight[replace(config, fraction=best)], "best_share": best})
    return pd.DataFrame(table)

"""The second cut, beside Otsu's threshold: a share of each map's maximum, chosen on training images.

A share is chosen for each configuration in each training, by the headline score on images that this training has seen. Folds
so stay apart. With one class an image this is what the field does: a pixel is background where the map is below a constant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, get_args

import numpy as np
import pandas as pd

from ltcam.engine.config import Config
from ltcam.experiment import provenance
from ltcam.experiment.protocol import Protocol, Way
from ltcam.experiment.scores import Counts, draws, ends
from ltcam.experiment.study import Role, Study
from ltcam.paper import claims
from ltcam.paper.registry import RESULTS, Need, make, measure, names, result
from ltcam.paper.tables import BOTH, ROWS, SEVEN, SWEEP, by_part, margin

SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7)
CUT = list(dict.fromkeys([*(config for rows in ROWS.values() for config in rows.values()), *SWEEP]))


def every(configs: Iterable[Config]) -> list[Config]:
    """`configs` cut at every share."""
    return [replace(config, fraction=share) for share in SHARES for config in configs]


@cache
def chosen(study: Study, name: str) -> dict[Config, float]:
    """The best share of each configuration of `CUT` on images that the training `name` was trained on."""
    if not study.kept:
        measure(study, needs(study)[:1])  # with all that other tables read there
    sums = make("cuts", study).fillna({"name": ""}) if study.kept else _sums(study, name, needs(study)[0])
    best = draws(_counts(sums[(sums["name"] == name) & (sums["part"] == "train")]), study.metric, 1)
    return {c: max(SHARES, key=lambda share, c=c: best[replace(c, fraction=share)][0].mean()) for c in CUT}  # type: ignore[misc]


def own(study: Study, name: str, configs: Iterable[Config]) -> list[Config]:
    """`configs` at the shares that a training has chosen."""
    return [replace(config, fraction=chosen(study, name)[config]) for config in configs]


def needs(study: Study) -> list[Need]:
    """All shares of the tables' rows, and of the sweep the chosen one, which another pass has to tell before."""
    mine = lambda name: own(study, name, CUT)  # noqa: E731
    return [Need(every(CUT), "train", first=study.settings["chosen_on"]), Need(every(SEVEN.values()), own=mine)]


def counts(study: Study, configs: Iterable[Config], role: Role = "test", protocol: Protocol | None = None) -> Counts:
    """The counts of `configs` at the chosen shares, under their names without a share. role: "train" for the images that the
    shares were chosen on."""
    configs, parts, first = tuple(dict.fromkeys(configs)), [], study.settings["chosen_on"] if role == "train" else None
    for name, seed, fold in study.trainings[["name", "seed", "fold"]].itertuples(index=False):
        found = study.of_training(name, own(study, name, configs), role, protocol, first=first)
        pairs = found.pairs.assign(training=seed, fold=fold if role == "train" else "")
        parts.append(Counts(pairs, configs, found.values))
    return Counts.join(parts)


def _sums(study: Study, name: str, need: Need) -> pd.DataFrame:
    """The rows of `cuts` for one training and part."""
    found = study.of_training(name, need.configs, need.role, first=need.first)
    wide = pd.DataFrame(found.values.reshape(len(found.pairs), -1)).groupby(found.pairs["class"]).sum()
    rows = pd.MultiIndex.from_product([wide.index, map(str, need.configs)], names=["class", "config"])
    table = pd.DataFrame(wide.to_numpy().reshape(-1, 3), rows, ["tp", "fp", "fn"]).reset_index()
    return table.assign(name=name, part=need.role)


def _counts(sums: pd.DataFrame) -> Counts:
    """Rows of `cuts` of one part, as if each training had seen one image."""
    texts = sums["config"].unique()
    pairs = sums.iloc[:: len(texts)].reset_index(drop=True)
    pairs = pairs.assign(training=pairs["name"].str.split("/").str[0], fold="", group=pairs["name"])
    return Counts(pairs, tuple(map(Config.parse, texts)), sums[["tp", "fp", "fn"]].to_numpy().reshape(-1, len(texts), 3))


@result("Pixels at every share of the maximum, summed over images", needs, packed=True, losses=BOTH, setting="second_cut")
def cuts(study: Study) -> pd.DataFrame:
    """tp, fp and fn of each training (name), part, class and configuration, of which exports have the chosen share alone."""
    if study.kept and (path := study.out / RESULTS["cuts"].file).is_file():
        return pd.DataFrame(provenance.load(path, keep_default_na=False))
    return pd.concat([_sums(study, name, need) for need in needs(study) for name in study.names])


def thin(study: Study) -> None:
    """Leave the rows of images at shares that were not chosen, and that no other table reads, out of the exports for git."""
    others = [need for name in names(study) if RESULTS[name].needs is not needs for need in RESULTS[name].needs(study)]
    for name, need in product(study.names, needs(study) if study.settings["second_cut"] else []):
        read = {config for other in others for config in other.configs}.union(own(study, name, CUT))
        number = study.measured(name, [*map(Way, need.configs)], need.role, first=need.first)
        study.store.leave_out(number, [Way(config) for config in need.configs if config not in read])


@result("The second cut: a share of the maximum", needs, losses=BOTH, setting="second_cut")
def shares(study: Study) -> pd.DataFrame:
    """The headline score of each row of Tables 3 and 4, with its interval: at Otsu's threshold; at the chosen share, and its
    change from Otsu's; at the share that would have been best on the held-out part (best, at best_share), and by how much more
    (gap). share: the mean over trainings of the chosen ones."""
    seven, sums = SEVEN.values(), make("cuts", study).fillna({"name": ""})
    otsu, cut = (draws(found, study.metric) for found in (study.counts(seven), counts(study, seven)))
    hindsight = {c: v[0].mean() for c, v in draws(_counts(sums[sums["part"] == "test"]), study.metric, 1).items()}
    table = []
    for row, config in SEVEN.items():
        best = max(SHARES, key=lambda share, c=config: hindsight[replace(c, fraction=share)])  # type: ignore[misc]
        about: dict[str, Any] = {"row": row, **ends(otsu[config], "otsu", "otsu_low", "otsu_high")}
        about |= {"share": np.mean([chosen(study, name)[config] for name in study.names]), **ends(cut[config])}
        about |= margin(cut[config] - otsu[config]) | {"best": hindsight[replace(config, fraction=best)], "best_share": best}
        table.append(about | {"gap": about["best"] - about["value"]})
    return pd.DataFrame(table)


@result("Every score over δ, at the chosen share", needs, losses=BOTH, setting="second_cut")
def sweep_share(study: Study) -> pd.DataFrame:
    """`sweep`, each configuration at its own share. The part "train" has the images that the shares were chosen on."""
    return by_part({role: counts(study, SWEEP, role) for role in get_args(Role)})


@result("The paper's claims, at the chosen share", needs, losses=BOTH, setting="second_cut")
def claims_share(study: Study) -> pd.DataFrame:
    """`claims` on masks at the chosen shares."""
    return claims.verdicts(study, {n.role: counts(study, n.configs, n.role) for n in claims.needs(study)})

"""What the network is shown of a defect: the image in one view, in crops at its own resolution, without its bright border.

All of it is measured in the first seed, for sets of defects. Nothing is trained again.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, get_args

import pandas as pd
import torch

from ltcam.data import Sample
from ltcam.engine.config import Config
from ltcam.engine.views import corners, cost
from ltcam.experiment.counting import count_batch, identity, prepared
from ltcam.experiment.protocol import Border, Protocol, Way
from ltcam.experiment.recipe import profile
from ltcam.experiment.scores import Counts, draws, ends
from ltcam.experiment.study import Study
from ltcam.experiment.trained import Trained
from ltcam.paper import shares
from ltcam.paper.breakdown import AMOUNTS, VALUE, fifths
from ltcam.paper.registry import RESULTS, Need, make, result
from ltcam.paper.tables import SEVEN, margin

LT, *OTHERS = GAINS = ["LTGrad-CAM(l=5, δ=20)", "Grad-CAM", "Layer-CAM(l=5, δ=0)"]
WHOLE = "whole"  # an image in one view
VERSION = 1  # of what `defects` measures: raise it when a number of a test changes


def borders(study: Study) -> list[Need]:
    """Without a treatment, and with each."""
    return [_seven(study, replace(study.protocol, border=how) if how else None) for how in (None, *get_args(Border))]


@result("What the bright border costs", borders, tables=(4,), setting="tiles")
def border(study: Study) -> pd.DataFrame:
    """The headline score of the seven methods in percent, with each treatment of the border as in `Protocol`, and its change
    from none."""
    rows, each = list[dict[str, Any]](), [draws(_counted(study, need), study.metric) for need in borders(study)]
    plain = each[0]
    for how, own in zip(("none", *get_args(Border)), each, strict=True):
        for row, c in SEVEN.items():
            rows.append({"border": how, "row": row, **ends(own[c]), **(margin(own[c] - plain[c]) if own is not plain else {})})
    return pd.DataFrame(rows).assign(data=study.title, metric=study.metric)


def needs(study: Study) -> list[Need]:
    """One view, and crops; also at the shares of the maximum that are chosen in one view."""
    protocols = (None, replace(study.protocol, tiles=study.settings["tiles"]))
    return [_seven(study, protocol)._replace(own=partial(at_shares, study)) for protocol in protocols]


def at_shares(study: Study, name: str) -> list[Config]:
    """The seven methods at the shares that the training `name` has chosen, if there is a second cut."""
    return shares.own(study, name, SEVEN.values()) if study.settings["second_cut"] else []


@result("Crops beside one view", needs, golden=("cut", "row", "single", "value"), tolerance=3, tables=(4,), setting="tiles")
def crops(study: Study) -> pd.DataFrame:
    """The headline score of the seven methods in percent, in one view and in crops, and the change, by cut: Otsu's threshold,
    or the share of the maximum that is best on training images in one view. So nothing but the view changes, and crops could
    do better at shares of their own.

    views  what the crops of an image cost on average, as a multiple of the pixels of one view
    """
    cost, rows = make("defects", study).drop_duplicates("name")["views"].mean(), []
    for cut in ("otsu", *["share"] * study.settings["second_cut"]):
        one, many = (draws(_counted(study, need, cut == "share"), study.metric) for need in needs(study))
        for row, c in SEVEN.items():
            about = {"cut": cut, "row": row, **ends(one[c], "single", "single_low", "single_high"), **ends(many[c])}
            rows.append(about | margin(many[c] - one[c]) | {"views": cost})
    return pd.DataFrame(rows).assign(data=study.title, metric=study.metric)


def _seven(study: Study, protocol: Protocol | None) -> Need:
    return Need([*SEVEN.values()], "test", protocol, 1, study.settings["scored_on"])


def _counted(study: Study, need: Need, at_share: bool = False) -> Counts:
    """The seven methods in the first seed, at Otsu's threshold or at the shares of `need`, named without a share."""
    parts = []
    for name in study.names[: study.settings["folds"] or 1]:
        configs = need.own(name) if at_share else need.configs
        found = study.of_training(name, configs, "test", need.protocol, first=need.first)
        parts.append(Counts(found.pairs, tuple(need.configs), found.values))
    return Counts.join(parts)


@result("Every defect in one view, and in the crops that show it", packed=True, measured=True, tables=(4,), setting="tiles")
def defects(study: Study) -> pd.DataFrame:
    """Otsu's pixel counts of three methods, each view scored by itself: a row for each image, crop, class and method.

    crop: "whole" for the image in one view, or the crop's "top left" in pixels; area: of the class, in percent of the view;
    views: what all crops of the image cost, as a multiple of the pixels of one view. An image without crops costs 1.
    """
    rows, side, first = list[list[Any]](), study.settings["tiles"], study.settings["scored_on"]
    for trained in study.folds():
        data = trained.load(trained.recipe.test + (f"/{first}" if first else ""))
        key = identity(trained, data, study.protocol) | {"defects": VERSION, "tiles": side, "of": GAINS}
        kept = study.store.notes(key)
        for number in data.scored:
            if number not in kept:
                kept[number] = _in_views(trained, data[number], study.protocol, side)
                study.store.note(key, number, kept[number])
            rows += [[data.entries[number].name, data.groups[number], *row] for row in kept[number]]
    return pd.DataFrame(rows, columns=["name", "group", "crop", "class", "area", "row", "tp", "fp", "fn", "views"])


def _in_views(trained: Trained, sample: Sample, protocol: Protocol, side: int) -> list[list[Any]]:
    """The rows of one image."""
    size = (sample.mask.shape[0], sample.mask.shape[1])
    number, views = cost(size, side, protocol.size or trained.size)
    seen, rows, ways = [(sample._replace(name=WHOLE), protocol)], list[list[Any]](), {Way(SEVEN[row]): row for row in GAINS}
    for top, left in corners(size, side) if number else ():
        place = (..., slice(top, top + side), slice(left, left + side))
        mask = sample.mask[place]
        label = torch.stack([(mask == c + 1).any() for c in range(len(sample.label))]).float()
        how = replace(protocol, size=(min(size[0], side), min(size[1], side)))
        seen.append((Sample(sample.image[place], label, mask, f"{top} {left}"), how))
    for own, how in (view for view in seen if view[0].label.any()):
        found = count_batch(trained, prepared(how, trained.size, [own]), [*ways], how)[0]
        for _, c, way, tp, fp, fn in sorted(found, key=lambda row: (row.label, [*ways].index(row.way))):
            rows.append([own.name, c, 100 * (tp + fn) / own.mask.numel(), ways[way], tp, fp, fn, views])
    return rows


@result("What truncation and fusion gain, by a defect's share of the input", tables=(4,), setting="tiles")
def gain_by_share(study: Study) -> pd.DataFrame:
    """The pooled IoU of LTGrad-CAM minus that of Grad-CAM and of Layer-CAM in points, by fifths of a defect's share of a view.

    The defects are those of `defects`, of this data set and of those before it in the profile that are measured. of: "one
    view", "crops" or "all" of both. share: the ends of a fifth; area: its median, both in percent; defects: how many it has. A
    defect may be in several crops, so intervals resample groups: commutators, tiles or images.
    """
    sets = [*profile(study.profile)]
    before = [Study(study.profile, data, kept=True) for data in sets[: sets.index(study.data)]]
    pooled = [*(own for own in before if (own.out / RESULTS["defects"].file).is_file()), study]
    every = pd.concat([make("defects", own).assign(data=own.data) for own in pooled], ignore_index=True)
    every["group"], every["name"] = every["data"] + every["group"], every["data"] + every["name"] + every["crop"]
    pairs, values = every[:: len(GAINS)].assign(training="", fold=""), every[["tp", "fp", "fn"]].to_numpy()
    counts = Counts(pairs.reset_index(drop=True), tuple(SEVEN[row] for row in GAINS), values.reshape(len(pairs), -1, 3))
    areas, whole, rows = counts.pairs["area"], counts.pairs["crop"] == WHOLE, list[dict[str, Any]]()
    for of, some in {"all": areas, "one view": areas[whole], "crops": areas[~whole]}.items():
        groups = some.groupby(fifths(some, AMOUNTS["area"])) if len(some) >= 5 else ()
        for share, own in sorted(groups, key=lambda item: item[1].median()):
            scores = draws(counts.where(own.index.to_numpy()), "IoU")
            about = {"of": of, "share": share, "area": own.median(), "defects": len(own)}
            rows += [{**about, "over": row, **margin(scores[SEVEN[LT]] - scores[SEVEN[row]], VALUE)} for row in OTHERS]
    return pd.DataFrame(rows).assign(data=" and ".join(own.title for own in pooled))

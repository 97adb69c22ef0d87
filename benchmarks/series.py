"""What one pass for the whole notebook series saves: `python -m benchmarks.series --data voc2012`, with nothing else running.

Each batch of 8 images is a turn. In a turn run the floor (a bare forward and backward to the stages, as often as the batch has
classes), the series in one pass, and the same notebooks one by one, each with its own passes. The two must give equal counts.
Then the one pass is timed part by part.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from benchmarks.figure import RESULTS
from benchmarks.peers import bare
from benchmarks.timing import DEVICE, seconds
from ltcam import data as datasets
from ltcam.data import Segmentation
from ltcam.experiment import counting, provenance
from ltcam.experiment.checkpoints import Trained, load_checkpoint
from ltcam.experiment.configs import Protocol
from ltcam.experiment.counting import Reading, count
from ltcam.experiment.evaluation import _batches, image_loader
from ltcam.paper import ablations, sweep, tables
from ltcam.paper.reproduce import profile
from ltcam.paper.run import wanted
from ltcam.show import plotting

PARTS = {
    "trace": "forward, backward",
    "maps_of": "thresholds, maps",
    "heatmaps": "resizing, sums",
    "otsu_counts": "Otsu, counts",
}


def one_by_one(data: str, protocol: Protocol, varied: dict[str, Any]) -> Iterator[list[Reading]]:
    """The passes of notebooks 02, 03, 04, 05 and 08, none of which knows of another."""
    for number in (1, 2, *tables.COMPARED[data]):
        yield [(list(tables.TABLES[number].values()), protocol)]
    yield [(sweep.CONFIGS, protocol)]
    yield from ([reading] for reading in ablations.readings_of(data, protocol, **varied).values())


def shared(readings: Sequence[Reading]) -> list[list[Reading]]:
    """The passes that `ltcam.experiment.evaluation.together` makes."""
    passes: dict[Protocol, list[Reading]] = {}
    for reading in readings:
        passes.setdefault(reading[1].forward, []).append(reading)
    return list(passes.values())


@contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Adds the seconds of each of `PARTS` to `spent`."""

    def noted(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            found: list[Any] = []
            spent[PARTS[name]] += seconds(lambda: found.append(work(*arguments, **options)))
            return found[0]

        return run

    with ExitStack() as patched:
        for name in PARTS:
            patched.enter_context(patch.object(counting, name, noted(name, getattr(counting, name))))
        yield


def counts(
    trained: Trained, data: Segmentation, batch: list[int], passes: Sequence[Sequence[Reading]]
) -> dict[tuple[Any, ...], list[int]]:
    """{(protocol, image, class, *configuration): (tp, fp, fn)} of all readings; each pass loads and preprocesses the batch."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for readings in passes:
        for samples in image_loader(data, trained, readings[0][1], [batch]):
            for (_, protocol), rows in zip(readings, count(trained, samples, readings), strict=True):
                found |= {(protocol, *row[:-3]): row[-3:] for row in rows}
    return found


def differ(one: Mapping[Any, Sequence[int]], other: Mapping[Any, Sequence[int]]) -> float:
    """The share of counted pixels that differ; infinity if not the same is counted."""
    if one.keys() != other.keys():
        return float("inf")
    first, second = np.array(list(one.values())), np.array([other[key] for key in one])
    return float(np.abs(first - second).sum() / first.sum())


def turn(
    trained: Trained, data: Segmentation, batch: list[int], one: Sequence[Sequence[Reading]], alone: Sequence[Sequence[Reading]]
) -> dict[str, float]:
    """The seconds of the floor, of both ways, and of each part of the first.

    Raises AssertionError if the counts differ by more than pixels at a threshold, which rounding moves.
    """
    images = torch.stack([datasets.preprocess(data[i].image, trained.size) for i in batch]).to(DEVICE)
    classes = range(int(data.labels[batch[0]].sum()))
    found: list[dict[Any, Any]] = []
    row: dict[str, float] = {"images": len(batch), "floor": seconds(lambda: bare(trained.model, images, classes))}
    row["one pass"] = seconds(lambda: found.append(counts(trained, data, batch, one)))
    row["one by one"] = seconds(lambda: found.append(counts(trained, data, batch, alone)))
    row["differ"] = differ(*found)
    if row["differ"] > 1e-5:
        raise AssertionError(f"images {batch}: one pass and single passes give other counts")
    spent = dict.fromkeys(PARTS.values(), 0.0)
    with timed(spent):
        whole = seconds(lambda: counts(trained, data, batch, one))
    return {**row, **spent, "loading, the rest": whole - sum(spent.values())}


def draw(table: pd.DataFrame, path: Path) -> None:
    """One bar: what the one pass spends its time on, over the floor's."""
    parts = table[[*PARTS.values(), "loading, the rest"]].sum() / table["floor"].sum()
    figure, axes = plt.subplots(figsize=(7.2, 1.5), layout="constrained")
    left = 0.0
    for name, width in parts.items():
        axes.barh([0], width, left=left, label=f"{name} {width:.2f}")
        left += width
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.set(yticks=[], xlabel="time over that of a bare forward and backward (dashed)")
    axes.legend(ncols=3, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    plotting.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--profile", default="paper")
    parser.add_argument("--batches", type=int, default=13)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    started, trained = time.time(), load_checkpoint(options.checkpoint)
    run = next(run for run in profile(options.profile) if run["data"] == trained.recipe.data)
    varied = {name: run[name] for name in ("deltas", "varied", "protocols")}
    protocol = Protocol()
    series = shared(list(wanted(run["data"], "test", protocol, **varied).values()))
    alone = list(one_by_one(run["data"], protocol, varied))
    data = trained.load(trained.recipe.test)
    every = _batches(data, 8)
    rows = []
    for batch in every[:: max(1, len(every) // options.batches)][: options.batches]:
        rows.append(turn(trained, data, batch, series, alone))
        print(pd.DataFrame(rows[-1:]).round(2).to_string(index=False), flush=True)
    table = pd.DataFrame(rows)
    for name in ("one pass", "one by one"):
        ratio = table[name] / table["floor"]
        print(f"{name}: {ratio.median():.2f} times the floor ({ratio.min():.2f} to {ratio.max():.2f})")
    print(f"{np.sum(table['images']) / np.sum(table['one pass']):.2f} images a second in one pass")
    about = {"data": run["data"], "part": trained.recipe.test, "checkpoint": trained.sha256}
    provenance.save(table, options.out / f"series_{DEVICE}.csv", started, **about)
    draw(table, options.out / f"series_{DEVICE}")


if __name__ == "__main__":
    main()

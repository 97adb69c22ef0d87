"""Which maps a segmentation could best start from: `python -m benchmarks.search --checkpoint PATH ... --out FOLDER`.

The search sees the training part alone. Each round changes one thing in the best of the rounds before it. Every try is a row of
`search.csv`, so their number is known. It takes hours, and goes on where it stopped. `ltcam.paper.beyond` has what it chose.

otsu    class mean of the IoU at Otsu's threshold, in percent: the paper's protocol
argmax  mIoU with background at its best threshold, in percent: the protocol of weakly-supervised segmentation
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from ltcam import Config, Refine
from ltcam.engine.refine import Then
from ltcam.errors import InputError
from ltcam.experiment import provenance, seeds
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.scores import configurations, row
from ltcam.experiment.trained import Trained, load_checkpoint
from ltcam.files import AnyPath

log = logging.getLogger(__name__)

SAMPLE, MORE = "train/tune", "train/300"  # a tenth of the training part, and its first 300 images
SCORES = ("otsu", "argmax")
BEST = 5
ONE = Protocol()
FUSIONS = (("sum", "none"), ("sum", "max"), ("sum", "tanh"), ("max", "max"), ("prod", "none"))
REFINES = [Refine("S3-S5", 28, power, steps, then) for power in (4, 8, 16) for steps in (1, 2) for then in ("", "times")]
REFINES += [Refine("S4-S5", 28, 8, 1), Refine("S2-S5", 28, 8, 1), Refine("S3-S5", 56, 8, 1)]
# At most four times the pixels of one view.
VIEWS = [Protocol(flip=True), Protocol(scales=(1.0, 1.5)), *(Protocol(size=(n, n)) for n in (320, 448))]
Try = tuple[str, Protocol, Config]  # a head of the classifier, and what it is read with


def maps() -> list[Config]:
    """Methods x layers x delta x fusion. Layer-CAM and "sim" take positive gradients alone, so no delta is delta 0 there."""
    found = [Config("fullgrad", layers, delta) for layers in ("all", "S3-S5", "S5") for delta in (None, 0.0)]
    for method in ("gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "sim"):
        for delta in (0.0,) if method in ("layercam", "sim") else (None, 0.0):
            found.append(Config(method, "S5", delta))
            for layers in ("S4-S5", "S3-S5", "S1-S5"):
                ways = [(fuse, how) for fuse, how in FUSIONS if (layers, how) != ("S4-S5", "tanh")]  # there it is "max"
                found += [Config(method, layers, delta, fuse=fuse, normalize=how) for fuse, how in ways]  # type: ignore[arg-type]
    return found


def beside(how: Refine) -> list[Refine]:
    """The refinements that differ from this one in one field: those of `REFINES` may end where it is best."""
    found = [replace(how, power=how.power / 2), replace(how, power=how.power * 2), replace(how, steps=how.steps + 1)]
    found += [replace(how, steps=how.steps * 2), replace(how, size=min(2 * how.size, 64))]
    found += [replace(how, then=then) for then in get_args(Then)]
    return [other for other in dict.fromkeys(found) if other != how]


def search(heads: Sequence[Trained], out: AnyPath) -> pd.DataFrame:
    """All tries, in order; the last round, "more", scores the best of all others on more images. Goes on where it stopped.

    heads: checkpoints of one training part, each with another head of the classifier. The first is searched in full, the
    others with the best of it. Writes `out/search.csv`. Raises InputError if that file has tries of another checkpoint.
    """
    by_head = {str(trained.recipe.head): trained for trained in heads}
    first, *others = by_head
    tries = _Log(Path(out), by_head)
    tries.add("maps", [(first, ONE, config) for config in maps()])
    tries.add("refine", [(h, p, replace(c, refine=how)) for h, p, c in tries.best("maps") for how in REFINES])
    tries.add("views", [(h, view, c) for h, _, c in tries.best("maps", "refine") for view in VIEWS])
    of_others = [(head, p, c) for head in others for _, p, c in tries.best("maps", "refine", "views")]
    tries.add("head", of_others + [(head, ONE, Config("cam")) for head in others if head == "gap"])
    best = tries.best("maps", "refine", "views", "head", count=2)
    tries.add("beside", [(h, p, replace(c, refine=how)) for h, p, c in best if c.refine for how in beside(c.refine)])
    tries.add("more", tries.best("maps", "refine", "views", "head", "beside"), MORE)
    return tries.table


def chosen(table: pd.DataFrame) -> dict[str, Try]:
    """The best try of the last round by each of `SCORES`."""
    last = table[table["round"] == "more"]
    return {score: of_table(last.nlargest(1, score))[0] for score in SCORES}


def read(out: AnyPath) -> pd.DataFrame:
    """The tries that `search` left in `out`."""
    return pd.read_csv(Path(out) / "search.csv", dtype={"delta": float, "scales": str, "checkpoint": str})


def of_table(rows: pd.DataFrame) -> list[Try]:
    """The try of each row."""
    found = zip(rows["head"], rows["size"], rows["scales"], rows["flip"], configurations(rows), strict=True)
    return [(head, _protocol(size, scales, flip), config) for head, size, scales, flip, config in found]


class _Log:
    """The tries so far, as `search.csv` has them."""

    def __init__(self, out: Path, heads: dict[str, Trained]) -> None:
        self.path, self.heads = out / "search.csv", heads
        self.table = read(out) if self.path.is_file() else pd.DataFrame()
        known = {(head, trained.sha256[:12]) for head, trained in heads.items()}
        there = set(zip(self.table["head"], self.table["checkpoint"], strict=True)) if len(self.table) else set()
        if others := sorted(there - known):
            raise InputError(f"{self.path} has tries of other checkpoints, {others}: pass these, or another --out")

    def add(self, name: str, tries: Sequence[Try], part: str = SAMPLE) -> None:
        """Score those of `tries` that the round lacks, with one pass a head and protocol."""
        there = set(of_table(self.table[self.table["round"] == name])) if len(self.table) else set()
        lacking: dict[tuple[str, Protocol], list[Config]] = {}
        for head, protocol, config in dict.fromkeys(tries):
            if (head, protocol, config) not in there:
                lacking.setdefault((head, protocol), []).append(config)
        for (head, protocol), configs in lacking.items():
            started = time.process_time()
            rows = pd.DataFrame(scored(self.heads[head], protocol, configs, part))
            for field, value in reversed({"round": name, "part": part, "head": head, **_fields(protocol)}.items()):
                rows.insert(0, field, value)
            rows["cpu_seconds"] = round((time.process_time() - started) / len(rows), 1)
            rows["checkpoint"] = self.heads[head].sha256[:12]
            self.table = pd.concat([self.table, rows], ignore_index=True)
            provenance.save(self.table, self.path)
            self.table = read(self.path.parent)  # with as many digits as a search that goes on reads
            log.info("%s, head %s, %s: %d tries, %d in all", name, head, _fields(protocol), len(rows), len(self.table))

    def best(self, *rounds: str, count: int | None = None) -> list[Try]:
        """The `BEST`, or `count`, by each of `SCORES` in these rounds. Later rounds of a search that goes on do not count."""
        rows = self.table[self.table["round"].isin(rounds)]
        return list(dict.fromkeys(t for score in SCORES for t in of_table(rows.nlargest(count or BEST, score))))


def scored(trained: Trained, protocol: Protocol, configs: list[Config], part: str) -> Iterator[dict[str, Any]]:
    """A row for each configuration: its columns, the number of images, both scores in percent, and the best threshold t."""
    for config, tally in seeds.of_checkpoint(trained, part, configs, protocol).items():
        curve = tally.curve()
        found = {"images": tally.images, "otsu": tally.class_mean(), "argmax": curve.max(), "t": curve.idxmax()}
        yield row(config) | found


def _fields(protocol: Protocol) -> dict[str, Any]:
    """The columns of a protocol; size 0 is the size that the model was trained at."""
    scales = " ".join(f"{s:g}" for s in protocol.scales)
    return {"size": protocol.size[0] if protocol.size else 0, "scales": scales, "flip": protocol.flip}


def _protocol(size: int, scales: str, flip: bool) -> Protocol:
    return Protocol(size=(size, size) if size else None, scales=tuple(map(float, scales.split())), flip=bool(flip))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, action="append", required=True, help="again for one with another head")
    parser.add_argument("--out", type=Path, required=True, help="folder of search.csv")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    table = search([load_checkpoint(path) for path in options.checkpoint], options.out)
    for score, (head, protocol, config) in chosen(table).items():
        print(f"best by {score}, of {len(table)} tries: head {head}, {protocol}, {config}")


if __name__ == "__main__":
    main()

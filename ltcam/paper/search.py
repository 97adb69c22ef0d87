"""Beyond the paper: which maps a segmentation could best start from. The search sees the training part alone: `ltcam search`.

Each round changes one thing in the best of the rounds before it. Every try is a row of `search.csv`, so their number is known.

otsu    class mean of the IoU at Otsu's threshold, in percent: the paper's protocol
argmax  mIoU with background at its best threshold, in percent: the protocol of weakly-supervised segmentation
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ltcam.engine.refine import THENS, Refine
from ltcam.experiment import metrics, provenance, seed_scores
from ltcam.experiment.checkpoints import Trained
from ltcam.experiment.configs import Config, Protocol, configurations
from ltcam.files import AnyPath
from ltcam.paper.beyond import label

log = logging.getLogger(__name__)

SAMPLE, MORE = "train/tune", "train/300"  # a tenth of the training part, and its first 300 images
SCORES = ("otsu", "argmax")
BEST = 5
ONE = Protocol()
FUSIONS = (("sum", "none"), ("sum", "max"), ("sum", "tanh"), ("max", "max"), ("prod", "none"))
REFINES = [
    *(f"S3-S5:28:{power}:{steps}{times}" for power in (4, 8, 16) for steps in (1, 2) for times in ("", ":times")),
    *("S4-S5:28:8:1", "S2-S5:28:8:1", "S3-S5:56:8:1"),
]
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


def beside(refine: str) -> list[str]:
    """The refinements that differ from this one in one field: those of `REFINES` may end where it is best."""
    how = Refine.parse(refine)
    powers = [how._replace(power=how.power / 2), how._replace(power=how.power * 2)]
    steps = [how._replace(steps=how.steps + 1), how._replace(steps=how.steps * 2)]
    others = [how._replace(size=min(2 * how.size, 64)), *(how._replace(then=then) for then in THENS)]
    return [str(other) for other in dict.fromkeys([*powers, *steps, *others]) if other != how]


def search(heads: Sequence[Trained], out: AnyPath) -> pd.DataFrame:
    """All tries, in order; the last round, "more", scores the best of all others on more images. Goes on where it stopped.

    heads: checkpoints of one training part, each with another head of the classifier. The first is searched in full, the
    others with the best of it. Writes `out/search.csv`.
    """
    by_head = {str(trained.recipe.head): trained for trained in heads}
    first, *others = by_head
    log_of = _Log(Path(out), by_head)
    log_of.add("maps", [(first, ONE, config) for config in maps()])
    log_of.add("refine", [(h, p, c._replace(refine=how)) for h, p, c in log_of.best("maps") for how in REFINES])
    log_of.add("views", [(h, view, c) for h, _, c in log_of.best("maps", "refine") for view in VIEWS])
    of_others = [(head, p, c) for head in others for _, p, c in log_of.best("maps", "refine", "views")]
    log_of.add("head", of_others + [(head, ONE, Config("cam")) for head in others if head == "gap"])
    best = log_of.best("maps", "refine", "views", "head", count=2)
    log_of.add("beside", [(h, p, c._replace(refine=how)) for h, p, c in best if c.refine for how in beside(c.refine)])
    log_of.add("more", log_of.best("maps", "refine", "views", "head", "beside"), MORE)
    return log_of.table


def chosen(table: pd.DataFrame) -> dict[str, Try]:
    """The best try of the last round by each of `SCORES`."""
    last = table[table["round"] == "more"]
    return {score: _tries(last.nlargest(1, score))[0] for score in SCORES}


def read(out: AnyPath) -> pd.DataFrame:
    """The tries that `search` left in `out`."""
    return pd.read_csv(Path(out) / "search.csv", dtype={"delta": float})


def rounds(table: pd.DataFrame) -> list[list[str]]:
    """Each round in words: its images, its number of tries, and the best try by each of `SCORES`."""
    cells = []
    table = table.sort_values("round", key=lambda names: names == "more", kind="stable")  # also if later rounds followed it
    for (name, part, images), own in table.groupby(["round", "part", "images"], sort=False):
        best = []
        for score in SCORES:
            top = own.nlargest(1, score)
            ((_, protocol, config),) = _tries(top)
            delta = "" if config.delta is None else f" δ={config.delta:g}"
            fields = {name: getattr(config, name) for name in ("fuse", "normalize", "refine")}
            changed = [f"{name}={value}" for name, value in fields.items() if value not in ("sum", "none", None)]
            said = [f"{config.method} {config.layers}{delta}", *changed, *([] if protocol == ONE else [label(protocol)])]
            best.append(f"{top[score].iloc[0]:.2f}: " + ", ".join(said))
        cells.append([str(name), f"{part} ({images})", str(len(own)), *best])
    return cells


class _Log:
    """The tries so far, as `search.csv` has them."""

    def __init__(self, out: Path, heads: dict[str, Trained]) -> None:
        self.path, self.heads, self.started = out / "search.csv", heads, time.time()
        self.table = read(out) if self.path.is_file() else pd.DataFrame()

    def add(self, name: str, tries: Sequence[Try], part: str = SAMPLE) -> None:
        """Score those of `tries` that the round lacks, with one pass a head and protocol."""
        there = set(_tries(self.table[self.table["round"] == name])) if len(self.table) else set()
        lacking: dict[tuple[str, Protocol], list[Config]] = {}
        for head, protocol, config in dict.fromkeys(tries):
            if (head, protocol, config) not in there:
                lacking.setdefault((head, protocol), []).append(config)
        for (head, protocol), configs in lacking.items():
            started = time.process_time()
            rows = pd.DataFrame(_scored(self.heads[head], protocol, configs, part))
            for field, value in reversed({"round": name, "part": part, "head": head, **_fields(protocol)}.items()):
                rows.insert(0, field, value)
            rows["cpu_seconds"] = round((time.process_time() - started) / len(rows), 1)
            rows["checkpoint"] = self.heads[head].sha256[:12]
            self.table = pd.concat([self.table, rows], ignore_index=True)
            first = next(iter(self.heads.values()))
            about = first.about(first.load(first.recipe.train))
            provenance.save(metrics.compact(self.table), self.path, self.started, **about)
            self.table = read(self.path.parent)  # with as many digits as a search that goes on reads
            log.info("%s, head %s, %s: %d tries, %d in all", name, head, _fields(protocol), len(rows), len(self.table))

    def best(self, *rounds: str, count: int | None = None) -> list[Try]:
        """The `BEST`, or `count`, by each of `SCORES` in these rounds. Later rounds of a search that goes on do not count."""
        rows = self.table[self.table["round"].isin(rounds)]
        return list(dict.fromkeys(t for score in SCORES for t in _tries(rows.nlargest(count or BEST, score))))


def _scored(trained: Trained, protocol: Protocol, configs: list[Config], part: str) -> Iterator[dict[str, Any]]:
    for config, tally in seed_scores.of_checkpoint(trained, part, configs, protocol).items():
        curve = tally.curve()
        yield {
            **config._asdict(), "images": tally.images, "otsu": tally.class_mean(), "argmax": curve.max(), "t": curve.idxmax(),
            "AP": tally.precision()[0],
        }  # fmt: skip


def _fields(protocol: Protocol) -> dict[str, Any]:
    """The columns of a protocol; size 0 is the size that the model was trained at."""
    return {
        "size": protocol.size[0] if protocol.size else 0,
        "scales": " ".join(f"{s:g}" for s in protocol.scales),
        "flip": protocol.flip,
    }


def _tries(rows: pd.DataFrame) -> list[Try]:
    found = zip(rows["head"], rows["size"], rows["scales"], rows["flip"], configurations(rows), strict=True)
    return [(head, _protocol(size, str(scales), flip), config) for head, size, scales, flip, config in found]


def _protocol(size: int, scales: str, flip: bool) -> Protocol:
    return Protocol(size=(size, size) if size else None, scales=tuple(map(float, scales.split())), flip=bool(flip))

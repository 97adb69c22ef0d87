"""What a heatmap more costs: `python -m benchmarks.scale`, with nothing else running.

End to end (loading, heatmaps, Otsu, counts) with 40 configurations against the bare forward and backward of the same images;
what a delta and a method add before maps are resized; and how the time grows with size, batch, classes and deltas (the slope
of log time over log factor: 1 is proportional).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.models import vgg16

from benchmarks.peers import STAGES, floor
from ltcam import datasets, models, provenance, trace
from ltcam.bins import maps_of
from ltcam.cam import Options
from ltcam.evaluation import Config, Protocol, _batches, _count, _loader
from ltcam.sweep import DELTAS
from ltcam.training import Recipe, Trained

FORTY = [Config(m, "S1-S5", d) for m in ("gradcam", "layercam") for d in (None, *DELTAS)]
FORTY += [Config(m, "S5", d) for m in ("gradcam", "layercam") for d in DELTAS[1:]]


def seconds(*works: Callable[[], object], rounds: int = 5) -> list[float]:
    """The median time of each of `works`, which take turns, after one turn that warms up."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds + 1):
        for work, found in zip(works, times, strict=True):
            started = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            found.append(time.perf_counter() - started)
    return [statistics.median(found[1:]) for found in times]


def end_to_end(name: str, part: str, batches: int, rounds: int) -> dict[str, float]:
    """Images/s of all that `ltcam evaluate` does to a batch, and its time over the floor's."""
    data = datasets.load(name, part)
    model = models.vgg16(len(data.classes), weights=None).eval().requires_grad_(False)
    trained = Trained(model, Recipe(data=name), data.classes, data.size, {})
    chosen = _batches(data, 8)[:batches]
    ranks = [int(data.labels[batch[0]].sum()) for batch in chosen]
    images = [torch.stack([datasets.preprocess(data[i].image, data.size) for i in batch]) for batch in chosen]

    def ours() -> None:
        for samples in _loader(data, trained, Protocol(), chosen):
            _count(trained, samples, FORTY, Protocol())

    def bare() -> None:
        for batch, classes in zip(images, ranks, strict=True):
            kept, x = [], batch
            for module in model.features:
                x = module(x)
                if isinstance(module, nn.MaxPool2d):
                    kept.append(x if x.requires_grad else x.detach().requires_grad_())
                    x = kept[-1]
            logits = model.classifier(torch.flatten(model.avgpool(x), 1))
            for c in range(classes):
                torch.autograd.grad(logits[:, c].sum(), kept, retain_graph=c < classes - 1)

    whole, least = seconds(ours, bare, rounds=rounds)
    return {"images/s": sum(map(len, chosen)) / whole, "over floor": whole / least}


def made(model: nn.Module, images: Tensor, classes: int, deltas: int, methods: tuple[str, ...] = ("gradcam",)) -> object:
    """A trace and its maps, before any is resized."""
    traced = trace(model, images, [list(range(classes))] * len(images))
    return maps_of(traced, [(Options(m, 99.0 * d / deltas), None) for m in methods for d in range(deltas)])


def added(model: nn.Module, rounds: int) -> dict[str, float]:
    """Percent of the floor's time that one more delta and one more method cost."""
    images = torch.rand(4, 3, 224, 224)
    run = partial(made, model, images, 1)
    works = [lambda: run(1), lambda: run(20), lambda: run(10), lambda: run(10, ("gradcam", "layercam", "hirescam"))]
    one, twenty, ten, three, least = seconds(*works, lambda: floor(model, images, STAGES, 1), rounds=rounds)
    return {"a delta": 100 * (twenty - one) / 19 / least, "a method with 10 deltas": 100 * (three - ten) / 2 / least}


def slopes(model: nn.Module, rounds: int) -> dict[str, float]:
    cases: dict[str, list[tuple[float, Callable[[], object]]]] = {
        "pixels": [(s * s, partial(made, model, torch.rand(2, 3, s, s), 1, 10)) for s in (160, 224, 320)],
        "batch": [(n, partial(made, model, torch.rand(n, 3, 224, 224), 1, 10)) for n in (1, 2, 4, 8)],
        "classes": [(n, partial(made, model, torch.rand(2, 3, 224, 224), n, 10)) for n in (1, 2, 4)],
        "deltas": [(n, partial(made, model, torch.rand(2, 3, 224, 224), 1, n)) for n in (1, 4, 16)],
    }
    found = {}
    for factor, works in cases.items():
        times = seconds(*(work for _, work in works), rounds=rounds)
        found[factor] = float(np.polyfit(np.log([size for size, _ in works]), np.log(times), 1)[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--part", default="test")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    started = time.time()
    model = vgg16(weights=None).eval().requires_grad_(False)
    rows = [("end to end, 40 configurations", *item) for item in end_to_end(
        options.data, options.part, options.batches, options.rounds).items()]  # fmt: skip
    rows += [("percent of the floor", *item) for item in added(model, options.rounds).items()]
    rows += [("log-log slope over", *item) for item in slopes(model, options.rounds).items()]
    table = pd.DataFrame(rows, columns=["what", "of", "value"])
    print(table.round(3).to_string(index=False))
    settings = {"rounds": options.rounds, "data": options.data, "part": options.part, "batches": options.batches}
    provenance.save(table, options.out / "scale_cpu.csv", started, **settings)


if __name__ == "__main__":
    main()

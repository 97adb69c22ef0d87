"""What a heatmap more costs: `python -m benchmarks.scale`, with nothing else running.

End to end (loading, heatmaps, Otsu, counts) with 40 configurations against the bare forward and backward of the same images;
what a delta and a method add before maps are resized; how the time grows with size, batch, classes and deltas (the slope of log
time over log factor: 1 is proportional); and what torch.compile makes of the bare work. Each number is of one turn; the table
has the median, the least and the most.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torchvision.models import VGG, vgg16

from benchmarks.figure import RESULTS
from benchmarks.peers import bare
from benchmarks.timing import DEVICE, keep, memory, turns
from ltcam import Config, Refine, explain_scales, trace
from ltcam import data as datasets
from ltcam.engine.cam import maps_of
from ltcam.experiment import counting
from ltcam.experiment import vgg16 as models
from ltcam.experiment.protocol import Protocol, Way
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.trained import Trained
from ltcam.paper.tables import DELTAS

FORTY = [Config(m, "S1-S5", d) for m in ("gradcam", "layercam") for d in (None, *DELTAS)]
FORTY += [Config(m, "S5", d) for m in ("gradcam", "layercam") for d in DELTAS[1:]]
BATCH, BATCHES = (2, 3) if DEVICE == "cpu" else (32, 50)  # what keeps the device busy

Rounds = NDArray[np.float64]  # a number a round


def end_to_end(trained: Trained, part: str, batches: int, rounds: int) -> dict[str, Rounds]:
    """Of all that `ltcam evaluate` does to `batches` batches of the part: the peak of memory when run first, images/s, and its
    time over the floor's."""
    data = datasets.load(trained.recipe.data, part)
    ways = [Way(config) for config in FORTY]
    every = counting.batches(data, Protocol(), annotated=False)  # in order of their number of classes
    chosen = every[:: max(1, len(every) // batches)][:batches]
    classes = [range(int(data.labels[batch[0]].sum())) for batch in chosen]
    images = [torch.stack([datasets.preprocess(data[i].image, trained.size) for i in batch]).to(DEVICE) for batch in chosen]

    def ours() -> None:
        for samples in counting.image_loader(data, trained, Protocol(), chosen):
            counting.count_batch(trained, samples, ways, Protocol())

    def floor() -> None:
        for batch, some in zip(images, classes, strict=True):
            bare(trained.model, batch, some)

    before = memory(reset=True)
    ours()
    peak = memory() - before
    whole, least = turns(ours, floor, rounds=rounds)
    return {"peak MB": np.array([peak]), "images/s": sum(map(len, chosen)) / whole, "over floor": whole / least}


def made(model: nn.Module, images: Tensor, classes: int, deltas: int, methods: tuple[str, ...] = ("gradcam",)) -> object:
    """A trace and its maps, before any is resized."""
    traced = trace(model, images, [list(range(classes))] * len(images))
    return maps_of(traced, [Config(m, "all", 99.0 * d / deltas) for m in methods for d in range(deltas)])


def added(model: VGG, images: Tensor, rounds: int) -> dict[str, Rounds]:
    """Percent of the floor's time that one more delta and one more method cost."""
    run = partial(made, model, images, 1)
    works = [lambda: run(1), lambda: run(20), lambda: run(10), lambda: run(10, ("gradcam", "layercam", "hirescam"))]
    one, twenty, ten, three, least = turns(*works, lambda: bare(model, images, [0]), rounds=rounds)
    return {"a delta": 100 * (twenty - one) / 19 / least, "a method with 10 deltas": 100 * (three - ten) / 2 / least}


def beyond(model: VGG, images: Tensor, rounds: int) -> dict[str, Rounds]:
    """What `refine` costs in percent of the floor's time, and scaled and mirrored views in the time of one view."""
    run = partial(explain_scales, model, images, 0, "layercam", delta=0.0)
    views = {"one": {"scales": (1.0,), "flip": False}, "many": {"scales": (1.0, 1.5), "flip": True}}
    works = [partial(run, **views["one"]), partial(run, **views["one"], refine=Refine()), partial(run, **views["many"])]
    one, refined, many, least = turns(*works, lambda: bare(model, images, [0]), rounds=rounds)
    return {"refine, % of the floor": 100 * (refined - one) / least, "views of 6.5 times the pixels, over one": many / one}


def slopes(model: nn.Module, images: Tensor, rounds: int) -> dict[str, Rounds]:
    """Around images (N, 3, s, s): up to 4 N images, 10/7 s, 4 classes and 16 deltas."""
    n, side = len(images), images.shape[-1]
    sides = [side * k // 7 for k in (5, 7, 10)]
    cases: Mapping[str, Sequence[tuple[float, Callable[[], object]]]] = {
        "pixels": [(s * s, partial(made, model, torch.rand(n, 3, s, s, device=DEVICE), 1, 10)) for s in sides],
        "batch": [(k, partial(made, model, torch.cat([images] * k), 1, 10)) for k in (1, 2, 4)],
        "classes": [(k, partial(made, model, images, k, 10)) for k in (1, 2, 4)],
        "deltas": [(k, partial(made, model, images, 1, k)) for k in (1, 4, 16)],
    }
    found = {}
    for factor, works in cases.items():
        times = turns(*(work for _, work in works), rounds=rounds)
        found[factor] = np.polyfit(np.log([size for size, _ in works]), np.log(times), 1)[0]
    return found


def stage_gradients(
    model: VGG, images: Tensor, forward: Callable[..., Tensor], shapes: Sequence[torch.Size]
) -> tuple[Tensor, ...]:
    """What `bare` gives for class 0, by a `forward` that may be compiled: autograd sees no tensor inside a compiled graph, so
    the gradients are those of zeros added to the stages."""
    zeros = [torch.zeros(shape, device=images.device, requires_grad=True) for shape in shapes]
    return torch.autograd.grad(forward(model, images, zeros)[:, 0].sum(), zeros)


def logits(model: VGG, images: Tensor, zeros: Sequence[Tensor]) -> Tensor:
    x, rest = images, iter(zeros)
    for module in model.features:
        x = module(x)
        if isinstance(module, nn.MaxPool2d):
            x = x + next(rest)
    found: Tensor = model.classifier(torch.flatten(model.avgpool(x), 1))
    return found


def compiled(model: VGG, images: Tensor, rounds: int) -> dict[str, Rounds]:
    """The floor's time, which is eager, over that of the same work under torch.compile; nothing where that has no compiler."""
    shapes = [gradient.shape for gradient in bare(model, images, [0])[0]]
    run = partial(stage_gradients, model, images, torch.compile(logits), shapes)
    try:
        run()
    except TorchDynamoException as error:
        reason = str(error).split("\n\n")[0]  # then come hints for debugging
        print("torch.compile is not measured:", *reason.split())
        return {}
    eager, quick = turns(lambda: bare(model, images, [0]), run, rounds=rounds)
    return {"eager over compiled": eager / quick}


def table(**measured: dict[str, Rounds]) -> pd.DataFrame:
    rows = [(what, of, np.median(x), x.min(), x.max()) for what, found in measured.items() for of, x in found.items()]
    return pd.DataFrame(rows, columns=["what", "of", "median", "min", "max"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--part", default="test")
    parser.add_argument("--batches", type=int, default=BATCHES, help="of 8 images, end to end")
    parser.add_argument("--batch", type=int, default=BATCH, help="images, elsewhere")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    started = time.time()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # as `ltcam evaluate`
    data = datasets.load(options.data, options.part)
    own = models.vgg16(len(data.classes), weights=None).eval().requires_grad_(False).to(DEVICE)
    whole = end_to_end(
        Trained(own, Recipe(data=options.data), data.classes, data.size, {}), options.part, options.batches, options.rounds
    )
    model = vgg16(weights=None).eval().requires_grad_(False).to(DEVICE)
    images = torch.rand(options.batch, 3, options.size, options.size, device=DEVICE)
    rest = (model, images, options.rounds)
    found = table(**{
        "end to end, 40 configurations": whole,
        "percent of the floor": added(*rest),
        "beyond the paper": beyond(*rest),
        "log-log slope over": slopes(*rest),
        "torch.compile, bare forward and backward": compiled(*rest),
    })  # fmt: skip
    print(found.round(3).to_string(index=False))
    settings = {name: getattr(options, name) for name in ("rounds", "data", "part", "batches", "batch", "size")}
    keep(found, options.out / f"scale_{DEVICE}.csv", started, **settings)


if __name__ == "__main__":
    main()

"""The same heatmaps by ltcam, pytorch-grad-cam, torch-cam and captum: `python -m benchmarks.peers`, with nothing else running.

One process a library, taking turns; a time is that of a batch, a ratio that of two times of one turn. The floor is a bare
forward and backward to the same activations: what no gradient-weighted method can do without. Peers are called as their
documentation does, with truncation in a subclass of a few lines, and their five stages in one pass where they can. The sweep,
which takes peers minutes, is timed on a quarter of the batch and in fewer turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.models import VGG, vgg16

from benchmarks import figure
from benchmarks.timing import DEVICE, keep, memory, seconds
from ltcam import Config
from ltcam.paper.tables import DELTAS, SEVEN

ROWS = [config for config in SEVEN.values() if config.method != "fullgrad"]
SWEEP = [Config(method, "S1-S5", delta) for method in ("gradcam", "layercam") for delta in (None, *DELTAS)]
STAGES = [Config("gradcam", f"S{i}") for i in range(1, 6)]
TASKS: dict[str, tuple[list[Config], int]] = {  # the heatmaps, and the classes an image
    "a: Grad-CAM at five stages": (STAGES, 1),
    "b: Tables 3 and 4 without FullGrad": (ROWS, 1),
    "b: FullGrad": ([SEVEN["FullGrad"]], 1),
    "c: all deltas, two classes": (SWEEP, 2),
    "c: all deltas of FullGrad": ([Config("fullgrad", "all", delta) for delta in (None, *DELTAS)], 1),
}
CLASSES = (207, 281)
Work = Callable[[VGG, Tensor, list[Config], int], Any]


def ours(model: VGG, images: Tensor, configs: list[Config], classes: int) -> Any:
    from ltcam.engine.views import over_views

    found = over_views(model, images, [CLASSES[:classes]] * len(images), configs)
    pairs, size = list(range(len(found.pairs))), (images.shape[2], images.shape[3])
    return [heat for _, heat in found.heatmaps(pairs, size)]


def floor(model: VGG, images: Tensor, configs: list[Config], classes: int) -> Any:
    return bare(model, images, CLASSES[:classes], configs[0].method == "fullgrad")


def bare(model: VGG, images: Tensor, classes: Sequence[int], full: bool = False) -> list[tuple[Tensor, ...]]:
    """A forward, and a backward a class, to the outputs of the stages (`full`: of every convolution): gradients a class."""
    wanted = nn.Conv2d if full else nn.MaxPool2d
    kept: list[Tensor] = []
    x = images.requires_grad_(full)
    for module in model.features:
        x = module(x)
        if isinstance(module, wanted):
            kept.append(x if x.requires_grad else x.detach().requires_grad_())
            x = kept[-1].clone() if full else kept[-1]  # an in-place ReLU comes next
    logits = model.classifier(torch.flatten(model.avgpool(x), 1))
    return [torch.autograd.grad(logits[:, c].sum(), kept, retain_graph=True) for c in classes]


def pytorch_grad_cam(model: VGG, images: Tensor, configs: list[Config], classes: int) -> Any:
    from pytorch_grad_cam import FullGrad, GradCAM, GradCAMPlusPlus, LayerCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def truncated(grads: np.ndarray[Any, Any], delta: float | None) -> np.ndarray[Any, Any]:
        if not delta:
            return grads if delta is None else np.maximum(grads, 0)
        limits = [np.percentile(g[g > 0], delta) for g in grads]
        return np.where(grads >= np.array(limits, np.float32)[:, None, None, None], grads, 0)

    def make(base: Any, config: Config) -> Any:
        class Truncated(base):  # type: ignore[misc]
            def get_cam_image(self, images, layer, targets, activations, grads, smooth=False):  # type: ignore[no-untyped-def]
                return super().get_cam_image(images, layer, targets, activations, truncated(grads, config.delta), smooth)

            def aggregate_multi_layers(self, maps):  # type: ignore[no-untyped-def]
                return maps if config.layers == "S1-S5" and configs is STAGES else np.concatenate(maps, 1).sum(1)

        return Truncated

    bases = {"gradcam": GradCAM, "gradcam++": GradCAMPlusPlus, "layercam": LayerCAM}
    found = []
    for config in [Config("gradcam", "S1-S5")] if configs is STAGES else configs:
        full = config.method == "fullgrad"
        kind = FullGrad if full else make(bases[config.method], config)
        with kind(model, [] if full else _modules(model, config)) as cam:
            found += [cam(images, [ClassifierOutputTarget(c)] * len(images)) for c in CLASSES[:classes]]
    return found


def torch_cam(model: VGG, images: Tensor, configs: list[Config], classes: int) -> Any:
    from torch.nn.functional import interpolate
    from torchcam.methods import GradCAM, GradCAMpp, LayerCAM

    def make(base: Any, delta: float | None) -> Any:
        class Truncated(base):  # type: ignore[misc]
            def _backprop(self, *args, **kwargs):  # type: ignore[no-untyped-def]
                super()._backprop(*args, **kwargs)
                if delta is not None:
                    self.hook_g: list[Tensor] = [self.truncated(grads) for grads in self.hook_g]

            def truncated(self, grads: Tensor) -> Tensor:
                limits = [torch.quantile(g[g > 0], delta / 100) if delta else 0 for g in grads]
                return torch.stack([torch.where(g >= limit, g, 0) for g, limit in zip(grads, limits, strict=True)])

        return Truncated

    bases = {"gradcam": GradCAM, "gradcam++": GradCAMpp, "layercam": LayerCAM}
    found = []
    for config in [Config("gradcam", "S1-S5")] if configs is STAGES else configs:
        with make(bases[config.method], config.delta)(model, _modules(model, config)) as extractor:
            logits = model(images)
            for i, c in enumerate(CLASSES[:classes]):
                maps = extractor(c, logits, normalized=False, retain_graph=i < classes - 1)
                resized = [interpolate(m[:, None], images.shape[2:], mode="bilinear") for m in maps]
                found.append(resized if configs is STAGES else sum(resized))
    return found


def captum(model: VGG, images: Tensor, configs: list[Config], classes: int) -> Any:
    from captum.attr import LayerAttribution, LayerGradCam

    maps = [
        LayerGradCam(model, _modules(model, config)[0]).attribute(images, target=CLASSES[0], relu_attributions=True)
        for config in configs
    ]
    return [LayerAttribution.interpolate(m, images.shape[2:], "bilinear") for m in maps]


LIBRARIES: dict[str, tuple[Work, str]] = {  # which tasks each is asked: by their first letters
    "floor": (floor, "abc"),
    "ltcam": (ours, "abc"),
    "torch-cam": (torch_cam, "abc"),
    "pytorch-grad-cam": (pytorch_grad_cam, "abc"),
    "captum": (captum, "a"),
}


def asked(library: str, task: str) -> bool:
    full = "FullGrad" in task and "without" not in task
    return task[0] in LIBRARIES[library][1] and not (full and library in ("torch-cam", "captum")) and not (
        task.startswith("c: all deltas of FullGrad") and library == "pytorch-grad-cam"
    )  # fmt: skip


@cache
def _model(library: str) -> VGG:
    torch.manual_seed(0)
    model = vgg16(weights=None).eval().to(DEVICE)
    return model.requires_grad_(library != "floor")  # ours asks for no gradient of the weights, nor does the floor


def turn(library: str, task: str, batch: int, size: int, threads: int) -> tuple[float, float]:
    """Seconds, and the peak of memory in MB; to be called in the library's own process."""
    torch.set_num_threads(threads)
    (work, _), (configs, classes), model = LIBRARIES[library], TASKS[task], _model(library)
    images = torch.rand(batch, 3, size, size).to(DEVICE)
    before = memory(reset=True)
    spent = seconds(lambda: work(model, images, configs, classes))
    return spent, memory() - before


def measure(task: str, rounds: int, batch: int, size: int, threads: int) -> pd.DataFrame:
    """A row a library and turn: seconds, MB. The first turn of each, -1, warms it up."""
    rows = []
    with ExitStack() as stack:
        processes = {
            library: stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
            for library in LIBRARIES
            if asked(library, task)
        }
        for number in range(-1, rounds):
            for library, process in processes.items():
                rows.append((task, library, number, *process.submit(turn, library, task, batch, size, threads).result()))
    return pd.DataFrame(rows, columns=["task", "library", "turn", "seconds", "MB"])


def ratios(times: pd.DataFrame) -> pd.DataFrame:
    """A row a task and library: median seconds, peak MB (first turn), its time over ours and the floor's (median, min, max)."""
    rows = []
    for task, table in times.groupby("task", sort=False):
        seconds = table[table["turn"] >= 0].pivot(index="turn", columns="library", values="seconds")
        memory = table[table["turn"] == -1].set_index("library")["MB"]
        for library in dict.fromkeys(table["library"]):
            row = {"task": task, "library": library, "seconds": statistics.median(seconds[library]), "MB": memory[library]}
            for other in ("ltcam", "floor"):
                ratio = seconds[library] / seconds[other]
                row |= {f"over {other}": ratio.median(), f"over {other}, min": ratio.min(), f"over {other}, max": ratio.max()}
            rows.append({**row, "MB over floor": memory[library] / memory["floor"]})
    return pd.DataFrame(rows)


def _modules(model: VGG, config: Config) -> list[nn.Module]:
    pools: list[nn.Module] = [module for module in model.features if isinstance(module, nn.MaxPool2d)]
    first = 0 if config.layers == "S1-S5" else int(config.layers[1]) - 1
    return pools[first : 5 if config.layers == "S1-S5" else first + 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--only", default="", help="tasks whose names start with this")
    parser.add_argument("--out", type=Path, default=figure.RESULTS)
    options = parser.parse_args()
    started, threads = time.time(), torch.get_num_threads()
    tasks = [task for task in TASKS if task.startswith(options.only)]
    sweeps = {task: task.startswith("c") for task in tasks}
    batches = {task: max(1, options.batch // 4) if long else options.batch for task, long in sweeps.items()}
    rounds = {task: max(1, options.rounds // 2) if long else options.rounds for task, long in sweeps.items()}
    times = pd.concat([measure(task, rounds[task], batches[task], options.size, threads) for task in tasks])
    table = ratios(times)
    print(table.round(3).to_string(index=False))
    settings = {"rounds": rounds, "batch": batches, "size": options.size}
    keep(times, options.out / f"peers_{DEVICE}_times.csv", started, **settings)
    keep(table, options.out / f"peers_{DEVICE}.csv", started, **settings)
    figure.draw(options.out / f"peers_{DEVICE}.csv")


if __name__ == "__main__":
    main()

"""How much of a device a trace uses: `python -m benchmarks.floor`.

Counts the floating point operations of VGG16's forward and backward to its stages, and compares the rate at which `ltcam.trace`
gets through them with that of a large matrix product on the same device.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg16

from benchmarks.peers import STAGES, floor
from ltcam import provenance, trace


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The median of `rounds` runs after one that warms up."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    started, device = time.time(), "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    model = vgg16(weights=None).eval().requires_grad_(False).to(device)
    images = torch.rand(options.batch, 3, 224, 224, device=device)
    with FlopCounterMode(display=False) as counter:
        first = model.features[:5](images).requires_grad_()
        deep = model.avgpool(model.features[5:](first.clone()))  # the counter takes no leaf for a module's input
        torch.autograd.grad(model.classifier(torch.flatten(deep, 1))[:, 0].sum(), first)
    flops, n = counter.get_total_flops(), 4096 if device == "cpu" else 16384
    a, b = torch.rand(n, n, device=device), torch.rand(n, n, device=device)
    rates = {
        f"matrix product of {n} x {n}": 2 * n**3 / seconds(lambda: a @ b, options.rounds),
        "bare forward and backward": flops / seconds(lambda: floor(model, images, STAGES, 1), options.rounds),
        "ltcam.trace": flops / seconds(lambda: trace(model, images, 207), options.rounds),
    }
    table = pd.DataFrame({"GFLOP/s": pd.Series(rates) / 1e9}).rename_axis("work").reset_index()
    table["of the matrix product"] = table["GFLOP/s"] / table["GFLOP/s"].iloc[0]
    print(f"{flops / options.batch / 1e9:.1f} GFLOP an image\n{table.round(3).to_string(index=False)}")
    settings = {"rounds": options.rounds, "batch": options.batch, "flops": flops}
    provenance.save(table, options.out / f"floor_{device}.csv", started, **settings)


if __name__ == "__main__":
    main()

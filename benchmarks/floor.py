"""How much of a device a trace uses: `python -m benchmarks.floor`.

Counts the floating point operations of VGG16's forward and backward to its stages, and compares the rate at which `ltcam.trace`
gets through them with that of a large matrix product on the same device.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg16

from benchmarks.figure import RESULTS
from benchmarks.peers import bare
from benchmarks.timing import DEVICE, keep, turns
from ltcam import trace

SIDE = 4096 if DEVICE == "cpu" else 16384  # of the matrices: large enough to keep the device busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    started = time.time()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    model = vgg16(weights=None).eval().requires_grad_(False).to(DEVICE)
    images = torch.rand(options.batch, 3, 224, 224, device=DEVICE)
    with FlopCounterMode(display=False) as counter:
        first = model.features[:5](images).requires_grad_()
        deep = model.avgpool(model.features[5:](first.clone()))  # the counter takes no leaf for a module's input
        torch.autograd.grad(model.classifier(torch.flatten(deep, 1))[:, 0].sum(), first)
    flops, n = counter.get_total_flops(), SIDE
    a, b = torch.rand(n, n, device=DEVICE), torch.rand(n, n, device=DEVICE)
    work = {
        f"matrix product of {n} x {n}": (2 * n**3, lambda: a @ b),
        "bare forward and backward": (flops, lambda: bare(model, images, [0])),
        "ltcam.trace": (flops, lambda: trace(model, images, 0)),
    }
    counts, works = zip(*work.values(), strict=True)
    spent = np.median(turns(*works, rounds=options.rounds), axis=1)
    table = pd.DataFrame({"work": list(work), "GFLOP/s": np.array(counts) / spent / 1e9})
    table["of the matrix product"] = table["GFLOP/s"] / table["GFLOP/s"].iloc[0]
    print(f"{flops / options.batch / 1e9:.1f} GFLOP an image\n{table.round(3).to_string(index=False)}")
    settings = {"rounds": options.rounds, "batch": options.batch, "flops": flops}
    keep(table, options.out / f"floor_{DEVICE}.csv", started, **settings)


if __name__ == "__main__":
    main()

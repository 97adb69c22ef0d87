"""How long KSDD2 takes here: `python -m benchmarks.ksdd2`, for a reader who has it. Noise of its size stands in for it.

It times 50 steps of the training of `notebooks/profiles/paper.ksdd2.yaml`, and 50 images with all configurations that the
tables read on the held-out part. From these it extrapolates to all images, seeds, epochs and settings. It leaves out the larger
inputs and other protocols of notebooks 08 to 12.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from PIL import Image

from benchmarks.figure import RESULTS
from benchmarks.timing import DEVICE, keep, seconds
from ltcam.data.sets import KSDD2
from ltcam.experiment import counting, training
from ltcam.experiment.protocol import Protocol, Way
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.study import Study
from ltcam.experiment.trained import Trained
from ltcam.experiment.vgg16 import vgg16
from ltcam.paper.registry import RESULTS as TABLES
from ltcam.paper.registry import names
from ltcam.paper.shares import CUT


def noise(root: Path, images: int, size: tuple[int, int]) -> KSDD2:
    """A training part of so many images (height, width), each with a defect of a tenth of the height and half of the width."""
    for part in ("train", "test"):
        (root / KSDD2.folder / part).mkdir(parents=True)
    mask = np.zeros(size, np.uint8)
    mask[: size[0] // 10, : size[1] // 2] = 255
    for number in range(10000, 10000 + images):
        pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / KSDD2.folder / "train" / f"{number}.png")
        Image.fromarray(mask).save(root / KSDD2.folder / "train" / f"{number}_GT.png")
    return KSDD2("train", root)


def ways(study: Study) -> list[Way]:
    """What all tables read on the held-out part in one view; of the chosen shares, which are not known yet, one."""
    needs = [need for name in names(study) for need in TABLES[name].needs(study)]
    whole = [need for need in needs if (need.role, need.protocol, need.first) == ("test", None, None)]
    chosen = [replace(config, fraction=0.3) for config in CUT]
    return [*map(Way, dict.fromkeys([*(config for need in whole for config in need.configs), *chosen]))]


def measured(study: Study, recipe: Recipe, data: KSDD2, steps: int, images: int, counted: list[Way]) -> pd.DataFrame:
    """Columns what, seconds (of one), number (of the whole set), hours. The frozen stages' features are made each time, as with
    the recipe's augmentation."""
    device = torch.device(DEVICE)
    model = vgg16(1, recipe.head, None, recipe.hidden, recipe.width).to(device, memory_format=torch.channels_last)
    entries = data.entries
    data.entries = (entries * steps * recipe.batch_size)[: steps * recipe.batch_size]
    inputs, trainable = training.prepare(model, data, recipe, device)
    optimizer, schedule = training._optimizer(model, recipe, steps)
    fit = seconds(lambda: training._fit_epoch(trainable, inputs, optimizer, schedule, recipe, device)) / steps
    del data.labels
    data.entries, protocol = (entries * images)[:images], Protocol()
    trained = Trained(model.eval(), recipe, data.classes, recipe.size or data.size, {})
    batches = counting.batches(data, protocol, annotated=False)

    def score() -> None:
        for samples in counting.image_loader(data, trained, protocol, batches):
            counting.count_batch(trained, samples, counted, protocol)

    each, whole = seconds(score) / images, KSDD2.official
    runs = len(study.planned) * len(study.both)
    scored = sum(KSDD2.defective.values()) + whole["test"]  # the last for images without a defect
    number = {"training step": runs * recipe.epochs * -(-whole["train"] // recipe.batch_size), "scored image": runs * scored}
    table = pd.DataFrame({"what": [*number], "seconds": [fit, each], "number": [*number.values()]})
    return table.assign(hours=table["seconds"] * table["number"] / 3600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options, started, study = parser.parse_args(), time.time(), Study("paper", "ksdd2")
    recipe = Recipe(data="ksdd2", **study.settings["recipe"])
    with TemporaryDirectory() as root:
        data = noise(Path(root), recipe.batch_size, (630, 230))
        table = measured(study, recipe, data, options.steps, options.images, ways(study))
    print(table.round(3).to_string(index=False))
    print(f"{sum(KSDD2.official.values()):,} images: {table['hours'].sum():.1f} hours, extrapolated")
    keep(table, options.out / f"ksdd2_{DEVICE}.csv", started, steps=options.steps, images=options.images)


if __name__ == "__main__":
    main()

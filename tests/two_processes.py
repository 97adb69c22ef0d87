"""What test_parallel.py starts in two processes; each leaves in OUT what it saw.

torchrun ... -m tests.two_processes OUT CHECKPOINT
"""

import json
import sys
from pathlib import Path

import pytest
import torch

from ltcam.experiment import counting, losses, training
from ltcam.experiment.parallel import processes
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.recipe import Recipe
from ltcam.experiment.trained import load_checkpoint
from tests.experiment.test_counting import CONFIGS, counted
from tests.tiny import TINY


def quiet_recipes():
    """Without dropout, for runs without flips and scales; the second's last batch is one image, which both processes take."""
    settings = {"data": "voc2012", "test": "val", **TINY, "head": "gap", "hidden": None, "epochs": 2}
    convolutions, head = {"frozen": 2, "batch_size": 3}, {"frozen": 5, "augment": "none", "batch_size": 7}
    return {"convolutions": Recipe(**settings | convolutions), "head": Recipe(**settings | head)}


def main(out: Path, checkpoint: Path) -> None:
    """Each recipe is interrupted after an epoch, gone on with, and asked for once more; then the other's loss is no number."""
    rank, saves, seeds, batches = processes().process_index, [], [], []
    atomic, fit = training.atomic, training._fit_epoch
    count = counting.count_batch
    training.atomic = lambda path: saves.append(path.name) or atomic(path)
    training.augmentation = lambda *arguments: None

    def one_epoch(*arguments):
        if seeds:
            raise KeyboardInterrupt
        return noted(*arguments)

    def noted(*arguments):
        mean = fit(*arguments)
        seeds.append(torch.initial_seed())
        return mean

    for name, recipe in quiet_recipes().items():
        seeds.clear()
        training._fit_epoch = one_epoch
        with pytest.raises(KeyboardInterrupt):
            training.train(recipe, out / name)
        processes().wait_for_everyone()  # one has yet to write its epoch, when the other is here
        training._fit_epoch = noted
        training.train(recipe, out / name)
        if training.train(recipe, out / name) != out / name / "checkpoint.pt" or len(seeds) != recipe.epochs:
            raise AssertionError((name, seeds))  # pytest rewrites no asserts here, and python -O leaves them out
    counting.count_batch = lambda *arguments: batches.append(1) or count(*arguments)
    counted(out / "counts", load_checkpoint(checkpoint), "val", CONFIGS[:2], Protocol(1))
    losses.LOSSES["sigmoid"] = lambda *given: losses.sigmoid(*given) * (float("nan") if rank else 1)
    with pytest.raises(FloatingPointError) as stopped:
        training.train(recipe, out / "nan")
    seen = {"saves": saves, "seed": seeds[-1], "error": str(stopped.value), "counted": len(batches)}
    (out / f"{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

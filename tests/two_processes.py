"""What test_training.py starts in two processes; each leaves in OUT what it saw: torchrun ... -m tests.two_processes OUT."""

import json
import sys
from pathlib import Path

import pytest
import torch

from ltcam.experiment import features, training
from ltcam.experiment.parallel import processes
from tests.experiment.test_training import quiet_recipes


def main(out: Path) -> None:
    """Each recipe is interrupted after an epoch, gone on with, and asked for once more; then the other's loss is no number."""
    rank, saves, seeds = processes().process_index, [], []
    save, fit, loss = training.save, training._fit_epoch, torch.nn.functional.binary_cross_entropy_with_logits
    training.save = lambda state, path: saves.append(path.name) or save(state, path)
    features.augmentation = lambda *arguments: None

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
        assert training.train(recipe, out / name) == out / name / "checkpoint.pt"
        assert len(seeds) == recipe.epochs
    torch.nn.functional.binary_cross_entropy_with_logits = lambda *a, **b: loss(*a, **b) * (float("nan") if rank else 1)
    with pytest.raises(FloatingPointError) as stopped:
        training.train(recipe, out / "nan")
    (out / f"{rank}.json").write_text(json.dumps({"saves": saves, "seed": seeds[-1], "error": str(stopped.value)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

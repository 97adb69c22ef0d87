"""The paper's rows as pytorch-grad-cam makes them, and in readings that ltcam does not have: `python -m benchmarks.readings`.

pytorch-grad-cam is called at its defaults, on 500 images of VOC 2012 and the first softmax training: it explains the class of
the largest logit, and scales each layer's map to [0, 1] before it takes their mean. Truncated gradients are handed to it. Every
way is cut by Otsu's threshold. A class that is there and is not explained is missed. Writes `results/readings.csv`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_grad_cam import FullGrad, GradCAM, GradCAMPlusPlus, LayerCAM
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm import tqdm

from benchmarks.timing import keep
from ltcam import METHODS, Config, layerize, trace, truncate
from ltcam.data import Sample
from ltcam.engine.cam import layer_maps
from ltcam.engine.methods import weighted
from ltcam.engine.stages import stages
from ltcam.experiment.counting import image_loader
from ltcam.experiment.otsu import otsu_counts, regions
from ltcam.experiment.protocol import Protocol
from ltcam.experiment.scores import Counts, draws, ends
from ltcam.experiment.study import Study
from ltcam.paper.ablations import tau
from ltcam.paper.joint import PRINTED, scaled
from ltcam.paper.tables import ROWS, published

IMAGES = 500
OURS: dict[str, Config] = {"Grad-CAM++": ROWS[3]["Grad-CAM++"]} | {row: config for row, (_, config) in PRINTED.items()}
PEERS = {"gradcam": GradCAM, "gradcam++": GradCAMPlusPlus, "layercam": LayerCAM}
Maps = tuple[list[Tensor], str]  # of the layers of a row, (N, h, w) each, and how they are scaled before their sum
Made = dict[tuple[str, str], Maps]  # by reading and row
Method = Callable[[Tensor, Tensor], Tensor]


def plus_plus(denominator: Method = lambda a, g: a.sum(dim=(2, 3), keepdim=True) * g**3, **how: float) -> Method:
    """Grad-CAM++ with another denominator behind 2 G^2; eps: added to it; relu: of the gradient that alpha multiplies; whole:
    whether the alphas of a channel's positive gradients sum to 1."""

    def made(activation: Tensor, gradient: Tensor) -> Tensor:
        below = 2 * gradient**2 + denominator(activation, gradient) + how.get("eps", 0.0)
        alpha = torch.where(gradient != 0, gradient**2 / torch.where(below != 0, below, 1), 0)
        if how.get("whole"):
            total = torch.where(gradient > 0, alpha, 0).sum(dim=(2, 3), keepdim=True)
            alpha = alpha / torch.where(total != 0, total, 1)
        positive = gradient.relu() if how.get("relu", True) else gradient
        return weighted((alpha * positive).sum(dim=(2, 3)), activation)

    return made


def summed(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM without the 1 / Z of Eq. 2."""
    return weighted(gradient.sum(dim=(2, 3)), activation)


# Methods of A and G by the reading that has them, and of what method they take the place.
OTHERS: dict[str, tuple[str, Method]] = {
    "the weight of Grad-CAM is a sum": ("gradcam", summed),
    "Grad-CAM++ with 1e-6 in its denominator": ("gradcam++", plus_plus(eps=1e-6)),
    "Grad-CAM++ with the sum of A G^3": ("gradcam++", plus_plus(lambda a, g: (a * g**3).sum(dim=(2, 3), keepdim=True))),
    "Grad-CAM++ with alphas that sum to 1": ("gradcam++", plus_plus(whole=True)),
    "Grad-CAM++ without its ReLU": ("gradcam++", plus_plus(relu=False)),
}


def chosen(config: Config) -> slice:
    """The stages of a row, as a slice of S1 to S5."""
    first, _, last = (config.layers if isinstance(config.layers, str) else config.layers[0]).partition("-")
    return slice(int(first[1]) - 1, int((last or first)[1]))


def ours(model: nn.Module, images: Tensor, targets: Tensor) -> Made:
    """ltcam's maps, as Eq. 8 prints and with scaled stages, and those of `OTHERS` and Layer-CAM's third reading."""
    before, pools = dict[str, Tensor](), list(stages(model).values())
    with ExitStack() as stack:
        for name in stages(model, "relu").values():
            take: Any = lambda module, given, output, name=name: before.__setitem__(name, output.detach())  # noqa: E731
            stack.enter_context(model.get_submodule(name).register_forward_hook(take))
        traced = trace(model, images, targets, fullgrad=True)
    found: Made = {}
    for row, config in OURS.items():
        usual = list(layer_maps(traced, config).values())
        found["ltcam", row] = usual, "none"
        if (other := scaled(config, "minmax")) != config:
            found["stages min-maxed", row] = usual, other.normalize
        if config.method == "fullgrad":
            continue
        own = [(traced.activation(name), truncate(traced.gradient(name), config.delta)) for name in pools[chosen(config)]]
        for reading, (method, function) in OTHERS.items():
            if config.method == method:
                found[reading, row] = [function(a, g) for a, g in own], "none"
        if config.method == "layercam":
            wide = [before[name] for name in list(stages(model, "relu").values())[chosen(config)]]
            grown = [interpolate(g.relu(), a.shape[2:], mode="bilinear") for a, (_, g) in zip(wide, own, strict=True)]
            found["Layer-CAM of the ReLU and the enlarged gradient", row] = (
                [METHODS["layercam"](a, g) for a, g in zip(wide, grown, strict=True)],
                "none",
            )
    return found


class Twice(FullGrad):  # type: ignore[misc]
    """Its maps, and in `cut` those of truncated gradients."""

    def compute_cam_per_layer(self, *given: Any) -> Any:
        usual, kept = super().compute_cam_per_layer(*given), self.activations_and_grads.gradients
        self.activations_and_grads.gradients = [truncate(gradient, 0.0) for gradient in kept]
        self.cut = self.aggregate_multi_layers(super().compute_cam_per_layer(*given))
        return usual


def theirs(model: nn.Module, images: Tensor) -> Made:
    """pytorch-grad-cam's maps, (N, 224, 224) in [0, 1]: one pass serves its methods of stages, as their sum is taken after."""
    pools = [model.get_submodule(name) for name in stages(model).values()]
    found: Made = {}
    with GradCAM(model, pools) as first:
        first(images, None)
        kept = first.activations_and_grads
        for row, config in OURS.items():
            if config.method == "fullgrad":
                continue
            with PEERS[config.method](model, pools) as peer:
                peer.activations_and_grads.release()
                gradients = [truncate(gradient, config.delta) for gradient in kept.gradients]
                peer.activations_and_grads = SimpleNamespace(
                    activations=kept.activations, gradients=gradients, release=lambda: None
                )
                layers = peer.compute_cam_per_layer(images, None, False)[chosen(config)]
                found["pytorch-grad-cam", row] = [torch.from_numpy(peer.aggregate_multi_layers(layers))], "none"
    with Twice(model, []) as full:
        usual = full(images, None)
        for row, maps in (("FullGrad", usual), ("LTFullGrad(δ=0)", full.cut)):
            found["pytorch-grad-cam", row] = [torch.from_numpy(maps)], "none"
    return found


def scored(samples: Sequence[Sample], targets: Tensor, made: Made) -> tuple[list[Any], list[Tensor]]:
    """The pairs of a batch, and the counts (ways, 3) of each. A class that is there and not explained is missed."""
    pairs, values = list[Any](), list[Tensor]()
    for number, (sample, top) in enumerate(zip(samples, targets.tolist(), strict=True)):
        for c in sorted({top, *torch.nonzero(sample.label).flatten().tolist()}):
            region = regions(sample.mask, c)
            if c == top:
                size = (sample.mask.shape[0], sample.mask.shape[1])
                heats = [layerize([m[number, None] for m in maps], size, normalize=how) for maps, how in made.values()]  # type: ignore[arg-type]
                values.append(otsu_counts(torch.stack(heats), region[None])[:, 0])
            else:
                values.append(torch.tensor([[0, 0, int((region == 2).sum())]] * len(made)))
            pairs.append({"training": "0", "fold": "", "name": sample.name, "group": sample.name, "class": c})
    return pairs, values


def table(counts: Counts, ways: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """One row per reading: its mean distance from the 14 printed mIoU of Tables 1 to 3 (Grad-CAM++ aside) in points, Kendall's
    tau with them, both with intervals over images; changed, how many rows it makes otherwise than ltcam; then every row."""
    drawn: Mapping[Any, Any] = draws(counts, "mIoU")
    printed = np.array([published(number).loc[row, "mIoU"] for row, (number, _) in PRINTED.items()])
    rows = []
    for reading in dict.fromkeys(reading for reading, _ in ways):
        own = {row: drawn.get((reading, row), drawn["ltcam", row]) for row in OURS}
        fourteen = np.stack([own[row] for row in PRINTED])
        about = {"reading": reading, "changed": sum((reading, row) in drawn for row in OURS) * (reading != "ltcam")}
        about |= ends(abs(fourteen - printed[:, None, None]).mean(axis=0), "distance", "low", "high")
        about |= ends(tau(printed, fourteen), "tau", "tau_low", "tau_high")
        rows.append(about | {row: values[0, 0] for row, values in own.items()})
    return pd.DataFrame(rows)


def main() -> None:
    started, study = time.time(), Study("paper", "voc2012", loss="softmax")
    trained, data, protocol = study.trained, study.trained.load("val"), Protocol()
    order = np.random.default_rng(0).permutation(data.scored)[:IMAGES].tolist()
    batches = [sorted(order)[i : i + 8] for i in range(0, len(order), 8)]
    pairs, values, ways = list[Any](), list[Tensor](), list[tuple[str, str]]()
    for samples in tqdm(image_loader(data, trained, protocol, batches), "images", len(batches), mininterval=30):
        images = torch.stack([sample.image for sample in samples])
        with torch.no_grad():
            targets = trained.model(images).argmax(dim=1)
        made = ours(trained.model, images, targets) | theirs(trained.model, images)
        ways = list(made)
        more, counted = scored(samples, targets, made)
        pairs, values = pairs + more, values + counted
    counts = Counts(pd.DataFrame(pairs), tuple(ways), torch.stack(values).numpy())  # type: ignore[arg-type]
    about = {"checkpoint": trained.sha256, "images": len(order)}
    keep(table(counts, ways), Path(__file__).parent / "results" / "readings.csv", started, **about)


if __name__ == "__main__":
    main()

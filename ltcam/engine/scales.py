"""Maps averaged over scaled and mirrored images, as IRN (Ahn, Cho, Kwak 2019) and most work on seeds do."""

from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ltcam.engine.bins import Maps
from ltcam.engine.cam import Options, Selection, fused, layer_maps, wide
from ltcam.engine.stages import unwrap
from ltcam.engine.targets import Targets
from ltcam.engine.tracing import Layers, check_images, trace
from ltcam.engine.tricks import normalized
from ltcam.errors import InputError

Found = dict[tuple[Options, Selection], Maps]
View = tuple[Found, bool]  # its maps, and whether it is mirrored


def explain_scales(
    model: nn.Module, images: Tensor, targets: Targets = None, method: str = "gradcam", layers: Layers = None,
    delta: float | None = None, scales: Sequence[float] = (1.0, 1.5), flip: bool = True, **options: Any,
) -> Tensor:  # fmt: skip
    """Heatmaps averaged over scales and flips: (P, H, W) in [0, 1], each over its maximum, of the pairs that `trace` gives.

    scales  each is one trace more, of the images resized by it. It costs as much as its pixels: 1.5 costs 2.25 traces
    flip    trace every scale mirrored too, which doubles the cost
    targets, layers, and the options reshape and output  as in `trace`; targets None: the largest logit at the first scale
    method, delta and the other options  as in `Options`

    A single scale of 1 without flip gives the maps of `explain`, over their maximum. Raises InputError as both functions do.
    """
    check(scales, flip)
    check_images(unwrap(model), images)
    traced = {name: options.pop(name) for name in ("reshape", "output") if name in options}
    chosen, size, found = Options(method, delta, **options), (images.shape[2], images.shape[3]), list[View]()
    for view, mirrored in views(images, size, scales, flip):
        run = trace(model, view, targets, layers, method == "fullgrad", **traced)
        targets = run.logits.argmax(dim=1) if targets is None else targets
        found.append(({(chosen, None): layer_maps(run, chosen)}, mirrored))
    return normalized([fused(averaged(found, size)[chosen, None], Options() if found[1:] else chosen, size)], "max")[0]


def views(images: Tensor, size: tuple[int, int], scales: Sequence[float], flip: bool) -> Iterator[tuple[Tensor, bool]]:
    """The images (N, 3, h, w) at each scale of `size`, the network's, and whether they are mirrored."""
    for own in (scaled(size, scale) for scale in scales):
        view = images if images.shape[2:] == own else interpolate(wide(images), own, mode="bilinear", antialias=True).to(images)
        yield view, False
        if flip:
            yield view.flip(3), True


def averaged(found: Sequence[View], size: tuple[int, int]) -> Found:
    """The mean of the views' maps, each fused, over its maximum, and turned back: (P, *size) under one name.

    The maps of a single view stay as they are.
    """
    if len(found) == 1:
        return found[0][0]
    means: Found = {}
    for item in found[0][0]:
        heats = ((normalized([fused(maps[item], item[0], size)], "max")[0], mirrored) for maps, mirrored in found)
        means[item] = {"views": torch.stack([heat.flip(2) if mirrored else heat for heat, mirrored in heats]).mean(dim=0)}
    return means


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(H, W) times `scale`, in whole pixels."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def check(scales: Sequence[float], flip: bool) -> None:
    """Raises InputError for other scales than numbers above 0, and for a flip that is not True or False."""
    listed = scales if isinstance(scales, list | tuple) else ()
    if not listed or not all(isinstance(s, int | float) and not isinstance(s, bool) and 0 < s < inf for s in listed):
        raise InputError(f"scales={scales!r}: expected one or more numbers above 0, e.g. (1.0, 1.5)")
    if not isinstance(flip, bool):
        raise InputError(f"flip={flip!r}: expected True or False")

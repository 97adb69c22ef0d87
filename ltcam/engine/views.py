"""Maps averaged over scaled and mirrored images, as IRN (Ahn, Cho, Kwak 2019) and most work on seeds do.

A view is the images at one scale, mirrored or not. One trace of each view serves every configuration.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ltcam.engine.cam import LayerMaps, fused, layer_maps, maps_of
from ltcam.engine.config import Config
from ltcam.engine.shapes import Output, Reshape, check_images, wide
from ltcam.engine.stages import Layers, unwrap
from ltcam.engine.targets import Targets
from ltcam.engine.trace import trace
from ltcam.engine.tricks import is_number, layerize, normalized
from ltcam.errors import InputError


@dataclass(frozen=True)
class Maps:
    """The maps of every configuration, of one view or averaged over several.

    pairs  (P, 2) long: (image, class), sorted
    logits (N, C) of the first view
    of     {config: {layer: (P, h, w) float32}}; means of several views are fused already: one map at the network's size
    """

    pairs: Tensor
    logits: Tensor
    of: dict[Config, LayerMaps]
    averaged: bool = False

    def heatmaps(self, chosen: Sequence[int], size: tuple[int, int]) -> Iterator[tuple[list[Config], Tensor]]:
        """Groups of configs with their fused heatmaps of the `chosen` pairs: (len(group), len(chosen), *size).

        The configs of a group differ in layers and fraction alone. Of plain sums a layer's map is resized once in a group.
        """
        pairs, groups = list(chosen), dict[Config, list[Config]]()
        for config in self.of:
            groups.setdefault(replace(config, layers="all", fraction=None), []).append(config)
        for how, group in groups.items():
            fusion, resized = Config().fusion if self.averaged else how.fusion, dict[tuple[int, ...], Tensor]()
            heats = []
            for config in group:
                sums: dict[Any, list[Tensor]] = {}  # maps of one size are one sum; with another fusion all maps are together
                for m in self.of[config].values():
                    sums.setdefault(m.shape if fusion[:2] == ("sum", "none") else None, []).append(m)
                terms = {tuple(map(id, same)): same for same in sums.values()}
                for key in terms.keys() - resized.keys():
                    resized[key] = layerize([m[pairs] for m in terms[key]], size, *fusion)
                heats.append(reduce(torch.add, (resized[key] for key in terms)))
            yield group, torch.stack(heats)


def over_views(
    model: nn.Module, images: Tensor, targets: Targets, configs: Iterable[Config], layers: Layers = None,
    size: tuple[int, int] | None = None, scales: Sequence[float] = (1.0,), flip: bool = False,
    reshape: Reshape | None = None, output: Output | None = None, one_by_one: bool = False,
) -> Maps:  # fmt: skip
    """The maps of every config, averaged over the views: one trace of each view serves all of them.

    images, targets, layers, reshape, output  as in `trace`; targets None: the largest logit of the first view. layers None: the
            layers that the configs ask for, or all stages where one of them asks for all
    size    (H, W) of the images at scale 1; None: their own
    scales, flip  each scale is one trace more, of the images resized by it (1.5 costs 2.25 traces), and with flip two
    one_by_one  make maps as `explain` does, to the bit; they cost more than those of `maps_of`

    Maps of several views are each fused, over their maximum, turned back and averaged. Raises InputError as `trace` does.
    """
    check(scales, flip)
    check_images(unwrap(model), images)
    size, configs = size or (images.shape[2], images.shape[3]), [*dict.fromkeys(configs)]
    full = any(config.method == "fullgrad" for config in configs)
    asked = [config.layers for config in configs] + [config.refine.layers for config in configs if config.refine]
    if layers is None and not full and "all" not in asked:
        layers = sorted({name for own in asked for name in ([own] if isinstance(own, str) else own)})
    found: list[tuple[dict[Config, LayerMaps], bool]] = []
    for view, mirrored in _views(images, size, scales, flip):
        run = trace(model, view, targets, layers, full, reshape=reshape, output=output)
        if not found:
            pairs, logits = run.pairs, run.logits
            if int(pairs[0, 1]) < 0 and logits.ndim > 2 and (flip or len(scales) > 1):
                raise InputError(
                    "a target that looks at places is not turned with the views: pass a class, or explain one view"
                )
            targets = logits.argmax(dim=1) if targets is None else targets
        found.append(({c: layer_maps(run, c) for c in configs} if one_by_one else maps_of(run, configs), mirrored))
        del run  # before the next one
    if not found[1:]:
        return Maps(pairs, logits, found[0][0])
    means = {}
    for config in configs:
        heats = [normalized([fused(maps[config], config, size)], "max")[0] for maps, _ in found]
        turned = [heat.flip(2) if mirrored else heat for heat, (_, mirrored) in zip(heats, found, strict=True)]
        means[config] = {"views": torch.stack(turned).mean(dim=0)}
    return Maps(pairs, logits, means, averaged=True)


def explain_scales(
    model: nn.Module, images: Tensor, targets: Targets = None, method: str = "gradcam", layers: Layers = None,
    delta: float | None = None, scales: Sequence[float] = (1.0, 1.5), flip: bool = True, **options: Any,
) -> Tensor:  # fmt: skip
    """Heatmaps averaged over scales and flips: (P, H, W) in [0, 1], each over its maximum, of the pairs that `trace` gives.

    targets, layers, and the options reshape and output  as in `trace`; targets None: the largest logit at the first scale
    scales, flip  as in `over_views`
    method, delta and the other options  as in `ltcam.Config`

    A single scale of 1 without flip gives the maps of `explain`, over their maximum. Raises InputError as both functions do.
    """
    traced = {name: options.pop(name) for name in ("reshape", "output") if name in options}
    config = Config(method, "all", delta, **options)
    maps = over_views(model, images, targets, [config], layers, None, scales, flip, one_by_one=True, **traced)
    ((_, heats),) = maps.heatmaps(range(len(maps.pairs)), (images.shape[2], images.shape[3]))
    return normalized([heats[0]], "max")[0]


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(H, W) times `scale`, in whole pixels."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def check(scales: Sequence[float], flip: bool) -> None:
    """Raises InputError for other scales than numbers above 0, and for a flip that is not True or False."""
    listed = scales if isinstance(scales, list | tuple) else ()
    if not listed or not all(is_number(scale) and 0 < scale < inf for scale in listed):
        raise InputError(f"scales={scales!r}: expected one or more numbers above 0, e.g. (1.0, 1.5)")
    if not isinstance(flip, bool):
        raise InputError(f"flip={flip!r}: expected True or False")


def _views(images: Tensor, size: tuple[int, int], scales: Sequence[float], flip: bool) -> Iterator[tuple[Tensor, bool]]:
    """The images (N, 3, h, w) at each scale of `size`, and whether they are mirrored."""
    for own in (scaled(size, scale) for scale in scales):
        view = images if images.shape[2:] == own else interpolate(wide(images), own, mode="bilinear", antialias=True).to(images)
        yield view, False
        if flip:
            yield view.flip(3), True

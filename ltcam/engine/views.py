"""Maps averaged over scaled and mirrored images, as IRN (Ahn, Cho, Kwak 2019) and most work on seeds do, and over crops.

A view is the images at one scale, mirrored or not. One trace of each view, or of each crop of it, serves every configuration.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from ltcam.engine.cam import LayerMaps, fused, layer_maps, maps_of
from ltcam.engine.config import Config
from ltcam.engine.shapes import Output, Reshape, check_images, wide
from ltcam.engine.stages import Layers, unwrap
from ltcam.engine.targets import Targets
from ltcam.engine.trace import trace
from ltcam.engine.tricks import is_number, layerize, normalized, whole
from ltcam.errors import InputError

CROPS = 8  # traced at a time


@dataclass(frozen=True)
class Maps:
    """The maps of every configuration, of one view or averaged over several.

    pairs  (P, 2) long: (image, class), sorted
    logits (N, C) of the first view, or of the whole images where crops are explained
    of     {config: {layer: (P, h, w) float32}}; means of several views or crops are fused already: one map at their size
    border the share of the height and of the width that heatmaps leave out at each edge. If the input was `wider` by this share
           at each edge, the heatmap is cut there, else it is set to 0 there
    """

    pairs: Tensor
    logits: Tensor
    of: dict[Config, LayerMaps]
    averaged: bool = False
    border: tuple[float, float] = (0.0, 0.0)
    wider: bool = False

    def heatmaps(self, chosen: Sequence[int], size: tuple[int, int]) -> Iterator[tuple[list[Config], Tensor]]:
        """Groups of configs with their fused heatmaps of the `chosen` pairs: (len(group), len(chosen), *size).

        The configs of a group differ in layers and fraction alone. For plain sums a group resizes each layer's map once.
        """
        pairs, groups = list(chosen), dict[Config, list[Config]]()
        top, left = (min(round(share * side), side // 2) for share, side in zip(self.border, size, strict=True))
        height, width = (size[0] + 2 * top, size[1] + 2 * left) if self.wider else size
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
                    resized[key] = layerize([m[pairs] for m in terms[key]], (height, width), *fusion)
                heats.append(reduce(torch.add, (resized[key] for key in terms)))
            inner = torch.stack(heats)[..., top : height - top, left : width - left]
            yield group, inner if self.wider else pad(inner, (left, left, top, top))


def over_views(
    model: nn.Module, images: Tensor, targets: Targets, configs: Iterable[Config], layers: Layers = None,
    size: tuple[int, int] | None = None, scales: Sequence[float] = (1.0,), flip: bool = False, tiles: int | None = None,
    reshape: Reshape | None = None, output: Output | None = None, one_by_one: bool = False,
) -> Maps:  # fmt: skip
    """The maps of every config, averaged over the views: one trace of each view serves all of them.

    images, targets, layers, reshape, output  as in `trace`; targets None: the largest logit of the first view. layers None: the
            layers that the configs ask for, or all stages where one of them asks for all
    size    (H, W) of the images at scale 1; None: their own
    scales, flip  each scale is one trace more, of the images resized by it (1.5 costs 2.25 traces), and with flip two
    tiles   pixels: an image with a longer side is explained in square crops of this side at its own resolution, half a side
            apart, the last ones flush with its edges (`corners`). `cost` says what they cost. Needs one scale and no flip
    one_by_one  make maps as `explain` does, to the bit; they cost more than those of `maps_of`

    Maps of several views are each fused, divided by their maximum, mirrored back and averaged.

    The maps of crops are fused, and averaged where they overlap, without scaling: their values are the evidence for the class.
    Divided by its maximum, a crop without evidence would look like one with an object. What a config itself scales is scaled in
    each crop: FullGrad's layers, maps with `normalize`, and the thresholds of `delta`. All crops explain the classes of the
    whole images, which are traced too, at `size` (None: the size of a crop), and give the logits.

    Raises InputError as `trace` does, for a target function with crops, or one that reads single pixels with several views.
    """
    check(scales, flip, tiles)
    check_images(unwrap(model), images)
    native, configs = (images.shape[2], images.shape[3]), [*dict.fromkeys(configs)]
    side = tiles if tiles and max(native) > tiles else 0
    size = size or ((side, side) if side else native)
    full = any(config.method == "fullgrad" for config in configs)
    asked = [config.layers for config in configs] + [config.refine.layers for config in configs if config.refine]
    if layers is None and not full and "all" not in asked:
        layers = sorted({name for own in asked for name in ([own] if isinstance(own, str) else own)})

    def traced(view: Tensor, targets: Targets) -> tuple[Tensor, Tensor, dict[Config, LayerMaps]]:
        run = trace(model, view, targets, layers, full, reshape=reshape, output=output)
        return run.pairs, run.logits, {c: layer_maps(run, c) for c in configs} if one_by_one else maps_of(run, configs)

    found: list[tuple[dict[Config, LayerMaps], bool]] = []
    for view, mirrored in _views(images, size, scales, flip):
        own, values, maps = traced(view, targets)
        if not found:
            pairs, logits = own, values
            if int(pairs[0, 1]) < 0 and (side or (logits.ndim > 2 and (flip or len(scales) > 1))):
                raise InputError(
                    "a target function that reads single pixels cannot follow the views: pass a class, or explain one view"
                )
            targets = logits.argmax(dim=1) if targets is None else targets
        found.append((maps, mirrored))
    if side:
        return Maps(pairs, logits, _of_crops(images, side, pairs, traced), averaged=True)
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
    delta: float | None = None, scales: Sequence[float] = (1.0, 1.5), flip: bool = True, tiles: int | None = None,
    **options: Any,
) -> Tensor:  # fmt: skip
    """Heatmaps averaged over views or crops: (P, H, W) in [0, 1], each divided by its maximum, for the pairs of `trace`.

    targets, layers, and the options reshape and output  as in `trace`; targets None: the largest logit at the first scale, or
            with crops that of the whole image, resized to one crop
    scales, flip, tiles  as in `over_views`; tiles needs scales=(1.0,) and flip=False
    method, delta and the other options  as in `ltcam.Config`

    One scale of 1, without flip and crops, gives `explain`'s, divided by their maximum. Raises InputError as `over_views`.
    """
    traced = {name: options.pop(name) for name in ("reshape", "output") if name in options}
    config = Config(method, "all", delta, **options)
    maps = over_views(model, images, targets, [config], layers, None, scales, flip, tiles, one_by_one=True, **traced)
    ((_, heats),) = maps.heatmaps(range(len(maps.pairs)), (images.shape[2], images.shape[3]))
    return normalized([heats[0]], "max")[0]


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(H, W) times `scale`, in whole pixels."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def corners(size: Sequence[int], side: int) -> list[tuple[int, int]]:
    """(top, left) of each crop of an image (H, W): half a `side` apart, the last ones flush with its edges."""
    ends = [max(0, n - side) for n in size]
    return [*product(*([*range(0, end, max(1, side // 2)), end] for end in ends))]


def cost(size: Sequence[int], side: int, view: tuple[int, int]) -> tuple[int, float]:
    """How many crops an image (H, W) has, and their pixels over those of one view (H, W): 0 and 1 if it is explained whole."""
    number = len(corners(size, side)) if max(size) > side else 0
    return number, number * min(size[0], side) * min(size[1], side) / (view[0] * view[1]) if number else 1.0


def check(scales: Sequence[float], flip: bool, tiles: int | None = None) -> None:
    """Raises InputError for other scales than numbers above 0, a flip that is not True or False, and tiles beside several
    views or without a side."""
    listed = scales if isinstance(scales, list | tuple) else ()
    if not listed or not all(is_number(scale) and 0 < scale < inf for scale in listed):
        raise InputError(f"scales={scales!r}: expected one or more numbers above 0, e.g. (1.0, 1.5)")
    if not isinstance(flip, bool):
        raise InputError(f"flip={flip!r}: expected True or False")
    if tiles is not None and whole("tiles", tiles) and (flip or tuple(listed) != (1.0,)):
        raise InputError(f"tiles={tiles} of scaled or mirrored images: expected scales=(1.0,) and flip=False")


def _views(images: Tensor, size: tuple[int, int], scales: Sequence[float], flip: bool) -> Iterator[tuple[Tensor, bool]]:
    """The images (N, 3, h, w) at each scale of `size`, and whether they are mirrored."""
    for own in (scaled(size, scale) for scale in scales):
        view = images if images.shape[2:] == own else interpolate(wide(images), own, mode="bilinear", antialias=True).to(images)
        yield view, False
        if flip:
            yield view.flip(3), True


def _of_crops(images: Tensor, side: int, pairs: Tensor, traced: Callable[..., Any]) -> dict[Config, LayerMaps]:
    """The maps of all crops, averaged where they overlap: one (P, *size) of each config."""
    size = (images.shape[2], images.shape[3])
    height, width = (min(side, n) for n in size)
    places = [(..., slice(top, top + height), slice(left, left + width)) for top, left in corners(size, side)]
    sums, often = dict[Config, Tensor](), torch.zeros(size, device=images.device)
    for place in places:
        often[place] += 1
    for image in sorted({*pairs[:, 0].tolist()}):
        own = torch.nonzero(pairs[:, 0] == image).flatten()
        for some in (places[start : start + CROPS] for start in range(0, len(places), CROPS)):
            crops = torch.stack([images[image][place] for place in some])
            for config, maps in traced(crops, [pairs[own, 1].tolist()] * len(some))[2].items():
                total = sums.setdefault(config, torch.zeros(len(pairs), *size, device=images.device))
                for place, heat in zip(some, torch.split(fused(maps, config, (height, width)), len(own)), strict=True):
                    total[own[0] : own[-1] + 1][place] += heat
    return {config: {"crops": total / often} for config, total in sums.items()}

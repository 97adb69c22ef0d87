"""What goes into a model and what comes out: images, logits, a layer's axes, and ready functions for `reshape=`."""

import re
from collections.abc import Callable, Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ltcam.engine.targets import describe
from ltcam.errors import InputError, LtcamError, of_loader

Reshape = Callable[[Tensor], Tensor]
MORE = 3  # times the longer side of a grid: as many tokens may stand before it
Output = Callable[[Any], Tensor]


def channels_last(output: Tensor) -> Tensor:
    """(N, h, w, K) -> (N, K, h, w): the `reshape` for Swin and for layers in ConvNeXt blocks. Raises InputError otherwise."""
    if not isinstance(output, Tensor) or output.ndim != 4:
        raise InputError(f"channels_last got {describe(output)}: expected one tensor (N, h, w, K)")
    return output.permute(0, 3, 1, 2)


def tokens_to_map(tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """(N, T, K) -> (N, K, h, w), row by row: the `reshape` for vision transformers. The last h w tokens are the places.

    grid  (h, w); None: the largest square. Up to 2 h tokens before it are left out (class, distillation, registers).
          For images that are not square: `functools.partial(ltcam.tokens_to_map, grid=(h, w))`

    Raises InputError for other shapes, and for fewer tokens than places.
    """
    if not isinstance(tokens, Tensor) or tokens.ndim != 3:
        raise InputError(f"tokens_to_map got {describe(tokens)}: expected one tensor (N, T, K)")
    h, w = (isqrt(tokens.shape[1]),) * 2 if grid is None else grid
    if not 0 < h * w <= tokens.shape[1] or (grid and tokens.shape[1] > h * w + MORE * max(h, w)):  # as of an image resized
        raise InputError(f"{tokens.shape[1]} tokens do not form a grid of {h} x {w}: pass grid=(height, width) in patches")
    return tokens[:, tokens.shape[1] - h * w :].transpose(1, 2).reshape(len(tokens), -1, h, w)


def check_output(name: str, module: nn.Module, output: object, reshape: Reshape | None, images: Tensor) -> None:
    """Raises InputError if a layer's output is not (N, K, h, w) after `reshape`, or looks like (N, h, w, K)."""
    shaped = reshape(output) if reshape and isinstance(output, Tensor) else output
    if not isinstance(shaped, Tensor) or shaped.ndim != 4 or len(shaped) != len(images):
        way = "for tokens pass reshape=ltcam.tokens_to_map" if reshape is None else "pass another reshape="
        raise InputError(f"layer {name!r} gives {describe(shaped)}: expected (N, K, h, w) of {len(images)} images; {way}")
    size = images.shape[2:]
    if reshape is None and is_channels_last(shaped.shape, size, module):
        way = "pass reshape=ltcam.channels_last, or reshape=lambda x: x if it is (N, K, h, w)"
        raise InputError(f"layer {name!r} gives {describe(shaped)}, its channels last: {way}")
    if reshape is tokens_to_map and (misfit(shaped.shape[2:], size) > 1 or size[0] % shaped.shape[2]):
        raise InputError(f"tokens of {size[0]} x {size[1]} pixels are no square grid: pass partial(tokens_to_map, grid=(h, w))")


def is_channels_last(shape: tuple[int, ...], size: tuple[int, ...], module: nn.Module | None = None) -> bool:
    """Whether a module's output (N, a, b, c) for images of `size` looks like (N, h, w, K), not (N, K, h, w).

    Some kinds of module tell their axis. Else a, b must have the images' aspect within a pixel, and fit it better than b, c.
    """
    if isinstance(module, nn.Linear) or getattr(type(module), "forward", None) is nn.LayerNorm.forward:
        return True
    if isinstance(module, nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
        return False
    return misfit(shape[1:3], size) <= 1 and misfit(shape[1:3], size) < misfit(shape[2:4], size)


def misfit(place: tuple[int, ...], size: tuple[int, ...]) -> float:
    """The difference between the aspect of a map (h, w) and that of the images (H, W), in pixels of the map."""
    return abs(place[0] * size[1] - place[1] * size[0]) / max(size)


def per_pair(value: Tensor, pairs: Tensor) -> Tensor:
    """(N, ...) -> (P, ...): the image of each pair, without a copy if each image has just one pair."""
    image = pairs[:, 0]
    return value if torch.equal(image, torch.arange(len(value), device=image.device)) else value[image]


def ranks(pairs: Tensor) -> Tensor:
    """(P,): the place of each pair among those of its image, from 0."""
    image = pairs[:, 0].contiguous()
    return torch.arange(len(image), device=image.device) - torch.searchsorted(image, image)


def wide(value: Tensor) -> Tensor:
    """`value` in at least float32, because bfloat16 cannot hold sums over thousands of pixels."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def check_images(model: nn.Module, images: Tensor) -> None:
    """Raises InputError for images that `model` cannot take."""
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a TorchScript model takes no hooks on its layers: pass the eager model it was made from")
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or not images.numel():
        other = "signals, volumes and pairs need a module around the model (docs/wrong_maps.md)"
        raise InputError(f"images are {describe(images)}: expected floats (N, 3, H, W); {other}")
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        raise InputError("the model has lazy weights, which its first run makes: run it once before")
    if torch.is_inference_mode_enabled() or any(t.is_inference() for t in (images, *model.parameters())):
        raise InputError("inference mode keeps no gradients: make model and images, and trace, outside torch.inference_mode")
    if not images.isfinite().all():
        raise InputError("images hold NaN or infinity: expected finite, normalized values")
    weights: list[Tensor] = [p for p in model.parameters() if p.is_floating_point()] or [images]
    if all(p.device != images.device for p in weights):
        raise InputError(f"images are on {images.device}, the model is on {weights[0].device}: move one to the other")
    if all(p.dtype != images.dtype for p in weights) and not torch.is_autocast_enabled(images.device.type):
        raise InputError(f"images are {images.dtype}, the model is {weights[0].dtype}: convert one of them, or use autocast")


def called(model: nn.Module, images: Tensor) -> Any:
    """What `model` returns for `images`. Raises InputError with the model's own words if it does not run."""
    try:
        return model(images)
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError, AttributeError) as error:
        if isinstance(error, LtcamError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and of_loader(error)):
            raise
        said = f"the model does not run on {describe(images)} ({type(error).__name__}: {error})"
        way = "pass images that fit it, and wrap a model that needs more inputs"
        if re.search("requires_grad|gradient", str(error)):  # it asks for gradients of its own, which frozen weights lack
            way = "pass create_graph=True, which keeps the gradients that the model asks for"
        raise InputError(f"{said}: {way}") from error


def logits_of(returned: Any, count: int, output: Output | None = None) -> Tensor:
    """The logits (N, ...) of `count` images in what the model returns, as `ltcam.trace` finds them. Raises InputError."""
    named = returned if isinstance(returned, Mapping) else {}
    places = (returned, getattr(returned, "logits", None), named.get("logits"), named.get("out"))
    logits = output(returned) if output else next((value for value in places if isinstance(value, Tensor)), returned)
    if isinstance(logits, Tensor) and logits.ndim < 2 and logits.numel() == count:
        logits = logits.reshape(count, 1)  # a squeezed head of one logit
    if not isinstance(logits, Tensor) or logits.ndim < 2 or len(logits) != count:
        by, do = "the model" if output is None else "output=", "see output= of trace"
        if isinstance(logits, list) and any(isinstance(found, Mapping) and "scores" in found for found in logits):
            do = "for boxes pass output=lambda found: torch.stack([image['scores'].sum() for image in found])"
        raise InputError(f"{by} gives {describe(logits)}: expected the logits (N, C) of {count} images; {do}")
    return logits

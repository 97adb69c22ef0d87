"""VGG16 as the paper uses it, and the stages S1..S5 of a CNN."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import VGG
from torchvision.models.vgg import cfgs, make_layers

from ltcam import weights as sources
from ltcam.errors import InputError
from ltcam.targets import describe
from ltcam.tricks import one_of, whole

Head = Literal["fc", "gap"]
Outputs = Literal["pool", "relu"]

PROBE = 160  # pixels: small, and no CNN in use is down to one pixel there


def vgg16(
    num_classes: int,
    head: Head = "fc",
    weights: str | Path | None = "imagenet",
    hidden: int | None = None,
    width: int = 1,
) -> VGG:
    """torchvision's VGG16 (Sec. 3.1) with `.features` unchanged (31 modules) and its head replaced.

    head    "fc": torchvision's classifier with its last layer replaced; "gap": global average pooling and one linear layer
    weights "imagenet" (the sources of `ltcam.weights`), None (random), or the path of a state dict or checkpoint
    hidden  width of the two hidden "fc" layers: None takes the source's and its values where it has any (torchvision's file:
            4096), else 1024; a width that is not the source's starts at random
    width   divides every channel count: a toy of the same 31 modules, for tests; 1 with "imagenet"

    `model.source` says where the weights came from. Raises InputError for an unknown head, a number that is none and an
    impossible combination.
    """
    if head not in ("fc", "gap"):
        raise InputError(f"head={head!r} is unknown: expected 'fc' or 'gap'")
    if width != 1 and weights == "imagenet":
        raise InputError(f"width={width} has no ImageNet weights: pass weights=None, or width=1")
    whole("num_classes", num_classes)
    whole("width", width, most=64)  # channels of the first layers
    if hidden is not None:
        whole("hidden", hidden)
    state, source = _state(weights)
    offered = state["classifier.0.bias"].numel() if source.head and head == "fc" else None
    pretrained = offered is not None and hidden in (None, offered)
    channels = [c if c == "M" else int(c) // width for c in cfgs["D"]]
    with torch.device("meta"):  # torchvision builds 120 million head weights that are replaced below
        model = VGG(nn.Identity(), init_weights=False)
    model.features = make_layers(channels)
    if head == "gap":
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Linear(channels[-2], num_classes)
    else:
        model.avgpool = nn.AdaptiveAvgPool2d(7)
        model.classifier = _fc(channels[-2] * 49, hidden or offered or 1024, num_classes)
    model.load_state_dict({**model.state_dict(), **_pick(state, pretrained)})
    model.source = replace(source, head=pretrained)
    return model


def stages(model: nn.Module, outputs: Outputs = "pool") -> dict[str, str]:
    """{"S1": module name, ...}, from shallow to deep: where the paper reads its stages.

    VGG and its like: the max-pool outputs of `features`, or with outputs="relu" what enters those pools. Other CNNs: the last
    block at each resolution; they run once on an empty image to find it, so keep the result where that matters. Names are those
    inside DataParallel and torch.compile.

    Raises InputError for a model in which nothing is found (pass layers=[module names]), for "relu" elsewhere, and for what is
    no model.
    """
    one_of("outputs", outputs, Outputs)
    model = unwrap(model)
    features = getattr(model, "features", None)
    if isinstance(features, nn.Sequential) and isinstance(features[-1], nn.MaxPool2d):
        back = {"pool": 0, "relu": 1}[outputs]
        found = [f"features.{i - back}" for i, module in enumerate(features) if isinstance(module, nn.MaxPool2d)]
    elif outputs == "relu":
        raise InputError(f"stage outputs 'relu' are of VGG-like models: {type(model).__name__} has no .features with max-pools")
    else:
        found = _last_at_each_resolution(model)
    return {f"S{i}": name for i, name in enumerate(found, 1)}


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile. Raises InputError for what is no module."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is {describe(model)}: expected a torch.nn.Module")
    while isinstance(model, nn.DataParallel | DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module  # type: ignore[assignment]
    return model


@contextmanager
def borrowed(model: nn.Module, frozen: bool = True) -> Iterator[None]:
    """Eval mode and (if `frozen`) no weight gradients while the block runs, then everything as it was."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters() if frozen]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _last_at_each_resolution(model: nn.Module) -> list[str]:
    """Names of the last block at each octave of resolution, global pooling left out.

    A block is a module that halves the resolution at most once; one that does so more often is a sequence of blocks.
    """
    octaves: dict[str, int] = {}  # in the order in which modules finish

    def note(module: nn.Module, arguments: Any, output: Any, name: str) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3] > 1:
            octaves[name] = round(math.log2(output.shape[2]))

    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is None:
        raise InputError(f"{type(model).__name__} has no convolutions: pass layers=[module names]")
    empty = convolution.weight.new_zeros(1, convolution.in_channels, PROBE, PROBE)
    try:
        with torch.no_grad(), borrowed(model), ExitStack() as hooks:
            for name, module in model.named_modules():
                hooks.callback(module.register_forward_hook(partial(note, name=name)).remove)
            model(empty)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise InputError(
            f"{type(model).__name__} does not run on {PROBE} x {PROBE} pixels ({error}): pass layers=[module names]"
        ) from error
    last: dict[int, str] = {}
    for name in sorted(_blocks(model, octaves), key=list(octaves).index):
        last[octaves[name]] = name
    if len(last) < 2:
        raise InputError(f"{type(model).__name__} has no stages of falling resolution: pass layers=[module names]")
    return [name for _, name in sorted(last.items(), reverse=True)]


def _blocks(module: nn.Module, octaves: dict[str, int], prefix: str = "") -> Iterator[str]:
    for name, child in module.named_children():
        path = prefix + name
        inside = {octave for other, octave in octaves.items() if other == path or other.startswith(f"{path}.")}
        if len(inside) > 2:
            yield from _blocks(child, octaves, f"{path}.")
        elif path in octaves and not isinstance(child, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
            yield path


def _fc(inputs: int, hidden: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(hidden, num_classes),
    )  # fmt: skip


def _state(weights: str | Path | None) -> tuple[dict[str, Tensor], sources.Source]:
    if weights is None:
        return {}, sources.Source("random", "", head=False)
    if weights == "imagenet":
        return sources.imagenet_vgg16()
    path = Path(weights)
    state = sources.load(path)
    state = state.get("model", state)  # a checkpoint of `ltcam.training`
    if absent := [f"features.{i}.weight" for i in sources.CONV_INDICES if f"features.{i}.weight" not in state]:
        raise InputError(f"{path} has no {absent[0]}: expected a state dict of VGG16")
    return state, sources.Source(path.name, sources.sha256(path), head="classifier.3.weight" in state)


def _pick(state: dict[str, Tensor], head: bool) -> dict[str, Tensor]:
    hidden_layers = ("classifier.0.", "classifier.3.") if head else ()
    return {name: value for name, value in state.items() if name.startswith(("features.", *hidden_layers))}

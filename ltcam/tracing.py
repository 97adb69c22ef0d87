"""Eq. 1 and everything the methods need of it: one forward, one backward per class rank, no more.

Every method, layer and delta is a function of the activation A and the gradient G = dy^c/dA of a layer, so a `Trace` keeps
both for every (image, class) pair, and nothing is ever run again. Images of a batch do not influence one another in eval mode,
so one backward serves all images at once: the first of their classes, then the second of those that have two, and so on.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ltcam.models import stages
from ltcam.targets import Targets, describe, to_pairs

Layers = Sequence[str | nn.Module] | None
Hook = tuple[nn.Module, Callable[..., Any]]
WithBias = nn.Conv2d | nn.BatchNorm2d | nn.Linear


@dataclass(frozen=True)
class Bias:
    """A module's additive bias (K,), the gradient (P, K[, h, w]) at its output, and the stage or traced layer it led to."""

    name: str
    stage: str
    bias: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Trace:
    """What one forward and its backwards left behind; every tensor is detached and on the images' device.

    pairs  (P, 2) long: (image, class), sorted
    logits (N, C)
    layers names of the traced layers, in the order in which they ran
    stages {"S1": layer name, ...} for those traced layers that are stages of the model
    size   (H, W) of the images
    biases, inputs  only with `fullgrad=True`: the bias terms, and (image, gradient) at the input, each (P, 3, H, W)
    """

    pairs: Tensor
    logits: Tensor
    layers: list[str]
    stages: dict[str, str]
    size: tuple[int, int]
    biases: list[Bias] = field(default_factory=list)
    inputs: tuple[Tensor, Tensor] | None = None
    _activations: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _gradients: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def activation(self, name: str) -> Tensor:
        """(P, K, h, w): the output of layer `name` for the image of each pair."""
        return _per_pair(self._activations[self._known(name)], self.pairs)

    def gradient(self, name: str) -> Tensor:
        """(P, K, h, w): the gradient of each pair's logit with respect to the output of layer `name`."""
        return self._gradients[self._known(name)]

    def select(self, layers: str | Sequence[str] | None) -> list[str]:
        """Names of traced layers by name, stage label ("S5"), range of labels ("S3-S5") or a sequence of these; None: all.

        Raises ValueError for what was not traced.
        """
        if layers is None:
            return list(self.layers)
        if not isinstance(layers, str):
            return [name for item in layers for name in self.select(item)]
        if layers in self.layers:
            return [layers]
        if match := re.fullmatch(r"S(\d+)(?:-S(\d+))?", layers):
            labels = [f"S{i}" for i in range(int(match[1]), int(match[2] or match[1]) + 1)]
            if labels and all(label in self.stages for label in labels):
                return [self.stages[label] for label in labels]
        raise ValueError(
            f"layer {layers!r} was not traced: expected one of {self.layers}, or of the stages {list(self.stages)}"
        )

    def _known(self, name: str) -> str:
        if name not in self._activations:
            raise ValueError(f"layer {name!r} was not traced: expected one of {self.layers}")
        return name


def trace(model: nn.Module, images: Tensor, targets: Targets = None, layers: Layers = None, fullgrad: bool = False) -> Trace:
    """Run `model` on `images` and keep what class activation maps are made of (Eq. 1).

    images   (N, 3, H, W) normalised, on the model's device
    targets  an int, N ints, N sequences of ints (multi-label), an (N, C) tensor of 0 and 1, or None for the largest logit
    layers   module names or modules; None: `ltcam.models.stages(model)`
    fullgrad also keep the gradient at every biased convolution, batch norm and linear layer, and at the input (Eq. 6)

    The model runs in eval mode and is left exactly as it was: modes, requires_grad, .grad, no hooks, also after an exception.
    Gradients are of the activations alone; those of the weights are never computed. Raises ValueError for images, targets or
    layers that do not fit, and for a model whose logits do not depend on a layer through autograd.
    """
    _check_images(model, images)
    modules = _resolve(model, layers)
    images = images.detach().requires_grad_(fullgrad)
    kept: dict[str, Tensor] = {}
    marks: list[_Mark] = []
    with torch.enable_grad(), _borrowed(model), ExitStack() as hooks:
        for module, hook in [*_bias_hooks(model, modules, marks, fullgrad), *_layer_hooks(modules, kept)]:
            hooks.callback(module.register_forward_hook(hook).remove)
        logits = model(images)
        pairs = to_pairs(targets, logits)
        if missing := modules.keys() - kept.keys():
            raise ValueError(f"layer {min(missing)!r} did not run in the forward pass: choose one that does")
        wanted: list[Any] = [*kept.values(), *(mark.edge for mark in marks), *([images] if fullgrad else [])]
        names = [*kept, *(mark.name for mark in marks), *(["the input"] if fullgrad else [])]
        gradients = _backward(logits, pairs, wanted, names)
    at_bias = gradients[len(kept) : len(kept) + len(marks)]
    return Trace(
        pairs=pairs,
        logits=logits.detach(),
        layers=list(kept),
        stages={label: name for label, name in _stages(model).items() if name in kept},
        size=(images.shape[2], images.shape[3]),
        biases=[Bias(mark.name, mark.stage, mark.bias, g) for mark, g in zip(marks, at_bias, strict=True)],
        inputs=(_per_pair(images.detach(), pairs), gradients[-1]) if fullgrad else None,
        _activations={name: value.detach() for name, value in kept.items()},
        _gradients=dict(zip(kept, gradients, strict=False)),
    )


@dataclass
class _Mark:
    name: str
    bias: Tensor
    edge: GradientEdge
    stage: str = ""


def _layer_hooks(modules: dict[str, nn.Module], kept: dict[str, Tensor]) -> Iterator[Hook]:
    """Keep each traced layer's output."""
    for name, module in modules.items():

        def keep(module: nn.Module, arguments: Any, output: Any, name: str = name) -> Tensor:
            if not isinstance(output, Tensor) or output.ndim != 4:
                raise ValueError(f"layer {name!r} gives {describe(output)}: expected one tensor (N, K, h, w)")
            if name in kept:
                raise ValueError(f"layer {name!r} runs more than once in a forward pass: choose a module that runs once")
            # Below the first traced layer nothing needs a gradient, so the graph starts here.
            kept[name] = output if output.requires_grad else output.detach().requires_grad_()
            return kept[name].clone()  # what follows may change its input in place

        yield module, keep


def _bias_hooks(model: nn.Module, modules: dict[str, nn.Module], marks: list[_Mark], fullgrad: bool) -> Iterator[Hook]:
    """Mark the output of each biased module; the next stage or traced layer to finish says which stage it belongs to."""
    stops = {name: model.get_submodule(name) for name in _stages(model).values()} | modules
    for name, module in model.named_modules() if fullgrad else ():
        if isinstance(module, WithBias) and (bias := _bias(module)) is not None:

            def mark(module: nn.Module, arguments: Any, output: Tensor, name: str = name, bias: Tensor = bias) -> None:
                times = sum(m.name.split("#")[0] == name for m in marks)
                # The edge, not the tensor: an in-place ReLU after it must not mask the gradient away.
                marks.append(_Mark(f"{name}#{times + 1}" if times else name, bias, get_gradient_edge(output)))

            yield module, mark
        if name in stops:

            def stop(module: nn.Module, arguments: Any, output: Any, name: str = name) -> None:
                for m in marks:
                    m.stage = m.stage or name

            yield module, stop


def _backward(logits: Tensor, pairs: Tensor, wanted: list[Any], names: list[str]) -> list[Tensor]:
    """The gradient of each pair's logit at each of `wanted`, each (P, ...): one backward per class rank."""
    if not logits.requires_grad:
        raise ValueError("the logits carry no gradient: the model detaches them, or runs under no_grad or inference_mode")
    image = pairs[:, 0]
    rank = torch.arange(len(pairs), device=pairs.device) - torch.searchsorted(image.contiguous(), image.contiguous())
    ranks = int(rank.max()) + 1
    results: list[Tensor] = []
    for r in range(ranks):
        chosen = torch.nonzero(rank == r).flatten()
        score = logits[pairs[chosen, 0], pairs[chosen, 1]].sum()
        gradients = torch.autograd.grad(score, wanted, retain_graph=r < ranks - 1, allow_unused=True)
        for i, (gradient, name) in enumerate(zip(gradients, names, strict=True)):
            if gradient is None:
                raise ValueError(f"the logits do not depend on layer {name!r} through autograd: choose a layer below them")
            if r == 0:
                results.append(_per_pair(gradient, pairs))
            else:
                results[i][chosen] = gradient[pairs[chosen, 0]]
    return results


def _resolve(model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    """The modules to trace by name."""
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}
    wanted = list(stages(model).values()) if layers is None else layers
    if isinstance(wanted, str | nn.Module) or not wanted:
        raise ValueError(f"layers={layers!r}: expected a non-empty sequence of module names or modules")
    resolved = {}
    for layer in wanted:
        name = names.get(layer) if isinstance(layer, nn.Module) else layer
        if name is None or name not in modules:
            raise ValueError(f"layer {layer!r} is not in the model: expected a name in model.named_modules(), or the module")
        resolved[name] = modules[name]
    return resolved


def _stages(model: nn.Module) -> dict[str, str]:
    try:
        return stages(model)
    except ValueError:  # layers were named by hand, so stage labels are not needed
        return {}


@contextmanager
def _borrowed(model: nn.Module) -> Iterator[None]:
    """Eval mode and no weight gradients while the block runs, then everything as it was."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.eval()
        model.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _bias(module: WithBias) -> Tensor | None:
    """The constant a module adds in eval mode: (K,), or None where it adds none."""
    if not isinstance(module, nn.BatchNorm2d):
        return None if module.bias is None else module.bias.detach().clone()
    if module.running_mean is None or module.running_var is None:
        return None
    scale = (module.running_var + module.eps).rsqrt() * (1 if module.weight is None else module.weight.detach())
    return (0 if module.bias is None else module.bias.detach()) - module.running_mean * scale


def _per_pair(value: Tensor, pairs: Tensor) -> Tensor:
    """(N, ...) -> (P, ...): the image of each pair, without a copy where each image has just one."""
    image = pairs[:, 0]
    return value if torch.equal(image, torch.arange(len(value), device=image.device)) else value[image]


def _check_images(model: nn.Module, images: Tensor) -> None:
    if torch.is_inference_mode_enabled() or images.is_inference():
        raise ValueError(
            "inference mode keeps no gradients: call trace outside torch.inference_mode, on images made outside it"
        )
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images are {describe(images)}: expected floats (N, 3, H, W)")
    if not images.isfinite().all():
        raise ValueError("images hold NaN or infinity: expected finite, normalised values")
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.device != images.device:
        raise ValueError(f"images are on {images.device}, the model is on {parameter.device}: move one to the other")

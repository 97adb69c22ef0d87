"""Eq. 1 and everything the methods need of it: one forward, one backward per class rank, no more.

Every method, layer and delta is a function of the activation A and the gradient G = dy^c/dA of a layer, so a `Trace` keeps
both for every (image, class) pair, and nothing is ever run again. Images of a batch do not influence one another in eval mode,
so one backward serves all images at once: the first of their classes, then the second of those that have two, and so on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ltcam.engine.biases import Bias, Hook, Mark, bias_hooks
from ltcam.engine.shapes import Reshape, to_map
from ltcam.engine.lending import borrowed
from ltcam.engine.stages import stages, unwrap
from ltcam.engine.targets import Targets, describe, scores, to_pairs
from ltcam.engine.traces import Trace, labels_in, per_pair
from ltcam.errors import InputError, of_loader

Layers = Sequence[str | nn.Module] | Mapping[str, str] | None


def trace(
    model: nn.Module,
    images: Tensor,
    targets: Targets = None,
    layers: Layers = None,
    fullgrad: bool = False,
    *,
    reshape: Reshape | None = None,
    create_graph: bool = False,
) -> Trace:
    """Run `model` on `images` and keep what class activation maps are made of (Eq. 1).

    images   (N, 3, H, W) normalised, on the model's device
    targets  an int, N ints, N sequences of ints (multi-label), an (N, C) tensor of 0 and 1, None for the largest logit, or N
             functions that make one number of an image's logits
    layers   module names, modules or stage labels ("S5", "S3-S5"), or {label: module name}; None: `ltcam.stages(model)`
    fullgrad also keep the gradient at every biased convolution, batch norm and linear layer, and at the input (Eq. 6)
    reshape  turns a layer's output into (N, K, h, w) where it is not: `ltcam.tokens_to_map`, `ltcam.channels_last`, your own
    create_graph  keep the graph, so that a loss of the maps reaches the weights (and the images, if they require grad)

    The model runs in eval mode and is left exactly as it was, also after an exception: modes, requires_grad, .grad, no hooks.
    DataParallel and torch.compile'd models run as the module inside, without either. Raises InputError for what does not fit.
    """
    model = unwrap(model)
    _check(model, images)
    if not (reshape is None or callable(reshape)):
        raise InputError(f"reshape={reshape!r}: expected a function of a layer's output that gives (N, K, h, w), or None")
    modules, labels = _resolve(model, layers)
    images = images if create_graph and images.requires_grad else images.detach().requires_grad_(fullgrad)
    kept: dict[str, Tensor] = {}
    marks: list[Mark] = []
    with (
        torch.enable_grad(),
        _eager(model),
        borrowed(model, frozen=not create_graph),
        ExitStack() as hooks,
    ):
        stops = {name: model.get_submodule(name) for name in labels.values()} | modules
        for module, hook in [
            *(bias_hooks(model, stops, marks) if fullgrad else ()),
            *_layer_hooks(modules, kept, reshape, images),
        ]:
            hooks.callback(module.register_forward_hook(hook).remove)
        logits = _forward(model, images)
        pairs = to_pairs(targets, logits)
        if missing := modules.keys() - kept.keys():
            raise InputError(f"layer {min(missing)!r} did not run in the forward pass: choose one that does")
        wanted: list[Any] = [*kept.values(), *(mark.edge for mark in marks), *([images] if fullgrad else [])]
        names = [*kept, *(mark.name for mark in marks), *(["the input"] if fullgrad else [])]
        score = scores(targets, logits, pairs)
        if not score.isfinite().all():
            raise InputError("the logits hold NaN or infinity: expected images and a model that give finite ones")
        gradients = _backward(score, pairs, wanted, names, create_graph)
        if not create_graph:
            logits, images = logits.detach(), images.detach()
            kept = {name: value.detach() for name, value in kept.items()}
    shaped = reshape or (lambda tokens: tokens)
    return Trace(
        pairs=pairs,
        logits=logits,
        layers=list(kept),
        stages={label: name for label, name in labels.items() if name in kept},
        size=(images.shape[2], images.shape[3]),
        biases=[Bias(m.name, m.stage, m.bias, g) for m, g in zip(marks, gradients[len(kept) :], strict=False)],
        inputs=(per_pair(images, pairs), gradients[-1]) if fullgrad else None,
        _activations={name: shaped(value) for name, value in kept.items()},
        _gradients={name: shaped(gradient) for name, gradient in zip(kept, gradients, strict=False)},
    )


def _forward(model: nn.Module, images: Tensor) -> Tensor:
    try:
        return model(images)  # type: ignore[no-any-return]
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or of_loader(error):
            raise
        raise InputError(f"the model does not run on {describe(images)} ({error}): expected images that fit it") from error


def _layer_hooks(
    modules: dict[str, nn.Module], kept: dict[str, Tensor], reshape: Reshape | None, images: Tensor
) -> Iterator[Hook]:
    """Keep each traced layer's output."""
    for name, module in modules.items():

        def keep(module: nn.Module, arguments: Any, output: Any, name: str = name) -> Tensor:
            to_map(name, module, output, reshape, images)
            if name in kept:
                raise InputError(f"layer {name!r} runs more than once in a forward pass: choose a module that runs once")
            # Below the first traced layer nothing needs a gradient, so the graph starts here.
            kept[name] = output if output.requires_grad else output.detach().requires_grad_()
            return kept[name].clone()  # what follows may change its input in place

        yield module, keep


def _backward(score: Tensor, pairs: Tensor, wanted: list[Any], names: list[str], create_graph: bool) -> list[Tensor]:
    """The gradient of each pair's score at each of `wanted`, each (P, ...): one backward per class rank."""
    if not score.requires_grad:
        raise InputError("the logits carry no gradient: the model detaches them, or runs under no_grad or inference_mode")
    image = pairs[:, 0].contiguous()
    rank = torch.arange(len(pairs), device=pairs.device) - torch.searchsorted(image, image)
    ranks = int(rank.max()) + 1
    # float16 ends at 6e-8, and shallow gradients below that: they are made larger on the way, and smaller in float32.
    scale = score.new_full((), 2.0**14 if score.dtype == torch.float16 else 1.0)
    results: list[Tensor] = []
    for r in range(ranks):
        chosen = torch.nonzero(rank == r).flatten()
        more = create_graph or r < ranks - 1
        gradients = torch.autograd.grad(score[chosen].sum(), wanted, scale, more, create_graph, allow_unused=True)
        for i, (gradient, name) in enumerate(zip(gradients, names, strict=True)):
            if gradient is None:
                raise InputError(f"the logits do not depend on layer {name!r} through autograd: choose a layer below them")
            if score.dtype == torch.float16:
                gradient = gradient.float() / scale
                if not gradient.isfinite().all():
                    raise InputError(f"float16 cannot hold the gradient at {name!r}: use bfloat16 or float32")
            if r == 0:
                results.append(per_pair(gradient, pairs))
            else:
                results[i] = results[i].index_put_((chosen,), gradient[image[chosen]])
    return results


def _eager(model: nn.Module) -> AbstractContextManager[None]:
    """Compiled parts run as they were written, since compiled code passes by the hooks."""
    compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _resolve(model: nn.Module, layers: Layers) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The modules to trace by name, and the model's stages as far as anything asked for them."""
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}
    labels = dict(layers) if isinstance(layers, Mapping) else stages(model) if layers is None else {}
    wanted = labels.values() if isinstance(layers, Mapping) or layers is None else layers
    if isinstance(wanted, str | nn.Module) or not isinstance(wanted, Iterable) or not wanted:
        raise InputError(f"layers={layers!r}: expected a non-empty sequence of module names or modules")
    resolved = {}
    for layer in wanted:
        if not isinstance(layer, str | nn.Module) or (isinstance(layers, Mapping) and layer not in modules):
            raise InputError(f"layer {layer!r} is not in the model: expected a name in model.named_modules(), or the module")
        found = [names.get(layer, "")] if isinstance(layer, nn.Module) else [layer]
        if isinstance(layer, str) and layer not in modules and labels_in(layer):
            labels = labels or stages(model)
            found = [labels.get(label, label) for label in labels_in(layer)]
        for name in found:
            if not name or name not in modules:
                stated = f", or of the stages {list(labels)}" if labels else ""
                raise InputError(
                    f"layer {layer!r} is not in the model: expected a name in model.named_modules(){stated}, or the module"
                )
            resolved[name] = modules[name]
    return resolved, labels


def _check(model: nn.Module, images: Tensor) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a TorchScript model takes no hooks on its layers: pass the eager model it was made from")
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or not images.numel():
        raise InputError(f"images are {describe(images)}: expected floats (N, 3, H, W)")
    if torch.is_inference_mode_enabled() or images.is_inference():
        raise InputError(
            "inference mode keeps no gradients: call trace outside torch.inference_mode, on images made outside it"
        )
    if not images.isfinite().all():
        raise InputError("images hold NaN or infinity: expected finite, normalised values")
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.device != images.device:
        raise InputError(f"images are on {images.device}, the model is on {parameter.device}: move one to the other")
    if parameter is not None and parameter.dtype != images.dtype and not torch.is_autocast_enabled(images.device.type):
        raise InputError(
            f"images are {images.dtype}, the model is {parameter.dtype}: convert one to the other, or use autocast"
        )

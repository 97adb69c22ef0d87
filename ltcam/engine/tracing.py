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
from torch.utils.hooks import RemovableHandle

from ltcam.engine.biases import Biases
from ltcam.engine.completeness import check as check_complete
from ltcam.engine.completeness import residual
from ltcam.engine.lending import Ours, borrowed
from ltcam.engine.outputs import Output, by_class, run
from ltcam.engine.shapes import Reshape, to_map
from ltcam.engine.stages import stages, unwrap
from ltcam.engine.targets import Targets, describe, is_functions, scores, to_pairs
from ltcam.engine.traces import Trace, labels_in, per_pair
from ltcam.errors import InputError

Layers = Sequence[str | nn.Module] | Mapping[str, str] | None


def trace(
    model: nn.Module,
    images: Tensor,
    targets: Targets = None,
    layers: Layers = None,
    fullgrad: bool = False,
    *,
    reshape: Reshape | None = None,
    output: Output | None = None,
    create_graph: bool = False,
) -> Trace:
    """Run `model` on `images` and keep what class activation maps are made of (Eq. 1).

    images   (N, 3, H, W) normalised, on the model's device
    targets  an int, N ints, N sequences of ints (multi-label), an (N, C) tensor of 0 and 1, None for the largest logit, or N
             functions that make one number of an image's logits
    layers   module names, modules or stage labels ("S5", "S3-S5"), or {label: module name}; None: `ltcam.stages(model)`
    fullgrad also keep the gradient at every bias and at the input (Eq. 6); warns where the model's curvature leaves a residual
    reshape  turns a layer's output into (N, K, h, w) where it is not: `ltcam.tokens_to_map`, `ltcam.channels_last`, your own
    output   a function from what the model returns to its logits (N, C), or (N, C, H, W) whose mean over places is a class's
             score; None: the tensor returned, `.logits`, or "logits" and "out" of a dict
    create_graph  keep the graph, so that a loss of the maps reaches the weights (and the images, if they require grad)

    The model runs in eval mode and is left exactly as it was, also after an exception: modes, requires_grad, .grad, no hooks.
    DataParallel and torch.compile'd models run as the module inside, without either. Raises InputError for what does not fit.
    """
    model = unwrap(model)
    _check(model, images)
    if not (reshape is None or callable(reshape)):
        raise InputError(f"reshape={reshape!r}: expected a function of a layer's output that gives (N, K, h, w), or None")
    modules, labels = _resolve(model, layers, images)
    images = images if create_graph and images.requires_grad else images.detach().requires_grad_(fullgrad)
    kept: dict[str, Tensor] = {}
    ours = Ours()
    with torch.enable_grad(), _eager(model), borrowed(model, frozen=not create_graph), ExitStack() as hooks:
        biases = Biases(model, images, {*labels.values(), *modules}, ours, not create_graph) if fullgrad else None
        for handle in [*(biases.hooks() if biases else ()), *_layer_hooks(modules, kept, reshape, images, ours)]:
            hooks.callback(handle.remove)
        with biases or nullcontext():
            logits = run(model, images, output)
            logits = logits if is_functions(targets) else by_class(logits)
        ours.over = True
        marks = biases.marks if biases else []
        pairs = to_pairs(targets, logits)
        if missing := modules.keys() - kept.keys():
            raise InputError(
                f"layer {min(missing)!r} did not run in the forward pass (checkpointing may pass it by): choose one that does"
            )
        wanted: list[Any] = [*kept.values(), *(mark.edge for mark in marks), *([images] if fullgrad else [])]
        names = [*kept, *(mark.name for mark in marks), *(["the input"] if fullgrad else [])]
        score = scores(targets, logits, pairs)
        if not score.isfinite().all():
            raise InputError("the logits hold NaN or infinity: expected images and a model that give finite ones")
        gradients = _backward(score, pairs, wanted, names, create_graph)
        at_layers, at_biases = dict(zip(kept, gradients, strict=False)), gradients[len(kept) : len(kept) + len(marks)]
        terms = [mark.term(gradient, pairs) for mark, gradient in zip(marks, at_biases, strict=True)]
        inputs = (per_pair(images if create_graph else images.detach(), pairs), gradients[-1]) if fullgrad else None
        lacking = None
        if inputs:
            lacking = residual(score, (inputs[0].detach(), inputs[1].detach()), terms)
            cuts = {name: (per_pair(value, pairs), at_layers[name]) for name, value in kept.items()}
            check_complete(lacking, score, terms, cuts, of_classes=not is_functions(targets))
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
        biases=terms,
        inputs=inputs,
        residual=lacking,
        _activations={name: shaped(value) for name, value in kept.items()},
        _gradients={name: shaped(gradient) for name, gradient in at_layers.items()},
    )


def _layer_hooks(
    modules: dict[str, nn.Module], kept: dict[str, Tensor], reshape: Reshape | None, images: Tensor, ours: Ours
) -> Iterator[RemovableHandle]:
    """Keep each traced layer's output."""
    for name, module in modules.items():

        def keep(module: nn.Module, arguments: Any, output: Any, name: str = name) -> Tensor | None:
            if not (ours or ours.over):
                return None  # another thread's
            # Below the first traced layer nothing needs a gradient, so the graph starts here.
            start = output if not isinstance(output, Tensor) or output.requires_grad else output.detach().requires_grad_()
            if ours:
                to_map(name, module, output, reshape, images)
                if name in kept:
                    raise InputError(f"layer {name!r} runs more than once in a forward pass: choose a module that runs once")
                kept[name] = start
            return start.clone()  # what follows may change its input in place

        yield module.register_forward_hook(keep)


def _backward(score: Tensor, pairs: Tensor, wanted: list[Any], names: list[str], create_graph: bool) -> list[Tensor]:
    """The gradient of each pair's score at each of `wanted`, each (P, ...): one backward per class rank."""
    if not score.requires_grad:
        raise InputError(
            "the logits carry no gradient: the model detaches them, runs under no_grad, or checkpoints with use_reentrant=True"
        )
    image = pairs[:, 0].contiguous()
    rank = torch.arange(len(pairs), device=pairs.device) - torch.searchsorted(image, image)
    ranks = int(rank.max()) + 1
    # float16 ends at 6e-8, and shallow gradients below that: they are made larger on the way, and smaller in float32.
    scale = score.new_full((), 2.0**14 if score.dtype == torch.float16 else 1.0)
    results: list[Tensor] = []
    for r in range(ranks):
        chosen = torch.nonzero(rank == r).flatten()
        more = create_graph or r < ranks - 1
        try:
            gradients = torch.autograd.grad(score[chosen].sum(), wanted, scale, more, create_graph, allow_unused=True)
        except RuntimeError as error:
            if "checkpoint" not in str(error):
                raise
            raise InputError(
                "the model checkpoints gradients with use_reentrant=True: set it to False, or no checkpointing"
            ) from error
        for i, (gradient, name) in enumerate(zip(gradients, names, strict=True)):
            if gradient is None:
                raise InputError(
                    f"the logits do not depend on layer {name!r} through autograd: choose a layer below them, "
                    "and no checkpointing with use_reentrant=True"
                )
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


def _resolve(model: nn.Module, layers: Layers, images: Tensor) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The modules to trace by name, and the model's stages as far as anything asked for them."""
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}
    labels = dict(layers) if isinstance(layers, Mapping) else stages(model, images=images) if layers is None else {}
    wanted = labels.values() if isinstance(layers, Mapping) or layers is None else layers
    if isinstance(wanted, str | nn.Module) or not isinstance(wanted, Iterable) or not wanted:
        raise InputError(f"layers={layers!r}: expected a non-empty sequence of module names or modules")
    resolved = {}
    for layer in wanted:
        if not isinstance(layer, str | nn.Module) or (isinstance(layers, Mapping) and layer not in modules):
            raise InputError(f"layer {layer!r} is not in the model: expected a name in model.named_modules(), or the module")
        found = [names.get(layer, "")] if isinstance(layer, nn.Module) else [layer]
        if isinstance(layer, str) and layer not in modules and labels_in(layer):
            labels = labels or stages(model, images=images)
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

"""Eq. 1 and everything that the methods need of it: one forward, and one backward per class rank.

Every method, layer and delta is a function of a layer's activation A and gradient G = dy^c/dA. So a `Trace` keeps both for
every (image, class) pair, and nothing runs again. In eval mode the images of a batch do not influence each other. So one
backward serves all images: the first backward their first classes, the second their second classes, and so on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ltcam.engine.biases import Biases
from ltcam.engine.completeness import check as check_complete
from ltcam.engine.lending import Ours, borrowed
from ltcam.engine.outputs import Output, called, logits_of
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
    """Run `model` on `images` and keep what class activation maps need (Eq. 1).

    images   (N, 3, H, W) normalized, on the model's device
    targets  an int, N ints, N sequences of ints (multi-label), an (N, C) tensor of 0 and 1, None for the largest logit, or
             functions from an image's logits to one number (N of them, or one for all images)
    layers   module names, modules or stage labels ("S5", "S3-S5"), or {label: module name}; None: `ltcam.stages(model)`
    fullgrad also keep the gradient at every bias and at the input (Eq. 6); warns if the model's curvature leaves a residual
    reshape  turns a layer's output into (N, K, h, w): `ltcam.tokens_to_map`, `ltcam.channels_last`, or your own function
    output   a function from what the model returns to its logits (N, C), or to (N, C, H, W), whose mean over places is a
             class's score; None: the returned tensor, its `.logits`, or "logits" or "out" of a dict
    create_graph  keep the graph, so that a loss of the maps reaches the weights (and the images, if they require grad)

    The model runs in eval mode and stays exactly as it was, also after an exception: modes, requires_grad, .grad, no hooks.
    DataParallel and compiled models run as the module inside. Raises InputError for what does not fit.
    """
    model = unwrap(model)
    check_images(model, images)
    for option, given, of in (("reshape", reshape, "a layer's output"), ("output", output, "what the model returns")):
        if not (given is None or callable(given)):
            raise InputError(f"{option}={given!r}: expected a function of {of}, or None")
    modules, labels = _resolve(model, layers, images)
    images = images if create_graph and images.requires_grad else images.detach().requires_grad_(fullgrad)
    kept: dict[str, Tensor] = {}
    ours = Ours()
    with torch.enable_grad(), _eager(model), borrowed(model, frozen=not create_graph), ExitStack() as hooks:
        biases = Biases(model, images, {*labels.values(), *modules}, ours, not create_graph) if fullgrad else None
        for handle in [*(biases.hooks() if biases else ()), *_layer_hooks(modules, kept, reshape, images, ours)]:
            hooks.callback(handle.remove)
        with biases or nullcontext():
            logits = logits_of(called(model, images), len(images), output)
        if logits.ndim == 4 and not is_functions(targets):
            logits = logits.mean(dim=(2, 3))
        ours.over = True
        marks = biases.marks if biases else []
        pairs = to_pairs(targets, logits)
        if missing := modules.keys() - kept.keys():
            raise InputError(f"layer {min(missing)!r} did not run (checkpointing may bypass it): choose one that does")
        wanted = [*kept.items(), *((mark.name, mark.edge) for mark in marks), *([("the input", images)] if fullgrad else [])]
        score = scores(targets, logits, pairs)
        if not score.isfinite().all():
            raise InputError("the logits hold NaN or infinity: expected images and a model that give finite ones")
        gradients = _backward(score, pairs, wanted, create_graph)
        at_layers, at_biases = dict(zip(kept, gradients, strict=False)), gradients[len(kept) : len(kept) + len(marks)]
        terms = [mark.term(gradient, pairs) for mark, gradient in zip(marks, at_biases, strict=True)]
        inputs = (per_pair(images if create_graph else images.detach(), pairs), gradients[-1]) if fullgrad else None
        cuts = {name: (per_pair(value, pairs), at_layers[name]) for name, value in kept.items()} if inputs else {}
        residual = check_complete(score, inputs, terms, cuts, of_classes=not is_functions(targets)) if inputs else None
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
        residual=residual,
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
            # Nothing below the first traced layer needs a gradient, so the graph starts here.
            start = output if not isinstance(output, Tensor) or output.requires_grad else output.detach().requires_grad_()
            if ours:
                to_map(name, module, output, reshape, images)
                if name in kept:
                    raise InputError(f"layer {name!r} runs more than once in a forward pass: choose a module that runs once")
                kept[name] = start
            return start.clone()  # the next layer may change its input in place

        yield module.register_forward_hook(keep)


def _backward(score: Tensor, pairs: Tensor, wanted: list[tuple[str, Any]], create_graph: bool) -> list[Tensor]:
    """The gradient (P, ...) of each pair's score at each of `wanted`, named tensors or edges: one backward per class rank."""
    if not score.requires_grad:
        raise InputError("the logits carry no gradient: the model has no_grad, detach() or use_reentrant=True in it")
    image = pairs[:, 0].contiguous()
    rank = torch.arange(len(pairs), device=pairs.device) - torch.searchsorted(image, image)
    ranks = int(rank.max()) + 1
    # float16 ends at 6e-8, and shallow gradients are smaller. So they are scaled up on the way, and down again in float32.
    scale = score.new_full((), 2.0**14 if score.dtype == torch.float16 else 1.0)
    places = [place for _, place in wanted]
    results: list[Tensor] = []
    for r in range(ranks):
        chosen = torch.nonzero(rank == r).flatten()
        more = create_graph or r < ranks - 1
        try:
            gradients = torch.autograd.grad(score[chosen].sum(), places, scale, more, create_graph, allow_unused=True)
        except RuntimeError as error:
            if "checkpoint" not in str(error):
                raise
            raise InputError("gradient checkpointing with use_reentrant=True: set it to False, or no checkpointing") from error
        for i, (gradient, (name, _)) in enumerate(zip(gradients, wanted, strict=True)):
            if gradient is None:
                raise InputError(f"no gradient reaches layer {name!r}: choose one below the logits, and no use_reentrant=True")
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
    """Run compiled parts uncompiled, because compiled code bypasses the hooks."""
    compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _resolve(model: nn.Module, layers: Layers, images: Tensor) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The modules to trace by name, and the model's stages if `layers` asks for them."""
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}
    labels = dict(layers) if isinstance(layers, Mapping) else stages(model, images=images) if layers is None else {}
    wanted = labels.values() if isinstance(layers, Mapping) or layers is None else layers
    if isinstance(wanted, str | nn.Module) or not isinstance(wanted, Iterable) or not wanted:
        raise InputError(f"layers={layers!r}: expected a non-empty sequence of module names or modules")
    resolved = {}
    for layer in wanted:
        by_name = isinstance(layers, Mapping)
        found = [names.get(layer, "")] if isinstance(layer, nn.Module) and not by_name else [layer]
        if isinstance(layer, str) and layer not in modules and labels_in(layer) and not by_name:
            labels = labels or stages(model, images=images)
            found = [labels.get(label, label) for label in labels_in(layer)]
        for name in found:
            if not isinstance(name, str) or not name or name not in modules:
                known = f"a name in model.named_modules(), the module{f', or one of {list(labels)}' if labels else ''}"
                raise InputError(f"layer {layer!r} is not in the model: expected {known}")
            resolved[name] = modules[name]
    return resolved, labels


def check_images(model: nn.Module, images: Tensor) -> None:
    """Raises InputError for images that `model` cannot take."""
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a TorchScript model takes no hooks on its layers: pass the eager model it was made from")
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or not images.numel():
        raise InputError(f"images are {describe(images)}: expected floats (N, 3, H, W)")
    if torch.is_inference_mode_enabled() or images.is_inference():
        raise InputError("inference mode keeps no gradients: make the images and call trace outside torch.inference_mode")
    if not images.isfinite().all():
        raise InputError("images hold NaN or infinity: expected finite, normalized values")
    parameter = next(model.parameters(), images)
    if parameter.device != images.device:
        raise InputError(f"images are on {images.device}, the model is on {parameter.device}: move one to the other")
    if parameter.dtype != images.dtype and not torch.is_autocast_enabled(images.device.type):
        raise InputError(f"images are {images.dtype}, the model is {parameter.dtype}: convert one of them, or use autocast")

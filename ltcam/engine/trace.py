"""Eq. 1: one forward, and one backward per class rank, give the activation A and the gradient G = dy^c/dA of each layer.

Every method, layer and delta is a function of these, so nothing runs again. In eval mode the images of a batch do not influence
each other. So one backward serves all images: the first their first classes, the second their second classes, and so on.
"""

import re
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from ltcam.engine import fullgrad as full
from ltcam.engine.shapes import Output, Reshape, called, check_images, check_output, logits_of, per_pair, ranks
from ltcam.engine.stages import Layers, borrowed, labels_in, resolved, unwrap
from ltcam.engine.targets import Targets, explained
from ltcam.errors import InputError


@dataclass(frozen=True)
class Trace:
    """What one forward and its backwards leave. Every tensor is on the images' device, and detached without `create_graph`.

    pairs  (P, 2) long: (image, class), sorted; the class is -1 if the target was a function of the logits
    logits (N, C)
    layers names of the traced layers, in the order of the forward pass
    stages {"S1": layer name, ...} for the layers traced as stages
    size   (H, W) of the images
    biases, inputs  only with `fullgrad=True`: the bias terms, and (image, gradient) at the input, each (P, 3, H, W)
    residual  (P,) float64, with fullgrad=True too: (all terms - score) / (their absolute values + the input term's norm)
    """

    pairs: Tensor
    logits: Tensor
    layers: list[str]
    stages: dict[str, str]
    size: tuple[int, int]
    biases: list[full.Bias] = field(default_factory=list)
    inputs: tuple[Tensor, Tensor] | None = None
    residual: Tensor | None = None
    _kept: dict[str, full.Pair] = field(default_factory=dict, repr=False)

    def features(self, name: str) -> Tensor:
        """(N, K, h, w): the output of layer `name` for each image."""
        return self._of(name)[0]

    def activation(self, name: str, part: slice = slice(None)) -> Tensor:
        """(P, K, h, w): the output of layer `name` for the image of each pair. `part` selects pairs."""
        return per_pair(self.features(name), self.pairs[part])

    def gradient(self, name: str) -> Tensor:
        """(P, K, h, w): the gradient of each pair's logit with respect to the output of layer `name`."""
        return self._of(name)[1]

    def select(self, layers: str | Sequence[str] | None) -> list[str]:
        """Names of traced layers by name, stage label ("S5"), range ("S3-S5") or a sequence of these; None or "all": all."""
        if layers in (None, "all"):
            return list(self.layers)
        if isinstance(layers, list | tuple):
            return [name for item in layers for name in self.select(item)]
        if self.stages.get(str(layers), layers) != layers and layers in self.layers:
            raise InputError(f"{layers!r} names a traced module and another stage: trace {{label: module name}} instead")
        if layers in self.layers:
            return [str(layers)]
        labels = labels_in(str(layers)) or [str(layers)]
        if self.stages.keys() >= {*labels}:
            return [self.stages[label] for label in labels]
        raise InputError(f"layer {layers!r} was not traced: expected one of {self.layers} or of {list(self.stages)}")

    def terms(self, layers: str | Sequence[str] | None = None) -> list[full.Bias]:
        """FullGrad's bias terms that are maps, of the layers that `select` gives; None or "all": all."""
        if self.inputs is None:
            raise InputError("method 'fullgrad' needs the gradients at the biases: trace(..., fullgrad=True)")
        shapes = {t.gradient.ndim for t in self.biases}
        if 4 not in shapes and shapes & {3, 5}:
            raise InputError("FullGrad has no map of biases in 1-D or 3-D: choose another method, with reshape=")
        stages = {t.stage for t in self.biases} if layers in (None, "all") else self.select(layers)
        return [t for t in self.biases if t.gradient.ndim == 4 and t.stage in stages]

    def _of(self, name: str) -> full.Pair:
        if name not in self.layers:
            raise InputError(f"layer {name!r} was not traced: expected one of {self.layers}")
        return self._kept[name]


def trace(
    model: nn.Module, images: Tensor, targets: Targets = None, layers: Layers = None, fullgrad: bool = False, *,
    reshape: Reshape | None = None, output: Output | None = None, create_graph: bool = False,
) -> Trace:  # fmt: skip
    """Run `model` on `images` and keep what class activation maps need (Eq. 1).

    images   (N, 3, H, W) normalized, on the model's device
    targets  an int, N ints, N sequences of ints (multi-label), an (N, C) tensor of 0 and 1, None for the largest logit, or
             functions from an image's logits to one number (N of them, or one for all images)
    layers   module names, modules or stage labels ("S5", "S3-S5"), or {label: module name}; None: `ltcam.stages(model)`
    fullgrad also keep the gradient at every bias and at the input (Eq. 6); warns if these leave a residual
    reshape  turns a layer's output into (N, K, h, w): `ltcam.tokens_to_map`, `ltcam.channels_last`, or your own function
    output   a function from what the model returns to its logits (N, C), (N,) or (N, C, H, W), whose mean over places is a
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
    modules, labels = resolved(model, layers, images)
    images = images if create_graph and images.requires_grad else images.detach().requires_grad_(fullgrad)
    kept: dict[str, Tensor] = {}
    running = [get_ident()]  # the thread of this forward pass, until it is over

    def keep(name: str, module: nn.Module, arguments: Any, output: Any) -> Tensor | None:
        if running and get_ident() not in running:
            return None  # another thread's
        if isinstance(output, Tensor) and not output.requires_grad:
            output.requires_grad_()  # the graph starts here, also for those who read this tensor in another way
        if running:
            check_output(name, module, output, reshape, images)
            if name in kept:
                do = "choose a module that runs once; for a pair of images compute one side first (docs/models.md)"
                raise InputError(f"layer {name!r} runs more than once in a forward pass: {do}")
            kept[name] = output
        handed_on: Tensor = output.clone()  # the next layer may change its input in place
        return handed_on

    with torch.enable_grad(), borrowed(model, frozen=not create_graph), ExitStack() as hooks:
        biases = full.Biases(model, images, {*labels.values(), *modules}, running, not create_graph)
        if fullgrad:
            biases.hook(hooks)
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(partial(keep, name)))
        with biases if fullgrad else nullcontext():
            logits = logits_of(called(model, images), len(images), output)
        running.clear()  # checkpointing may run parts again
        logits, pairs, score = explained(targets, logits)
        if missing := modules.keys() - kept.keys():
            raise InputError(f"layer {min(missing)!r} did not run (checkpointing may bypass it): choose one that does")
        if not score.isfinite().all():
            raise InputError("the logits hold NaN or infinity: expected images and a model that give finite ones")
        rows = score[:, None] if pairs[0, 1] < 0 else logits[pairs[:, 0]]
        for top, kind in ((1, "Softmax|Sigmoid"), (0, "LogSoftmax")):  # rounding leaves no gradient there, or a wrong one
            sure = ((score == 0) | (score == 1)) & (rows.amax(dim=1) == top)
            if sure.any() and any(re.search(kind, node.name()) for node in full.ancestors(score.grad_fn)):
                said = f"a score of {score[sure][0]:g} is saturated, so it has no gradient"
                raise InputError(f"{said}: explain the logit before the softmax or sigmoid")
        wanted: list[tuple[str, Any]] = [*kept.items(), *((name, edge) for name, edge, *_ in biases.marks)]
        gradients = iter(_backward(score, pairs, wanted + [("the input", images)] * fullgrad, create_graph))
        if not create_graph:
            logits, images = logits.detach(), images.detach()
        pair_of = {name: (value if create_graph else value.detach(), next(gradients)) for name, value in kept.items()}
        terms = biases.terms(gradients, pairs)
        inputs = (per_pair(images, pairs), next(gradients)) if fullgrad else None
    residual = full.checked(score, inputs, terms, pair_of, pairs) if inputs else None
    if reshape:
        pair_of = {name: (reshape(value), reshape(gradient)) for name, (value, gradient) in pair_of.items()}
    found = {label: name for label, name in labels.items() if name in kept}
    return Trace(pairs, logits, list(kept), found, (images.shape[2], images.shape[3]), terms, inputs, residual, pair_of)


def _backward(score: Tensor, pairs: Tensor, wanted: list[tuple[str, Any]], create_graph: bool) -> list[Tensor]:
    """The gradient (P, ...) of each pair's score at each of `wanted`, named tensors or edges: one backward per class rank."""
    if not score.requires_grad:
        raise InputError("the logits carry no gradient: the model has no_grad, detach() or use_reentrant=True in it")
    image, rank = pairs[:, 0], ranks(pairs)
    last = int(rank.max())
    half = any(isinstance(place, Tensor) and place.dtype == torch.float16 for place in (score, *(place for _, place in wanted)))
    # float16 ends at 6e-8, and shallow gradients are smaller. So they are scaled up on the way, and down again in float32.
    scale = score.new_full((), 2.0**14 if half else 1.0)
    results: list[Tensor] = []
    for r in range(last + 1):
        chosen = torch.nonzero(rank == r).flatten()
        places, more = [place for _, place in wanted], create_graph or r < last
        try:
            gradients = torch.autograd.grad(score[chosen].sum(), places, scale, more, create_graph, allow_unused=True)
        except RuntimeError as error:
            if "checkpoint" not in str(error):
                raise
            raise InputError("gradient checkpointing with use_reentrant=True: set it to False, or no checkpointing") from error
        for i, (gradient, (name, _)) in enumerate(zip(gradients, wanted, strict=True)):
            if gradient is None:
                raise InputError(f"no gradient reaches layer {name!r}: choose one below the logits, and no use_reentrant=True")
            own = gradient.float() / scale if half else gradient
            if not own.isfinite().all():
                if half:
                    raise InputError(f"float16 cannot hold the gradient at {name!r}: use bfloat16 or float32")
                raise InputError(f"the gradient at {name!r} is NaN or infinite: look for a root or a division by 0 above it")
            if r == 0:
                results.append(per_pair(own, pairs))
            else:
                results[i] = results[i].index_put_((chosen,), own[image[chosen]])
    return results

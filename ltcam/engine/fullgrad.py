"""What FullGrad adds to a trace (Eq. 6): every bias of the network, and the edge of the graph that gives its gradient.

Biases are found in the calls of torch's functions, whoever makes them: `x * scale + shift` has a bias as `nn.Conv2d` has. A
normalization by the input's own statistics is replaced by its tangent J x + b (Srinivas and Fleuret's implicit bias). So
input.grad + sum(bias.grad) is the logit if all else is piecewise linear (their Proposition 1).
"""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from ltcam.engine.shapes import is_channels_last, misfit, per_pair

ARGUMENT = {"linear", *(f"conv{t}{n}d" for n in (1, 2, 3) for t in ("", "_transpose"))}  # the third argument is a bias
SUMS: dict[str, Any] = dict.fromkeys(("add", "__add__", "__radd__", "add_", "__iadd__"), torch.add)
SUMS |= dict.fromkeys(("sub", "__sub__", "sub_", "__isub__", "subtract"), torch.sub)
SUMS |= dict.fromkeys(("rsub", "__rsub__"), torch.rsub)
AFFINE = {"addmm", "baddbmm", "addcmul", "cat", "concat", "stack", "where", "pad"}
LAYER_NORMS = {"layer_norm", "rms_norm"}
NORMS = LAYER_NORMS | {"group_norm", "instance_norm", "batch_norm"}
OF_LAYERS = ARGUMENT | NORMS

Pair = tuple[Tensor, Tensor]  # a value (P, ...) and its gradient
# A bias's name, where its gradient arrives, the bias (K,) or like the output, and what brings the gradient to (P, K, h, w).
Mark = tuple[str, GradientEdge, Tensor, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Bias:
    """An additive bias, the gradient (P, K[, h, w]) at the sum, and the stage or traced layer that follows.

    bias is (K,), or like the gradient if it varies in space or by image. A term of another shape is not in the map.
    """

    name: str
    stage: str
    bias: Tensor
    gradient: Tensor

    @property
    def value(self) -> Tensor:
        """The bias in a shape that multiplies the gradient: (1, K, 1, 1), or (P, K, h, w)."""
        return self.bias.view(1, -1, 1, 1) if self.bias.ndim == 1 else self.bias

    def sum(self) -> Tensor:
        """(P,) float64: the sum of bias times gradient."""
        if self.bias.ndim == 1:
            return self.gradient.unsqueeze(2).flatten(2).sum(dim=2, dtype=torch.float64) @ self.bias.double()
        return (self.bias.double() * self.gradient.double()).flatten(1).sum(dim=1)


class Biases(TorchFunctionMode):
    """Marks every bias of a forward pass of `model` on `images` (N, 3, H, W), in the order of the calls.

    The hooks give the module of a call, in the thread that is `running`. A bias belongs to the stage of the next module of
    `stops` that finishes.
    """

    def __init__(self, model: nn.Module, images: Tensor, stops: Collection[str], running: list[int], frozen: bool) -> None:
        super().__init__()
        self.model, self.images, self.stops, self.running, self.frozen = model, images, stops, running, frozen
        self.inside, self.marks, self.stages = [""], list[Mark](), list[str]()

    def hook(self, stack: ExitStack) -> None:
        """Put hooks on every module, until `stack` closes."""
        self.root = get_gradient_edge(self.images).node
        self.names = {module: name for name, module in self.model.named_modules()}
        self.names |= {m: name for name, m in self.model.named_modules(remove_duplicate=False) if name in self.stops}
        for module in self.names:
            stack.enter_context(module.register_forward_pre_hook(self._enter))
            stack.enter_context(module.register_forward_hook(self._leave))

    def terms(self, gradients: Iterator[Tensor], pairs: Tensor) -> list[Bias]:
        """The biases, each with its gradient (P, ...), channels first."""
        stages = self.stages + [""] * (len(self.marks) - len(self.stages))
        return [
            Bias(name, stage, bias if bias.ndim == 1 else shaped(per_pair(bias, pairs)), shaped(next(gradients)))
            for (name, _, bias, shaped), stage in zip(self.marks, stages, strict=True)
        ]

    def _enter(self, module: nn.Module, arguments: Any) -> None:
        if get_ident() in self.running:
            self.inside.append(self.names[module])

    def _leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if get_ident() in self.running and (name := self.inside.pop()) in self.stops:
            self.stages += [name] * (len(self.marks) - len(self.stages))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, found = getattr(func, "__name__", ""), None
        if name in OF_LAYERS or name in SUMS or name in AFFINE:
            with torch.set_grad_enabled(not self.frozen):  # before an in-place sum changes what it is made of
                found = (self._of_layer if name in OF_LAYERS else self._of_sum)(func, name, args, kwargs)
        output = func(*args, **kwargs)
        if found is not None and isinstance(output, Tensor) and output.requires_grad and found.any():
            normed = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ()) if name in LAYER_NORMS else ()
            self._mark(name, found, output, len(normed))
        return output

    def _of_layer(self, func: Any, name: str, args: Any, kwargs: Any) -> Tensor | None:
        """(K,) of convolutions, linear layers and batch norms by running statistics. Of other norms y - J x, like the input."""
        x, rest = args[0] if args else kwargs["input"], {key: value for key, value in kwargs.items() if key != "input"}
        bias = kwargs.get("bias", args[2] if len(args) > 2 else None)
        if not self._varies(x) or (name in ARGUMENT and bias is None):
            return None
        if name in ARGUMENT:
            return bias.clone()  # type: ignore[no-any-return]
        if name == "batch_norm" and not kwargs.get("training", args[5] if len(args) > 5 else False):
            zero = x.new_zeros(1, x.shape[1], *[1] * (x.ndim - 2))
            return func(zero, *args[1:], **rest).flatten()  # type: ignore[no-any-return]
        jvp: Any = torch.autograd.functional.jvp
        y, moved = jvp(lambda x: func(x, *args[1:], **rest), x, x, create_graph=not self.frozen)
        return y - moved  # type: ignore[no-any-return]

    def _of_sum(self, func: Any, name: str, args: Any, kwargs: Any) -> Tensor | None:
        """What is left of a sum or another affine function if all that depends on the images is zero."""
        listed = bool(args) and isinstance(args[0], list | tuple)
        operands = [*args[0]] if listed else [*args]
        varies = [self._varies(a) for a in operands]
        constant = any(isinstance(a, Tensor) and not v for a, v in zip(operands, varies, strict=True))
        if not any(varies) or (all(varies) and "alpha" not in kwargs) or not (constant or name in SUMS or name == "pad"):
            return None
        if name in SUMS:
            zeroed = [a.new_zeros(()) if v else a for a, v in zip(operands[:2], varies[:2], strict=True)]
            return SUMS[name](*zeroed, **kwargs).clone()  # type: ignore[no-any-return]
        zeroed = [torch.zeros_like(a) if v else a for a, v in zip(operands, varies, strict=True)]
        return func(zeroed, *args[1:], **kwargs) if listed else func(*zeroed, **kwargs)  # type: ignore[no-any-return]

    def _varies(self, value: Any) -> bool:
        """Whether a value depends on the images. If weights require gradients too, only the graph knows."""
        if not isinstance(value, Tensor) or not value.requires_grad:
            return False
        return self.frozen or any(node is self.root for node in ancestors(get_gradient_edge(value).node))

    def _mark(self, function: str, bias: Tensor, output: Tensor, normed: int) -> None:
        if output.ndim < 2 or len(output) != len(self.images):
            return  # rows that are not the images, such as windows or crops
        name, size = self.inside[-1] or function, self.images.shape[2:]
        times = sum(other.split("#")[0] == name for other, *_ in self.marks)
        by_channel = function in ARGUMENT or (function == "batch_norm" and bias.ndim == 1)
        sums = output.ndim == 4 and not by_channel and function not in NORMS
        last = (function == "linear" and output.ndim > 2) or normed == 1 or (sums and is_channels_last(output.shape, size))
        placed = not sums or last or misfit(output.shape[2:], size) <= 2

        def shaped(value: Tensor) -> Tensor:
            return value.movedim(-1, 1) if last else value if placed else value.flatten(1)

        if placed and not last and bias.shape[-3:] == (output.shape[1], 1, 1) and bias.numel() == output.shape[1]:
            bias = bias.flatten()
        elif not by_channel:
            bias = bias.expand(output.shape)
        # The edge, not the tensor: an in-place ReLU after it must not mask the gradient.
        self.marks.append((f"{name}#{times + 1}" if times else name, get_gradient_edge(output), bias, shaped))


def ancestors(node: Any) -> Iterator[Any]:
    """The nodes of a graph from the last to the first, without repetition."""
    seen, nodes = set(), [node]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            nodes += [below for below, _ in node.next_functions]


@torch.no_grad()
def checked(score: Tensor, inputs: Pair, biases: Sequence[Bias], layers: Mapping[str, Pair], pairs: Tensor) -> Tensor:
    """The residual (P,) of a trace. Warns if it is more than rounding, and says between which traced layers it arises."""
    found = residual(score, inputs, biases)
    eps = max(torch.finfo(t.dtype).eps for t in (score, *(bias.gradient for bias in biases)))
    allowed = max(1e-7 if eps < 1e-10 else 1e-4, 16 * eps)
    if (worst := found.abs().max().item()) > allowed:
        above, below, rest = "the image", "the logits", [t for t in biases if t.stage not in layers]
        for name, (value, gradient) in reversed([*layers.items()]):
            if residual(score, (per_pair(value, pairs), gradient), rest).abs().max() > allowed:
                above = f"layer {name!r}"
                break
            below, rest = f"layer {name!r}", rest + [t for t in biases if t.stage == name]
        reason = "the model is not piecewise linear there, or a bias is not added by torch's functions"
        warnings.warn(f"FullGrad is {worst:.2%} from complete, between {above} and {below}: {reason}", stacklevel=4)
    return found


def residual(score: Tensor, inputs: Pair, biases: Sequence[Bias]) -> Tensor:
    """(P,) float64: (input term + bias terms - score) over the sum of the terms' absolute values and of the input term's norm.

    The norm is the size that the input term has by chance. Without it, rounding looks large where all terms are about 0.
    """
    product = torch.mul(*(t.double().flatten(1) for t in inputs))
    terms = torch.stack([product.sum(dim=1), *(bias.sum() for bias in biases)])
    size: Tensor = terms.abs().sum(dim=0) + product.norm(dim=1)
    missing: Tensor = terms.sum(dim=0) - score.detach().double()
    return missing / size.clamp(min=torch.finfo(torch.float64).tiny)

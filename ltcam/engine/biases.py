"""What FullGrad adds to a trace (Eq. 6): the bias every module adds, and an edge of the graph at which its gradient is read.

With them, input.grad + sum(bias.grad) is the logit where the network is piecewise linear; a GELU or a layer norm breaks that.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm

from ltcam.errors import InputError

Hook = tuple[nn.Module, Callable[..., Any]]
WithBias = nn.Conv2d | _BatchNorm | nn.Linear


@dataclass(frozen=True)
class Bias:
    """A module's additive bias (K,), the gradient (P, K[, h, w]) at its output, and the stage or traced layer it led to."""

    name: str
    stage: str
    bias: Tensor
    gradient: Tensor

    @property
    def value(self) -> Tensor:
        """(1, K, 1, 1): the bias as it meets its gradient."""
        return self.bias.view(1, -1, 1, 1)


@dataclass
class Mark:
    """A bias whose gradient is still to come."""

    name: str
    bias: Tensor
    edge: GradientEdge
    stage: str = ""


def bias_hooks(model: nn.Module, stops: dict[str, nn.Module], marks: list[Mark]) -> Iterator[Hook]:
    """Mark the output of each biased module; the next of `stops` to finish says which stage it belongs to."""
    for name, module in model.named_modules():
        if isinstance(module, WithBias) and (bias := _bias(name, module)) is not None:

            def mark(module: nn.Module, arguments: Any, output: Tensor, name: str = name, bias: Tensor = bias) -> None:
                times = sum(m.name.split("#")[0] == name for m in marks)
                # The edge, not the tensor: an in-place ReLU after it must not mask the gradient away.
                marks.append(Mark(f"{name}#{times + 1}" if times else name, bias, get_gradient_edge(output)))

            yield module, mark
        if name in stops:

            def stop(module: nn.Module, arguments: Any, output: Any, name: str = name) -> None:
                for m in marks:
                    m.stage = m.stage or name

            yield module, stop


def _bias(name: str, module: WithBias) -> Tensor | None:
    """The constant a module adds in eval mode: (K,), or None where it adds none."""
    if not isinstance(module, _BatchNorm):
        return None if module.bias is None else module.bias.detach().clone()
    if type(module).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
        raise InputError(f"fullgrad cannot see inside {name!r}, a {type(module).__name__} that does more than batch norm")
    if module.running_mean is None or module.running_var is None:
        return None
    scale = (module.running_var + module.eps).rsqrt() * (1 if module.weight is None else module.weight.detach())
    return (0 if module.bias is None else module.bias.detach()) - module.running_mean * scale

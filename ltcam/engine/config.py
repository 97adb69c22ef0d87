"""One way to make a map and cut it: `Config`, with its one text form, and the other readings of Eq. 9."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import ceil
from typing import Any, Self, get_args

from torch import Tensor

from ltcam.engine.methods import METHODS
from ltcam.engine.refine import Refine
from ltcam.engine.tricks import By, Compare, Fuse, Normalize, Scope, check, is_number, one_of, thresholds
from ltcam.errors import InputError


@dataclass(frozen=True)
class Config:
    """How a trace becomes a heatmap, and a heatmap a mask. It is hashable: measurements are kept by their Config.

    method     a name in `ltcam.METHODS`
    layers     what is fused: a layer's name, a stage label ("S5"), a range ("S3-S5"), a tuple of these, or "all" traced layers
    delta      None (as published), or the percentile of Eq. 9 in [0, 100); `per` and `compare` as in `truncate`
    fuse, normalize, align_corners  as in `layerize`; align_corners=True for the maps of FullGrad's reference implementation
    fraction   the mask is what lies above this part of the heatmap's maximum, in [0, 1); None: above Otsu's threshold
    refine     spread the fused map along the trace's own features; None: do not spread
    per_channel  the literal reading of FullGrad's Eq. 7
    by         how Eq. 9 is read: as in `truncate`, or a name in READINGS

    `str` gives its text, METHOD:LAYERS[:DELTA][,NAME=VALUE...], and `parse` reads it. Raises InputError for values that are
    out of range or do not go together.
    """

    method: str = "gradcam"
    layers: str | tuple[str, ...] = "S5"
    delta: float | None = None
    per: Scope = "layer"
    compare: Compare = "ge"
    fuse: Fuse = "sum"
    normalize: Normalize = "none"
    fraction: float | None = None
    refine: Refine | None = None
    align_corners: bool = False
    per_channel: bool = False
    by: str = "percentile"

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise InputError(f"method {self.method!r} is unknown: expected one of {', '.join(METHODS)}")
        check(self.delta, self.per, self.compare)
        one_of("fuse", self.fuse, Fuse)
        one_of("normalize", self.normalize, Normalize)
        listed = isinstance(self.layers, list | tuple)
        layers = tuple(self.layers) if listed else ("all" if self.layers is None else self.layers,)
        full, reading = self.method == "fullgrad", self.by not in get_args(By)
        wrong = {
            f"layers={self.layers!r}: expected a name, a label, a range such as 'S3-S5', several, or 'all'":
                not layers or not all(isinstance(layer, str) and layer for layer in layers),
            f"fraction={self.fraction!r} is no part of the maximum: expected None (Otsu) or a number in [0, 1)":
                self.fraction is not None and not (is_number(self.fraction) and 0 <= self.fraction < 1),
            f"by={self.by!r} is unknown: expected one of {', '.join([*get_args(By), *READINGS])}":
                reading and self.by not in READINGS,
            f"by={self.by!r}, compare={self.compare!r} without delta cuts nothing: pass delta, or leave them out":
                self.delta is None and (self.by, self.compare) != ("percentile", "ge"),
            f"per_channel=True is an option of fullgrad: {self.method} does not normalize":
                self.per_channel and not full,
            f"normalize={self.normalize!r} with fullgrad, whose terms Eq. 7 normalizes: use 'none'":
                full and self.normalize != "none",
            f"by={self.by!r} needs a method other than fullgrad, per='layer' and compare='ge'":
                reading and (full or (self.per, self.compare) != ("layer", "ge")),
            f"refine={self.refine!r}: expected ltcam.Refine(...), or None":
                not isinstance(self.refine, Refine | None),
        }  # fmt: skip
        for said, applies in wrong.items():
            if applies:
                raise InputError(said)
        numbers = {name: None if (x := getattr(self, name)) is None else float(x) for name in ("delta", "fraction")}
        vars(self).update(numbers, layers=layers if layers[1:] else layers[0])

    @property
    def fusion(self) -> tuple[Fuse, Normalize, bool]:
        """How what `layer_maps` gives is fused: a refined map is fused already."""
        fuse, normalize = (self.fuse, self.normalize) if self.refine is None else ("sum", "none")
        return fuse, normalize, self.align_corners

    def __str__(self) -> str:
        head = [self.method, self.layers if isinstance(self.layers, str) else "+".join(self.layers)]
        head += [] if self.delta is None else [_text(self.delta)]
        rest = [f"{f.name}={_text(getattr(self, f.name))}" for f in fields(self)[3:] if getattr(self, f.name) != f.default]
        return ",".join([":".join(head), *rest])

    @classmethod
    def parse(cls, text: str) -> Self:
        """The Config of a text; "gradcam" alone is at S5, without delta. Raises InputError for anything else."""
        head, *pairs = text.split(",")
        parts = head.split(":")
        try:
            name, layers, delta = (*parts, *("", "S5", "")[len(parts) :])
            options = {key: _READ[key](value) for key, value in (pair.split("=") for pair in pairs)}
            return cls(name, tuple(layers.split("+")), float(delta) if delta else None, **options)
        except InputError:
            raise
        except (ValueError, KeyError) as error:
            do = "expected METHOD[:LAYERS[:DELTA]], e.g. gradcam:S1-S5:20 or layercam:S1-S5:0,normalize=tanh,refine=S3-S5:28:8"
            raise InputError(f"{text!r} is not a configuration: {do}") from error


def refine_text(how: Refine) -> str:
    """The text of a `Refine` in that of a Config: LAYERS:SIZE:POWER:STEPS[:THEN]."""
    return ":".join(_text(getattr(how, field.name)) for field in fields(how)).removesuffix(":")


def refine_of(text: str) -> Refine:
    """The `Refine` of a text, which may end early: the rest are the defaults. Raises InputError for anything else."""
    kinds, parts = (str, int, float, int, str), text.split(":")
    try:
        given: list[Any] = [kind(part) for kind, part in zip(kinds[: len(parts)], parts, strict=True)]
    except ValueError as error:
        do = "expected LAYERS[:SIZE[:POWER[:STEPS[:THEN]]]], e.g. S3-S5:28:8"
        raise InputError(f"refine={text!r} is no way to spread a map: {do}") from error
    return Refine(*given)


def _text(value: Any) -> str:
    """A field as text; 20.0 is "20"."""
    return refine_text(value) if isinstance(value, Refine) else str(value).removesuffix(".0")


_FLAG = {"True": True, "False": False}.__getitem__
_READ: dict[str, Callable[[str], Any]] = {
    "per": str, "compare": str, "fuse": str, "normalize": str, "fraction": float, "refine": refine_of, "align_corners": _FLAG,
    "per_channel": _FLAG, "by": str,
}  # fmt: skip


def _over(values: Tensor, limits: Tensor) -> Tensor:
    return values >= limits.view(-1, 1, 1, 1)


def _over_positive(values: Tensor, delta: float) -> Tensor:
    """Which values (P, ...) are at or above the percentile of the positive ones, as in `truncate`."""
    return _over(values, thresholds(values.flatten(1), [delta]))


def _of_all(values: Tensor, delta: float) -> Tensor:
    """(P, ...) -> (P,): s[ceil((n - 1) delta / 100)] of all n values in ascending order."""
    rows = values.flatten(1)
    return rows.kthvalue(1 + ceil((rows.shape[1] - 1) * delta / 100), dim=1).values


def _of_weights(a: Tensor, g: Tensor, delta: float) -> Tensor:
    weights = g.clamp(min=0).mean(dim=(2, 3), keepdim=True)
    return _over_positive(weights, delta) & (g > 0)


# Other readings of Eq. 9: which gradients are kept, bool like G (P, K, h, w), of A, G and delta.
READINGS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "all values": lambda a, g, delta: _over(g, _of_all(g, delta)),
    "absolute values": lambda a, g, delta: _over(g, _of_all(g.abs(), delta)),
    "positive channel weights": _of_weights,
    "positive activation times gradient": lambda a, g, delta: _over_positive(a * g, delta),
}

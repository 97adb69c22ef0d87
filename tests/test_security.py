"""What comes from strangers stays data: pickles, checkpoints, archives, annotations, names; nothing of this machine leaves."""

import ast
import io
import json
import os
import pickle
import random
import re
import tarfile
import zipfile
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from nbformat import v4 as nb

from ltcam import __main__ as command_line
from ltcam import files
from ltcam.data import DataError, archives, fetch, voc
from ltcam.errors import InputError
from ltcam.experiment import checkpoints, provenance, weights
from ltcam.paper import tables as paper
from ltcam.show import picture, report

ROOT = Path(__file__).parents[1]
SCRIPT = "<script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(1)>"  # as a file's name, which takes no slash
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
    with pytest.raises(InputError, match=f"{re.escape(said)} is not a numpy array: refused"):
        weights.read_index_checkpoint(path, weights.sha256(path))
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
        with pytest.raises(InputError, match=f"{module}.{name} is not a numpy array: refused"):
            weights.read_index_checkpoint(path, weights.sha256(path))


@pytest.mark.parametrize("number", [0, 1, 2, 4])
def test_a_checkpoint_runs_nothing(number, tmp_path, monkeypatch):
    target, path = tmp_path / "taken", tmp_path / "evil.pt"
    torch.save({"model": {}, "record": list(attacks(target))[number][1]}, path)
    for load in (weights.load, checkpoints.load_checkpoint, lambda p: picture.classifier("vgg16", p)):
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
        checkpoints.load_checkpoint(tmp_path / "other.pt", "cpu")


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


def unpacked(path, tmp_path, size, keep=r"(.+)"):
    archives.unpack(path, keep, size, {}, tmp_path / "target", tmp_path / "temporary")
    return {
        p.relative_to(tmp_path / "target").as_posix(): p.read_bytes() for p in (tmp_path / "target").rglob("*") if p.is_file()
    }


@pytest.mark.parametrize(
    "name", ["C:/evil", "C:evil", "\\\\host\\share\\evil", "\\evil", "a\\..\\..\\evil", "..", "//host/evil"]
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_path_of_another_system_is_refused(name, kind, tmp_path):
    path = tmp_path / f"bad.{kind}"
    if kind == "tar":
        with tarfile.open(path, "w") as tar:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, "text")
    with pytest.raises(DataError, match="a path outside of it: refused"):
        unpacked(path, tmp_path, 100)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


def test_a_bomb_that_lies_about_its_size_stops_there(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(1_000_000))
    path.write_bytes(path.read_bytes().replace((1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(DataError, match=r"bomb.zip cannot be unpacked \(Bad CRC-32"):
        unpacked(path, tmp_path, 100)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bomb.zip"]


def test_a_name_twice_counts_twice_and_is_one_file(tmp_path):
    path = tmp_path / "twice.tar"
    with tarfile.open(path, "w") as tar:
        for letter in b"ab":
            info = tarfile.TarInfo("a.png")
            info.size = 60
            tar.addfile(info, io.BytesIO(bytes([letter]) * 60))
    with pytest.raises(DataError, match="would unpack to 120 bytes"):
        unpacked(path, tmp_path, 50)
    assert unpacked(path, tmp_path, 100) == {"a.png": b"b" * 60}


def test_an_annotation_expands_to_nothing_large(tmp_path):
    levels = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "cat" * 10}">' for i in range(9))
    path = tmp_path / "a.xml"
    path.write_text(f"<!DOCTYPE a [{levels}]><annotation><object><name>&e8;</name></object></annotation>")
    with pytest.raises(DataError, match=r"a.xml is missing or damaged \(limit on input amplification"):
        voc._objects(path)
    path.write_text(
        f'<!DOCTYPE a [<!ENTITY e SYSTEM "{ROOT / "LICENSE"}">]><annotation><object><name>&e;</name></object></annotation>'
    )
    with pytest.raises(DataError, match=r"a.xml is missing or damaged \(undefined entity"):
        voc._objects(path)


def test_what_is_downloaded_is_encrypted_or_pinned():
    for name, source in fetch.SOURCES.items():
        pinned = len(source.sha256) == 64
        assert pinned or set(map(len, fetch.checksums(name).values())) == {64}
        assert all(url.startswith("https://") or pinned for url in source.mirrors)
    assert weights.VGG16_Weights.IMAGENET1K_V1.url.startswith("https://")
    assert len(weights.INDEX_SHA256) == len(weights.INDEX_MEMBER_SHA256) == 64


@pytest.fixture
def site(output, monkeypatch):
    """A report all of whose names are hostile, made where a secret is in the environment."""
    monkeypatch.setenv("LTCAM_TOKEN", "s3cret-of-the-environment")
    folder = files.results("demo", IMAGE)
    folder.mkdir(parents=True)
    pd.DataFrame({"claim": [SCRIPT], "section": [IMAGE], "verdict": [SCRIPT]}).to_csv(folder / "claims.csv", index=False)
    row = {"row": list(paper.SEVEN), **dict.fromkeys((*paper.CLASS_MEANS.values(), *paper.POOLED.values()), 1.0)}
    provenance.save(pd.DataFrame(row), folder / "table3.csv", 0, data=SCRIPT, part=IMAGE, source={"name": SCRIPT})
    notebook = files.results("demo") / "notebooks" / f"04_{IMAGE}.{IMAGE}.ipynb"
    notebook.parent.mkdir()
    nbformat.write(nb.new_notebook(cells=[nb.new_markdown_cell(f"# {SCRIPT}\n\n{IMAGE}")]), notebook)
    return report.report("demo", output / "site").parent


def test_hostile_names_are_text_in_the_report(site):
    pages = sorted(site.glob("*.html"))
    assert len(pages) == 3
    for page in pages:
        tree = BeautifulSoup(page.read_text(), "html.parser")
        assert all(script.get("src") in ("data.js", "explore.js") for script in tree.find_all("script"))
        assert not tree.find_all(src="x") and not tree.find_all(lambda tag: any(name.startswith("on") for name in tag.attrs))
    assert SCRIPT in BeautifulSoup((site / "index.html").read_text(), "html.parser").text


def test_hostile_names_do_nothing_in_a_browser(site, chromium):
    """An alert that opened would make the next command fail."""
    for page in sorted(site.glob("*.html")):
        chromium.get(page.as_uri())
        assert (
            "alert(1)" in chromium.execute_script("return document.body.textContent") + chromium.title or page.stem == "explore"
        )


def test_nothing_of_this_machine_is_in_what_is_written(site):
    private = [str(Path.home()) + "/", str(ROOT) + "/", str(site.parent), "s3cret-of-the-environment"]
    for path in (p for p in site.rglob("*") if p.suffix in (".html", ".js", ".json", ".csv", ".css")):
        assert not [text for text in private if text in path.read_text()], path
    assert not [text for text in private if text in json.dumps(provenance.environment())]


def test_nothing_of_a_machine_is_in_what_is_committed():
    files = [p for folder in ("notebooks", "results", "figures", "data") for p in (ROOT / folder).rglob("*")]
    texts = {p: p.read_text() for p in files if p.suffix in (".ipynb", ".json", ".csv", ".yaml", ".svg")}
    assert len(texts) > 10
    assert not [
        p for p, text in texts.items() if re.search(r"[\"' ](/home/|/root/|/Users/|/tmp/|/work/|[A-Z]:\\\\Users)", text)
    ]

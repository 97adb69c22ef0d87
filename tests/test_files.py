"""Where things live, and what is said where nothing can be written."""

import ast
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ltcam import files
from ltcam.__main__ import app
from ltcam.errors import InputError, UnavailableError

PLACES = {
    "LTCAM_DATA": (files.data_root, files.ROOT / "data"),
    "LTCAM_OUTPUT": (lambda: files.results("").parent, files.ROOT),
    "LTCAM_RUNS": (lambda: files.runs("demo", "demo"), files.ROOT / "results" / "demo" / "demo"),
}


@pytest.mark.parametrize("variable", PLACES)
def test_an_empty_place_is_the_default_and_a_tilde_is_the_home(variable, monkeypatch, tmp_path):
    place, default = PLACES[variable]
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    below = "demo" if variable == "LTCAM_RUNS" else ""
    assert place() == default
    for given, expected in {
        "": default,
        "~": tmp_path / below,
        "~/my {data} é": tmp_path / "my {data} é" / below,
        "there": files.ROOT / "there" / below,
        "/a/~b": Path("/a/~b") / below,
    }.items():
        monkeypatch.setenv(variable, given)
        assert place() == expected
    monkeypatch.setenv(variable, "~nobody-of-that-name")
    with pytest.raises(InputError, match=rf"{variable}=~nobody-of-that-name begins with the home of an unknown user: expected"):
        place()


def test_no_text_is_read_or_written_in_the_encoding_of_the_users_locale():
    """Greek letters would be other letters, or an error."""
    for path in files.PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("read_text", "write_text"):
                given = len(node.args) + len(node.keywords) - (node.func.attr == "write_text")
                assert given, (path, node.lineno)


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_all_is_read_in_an_ascii_locale_and_where_warnings_are_errors(locale, tmp_path):
    run = "from ltcam.data import get; from ltcam.experiment.recipe import profile; from ltcam.paper import claims, tables; "
    run += "from ltcam.show import figures; from ltcam import files; get.listing(); "
    run += (
        "files.write('x.txt', chr(948)); print(ascii(sorted(profile('paper'))), len(claims.CLAIMS), open('x.txt', 'rb').read())"
    )
    environment = {**os.environ, "PYTHONPATH": str(files.ROOT), "PYTHONWARNINGS": "error", **locale}
    done = subprocess.run([sys.executable, "-c", run], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert re.fullmatch(r"\['ksdd2', 'voc2012'\] \d+ b'\\xce\\xb4'\n", done.stdout), done.stderr


@pytest.mark.parametrize("number", files.CLOSED)
def test_a_place_that_takes_no_files_is_named(number, tmp_path):
    with (
        pytest.raises(
            UnavailableError, match=r"there.csv cannot be written \(.+\): name a place where files can be written, by --out or"
        ),
        files.atomic(tmp_path / "there.csv"),
    ):
        raise OSError(number, "no")
    with pytest.raises(OSError, match="gone"), files.atomic(tmp_path / "there.csv"):
        raise OSError(errno.EIO, "gone")  # the machine's own fault keeps its traceback
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["file/heat.png", "folder.png"])
def test_a_file_in_the_place_of_a_folder_and_the_reverse(out, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UnavailableError, match=rf"{out} cannot be written \((Not a|Is a|File exists).*: name a place"):
        files.write(tmp_path / out, "text")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.png"}


TINY = [f"--set={setting}" for setting in ("weights=null", "width=16", "hidden=16", "epochs=1", "frozen=5")]


@pytest.mark.parametrize("command", [["data", "show", "demo", "--part", "test"], ["train", "--data", "demo", *TINY]])
def test_every_out_that_takes_no_files_ends_in_one_line(command, tmp_path, output):
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match=r"file/out.* cannot be written \((Not a directory|File exists)\): name"):
        CliRunner().invoke(app, [*command, "--out", str(tmp_path / "file" / "out")], catch_exceptions=False)

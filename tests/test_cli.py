import copy
import json
import logging
import os
import re
import subprocess
import sys

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from ltcam import files
from ltcam.__main__ import app, main
from ltcam.errors import InputError, UnavailableError
from tests import lookalikes
from tests.experiment.test_training import TINY


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "ltcam", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_train_and_evaluate(tmp_path, monkeypatch):
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.voc(tmp_path / "data")))
    monkeypatch.setattr(
        "ltcam.paper.reproduce.profile",
        lambda name: [{"profile": name, "data": "voc2012", "recipe": {"test": "val", **TINY, "bfloat16": True}}],
    )
    one = ["train", "--data", "voc2012", "--set", "epochs=1"]
    done = CliRunner().invoke(app, [*one, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0 and done.output.strip().endswith("checkpoint.pt")
    with pytest.raises(ValueError, match=r"no recipe for data set 'coco': expected one of \['voc2012'\]"):
        CliRunner().invoke(app, ["train", "--data", "coco"], catch_exceptions=False)
    other = ["--set", "head=gap", "--set", "bfloat16=false", "--seed", "3", "--out", str(tmp_path / "gap")]
    assert CliRunner().invoke(app, [*one, *other]).exit_code == 0
    recipe = json.loads((tmp_path / "gap" / "train.json").read_text())["recipe"]
    assert (recipe["head"], recipe["bfloat16"], recipe["seed"], recipe["epochs"]) == ("gap", False, 3, 1)
    command = ["evaluate", "--checkpoint", str(tmp_path / "run" / "checkpoint.pt")]
    done = CliRunner().invoke(app, [*command, "--table", "1", "--table", "4", "--config", "layercam:S3-S5:40"])
    assert done.exit_code == 0 and "table1" in done.output and "LTGrad-CAM(l=5, δ=20)" in done.output
    assert len(pd.read_csv(tmp_path / "run" / "table1.csv")) == 7 and (tmp_path / "run" / "counts.csv.gz").is_file()
    assert pd.read_csv(tmp_path / "run" / "scores.csv")[["method", "layers", "delta"]].to_numpy().tolist() == [
        ["layercam", "S3-S5", 40]
    ]
    before = (tmp_path / "run" / "counts.csv.gz").read_bytes()
    done = CliRunner().invoke(app, [*command, "--part", "train", "--config", "gradcam"])
    assert done.exit_code == 0 and (tmp_path / "run" / "train" / "scores.csv").is_file()
    assert (tmp_path / "run" / "counts.csv.gz").read_bytes() == before
    for wrong, message in (
        (["--table", "9"], "table 9 is not in the paper"),
        (["--config", "gradcam:S5:x"], "is not a configuration"),
    ):
        with pytest.raises(ValueError, match=message):
            CliRunner().invoke(app, [*command, *wrong], catch_exceptions=False)


def test_train_names_its_folders_by_seed_and_fold(tmp_path, monkeypatch):
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.voc(tmp_path / "data")))
    monkeypatch.setenv("LTCAM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("LTCAM_OUTPUT", str(tmp_path / "output"))
    recipe = {"test": "val", **TINY, "epochs": 1}
    run = {"profile": "paper", "data": "voc2012", "seeds": [0, 1], "recipe": recipe}
    monkeypatch.setattr("ltcam.paper.reproduce.profile", lambda name: [copy.deepcopy(run)])
    monkeypatch.setattr("ltcam.experiment.training.train", lambda recipe, folder: asked.append((folder, recipe)) or folder)

    def folders(*options):
        asked.clear()
        assert CliRunner().invoke(app, ["train", "--data", "voc2012", *options], catch_exceptions=False).exit_code == 0
        return [folder.relative_to(tmp_path / "runs" / "voc2012").as_posix() for folder, _ in asked]

    asked: list[tuple] = []
    assert folders() == ["seed0", "seed1"] and folders("--seed", "1") == ["seed1"] and folders("--seed", "7") == ["seed7"]
    run["folds"] = 2
    assert folders() == ["seed0/fold0", "seed0/fold1", "seed1/fold0", "seed1/fold1"]
    assert folders("--fold", "1", "--seed", "0") == ["seed0/fold1"]
    assert (asked[0][1].train, asked[0][1].test) == ("train1", "val1")
    with pytest.raises(InputError, match=r"name 4 trainings of voc2012: expected at least one, and exactly one with --out"):
        folders("--out", "x")
    with pytest.raises(InputError, match=r"--fold 5 .* name 0 trainings"):
        folders("--fold", "5")


def test_tries_are_collected(tmp_path, monkeypatch):
    monkeypatch.setenv("LTCAM_DATA", str(lookalikes.voc(tmp_path / "data")))
    monkeypatch.setenv("LTCAM_OUTPUT", str(tmp_path))
    run = {"profile": "paper", "data": "voc2012", "seeds": [0, 1], "recipe": {"test": "val", **TINY, "epochs": 1}}
    monkeypatch.setattr("ltcam.paper.reproduce.profile", lambda name: [copy.deepcopy(run)])
    for options in ([], ["--set", "lr=0.01"]):
        done = CliRunner().invoke(app, ["train", "--data", "voc2012", "--tune", *options], catch_exceptions=False)
    assert [line.split()[0] for line in done.output.splitlines()[-2:]] == ["lr=0.01", "profile"]
    table = pd.read_csv(tmp_path / "results" / "paper" / "voc2012" / "tries.csv")
    assert table["lr"].tolist() == [0.01, 0.001] and set(table["train"]) == {"train/fit"}


def test_data_show(tmp_path):
    done = CliRunner().invoke(app, ["data", "show", "demo", "--part", "test", "--out", str(tmp_path / "samples")])
    assert done.exit_code == 0 and "scratch" in done.output and (tmp_path / "samples.png").stat().st_size > 10_000


def test_an_error_is_one_line(tmp_path):
    done = run("evaluate", "--checkpoint", str(tmp_path / "none.pt"))
    assert done.returncode == 1 and done.stderr.startswith("ltcam: no weights at ") and done.stderr.count("\n") == 1
    done = run("train", "--data", "voc2012", LTCAM_DATA=str(tmp_path))
    assert done.returncode == 1 and "set LTCAM_DATA" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def listing(monkeypatch):
    """`ltcam data list` through `main`, failing with an error of the caller's."""

    def failing(error):
        def fail():
            raise error

        monkeypatch.setattr("ltcam.data.fetch.listing", fail)
        monkeypatch.setattr(sys, "argv", ["ltcam", "data", "list"])
        main()

    return failing


def test_only_errors_of_the_family_are_one_line(listing):
    with pytest.raises(SystemExit, match=r"^ltcam: no mirror is left: wait$"):
        listing(UnavailableError("no mirror is left: wait"))
    for bug in (
        RuntimeError("CUDA error: device-side assert"),
        ValueError("not ours"),
        FileNotFoundError("x"),
        ImportError("y"),
    ):
        with pytest.raises(type(bug), match=str(bug)):  # its traceback is seen
            listing(bug)


def test_an_interrupt_says_that_the_command_goes_on(listing, capsys):
    with pytest.raises(SystemExit) as end:
        listing(KeyboardInterrupt())
    assert end.value.code == 130
    assert capsys.readouterr().err == "ltcam: interrupted; run the same command again to go on from here\n"


@pytest.fixture
def saying(monkeypatch):
    """What a command says on stderr, with the log as in a process of its own."""
    loggers = logging.root, logging.getLogger("ltcam")
    levels = [log.level for log in loggers]

    def listing():
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger("ltcam.data.fetch").log(level, "said")
            logging.getLogger("matplotlib").log(level, "another's")
        return pd.DataFrame({"name": ["demo"]})

    monkeypatch.setattr("ltcam.data.fetch.listing", listing)

    def run(*options):
        with monkeypatch.context() as fresh:
            fresh.setattr(logging.root, "handlers", [])  # of pytest, which adds its own for each phase of a test
            done = CliRunner().invoke(app, [*options, "data", "list"])
        assert done.exit_code == 0 and "demo" in done.stdout
        return done.stderr.splitlines()

    yield run
    for log, level in zip(loggers, levels, strict=True):
        log.setLevel(level)


def test_a_command_says_what_it_does(saying):
    assert saying() == ["said", "another's", "said", "another's"]


def test_a_quiet_command_only_warns(saying):
    assert saying("--quiet") == ["said", "another's"]


def test_a_verbose_command_tells_the_time_and_the_module(saying):
    mine, others = ([line for line in saying("--verbose") if name in line] for name in ("ltcam.data.fetch: said", "matplotlib"))
    assert [line.split()[2] for line in mine] == ["DEBUG", "INFO", "WARNING"] and len(others) == 2
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", line) for line in mine)


def test_a_process_that_is_not_the_first_only_warns(saying, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert saying("--verbose")[0].endswith("WARNING ltcam.data.fetch: said")


def test_quiet_and_verbose_exclude_each_other():
    done = CliRunner().invoke(app, ["--quiet", "--verbose", "data", "list"])
    assert done.exit_code == 2 and "not both" in done.stderr


PAGES = ["Makefile", "README.md", "CONTRIBUTING.md", "data/README.md", "docs/running.md", "docs/settings.md"]


@pytest.mark.parametrize("page", PAGES)
def test_documented_commands_have_their_options(page):
    """Every `ltcam COMMAND --option` on the page, and in a comment behind it."""
    commands = typer.main.get_command(app).commands
    commands |= {f"data {name}": command for name, command in commands["data"].commands.items()}
    lines = (files.ROOT / page).read_text().replace("\\\n", " ").splitlines()
    found = [m for line in lines if (m := re.search(r"ltcam ((?:data )?[a-z-]+)\b(.*)", line)) and m[1] in commands]
    assert found or page not in ("Makefile", "README.md", "docs/running.md")
    for match in found:
        known = {name for option in commands[match[1]].params for name in option.opts}
        assert not {*re.findall(r"(?<![\w-])--[a-z][a-z-]*", match[2])} - known, match[0]

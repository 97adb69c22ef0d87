import json
import logging
import re
import sys

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from ltcam import files
from ltcam.__main__ import app, main
from ltcam.data import load
from ltcam.engine.config import Config
from ltcam.errors import InputError, UnavailableError
from ltcam.experiment.scores import scores
from ltcam.paper import beyond, tables


def ltcam(*arguments):
    """What a command says; its errors are raised."""
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def test_train_takes_a_recipe_and_settings(study, tmp_path):
    one = ["train", "--data", "voc2012", "--profile", "toy", "--set", "epochs=1", "--set", "head=gap"]
    done = ltcam(*one, "--seed", 3, "--set", "lr=0.01", "--out", tmp_path / "gap")
    assert done.exit_code == 0 and done.output.strip() == str(tmp_path / "gap" / "checkpoint.pt")
    recipe = json.loads((tmp_path / "gap" / "run.json").read_text())["recipe"]
    assert (recipe["head"], recipe["lr"], recipe["seed"], recipe["epochs"]) == ("gap", 0.01, 3, 1)
    with pytest.raises(InputError, match=r"profile 'toy' has no data set 'coco': expected one of \['voc2012'\]"):
        ltcam("train", "--data", "coco", "--profile", "toy")


def test_evaluate_keeps_its_counts_and_tables_beside_the_checkpoint(study, monkeypatch):
    folder = study.runs / "seed0"
    command = ["evaluate", "--checkpoint", folder / "checkpoint.pt"]
    done, out = ltcam(*command), folder / "evaluated"
    assert done.exit_code == 0 and all(f"table{number} on PASCAL" in done.output for number in tables.ROWS)
    for number, rows in tables.ROWS.items():
        (path,) = out.glob(f"table{number}.val.*.csv")
        assert len(pd.read_csv(path)) == len(rows)
    assert ltcam(*command, "--config", "layercam:S3-S5:40").output.startswith("scores on PASCAL VOC 2012 subset, part val\n")
    (path,) = out.glob("scores.val.*.csv")
    table = pd.read_csv(path).set_index(["method", "layers", "delta"]).sort_index()
    expected = scores(study.counts([Config("layercam", "S3-S5", 40.0)], seeds=1))
    assert table.loc[("layercam", "S3-S5", 40), "mIoU"] == pytest.approx(expected["mIoU"][0], rel=1e-4)
    monkeypatch.setattr("ltcam.experiment.counting.count_batch", lambda *_: pytest.fail("counted again"))
    assert ltcam(*command, "--config", "layercam:S3-S5:40").exit_code == 0
    monkeypatch.undo()


def test_what_is_no_configuration_is_named(study):
    with pytest.raises(InputError, match="is not a configuration"):
        ltcam("evaluate", "--checkpoint", "none.pt", "--config", "gradcam:S5:x")


def test_seeds_are_exported_and_scored(study, tmp_path):
    """Those of a folder have the scores of the checkpoint's own maps."""
    at = ["--checkpoint", study.runs / "seed0" / "checkpoint.pt", "--config", "gradcam:S1-S5"]
    assert ltcam("export-seeds", *at, "--out", tmp_path / "seeds").output == f"{tmp_path / 'seeds'}: 8 images\n"
    assert len([*(tmp_path / "seeds").glob("*.npy")]) == 8
    ltcam("eval-seeds", *at, "--choose-on", "val", "--out", tmp_path / "one")
    ltcam("eval-seeds", "--folder", tmp_path / "seeds", "--data", "voc2012", "--out", tmp_path / "two")
    one, two = (pd.read_csv(tmp_path / name / "seeds.csv") for name in ("one", "two"))
    assert one[["images", "best_t"]].equals(two[["images", "best_t"]]) and {"mIoU", "t"} <= {*one} - {*two}
    assert one["best_mIoU"][0] == pytest.approx(two["best_mIoU"][0], abs=0.01)
    assert len(pd.read_csv(tmp_path / "one" / "curves.csv")) == 101


def test_the_best_seeds_have_views_of_their_own(study, tmp_path):
    at = ["export-seeds", "--checkpoint", study.runs / "seed0" / "checkpoint.pt", "--best", "--out", tmp_path / "seeds"]
    for more in (["--flip"], ["--config", "gradcam"]):
        with pytest.raises(InputError, match="--best has its own configuration and views"):
            ltcam(*at, *more)
    ltcam(*at, "--part", "val")
    said = json.loads((tmp_path / "seeds" / "seeds.json").read_text())
    assert said["config"] == str(beyond.BEST["argmax"].config) and said["part"] == "val"


@pytest.mark.parametrize("given", [[], ["--folder", "x"], ["--folder", "x", "--data", "y", "--flip"]])
def test_seeds_of_nothing_are_refused(given):
    with pytest.raises(InputError, match="expected --checkpoint PATH, or --folder PATH with --data NAME"):
        ltcam("eval-seeds", *given)


def test_train_names_its_folders_by_seed_and_fold(study, monkeypatch, tmp_path):
    monkeypatch.setattr("ltcam.experiment.training.train", lambda recipe, folder: asked.append((folder, recipe)) or folder)
    monkeypatch.setattr("ltcam.data.load", lambda name, part: load(name, "train"))  # no folds of it are made here
    path = files.NOTEBOOKS / "profiles" / "toy.voc2012.yaml"

    def folders(*options):
        asked.clear()
        assert ltcam("train", "--data", "voc2012", "--profile", "toy", *options).exit_code == 0
        return [folder.relative_to(study.runs).as_posix() for folder, _ in asked]

    asked: list[tuple] = []
    assert folders() == ["seed0", "seed1"] and folders("--seed", 1) == ["seed1"] and folders("--seed", 7) == ["seed7"]
    path.write_text(path.read_text() + "folds: 2\n")
    assert folders() == ["seed0/fold0", "seed0/fold1", "seed1/fold0", "seed1/fold1"]
    assert (asked[1][1].train, asked[1][1].test) == ("train1", "val1")
    asked.clear()
    command = ["train", "--data", "voc2012", "--profile", "toy"]
    ltcam(*command, "--out", tmp_path, "--set", "epochs=9")
    assert [folder for folder, _ in asked] == [tmp_path / f"seed{s}" / f"fold{f}" for s in (0, 1) for f in (0, 1)]
    with pytest.raises(InputError, match=r"^--set epochs=9 changes the profile.s recipe: pass --out FOLDER too"):
        ltcam(*command, "--set", "epochs=9")


def test_tries_are_collected(study):
    for options in ([], ["--set", "lr=0.01"]):
        done = ltcam("train", "--data", "voc2012", "--profile", "toy", "--set", "epochs=1", "--tune", *options)
    assert [line.split()[0] for line in done.output.splitlines()[-2:]] == ["epochs=1", "epochs=1,"]
    table = pd.read_csv(study.out / "tries.csv")
    assert table["lr"].tolist() == [0.001, 0.01] and set(table["train"]) == {"train/fit"}
    labels = pd.read_csv(study.runs / "tries" / "epochs=1, lr=0.01" / "labels.csv")
    assert table["mAP"][1] == pytest.approx(labels["AP"].mean(), abs=1e-5) and {"loss", "minutes"} <= {*table}


def test_data_show(tmp_path):
    done = CliRunner().invoke(app, ["data", "show", "demo", "--part", "test", "--out", str(tmp_path / "samples")])
    assert done.exit_code == 0 and "scratch" in done.output and (tmp_path / "samples.png").stat().st_size > 10_000


def test_an_error_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("LTCAM_DATA", str(tmp_path))
    for command, said in (
        (["train", "--data", "voc2012", "--out", tmp_path, "--seed", "0"], "PASCAL VOC 2012 is not at .*: set LTCAM_DATA"),
        (["evaluate", "--checkpoint", tmp_path / "none.pt"], "no weights at"),
    ):
        monkeypatch.setattr(sys, "argv", ["ltcam", *map(str, command)])
        with pytest.raises(SystemExit, match=rf"^ltcam: {said}[^\n]+$"):
            main()


@pytest.fixture
def listing(monkeypatch):
    """`ltcam data list` through `main`, failing with an error of the caller's."""

    def failing(error):
        def fail():
            raise error

        monkeypatch.setattr("ltcam.data.get.listing", fail)
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


@pytest.mark.parametrize(("rank", "level"), [("0", logging.INFO), ("1", logging.WARNING)])
def test_of_several_processes_only_the_first_says_what_it_does(rank, level, listing, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: levels.append(settings["level"]))
    levels = []
    with pytest.raises(SystemExit):
        listing(UnavailableError("no mirror is left: wait"))
    assert levels == [level]


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

"""Every command that writes, twice and then with a changed option: what a run left is there afterwards, whole and unmixed.

A command with a changed option adds files, adds rows, or is refused.
"""

import gzip
import json
import re
import shutil
import subprocess

import matplotlib.pyplot as plt
import pytest
import torch
import typer
from typer.testing import CliRunner

from docs import sections
from ltcam import files
from ltcam.__main__ import app
from ltcam.errors import LtcamError
from ltcam.experiment.study import Study
from ltcam.paper import reproduce
from ltcam.paper.__main__ import main as tables
from ltcam.show import heatmaps
from tests import tiny
from tests.data.test_get import ksdd2, offer, root, server, small  # noqa: F401 - fixtures
from tests.paper.test_reproduce import here, write

ROWS = (".csv", ".csv.gz")  # files that may grow, by whole rows
CELL = """
from ltcam.experiment.study import Study
from ltcam.paper import make
study = Study(profile, data, seeds=seeds)
study.train()
make("table1", study)
"""


def snapshot(folder):
    """What is in every file. Of the store it is the exports that count."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and ".sqlite" not in path.name)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def lost(before, after):
    """The files of `before` that are gone, or changed in another way than by rows or entries that came to them."""
    return [name for name, content in before.items() if name not in after or not kept(name, content, after[name])]


def kept(name, before, after):
    if name.endswith("provenance.json"):  # an entry's times are of the run that added to its file
        own, now = ({file: e.get("identity") for file, e in json.loads(text).items()} for text in (before, after))
        return own.items() <= now.items()
    if name.endswith(".ipynb"):
        return json.loads(before)["cells"] == json.loads(after)["cells"]
    if before == after or not name.endswith(ROWS):
        return before == after
    one, two = (gzip.decompress(text) if name.endswith(".gz") else text for text in (before, after))
    one, two = one.splitlines(), two.splitlines()
    return one[0] == two[0] and set(one) <= set(two)


def run(command, *arguments):
    """What a command says, or the one line that refuses it."""
    try:
        if callable(command):
            command(*map(str, arguments))
        else:
            done = CliRunner().invoke(app, [*command.split(), *map(str, arguments)], catch_exceptions=False)
            assert done.exit_code == 0, done.output
    except LtcamError as error:
        assert "\n" not in str(error)
        return f"refused: {error}"
    return ""


@pytest.fixture(autouse=True)
def figures():
    """matplotlib warns of more than 20 that are open."""
    yield
    plt.close("all")


@pytest.fixture
def place(tmp_path, looks, monkeypatch):
    """A folder for all that is written, and the profile `tiny` of two seeds."""
    monkeypatch.setattr(
        files, "NOTEBOOKS", tiny.profile(tmp_path / "notebooks", "voc2012", {"epochs": 1}, seeds=[0, 1], softmax={"seeds": [0]})
    )
    monkeypatch.setenv("LTCAM_OUTPUT", str(tmp_path / "output"))
    return tmp_path / "output"


@pytest.fixture
def other(checkpoint, tmp_path):
    """Another checkpoint."""
    state = torch.load(checkpoint, weights_only=True)
    state["model"]["features.28.bias"] += 1
    (tmp_path / "other").mkdir()
    torch.save(state, tmp_path / "other" / "checkpoint.pt")
    return tmp_path / "other" / "checkpoint.pt"


def instead(first, options):
    """`first` with other values of its options, and more of them."""
    more, words = [*options], [*first]
    if options and options[0] in words:
        words[words.index(options[0]) + 1], more = options[1], options[2:]
    return [*words, *more]


def walk(folder, command, first, changed):
    """Run `first` twice, then once with each of the `changed` options, which adds to what is there or is refused."""
    assert not run(command, *first)
    before = snapshot(folder)
    assert before, "it writes nothing there"
    assert not [name for name, content in before.items() if b"CreationDate" in content or b"dc:date" in content]
    assert not run(command, *first), "the same command again is no other"
    assert not lost(before, snapshot(folder)), "the same command again"
    for options, expected in changed.items():
        before = snapshot(folder)
        said = run(command, *instead(first, options.split()))
        assert (expected in said) if expected else not said, (options, said)
        assert not lost(before, snapshot(folder)), (options, said)
        assert not said or snapshot(folder) == before


TRAIN = "--data voc2012 --profile tiny"
RECIPE, SCORES = (
    "has a training of another recipe or data, or no last.pt: name another",
    "seeds.csv exists and was made with other options: name",
)
PICTURE, NPY, TABLES = "exists and is not the same: name another file", ".npy files of another", "set LTCAM_OUTPUT to"
WALKS = [  # a command, its options, and what each change of them is told: "" where it adds
    ("train", f"{TRAIN} --seed 0 --out PLACE", {"--seed 1": RECIPE, "--set lr=0.01": RECIPE, "--set epochs=2": RECIPE}),
    (
        "train", f"{TRAIN} --seed 0",
        {"--seed 1": "", "--set lr=0.01": "changes the profile's recipe", "--out PLACE/one": "", "--tune": ""}
        | {"--softmax": "", "--subset": ""},
    ),
    ("train", f"{TRAIN} --tune", {"--seed 0": "", "--seed 1": "", "--set lr=0.01": "", "--set lr=0.01 --set epochs=2": ""}),
    (
        "evaluate", "--checkpoint CHECKPOINT --config gradcam --out PLACE",
        dict.fromkeys(["--config layercam", "--batch-size 4", "--bfloat16", "--flip", "--part train", "--checkpoint OTHER"], "")
        | {"--scale 1.5": "", "--tiles 40": ""},
    ),
    (
        "export-seeds", "--checkpoint CHECKPOINT --config gradcam --out PLACE",
        {"--batch-size 4": "", "--best": "--best has its own"}
        | dict.fromkeys(
            ["--config layercam", "--flip", "--scale 1.5", "--tiles 40", "--part val", "--checkpoint OTHER"], NPY
        ),
    ),
    (
        "eval-seeds", "--checkpoint CHECKPOINT --config gradcam --out PLACE",
        {"--batch-size 4": ""}
        | dict.fromkeys(
            ["--config layercam", "--flip", "--scale 1.5", "--tiles 40", "--part val", "--choose-on val", "--checkpoint OTHER"],
            SCORES,
        ),
    ),
    ("eval-seeds", "--folder SEEDS --data voc2012 --out PLACE", {"--choose-on train": SCORES}),
    (
        "explain", "IMAGE --checkpoint CHECKPOINT --class cat --out PLACE/heat.png",
        {"--model vgg11": "", "--out PLACE/heat.svg": ""}
        | dict.fromkeys(["--class dog", "--config layercam:S4", "--per-stage", "--tiles 40", "--checkpoint OTHER"], PICTURE),
    ),
    *(
        ("explain", f"IMAGE --checkpoint CHECKPOINT --class cat --out PLACE/heat.{suffix}", {"--class dog": PICTURE})
        for suffix in ("jpg", "pdf", "svg")
    ),
    ("data show", "voc2012 --part train --out PLACE/samples", {"--part val": PICTURE}),
    (
        "reproduce", "--profile tiny",
        {"--force": "", "--subset": "", "--only 01": "", "--from 01": "", "--data voc2012": ""}
        | dict.fromkeys(["--seed 0", "--seed 1 --force", "--seed 2 --only 01"], TABLES),
    ),
]  # fmt: skip


@pytest.fixture
def words(place, checkpoint, other, tmp_path):
    image = next(files.data_root().rglob("JPEGImages/*.jpg"))
    return {"PLACE": place, "CHECKPOINT": checkpoint, "OTHER": other, "SEEDS": tmp_path / "seeds", "IMAGE": image}


@pytest.mark.parametrize("number", range(len(WALKS)), ids=[f"{command} {options[-20:]}" for command, options, _ in WALKS])
def test_walk(number, words, monkeypatch):
    def filled(text):
        return re.sub("[A-Z]{5,}", lambda match: str(words[match[0]]), text)

    command, first, changed = WALKS[number]
    if "SEEDS" in first:
        run("export-seeds", "--checkpoint", words["CHECKPOINT"], "--config", "gradcam", "--out", words["SEEDS"])
    monkeypatch.setattr(reproduce.papermill, "execute_notebook", here([]))
    write(files.NOTEBOOKS / "01_a.ipynb", 'profile = "demo"\ndata = "demo"\nseeds = []', CELL)
    walk(words["PLACE"], command, filled(first).split(), {filled(options): said for options, said in changed.items()})


def test_every_option_is_walked():
    """Of every command that writes; `data get` has none, and a test of its own."""
    top = typer.main.get_command(app).commands
    commands = top | {f"data {name}": command for name, command in top["data"].commands.items()}
    walked = {command: set() for command, *_ in WALKS}
    for command, first, changed in WALKS:
        walked[command] |= set(re.findall("--[a-z0-9-]+", " ".join([first, *changed])))
    assert commands.keys() - walked.keys() == {"data", "data list", "data check", "data get"}
    assert {name: {p.opts[0] for p in commands[name].params if p.opts[0][0] == "-"} for name in walked} == walked


def test_a_table_of_tries_without_its_trainings(place):
    """As in the repository."""
    table = place / "results/tiny/voc2012/tries.csv"
    files.write(table, "try,mAP,lr\nlr=7,0.5,7\n")
    assert not run("train", *TRAIN.split(), "--tune")
    assert [line.split(",")[:2] for line in table.read_text().splitlines()][:2] == [["try", "mAP"], ["lr=7", "0.5"]]


def test_a_table_of_scores_has_every_configuration_of_its_pass(place, checkpoint):
    for options in (["--config", "gradcam"], ["--config", "layercam"], [], ["--config", "gradcam", "--batch-size", 4]):
        assert not run("evaluate", "--checkpoint", checkpoint, "--out", place, *options)
    first, second = sorted(path.read_text().splitlines() for path in place.glob("scores.val.*.csv"))
    assert len(first) == 2 and {line.split(",")[0] for line in second[1:]} == {"gradcam", "layercam"}


def test_evaluate_beside_the_results_of_a_profile(place):
    """In the folder of the profile's own counts and tables, under another protocol."""
    study = Study("tiny", "voc2012")
    study.train()
    reproduce.registry.make("table1", study)
    for option in (["--flip"], ["--batch-size", 4], []):
        before = snapshot(place)
        at = ["--checkpoint", study.runs / "seed0" / "checkpoint.pt", "--config", "gradcam", "--out", study.out]
        assert not run("evaluate", *at, *option) and not lost(before, snapshot(place))
    before = snapshot(place)
    for options in ([], [], ["--check"]):
        assert tables([*options, "tiny", "voc2012"]) == 1  # of some tables nothing was counted
        assert not lost(before, snapshot(place))
    before = snapshot(place)
    for gone in ("seed1/counts.val.csv.gz", "counts.sqlite"):
        (study.out / gone).unlink()
        said = run(lambda: tables(["tiny", "voc2012"]))
        assert said.startswith("refused: ") == (gone == "counts.sqlite") and snapshot(place).items() <= before.items()


@pytest.mark.parametrize("photograph", [False, True])
def test_a_picture_in_two_files(tmp_path, photograph):
    """The second is left out for a photograph, and then it is nobody's to replace."""
    figure, axes = plt.subplots()
    if photograph:
        axes.imshow([[0]])
    files.write(tmp_path / "mine.pdf", "the user's own")
    run(lambda: heatmaps.save(figure, tmp_path / "mine", new=True))
    assert (tmp_path / "mine.pdf").read_text() == "the user's own"
    heatmaps.save(figure, tmp_path / "mine")
    kept = (tmp_path / "mine.pdf").read_bytes() == b"the user's own"
    assert kept == photograph and (tmp_path / "mine.png").is_file()


def test_data_get(ksdd2, root, monkeypatch):  # noqa: F811
    monkeypatch.setenv("LTCAM_DATA", str(root))
    for change in ((root / "mine").touch, (root / "KolektorSDD2/train/10000.png").unlink):
        assert not run("data get", "ksdd2")
        change()
        before = snapshot(root)
        said = run("data get", "ksdd2")
        assert snapshot(root) == before and ("is incomplete" in said and "is not overwritten" in said) == (
            change.__name__ == "unlink"
        )


def test_sections_of_the_docs(tmp_path, monkeypatch):
    """What is written by hand stays, and a page that lost a mark is refused as it is."""
    for page in sections.pages():
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files.ROOT / page, tmp_path / page)
    monkeypatch.setattr(sections, "ROOT", tmp_path)
    page = tmp_path / "README.md"
    page.write_text("By hand.\n" + page.read_text() + "By hand.\n")
    before = snapshot(tmp_path)
    for check in (False, True):
        assert sections.main(check) == 0 and snapshot(tmp_path) == before
    page.write_text(page.read_text().replace("<!-- end summary -->", ""))
    before = snapshot(tmp_path)
    assert run(lambda: sections.main(False)).startswith("refused: README.md has the marks")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("left", ["pyvenv.cfg", "mine.txt"])
def test_make_clears_no_environment_of_the_users(left, tmp_path):
    """One that uv made has a `pyvenv.cfg` too. An installation that was killed is gone on with."""
    files.write(tmp_path / left, "the user's own")
    command = ["make", "--dry-run", "environment", f"LTCAM_VENV={tmp_path}"]
    done = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True, check=True)
    test, create = (line for line in done.stdout.splitlines() if line.startswith("test ! -e") or "venv --clear" in line)
    done = subprocess.run(["sh", "-c", test], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == f"{tmp_path} was not built by make: set LTCAM_VENV to another folder\n"
    (tmp_path / ".lock").touch()
    assert subprocess.run(["sh", "-c", test], check=False).returncode == 0 and f"touch {tmp_path}/.lock" in create

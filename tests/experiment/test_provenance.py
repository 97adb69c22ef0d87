"""Which commit a result names."""

import logging
import subprocess

import pytest
from typer.testing import CliRunner

from docs import explorer, sections
from ltcam.__main__ import app
from ltcam.engine.config import Config
from ltcam.errors import InputError
from ltcam.experiment import provenance, seeds
from ltcam.experiment.store import Store
from ltcam.experiment.study import Study
from ltcam.paper import make

STATUS = ("status", "--porcelain", "--", "ltcam", "notebooks", "data", "requirements.lock")


def git(folder, *arguments):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a commit, as if it were that of the code."""
    monkeypatch.delenv("GIT_DIR", raising=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "paper_values.csv").write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


def test_the_commit_is_that_of_the_checkout(checkout, tmp_path_factory, monkeypatch):
    commit = git(checkout, "rev-parse", "HEAD")
    assert provenance._git("rev-parse", "HEAD") == commit and provenance._git(*STATUS) == ""
    other = tmp_path_factory.mktemp("other")
    git(other, "init", "-q")
    for name, value in (("GIT_DIR", other / ".git"), ("GIT_WORK_TREE", other), ("GIT_INDEX_FILE", other / "index")):
        monkeypatch.setenv(name, str(value))
    assert provenance._git("rev-parse", "HEAD") == commit and provenance._git(*STATUS) == ""


def test_code_inside_another_repository_names_no_commit(checkout, monkeypatch, caplog):
    (checkout / "unpacked").mkdir()
    monkeypatch.setattr(provenance, "ROOT", checkout / "unpacked")
    assert provenance._git("rev-parse", "HEAD") is None and not caplog.messages


def test_a_changed_value_of_the_paper_is_dirty(checkout):
    (checkout / "data" / "paper_values.csv").write_text("2\n")
    assert "paper_values.csv" in provenance._git(*STATUS)


def test_a_repository_that_git_refuses_is_named(checkout, caplog):
    caplog.set_level(logging.WARNING)
    (checkout / ".git" / "HEAD").write_text("damaged")
    assert provenance._git("rev-parse", "HEAD") is None
    assert f"results will not name the commit of {checkout}: fatal: " in caplog.text


CUT = {"empty": b"", "head": b"na", "packed": b"\x1f\x8b\x08\x00cut o", "binary": b"\xff\xfe\x00", "quote": b'name,seed\n"1'}


@pytest.mark.parametrize("kind", CUT)
def test_results_that_were_cut_off_are_one_clear_error(kind, study, trained, tmp_path, monkeypatch):
    """Whoever reads them: the study, its tables, the golden check, the store, seeds, tries, the docs, the book."""
    monkeypatch.setattr(sections, "STUDIES", [study])
    tune = ["train", "--data", "voc2012", "--profile", "toy", "--tune", "--set", "epochs=1"]
    seed, exported = study.out / "seed0", tmp_path / "seeds"
    seeds.export(trained, "val", Config(), exported)

    def imported():
        (study.out / "counts.sqlite").unlink()
        return Store(study.out)

    readers = {
        study.out / "trainings.csv": lambda: Study("toy", "voc2012").trainings,
        seed / "labels.csv": lambda: study.read("labels.csv"),
        seed / "run.json": lambda: study._run("seed0"),
        study.out / "provenance.json": lambda: Store(study.out),
        study.out / "signs.csv.gz": lambda: make("signs", Study("toy", "voc2012", kept=True)),
        seed / "logits.val.csv.gz": imported,
        exported / "seeds.json": lambda: seeds.export(trained, "val", Config(), exported),
        study.out / "table3.csv": lambda: sections.kept("table3"),
        study.out / "tries.csv": lambda: CliRunner().invoke(app, tune, catch_exceptions=False),
        study.figures / "explorer.json": explorer.page,
    }
    provenance.write(study.out / "tries.csv", "try,mAP\nlr=1,0.5\n")
    provenance.write(study.figures / "explorer.json", "[]")
    for path, read in readers.items():
        before = path.read_bytes()
        path.write_bytes(CUT[kind])
        with pytest.raises(
            InputError, match=r"^[^\n]+ is damaged \([^\n]*\): restore it, or delete it, so that its contents are made"
        ):
            read()
        path.write_bytes(before)
        read()


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_store_that_was_cut_off(share, study):
    """One of zero bytes is made again from the exports."""
    path = study.out / "counts.sqlite"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    if share:
        with pytest.raises(InputError, match=r"counts\.sqlite is damaged \(.*\): delete it; it is made again from the exports"):
            Store(study.out)
        path.unlink()
    assert len(Store(study.out).find(part="val")) >= 2

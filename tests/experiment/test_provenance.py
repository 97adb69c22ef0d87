"""Which commit a result names."""

import logging
import subprocess

import pytest

from ltcam.experiment import provenance

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

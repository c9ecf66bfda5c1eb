"""The commit that a record names: this checkout's, and no other one's."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from questtrain.store import revision

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """``git(*words)`` in a checkout of another project that has questtrain installed inside."""
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")

    def git(*words):
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    installed = tmp_path / ".venv" / "revision.py"
    installed.parent.mkdir()
    installed.write_text("")
    monkeypatch.setattr(revision, "__file__", str(installed))
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "theirs")
    return git


def test_the_commit_of_the_checkout(project):
    project("add", ".")
    project("commit", "-q", "-m", "ours")
    assert revision.git_revision() == project("rev-parse", "HEAD")


def test_the_commit_of_another_project_is_not_ours(project):
    assert revision.git_revision() is None


def test_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert revision.git_revision() is None

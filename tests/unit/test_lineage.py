"""Lineage: the same things give the same digests, a change anywhere shows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from homeostat.config import ProjectConfig
from homeostat.lineage import git_state, make_lineage, requirements_sha256

CONFIG = ProjectConfig(name="digits", project="projects.digits.project:Digits", task="classification")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "dev.txt").write_text("numpy==2\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return tmp_path


def test_commit_and_dirty(checkout):
    commit, dirty = git_state(checkout)
    assert len(commit) == 40
    assert not dirty
    (checkout / "requirements" / "dev.txt").write_text("numpy==3\n")
    assert git_state(checkout) == (commit, True)


def test_a_new_file_makes_it_dirty(checkout):
    (checkout / "project.py").write_text("")
    assert git_state(checkout)[1]


def test_a_hook_of_another_checkout_does_not_matter(checkout, monkeypatch):
    before = git_state(checkout)
    monkeypatch.setenv("GIT_DIR", str(checkout / "elsewhere"))
    assert git_state(checkout) == before


def test_outside_git_and_without_git(tmp_path, checkout, monkeypatch):
    plain = tmp_path / "plain"
    plain.mkdir()
    monkeypatch.setenv("PATH", str(plain))
    assert git_state(checkout) == ("unknown", False)


def test_outside_git(tmp_path, monkeypatch):
    assert git_state(tmp_path) == ("unknown", False)


def test_requirements(tmp_path):
    assert requirements_sha256(tmp_path) == "unknown"
    folder = tmp_path / "requirements"
    folder.mkdir()
    (folder / "a.txt").write_text("x")
    one = requirements_sha256(tmp_path)
    (folder / "b.txt").write_text("y")
    two = requirements_sha256(tmp_path)
    (folder / "b.txt").rename(folder / "c.txt")
    assert len({one, two, requirements_sha256(tmp_path)}) == 3


def test_make_lineage(checkout):
    lineage = make_lineage("pipeline-1", "d" * 64, CONFIG, checkout, 3)
    assert (lineage.pipeline_id, lineage.dataset_sha256, lineage.parent_version) == ("pipeline-1", "d" * 64, 3)
    assert lineage.config_sha256 == CONFIG.sha256()
    assert lineage.requirements_sha256 == requirements_sha256(checkout)
    assert (lineage.git_commit, lineage.git_dirty) == git_state(checkout)

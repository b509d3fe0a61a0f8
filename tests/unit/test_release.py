"""packaging/release: what is not ready is named with its mend; what is ready gets the notes of its tag."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "packaging/release"
CHANGELOG = """# Changelog

## Unreleased

## 0.2.0 - 2026-11-24

### Added

- Something.

## 0.1.0 - 2026-01-01

- Something else.
"""


def git(project: Path, *arguments: str) -> None:
    settings = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *settings, *arguments], cwd=project, check=True, capture_output=True)


def commit(project: Path, **files: str) -> None:
    for name, text in files.items():
        (project / {"changelog": "CHANGELOG.md", "pyproject": "pyproject.toml"}[name]).write_text(text)
    git(project, "add", ".")
    git(project, "commit", "-m", "change")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("build/\n")
    commit(tmp_path, changelog=CHANGELOG, pyproject='[project]\nversion = "0.2.0"\n')
    git(tmp_path, "tag", "v0.1.0")
    return tmp_path


def release(project: Path, version: str = "0.2.0") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(PROGRAM), version, "--project", str(project)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_ready(checkout: Path) -> None:
    (checkout / "build").mkdir()
    (checkout / "build/apptainer-fleet-0.2.0-py3.11-x86_64.tar.gz.sha256").write_text(
        "abc  apptainer-fleet\n"
    )
    ended = release(checkout)
    assert ended.returncode == 0, ended.stderr
    assert "git tag --sign" in ended.stdout
    notes = (checkout / "build/release-notes.md").read_text()
    assert notes.startswith("apptainer-fleet 0.2.0\n\n### Added\n\n- Something.\n")
    assert notes.endswith("abc  apptainer-fleet\n")
    assert "else" not in notes
    tags = subprocess.run(["git", "tag"], cwd=checkout, capture_output=True, text=True, check=True).stdout
    assert tags == "v0.1.0\n"


def test_not_ready(checkout: Path) -> None:
    (checkout / "new").touch()
    for version, problem in {
        "0.2.0": "the checkout has changes",
        "0.1.0": "0.1.0 does not come after 0.1.0, which is tagged",
        "0.3.0": 'pyproject.toml: version is 0.2.0; set version = "0.3.0"',
        "next": "'next' is no version",
    }.items():
        ended = release(checkout, version)
        assert ended.returncode == 1
        assert problem in ended.stderr
    assert not (checkout / "build").exists()


def test_changelog(checkout: Path) -> None:
    assert "CHANGELOG.md: no section for 0.4.0; Unreleased is empty" in release(checkout, "0.4.0").stderr
    commit(checkout, changelog=CHANGELOG.replace("## Unreleased\n", "## Unreleased\n\n- New.\n"))
    assert "Unreleased has entries; move them to 0.2.0" in release(checkout).stderr
    assert "no section for 0.4.0; Unreleased has entries; rename it" in release(checkout, "0.4.0").stderr

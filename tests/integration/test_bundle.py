"""`make bundle`: a machine without network installs the project from the one archive, and from nothing else.

Needs root, for a network namespace in which there is not even a loopback, and an index to make the archive.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


def bundle() -> tuple[Path, str]:
    said = subprocess.run(
        [PROJECT / "packaging/bundle"], capture_output=True, text=True, check=True
    ).stdout.split()
    return PROJECT / said[-2], said[-1]


def offline(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command where there is no network and no package of this machine's user."""
    return subprocess.run(
        [
            "unshare",
            "--net",
            "env",
            "--ignore-environment",
            "PATH=/usr/bin:/bin",
            f"HOME={folder.parent}",
            *command,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def made() -> tuple[Path, str]:
    return bundle()


@pytest.fixture
def unpacked(made: tuple[Path, str], tmp_path: Path) -> Path:
    subprocess.run(["tar", "-xzf", made[0], "-C", tmp_path], check=True)
    (folder,) = tmp_path.iterdir()
    return folder


def test_installs_without_network(unpacked: Path) -> None:
    nobody = offline(unpacked, "python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 1))")
    assert "Network is unreachable" in nobody.stderr
    ended = offline(unpacked, "./install")
    assert ended.returncode == 0, ended.stderr
    valid = offline(unpacked, ".venv/bin/fleet", "validate", "-i", "inventories/example")
    # The example names a key that a site has to put there.
    assert (valid.returncode, valid.stdout.splitlines()[-1]) == (0, "Inventory: 1 warning."), valid.stderr
    assert "ansible-playbook [core " in offline(unpacked, ".venv/bin/ansible-playbook", "--version").stdout
    # `make` asks no index either.
    assert "Nothing to be done" in offline(unpacked, "make", "venv").stdout


def test_a_changed_file_is_refused(unpacked: Path) -> None:
    with (unpacked / "playbooks/site.yml").open("a") as file:
        file.write("\n")
    ended = offline(unpacked, "./install")
    assert ended.returncode == 1
    assert "./playbooks/site.yml: FAILED" in ended.stderr
    assert not (unpacked / ".venv").exists()


def test_a_wheel_more_is_refused(unpacked: Path) -> None:
    shutil.copy(next(unpacked.glob("wheels/*.whl")), unpacked / "wheels/more-1-py3-none-any.whl")
    ended = offline(unpacked, "./install")
    assert ended.returncode == 1
    assert "does not name" in ended.stderr
    assert not (unpacked / ".venv").exists()


def test_another_python_is_refused(unpacked: Path) -> None:
    (unpacked / "MADE_FOR").write_text("3.99 x86_64\n")
    sums = (unpacked / "SHA256SUMS").read_text()
    kept = [line for line in sums.splitlines() if not line.endswith("./MADE_FOR")]
    (unpacked / "SHA256SUMS").write_text("\n".join(kept) + "\n")
    ended = offline(unpacked, "./install")
    assert ended.returncode == 1
    assert "the bundle is for Python 3.99" in ended.stderr


def test_digest_is_said_and_the_same_again(made: tuple[Path, str]) -> None:
    archive, digest = made
    listed = Path(f"{archive}.sha256").read_text().split()
    assert listed == [digest, archive.name]
    assert bundle()[1] == digest

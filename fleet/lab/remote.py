"""Commands and files on one node over real SSH, as root or as a user of the lab."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fleet.errors import FleetError
from fleet.lab.model import Lab


class RemoteError(FleetError):
    """A command on a node exited non-zero."""

    def __init__(self, node: str, argv: Sequence[str], status: int, said: str) -> None:
        super().__init__(f"{node}: {shlex.join(argv)[:120]} exited {status}:\n    {said.strip()}")
        self.status = status
        self.said = said


def run_on(
    lab: Lab, node: str, argv: Sequence[str | Path], *, user: str = "root", stdin: str | None = None
) -> str:
    """Run a program on a node, without a shell's interpretation of its arguments.

    :returns: its standard output.
    :raises RemoteError: it exits non-zero, or SSH cannot reach the node (status 255).
    """
    words = [str(word) for word in argv]
    result = subprocess.run(
        [*_ssh("ssh", lab), "-l", user, node, shlex.join(words)],
        input=stdin,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise RemoteError(node, words, result.returncode, result.stderr + result.stdout)
    return result.stdout


def fetch(lab: Lab, node: str, source: str, target: Path, *, user: str = "root") -> None:
    """Copy a file from a node to this machine.

    :raises RemoteError: it cannot be read there or written here.
    """
    _copy(lab, node, f"{user}@{node}:{source}", str(target))


def send(lab: Lab, node: str, source: Path, target: str, *, user: str = "root") -> None:
    """Copy a file from this machine to a node.

    :raises RemoteError: it cannot be read here or written there.
    """
    _copy(lab, node, str(source), f"{user}@{node}:{target}")


def _copy(lab: Lab, node: str, source: str, target: str) -> None:
    argv = [*_ssh("scp", lab), "-q", source, target]
    result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RemoteError(node, ["scp", source, target], result.returncode, result.stderr)


def _ssh(program: str, lab: Lab) -> list[str]:
    return [program, "-F", str(lab.home / "ssh_config"), "-o", "BatchMode=yes"]

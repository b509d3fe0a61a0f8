"""Running a scheduler's commands: on this machine, or over SSH on the one that has them."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Seconds for a command of a scheduler; one that takes longer is taken for one that did not answer.
TIMEOUT = 60

Run = Callable[[list[str]], tuple[int, str, str]]


@dataclass(frozen=True, slots=True)
class Host:
    """Where the commands are.

    :param ssh: ``ssh`` with its options and the host; none for this machine.
    :param become: whether they are run through ``sudo``.
    """

    ssh: tuple[str, ...] = ()
    become: bool = False

    def run(self, argv: Sequence[str]) -> tuple[int, str, str]:
        """Return exit code (124 if it took too long, 127 without a program), standard output and error."""
        words = [*(["sudo", "--non-interactive"] if self.become else []), *argv]
        command = [*self.ssh, shlex.join(words)] if self.ssh else words
        try:
            ended = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except FileNotFoundError:
            return 127, "", f"{command[0]}: there is no such program"
        except subprocess.TimeoutExpired:
            return 124, "", f"no answer in {TIMEOUT} s"
        return ended.returncode, ended.stdout, ended.stderr

"""Running a scheduler's commands: on this machine, or over SSH on the one that has them."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Seconds for a command of a scheduler; one that takes longer is taken for one that did not answer.
TIMEOUT = 60

Run = Callable[[list[str]], tuple[int, str, str]]


class Paced:
    """Commands of Slurm so far apart that slurmctld sees at most *most* calls of ours in a second.

    A command that shows nodes or jobs makes two, as it asks for partitions, too; the others make one.
    """

    def __init__(self, run: Run, most: int = 3, sleep: Callable[[float], None] = time.sleep) -> None:
        self._run, self._most, self._sleep = run, most, sleep
        self._made: list[tuple[float, int]] = []

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        calls = 1 if argv[1] in ("update", "reboot") else 2
        while sum(made for _, made in self._recent()) + calls > self._most:
            self._sleep(0.05)
        try:
            return self._run(argv)
        finally:
            # From its end on, as nobody knows when within it the calls were made.
            self._made.append((time.monotonic(), calls))

    def _recent(self) -> list[tuple[float, int]]:
        self._made = [(at, made) for at, made in self._made if at > time.monotonic() - 1]
        return self._made


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

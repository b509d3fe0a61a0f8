"""docs/tutorial.md: every command is run, in its order, and says what stands below it.

Needs root, and takes the lab of inventories/lab as it is, up or not there. It ends with the lab down.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
TUTORIAL = PROJECT / "docs/tutorial.md"
#: Stands between the outputs of two commands, with the exit status before it.
MARK = "--- end of command:"


@dataclass(frozen=True)
class Step:
    """A command and the lines of output below it; without any, its output is not compared."""

    command: str
    expected: tuple[str, ...]

    def fits(self, output: str) -> bool:
        """Whether an output is as expected: `…` is anything, alone in a line any number of lines."""
        lines = [
            r"(.*\n)*?" if line == "…" else r".*".join(map(re.escape, line.split("…"))) + r" *\n"
            for line in self.expected
        ]
        said = f"{output.strip()}\n"
        return not lines or re.fullmatch("".join(lines), said) is not None


def steps(text: str) -> list[Step]:
    """The commands of all console blocks."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for piece in re.split(r"^[#$] ", block, flags=re.MULTILINE)[1:]:
            command, *expected = piece.splitlines()
            found.append(Step(command, tuple(expected)))
    return found


STEPS = steps(TUTORIAL.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What each command said, until one ended with another status than 0."""
    lines = (f"{{\n{step.command}\n}} || exit\necho '{MARK}'" for step in STEPS)
    ended = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=1200,
    )
    return ended.stdout.split(f"{MARK}\n")


def test_output_is_compared() -> None:
    """The comparison can fail."""
    step = Step("true", ("…", "c1 … changed=0 …"))
    assert step.fits("\nany\nthing\nc1 : ok=3 changed=0 failed=0\n\n")
    assert not step.fits("any\nthing\nc1 : ok=3 changed=1 failed=0\n")
    assert steps("```console\n# a\nb\n$ c\n```\n") == [Step("a", ("b",)), Step("c", ())]


@pytest.mark.parametrize("number", range(len(STEPS)), ids=[step.command[:50] for step in STEPS])
def test_command(said: list[str], number: int) -> None:
    """It ends with status 0, and says what the tutorial says."""
    step = STEPS[number]
    assert number < len(said), f"not run: {step.command}"
    assert number < len(said) - 1, f"{step.command} failed:\n{said[number]}"
    assert step.fits(said[number]), f"{step.command} said:\n{said[number]}"

"""What a check says: one finding per mistake, with the place and the mend."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


class Severity(enum.StrEnum):
    """``ERROR`` stops a run; ``WARNING`` is shown and does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake in an inventory.

    ``rule`` is a short stable name for programs, ``what`` says what is wrong and ``mend`` what to do about
    it; ``file`` and ``line`` (from 1) say where it is written, as far as that is known; ``where`` names the
    group or the hosts (a ClusterShell hostlist) it concerns, e.g. ``group all`` or ``host c[1-2]``.
    """

    severity: Severity
    rule: str
    what: str
    mend: str = ""
    variable: str | None = None
    file: Path | None = None
    line: int | None = None
    where: str = ""

    def __str__(self) -> str:
        """The finding as people read it: place and mistake on the first line, the mend below it."""
        subject = f"variable {self.variable}" if self.variable else ""
        if self.where:
            subject = f"{subject} ({self.where})" if subject else self.where
        head = " ".join(part for part in (self.severity.upper(), self._place()) if part)
        text = ": ".join(part for part in (head, subject, self.what) if part)
        return f"{text}\n  {self.mend}" if self.mend else text

    def as_dict(self) -> dict[str, str | int | None]:
        """The finding as JSON-ready data; paths as strings."""
        return {
            "severity": self.severity.value,
            "rule": self.rule,
            "variable": self.variable,
            "file": str(self.file) if self.file else None,
            "line": self.line,
            "where": self.where,
            "what": self.what,
            "mend": self.mend,
            "text": str(self),
        }

    def _place(self) -> str:
        if self.file is None:
            return ""
        path = os.path.relpath(self.file) if self.file.is_relative_to(Path.cwd()) else str(self.file)
        return path if self.line is None else f"{path}:{self.line}"


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Each finding once, errors before warnings, then in the order in which the files are read."""
    return sorted(
        set(findings),
        key=lambda f: (f.severity is Severity.WARNING, str(f.file or ""), f.line or 0, str(f)),
    )


def report(findings: Sequence[Finding]) -> str:
    """All findings, one block each, and a last line that counts them."""
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    counts = [(errors, "error"), (len(findings) - errors, "warning")]
    total = ", ".join(f"{n} {word}{'' if n == 1 else 's'}" for n, word in counts if n) or "nothing to mend"
    return "\n".join([*map(str, findings), f"Inventory: {total}."])

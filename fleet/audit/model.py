"""What an audit has found, as data: findings and facts, each with the nodes that they are of."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from module_utils import node_audit
from module_utils.node_audit import SEVERITIES

#: The version of a node that has not said one.
UNKNOWN = "unknown"


class Finding(node_audit.Finding):
    """One thing that is wrong, as a node has said it."""

    __slots__ = ()

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Finding:
        """From what a node has said. What it says beyond that is not taken. Raises TypeError."""
        known: dict[str, Any] = {
            name: int(data["line"]) if name == "line" else str(data[name])
            for name in cls._fields
            if name in data
        }
        if known.get("severity") not in SEVERITIES:
            known["severity"] = SEVERITIES[0]
        return cls(**known)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What stays the same while it is not mended, whatever figures are in its message."""
        return self.source, self.rule, self.subject, self.file

    @property
    def place(self) -> str:
        """``FILE:LINE``, as far as it is about one."""
        return f"{self.file}:{self.line}" if self.line else self.file

    @property
    def rank(self) -> int:
        """To order by: the worst first, what is waived last."""
        return len(SEVERITIES) if self.waived else SEVERITIES.index(self.severity)

    @property
    def counts(self) -> str:
        """The severity that it counts with: its own, or ``waived``."""
        return "waived" if self.waived else self.severity


def unreachable() -> Finding:
    """The finding for a node that could not be asked."""
    mend = "see to the node, then audit it again"
    return Finding("audit", "unreachable", "error", "node", "could not be reached", mend)


@dataclass
class Audit:
    """One audit.

    :param at: when it began, in seconds since the epoch.
    :param found: finding → the nodes that have it.
    :param facts: node → what it is, as text by name. Nodes that said nothing are not in it.
    :param stores: places with images, each with its ``nodes``; shared ones stand once.
    """

    at: float
    nodes: set[str]
    found: dict[Finding, set[str]] = field(default_factory=dict)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    stores: list[dict[str, Any]] = field(default_factory=list)
    number: int = 0

    def add(self, finding: Finding, nodes: Iterable[str]) -> None:
        """Take in a finding of some nodes."""
        self.found.setdefault(finding, set()).update(nodes)

    @property
    def unreachable(self) -> set[str]:
        """The nodes that could not be asked."""
        return self.found.get(unreachable(), set())

    @property
    def ordered(self) -> list[tuple[Finding, set[str]]]:
        """Findings and nodes: the worst first, and what many nodes have before what few have."""
        return sorted(
            self.found.items(), key=lambda one: (one[0].rank, -len(one[1]), one[0].key, one[0].line)
        )

    def tally(self) -> dict[str, int]:
        """How many findings there are by severity, and ``waived``; each counted once for each node."""
        counts = dict.fromkeys((*SEVERITIES, "waived"), 0)
        for finding, nodes in self.found.items():
            counts[finding.counts] += len(nodes)
        return counts

    def bad_nodes(self) -> set[str]:
        """The nodes with an error or a warning that is not waived."""
        bad = [nodes for finding, nodes in self.found.items() if finding.counts in SEVERITIES[:2]]
        return set().union(*bad)

    @property
    def when(self) -> str:
        """When it began, for people."""
        return moment(self.at)


@dataclass(frozen=True)
class Summary:
    """An audit in numbers: nodes by version of Apptainer, and what :meth:`Audit.tally` gives."""

    at: float
    versions: Mapping[str, int]
    counts: Mapping[str, int]

    @classmethod
    def of(cls, audit: Audit) -> Summary:
        """Of an audit that is there."""
        versions = Counter(facts.get("apptainer", UNKNOWN) for facts in audit.facts.values())
        return cls(audit.at, versions, audit.tally())


def moment(at: float) -> str:
    """A time as people read it, in the time zone of this machine."""
    return datetime.datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")

"""The same command on nodes of a lab, equal answers folded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fleet import fanout
from fleet.hostlist import fold
from fleet.lab.model import Lab


@dataclass(frozen=True)
class FanoutResult:
    """What came back.

    :param outputs: (hostlist, text) for each different output, standard error included.
    :param failures: (hostlist, exit status) for each status that is not 0; 255 is SSH's own failure.
    """

    outputs: list[tuple[str, str]]
    failures: list[tuple[str, int]]

    @property
    def worst(self) -> int:
        """The highest exit status of any node; 0 when all succeeded."""
        return max((code for _, code in self.failures), default=0)


def run_on_nodes(lab: Lab, nodes: Iterable[str], command: str, user: str) -> FanoutResult:
    """Run a shell command line as a user on the nodes, side by side.

    :param nodes: names of nodes of the lab.
    """
    options = ["-F", str(lab.home / "ssh_config")]
    answers = fanout.run_on_nodes(nodes, command, options=options, user=user)
    texts: dict[str, list[str]] = {}
    statuses: dict[int, list[str]] = {}
    for name, answer in answers.items():
        if answer.text:
            texts.setdefault(answer.text, []).append(name)
        if answer.status:
            statuses.setdefault(answer.status, []).append(name)
    return FanoutResult(
        sorted((fold(names), text) for text, names in texts.items()),
        [(fold(names), status) for status, names in statuses.items()],
    )

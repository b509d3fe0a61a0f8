"""The same command on many nodes, through ClusterShell over the lab's SSH settings."""

from __future__ import annotations

from dataclasses import dataclass

from ClusterShell.NodeSet import NodeSet
from ClusterShell.Task import task_self

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


def run_on_nodes(lab: Lab, nodes: NodeSet, command: str, user: str) -> FanoutResult:
    """Run a shell command line as a user on the nodes, side by side.

    :param nodes: names of nodes of the lab.
    """
    task = task_self()
    task.set_info("ssh_options", f"-F {lab.home}/ssh_config")
    task.set_info("ssh_user", user)
    task.run(command, nodes=nodes, stderr=False)
    outputs = [
        (str(NodeSet.fromlist(names)), bytes(buffer).decode(errors="replace"))
        for buffer, names in task.iter_buffers()
    ]
    failures = [(str(NodeSet.fromlist(names)), code) for code, names in task.iter_retcodes() if code != 0]
    return FanoutResult(sorted(outputs), failures)

"""The nodes, their health program, and what Slurm says of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

COMPUTE = ("c1", "c2")
#: What slurmd runs.
PROGRAM = "/usr/lib/apptainer-fleet/node-health"
#: What people and rollouts run; it changes nothing.
LOOK = f"/usr/bin/python3 -I -B {PROGRAM}.pyz --json"

Node = Callable[[str], Host]


class Slurm:
    """Nodes as slurmctld has them."""

    def __init__(self, head: Host) -> None:
        self._head = head

    def node(self, name: str) -> dict[str, Any]:
        """Return a node's data: ``state``, a list, ``reason``, ``reason_set_by_user``."""
        said = self._head.check_output("scontrol show node %s --json", name)
        data: dict[str, Any] = json.loads(said)["nodes"][0]
        return data

    def drained(self, name: str) -> str:
        """Return the Reason of a drain, empty if the node is not drained."""
        data = self.node(name)
        return str(data["reason"]) if "DRAIN" in data["state"] else ""

    def wait_until(self, done: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for something to become true."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, {name: self.node(name)["state"] for name in COMPUTE}
            time.sleep(0.5)

    def quiet(self) -> None:
        """Have both nodes idle."""
        self.wait_until(lambda: all(self.node(name)["state"] == ["IDLE"] for name in COMPUTE))


@pytest.fixture(scope="session")
def slurm(head: Host) -> Slurm:
    """The cluster as its controller sees it."""
    return Slurm(head)

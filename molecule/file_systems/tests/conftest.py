"""Slurm as its controller sees it, and a file system that stops to answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from testinfra.host import Host

PROGRAM = "/usr/lib/apptainer-fleet/node-health"
LOOK = f"/usr/bin/python3 -I -B {PROGRAM}.pyz --json"
SCRATCH, HOME = "/lustre/scratch", "/lustre/home"


class Slurm:
    """Nodes as slurmctld has them."""

    def __init__(self, head: Host) -> None:
        self._head = head

    def node(self, name: str) -> dict[str, Any]:
        said = self._head.check_output("scontrol show node %s --json", name)
        data: dict[str, Any] = json.loads(said)["nodes"][0]
        return data

    def reason(self, name: str) -> str:
        """Return the Reason of a drain, empty if there is none."""
        data = self.node(name)
        return str(data["reason"]) if "DRAIN" in data["state"] else ""

    def wait_until(self, done: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, {name: self.node(name)["state"] for name in ("c1", "c2")}
            time.sleep(0.5)

    def quiet(self) -> None:
        """Have both nodes idle."""
        self.wait_until(lambda: all(self.node(name)["state"] == ["IDLE"] for name in ("c1", "c2")))


@pytest.fixture(scope="session")
def slurm(head: Host) -> Slurm:
    return Slurm(head)


@pytest.fixture(scope="session")
def c1(node: Callable[[str], Host]) -> Host:
    """The node that has Lustre; `host.run` there is bounded by `timeout` where something may hang."""
    return node("c1")


@pytest.fixture
def hung(c1: Host) -> Iterator[None]:
    """Scratch is mounted, and its server does not answer any more: a real file system that hangs."""

    c1.check_output(f"ls {SCRATCH}")
    pid = c1.check_output("pgrep -f '[b]indfs /srv/lustre_client_sim/scratch '")
    c1.check_output(f"kill -STOP {pid}")
    try:
        yield
    finally:
        c1.check_output(f"kill -CONT {pid}")

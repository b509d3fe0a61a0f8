"""The nodes of the cluster, and what happens on them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from testinfra.host import Host

COMPUTE = ("c1", "c2")

Node = Callable[[str], Host]


@pytest.fixture(scope="session")
def as_alice() -> Callable[..., str]:
    """Run a shell command as an ordinary user in her home and return what it prints; it must succeed."""

    def run(host: Host, command: str) -> str:
        return host.check_output("runuser --login alice --command %s", command)

    return run


@pytest.fixture(scope="session")
def states(head: Host) -> Callable[[], dict[str, str]]:
    """Return the state of each node as Slurm sees it, once none is on its way to another."""

    def look() -> dict[str, str]:
        for _ in range(60):
            lines = head.check_output("sinfo --noheader --Node --format='%N %T'").splitlines()
            now = dict(line.split() for line in lines)
            if not any(state.startswith(("unknown", "completing")) or "*" in state for state in now.values()):
                break
            time.sleep(0.5)
        return now

    return look

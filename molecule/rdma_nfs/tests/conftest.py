"""The machines, their user, and an image with the programs of rdma-core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

IMAGE = "/tmp/verbs.sif"
SERVER = "10.77.92.11"
SCENARIO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def alice(head: Host) -> Callable[[str], Any]:
    """Run a shell command as a user on the login node; return how it ended."""
    return lambda command: head.run("runuser --login alice --command %s || exit 1", command)


@pytest.fixture(scope="session")
def image(head: Host, alice: Callable[[str], Any]) -> str:
    """The image, built by a user and brought to both machines."""
    head.check_output("printf %%s %s > /home/alice/verbs.def", (SCENARIO / "verbs.def").read_text())
    built = alice(
        "apptainer --quiet build --force verbs.sif verbs.def"
        f" && salloc --quiet --nodes=2 sbcast --force verbs.sif {IMAGE}"
    )
    assert built.succeeded, built.stderr
    return IMAGE


@pytest.fixture(scope="session")
def pair(alice: Callable[[str], Any]) -> Callable[..., Any]:
    """Run a server on v1 and, until it succeeds, a client on v2, in one job; *within* is before each."""

    def run(server: str, client: str, within: str = "") -> Any:
        script = (
            f"if [ $SLURMD_NODENAME = v1 ]; then {server}; else"
            f" for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5; {client} && exit 0; done; exit 1; fi"
        )
        return alice(
            f"srun --nodelist=v[1-2] --ntasks-per-node=1 --kill-on-bad-exit {within} sh -c '{script}'"
        )

    return run

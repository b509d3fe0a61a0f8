"""The cluster, its users, and an image that one of them built; what is left on a node of a user."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from testinfra.host import Host

COMPUTE = ("c1", "c2")
IMAGE = "/tmp/alice.sif"
#: Made by images.yml, which has put it on the compute nodes: an MPI program, an OpenMP program.
MPI_IMAGE = "/opt/containers/mpi_1.0.sif"
JOBS = "/var/lib/apptainer-fleet/jobs"
SCENARIO = Path(__file__).resolve().parent.parent

#: Processes, FUSE mounts and folders of jobs, one per line; nothing if nothing is left.
LEFT = f"""\
ps -u alice -o pid=,args= | grep -v -e '(sd-pam)' -e 'systemd --user' || true
grep -w user_id=$(id -u alice) /proc/self/mountinfo || true
ls {JOBS}
ls -A {JOBS}/.gone
"""


def wait_for(done: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something to become true."""
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.3)


@pytest.fixture(scope="session")
def alice(head: Host) -> Callable[..., str]:
    """Run a shell command as an ordinary user on the login node; it must succeed. Return what it prints."""
    return lambda command: head.check_output("runuser --login alice --command %s", command)


@pytest.fixture(scope="session")
def image(head: Host, alice: Callable[..., str]) -> str:
    """An image that alice built, on both compute nodes: busybox."""
    head.check_output("printf %%s %s > /home/alice/alice.def", (SCENARIO / "alice.def").read_text())
    alice(
        "apptainer --quiet build --force alice.sif alice.def"
        f" && salloc --quiet --nodes=2 sbcast --force alice.sif {IMAGE}"
    )
    return IMAGE


@pytest.fixture
def left(node: Callable[[str], Host]) -> Callable[..., dict[str, str]]:
    """What is left of alice on each node, once the hooks had their time; nothing is wanted."""

    def look(*names: str) -> dict[str, str]:
        until = time.monotonic() + 60
        while True:
            found = {name: node(name).check_output(LEFT) for name in names or COMPUTE}
            if not any(found.values()) or time.monotonic() > until:
                return found
            time.sleep(0.5)

    return look


@pytest.fixture
def finished(head: Host) -> Callable[[str], None]:
    """Wait until no job is there any more, and none of the nodes completes one."""

    def wait(seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while head.check_output("squeue --noheader") or "comp" in head.check_output("sinfo --noheader"):
            assert time.monotonic() < until, head.check_output("squeue; sinfo")
            time.sleep(0.3)

    return wait

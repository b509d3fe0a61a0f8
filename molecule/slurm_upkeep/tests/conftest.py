"""The cluster, an ordinary user of it, and a job that tells whether it lived on."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest
from testinfra.host import Host

from module_utils import slurm_nodes

CONTROLLERS, COMPUTE = ("ctl1", "ctl2"), ("c1", "c2")
NODES = (*CONTROLLERS, "db", "login", *COMPUTE)
#: Of an administrator, who drained c2 before all this.
REASON = "PSU 2 of c2 beeps; ticket #4711, J. Doe"

Node = Callable[[str], Host]


def wait_for(done: Callable[[], object], seconds: float = 60, say: Callable[[], object] = str) -> None:
    """Wait for something to become true."""
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, say()
        time.sleep(0.5)


@pytest.fixture(scope="session")
def login(node: Node) -> Host:
    """Where users are."""
    return node("login")


@pytest.fixture(scope="session")
def alice(login: Host) -> Callable[[str], str]:
    """Run a shell command as an ordinary user on the login node; it must succeed. Return what it prints."""
    return lambda command: login.check_output("runuser --login alice --command %s", command).strip()


class Job:
    """A container job on c1 that counts, until it is let go, and ends with exit code 0."""

    IMAGE = "/var/tmp/box.sif"
    SCRIPT = f"""\
#!/bin/sh
exec apptainer exec {IMAGE} /bin/busybox sh -c '
    n=0
    while [ ! -e /tmp/go ]; do n=$((n + 1)); echo $n > /tmp/count; /bin/busybox sleep 0.2; done'
"""

    def __init__(self, node: Node, alice: Callable[[str], str]) -> None:
        self._c1, self._alice = node("c1"), alice
        self._c1.check_output("rm -f /tmp/go /tmp/count")
        alice(f"cat > job.sh <<'END'\n{self.SCRIPT}END")
        self.number = alice("sbatch --parsable --nodelist=c1 --output=/dev/null job.sh")
        wait_for(self._counted)

    def _counted(self) -> int:
        # It may be empty for a moment.
        return int(self._c1.run("cat /tmp/count").stdout.strip() or 0)

    def lives(self) -> bool:
        """Whether it goes on counting, and Slurm knows it."""
        before = self._counted()
        wait_for(lambda: self._counted() > before, 20, lambda: self._alice("squeue; sinfo"))
        return self._alice(f"squeue --noheader --jobs={self.number} --format=%T") == "RUNNING"

    def let_go(self) -> str:
        """Let it end; return its state and exit code as slurmdbd has them."""
        self._c1.check_output("touch /tmp/go")
        show = f"sacct --noheader --parsable2 --allocations --jobs={self.number} --format=State,ExitCode"
        wait_for(lambda: "RUNNING" not in self._alice(show), 90, lambda: self._alice("squeue; sinfo"))
        return self._alice(show)


@pytest.fixture(scope="session")
def image(alice: Callable[[str], str]) -> str:
    """An image on both compute nodes."""
    make = "mkdir -p box/bin && cp /bin/busybox box/bin/ && apptainer --quiet build --force box.sif box"
    alice(f"{make} && salloc --quiet --nodes=2 sbcast --force box.sif {Job.IMAGE}")
    return Job.IMAGE


@pytest.fixture
def job(node: Node, alice: Callable[[str], str], image: str) -> Iterator[Job]:
    """A job that runs."""
    yield Job(node, alice)
    node("c1").check_output("touch /tmp/go")


@pytest.fixture
def drained(login: Host) -> Iterator[Callable[[], str]]:
    """Have c2 drained by an administrator; yields what says its state and Reason."""
    login.check_output("scontrol update nodename=c2 state=drain reason=%s", REASON)
    yield lambda: login.check_output("sinfo --noheader --Node --partition=main --nodes=c2 --format='%%T %%E'")
    login.check_output("scontrol update nodename=c2 state=resume")


@pytest.fixture
def said_the_same(login: Host) -> Callable[[], set[str]]:
    """Read the nodes as each data parser of this Slurm says them; return the parsers, of which all agree."""

    def read() -> set[str]:
        found = re.findall(r"v0\.0\.\d+", login.run("scontrol --json=list").stdout)
        said = [login.check_output("scontrol show node c1,c2 --json=%s", parser) for parser in found]
        nodes = [slurm_nodes.parse(text) for text in said]
        assert list(nodes[0]) == list(COMPUTE) and all(other == nodes[0] for other in nodes), found
        return set(found)

    return read


@pytest.fixture
def idle(login: Host) -> Callable[[], None]:
    """Wait until both compute nodes are idle."""

    def wait() -> None:
        show = "sinfo --noheader --Node --partition=main --format='%N %T'"
        wait_for(
            lambda: login.run(show).stdout.split() == ["c1", "idle", "c2", "idle"],
            90,
            lambda: login.run("sinfo --Node --long").stdout,
        )

    return wait

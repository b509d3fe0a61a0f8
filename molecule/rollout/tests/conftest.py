"""The nodes, the command, and jobs in containers on all nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

COMPUTE = ("c1", "c2", "c3")
INVENTORY = Path(os.environ.get("MOLECULE_SCENARIO_DIRECTORY", Path.cwd())) / "inventory"
IMAGE = "/var/tmp/job.sif"
DEFINITION = """\
Bootstrap: scratch

%setup
    mkdir -p "${APPTAINER_ROOTFS}/bin"
    cp /bin/busybox "${APPTAINER_ROOTFS}/bin/busybox"
    for name in sh sleep echo; do ln -s busybox "${APPTAINER_ROOTFS}/bin/$name"; done
"""
#: As many nodes as there can be at a time, and no needless waiting.
HURRY = ("--max-unavailable", "2", "--gather", "2", "--poll", "1")


class Fleet:
    """The command `fleet rollout`, with a journal of its own."""

    def __init__(self, state: Path) -> None:
        self._where = ["-i", str(INVENTORY), "--state", str(state)]

    def argv(self, *arguments: str) -> list[str]:
        """Return the command line."""
        return [str(Path(sys.executable).parent / "fleet"), "rollout", *arguments, *self._where]

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        ended = subprocess.run(
            self.argv(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        print(ended.stdout)
        return ended

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it in a process group of its own."""
        return subprocess.Popen(
            self.argv(*arguments),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def status(self) -> dict[str, Any]:
        """What `status --json` says; empty while there is nothing to say."""
        ended = subprocess.run(
            self.argv("status", "--json"),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return json.loads(ended.stdout) if ended.stdout else {}


@pytest.fixture(scope="session")
def node(lab_state: Path) -> Callable[[str], Host]:
    """Return a node by its name."""
    return lambda name: testinfra.get_host(f"ssh://{name}", ssh_config=str(lab_state / "ssh_config"))


@pytest.fixture(scope="session")
def head(node: Callable[[str], Host]) -> Host:
    """The controller, which is the login node too."""
    return node("head")


@pytest.fixture(scope="session")
def fleet(lab_state: Path) -> Fleet:
    """The command; what it writes goes away with the lab."""
    return Fleet(lab_state / "rollout")


@pytest.fixture(scope="session")
def as_alice(head: Host) -> Callable[[str], str]:
    """Run a shell command on the login node as an ordinary user; it must succeed."""
    return lambda command: head.check_output("runuser --login alice --command %s", command)


@pytest.fixture(scope="session")
def image(as_alice: Callable[[str], str]) -> str:
    """An image on all nodes."""
    as_alice(f"cat > job.def <<'END'\n{DEFINITION}END\napptainer --quiet build --force job.sif job.def")
    as_alice(f"salloc --quiet --nodes=3 sbcast --force job.sif {IMAGE}")
    return IMAGE


@pytest.fixture
def jobs(head: Host, as_alice: Callable[[str], str], image: str) -> Iterator[Callable[[], list[str]]]:
    """A container job on each node, running; yields what waits for their ends and says how they were."""
    script = f"apptainer exec {image} sh -c 'sleep 20; echo done'"
    submit = "sbatch --parsable --requeue --output=/dev/null"
    numbers = [as_alice(f'{submit} --nodelist={name} --wrap="{script}"').strip() for name in COMPUTE]
    listed = ",".join(numbers)

    def states() -> list[str]:
        return head.check_output("squeue --noheader --states=all --jobs=%s --format=%%T", listed).split()

    deadline = time.monotonic() + 30
    while set(states()) != {"RUNNING"}:
        assert time.monotonic() < deadline, states()
        time.sleep(0.5)

    def ends() -> list[str]:
        deadline = time.monotonic() + 60
        while set(states()) & {"RUNNING", "COMPLETING", "PENDING"}:
            assert time.monotonic() < deadline, states()
            time.sleep(1)
        shown = [head.check_output("scontrol show job --oneliner %s", number) for number in numbers]
        wanted = ("JobState=", "Restarts=", "ExitCode=")
        return [" ".join(word for word in text.split() if word.startswith(wanted)) for text in shown]

    yield ends


@pytest.fixture
def versions(node: Callable[[str], Host]) -> Callable[[], dict[str, str]]:
    """The version of Apptainer on each node, as users get it."""
    return lambda: {name: node(name).check_output("apptainer --version").split()[-1] for name in COMPUTE}


@pytest.fixture
def slurm(head: Host) -> Callable[[], dict[str, tuple[str, str]]]:
    """State and Reason of each node, as Slurm has it."""

    def look() -> dict[str, tuple[str, str]]:
        lines = head.check_output("sinfo --noheader --Node --format='%N|%T|%E'").splitlines()
        return {name: (state, reason) for name, state, reason in (line.split("|", 2) for line in lines)}

    return look

"""Fixtures of scenarios with rollouts: the command, container jobs on all compute nodes, what Slurm says."""

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
from testinfra.host import Host

COMPUTE = ("c1", "c2", "c3")
INVENTORY = Path(os.environ.get("MOLECULE_SCENARIO_DIRECTORY", Path.cwd())) / "inventory"
IMAGE = "/var/tmp/job.sif"
GO = "/var/tmp/go"
DEFINITION = """\
Bootstrap: scratch

%setup
    mkdir -p "${APPTAINER_ROOTFS}/bin"
    cp /bin/busybox "${APPTAINER_ROOTFS}/bin/busybox"
    for name in sh sleep echo id; do ln -s busybox "${APPTAINER_ROOTFS}/bin/$name"; done
"""
#: As many nodes as there can be at a time, and no needless waiting.
HURRY = ("--max-unavailable", "2", "--gather", "2", "--poll", "1")


class Fleet:
    """The commands `fleet rollout` and `fleet provision`, with a journal of their own.

    :param program: what stands for `fleet`.
    """

    def __init__(self, state: Path, *program: str) -> None:
        self.state = state
        self._program = program or (str(Path(sys.executable).parent / "fleet"),)

    def argv(self, *arguments: str) -> list[str]:
        """Return the command line; further inventories count more than the scenario's.

        A saved plan names its inventories.
        """
        group = [] if arguments[0] == "provision" else ["rollout"]
        command, *rest = arguments
        where = [] if "--plan" in arguments else ["-i", str(INVENTORY)]
        where += ["--state", str(self.state)]
        return [*self._program, *group, command, *where, *rest]

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

    def begin(self, output: Path, *arguments: str) -> subprocess.Popen[str]:
        """Start it in a process group of its own; what it says goes into a file."""
        return subprocess.Popen(
            self.argv(*arguments),
            stdout=output.open("w"),
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


class Jobs:
    """A container job on each node, which runs until it is let go."""

    def __init__(
        self, head: Host, node: Callable[[str], Host], as_alice: Callable[[str], str], image: str
    ) -> None:
        self._head, self._node = head, node
        for name in COMPUTE:
            node(name).check_output("rm -f %s", GO)
        script = f"apptainer exec {image} sh -c 'until [ -e {GO} ]; do sleep 1; done'"
        submit = "sbatch --parsable --requeue --output=/dev/null"
        self.numbers = {
            name: as_alice(f'{submit} --nodelist={name} --wrap="{script}"').strip() for name in COMPUTE
        }
        deadline = time.monotonic() + 60
        while set(self.states().values()) != {"RUNNING"}:
            assert time.monotonic() < deadline, self.states()
            time.sleep(0.5)

    def states(self) -> dict[str, str]:
        """The state of the job of each node."""
        listed = ",".join(self.numbers.values())
        lines = self._head.check_output("squeue --noheader --states=all --jobs=%s --format='%%i %%T'", listed)
        states = dict(line.split() for line in lines.splitlines())
        return {name: states.get(number, "gone") for name, number in self.numbers.items()}

    def let_go(self, name: str) -> None:
        """Let the job of a node come to its end."""
        self._node(name).check_output("touch %s", GO)

    def ends(self) -> list[str]:
        """Wait for all of them, and say how each was."""
        for name in COMPUTE:
            self.let_go(name)
        deadline = time.monotonic() + 60
        while set(self.states().values()) & {"RUNNING", "COMPLETING", "PENDING"}:
            assert time.monotonic() < deadline, self.states()
            time.sleep(1)
        wanted = ("JobState=", "Restarts=", "ExitCode=")
        shown = [self._head.check_output("scontrol show job --oneliner %s", n) for n in self.numbers.values()]
        return [" ".join(word for word in text.split() if word.startswith(wanted)) for text in shown]


@pytest.fixture
def jobs(
    head: Host, node: Callable[[str], Host], as_alice: Callable[[str], str], image: str
) -> Iterator[Jobs]:
    """Jobs on all nodes, gone at the end."""
    running = Jobs(head, node, as_alice, image)
    yield running
    head.check_output("scancel --quiet " + " ".join(running.numbers.values()))


def work(
    controller: subprocess.Popen[str],
    slurm: Callable[[], dict[str, tuple[str, str]]],
    jobs: Jobs,
    until: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Let the job of each node go once the node drains under it, until the controller has ended.

    Returns the nodes.
    """
    drained: list[str] = []
    while controller.poll() is None and not until():
        for name, (state, reason) in slurm().items():
            if state == "draining" and reason.startswith("fleet r") and name not in drained:
                assert jobs.states()[name] == "RUNNING"
                drained.append(name)
                jobs.let_go(name)
        time.sleep(0.5)
    return sorted(drained)


@pytest.fixture
def versions(node: Callable[[str], Host]) -> Callable[..., dict[str, str]]:
    """The version of Apptainer on nodes, as users get it; on compute nodes, if none is named."""

    def ask(*names: str) -> dict[str, str]:
        return {
            name: node(name).check_output("apptainer --version").split()[-1].split("-")[0]
            for name in names or COMPUTE
        }

    return ask


@pytest.fixture
def slurm(head: Host) -> Callable[[], dict[str, tuple[str, str]]]:
    """State and Reason of each node; Slurm keeps a Reason after a resume, where it means nothing."""

    def look() -> dict[str, tuple[str, str]]:
        lines = head.check_output("sinfo --noheader --Node --format='%N|%T|%E'").splitlines()
        nodes = (line.split("|", 2) for line in lines)
        return {name: (state, reason if state.startswith("drain") else "") for name, state, reason in nodes}

    return look

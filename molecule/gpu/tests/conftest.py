"""The nodes, their user, and an image of his that has nothing of NVIDIA's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

IMAGE = "/tmp/glibc.sif"
#: What slurmd runs, and what people run, which changes nothing.
PROGRAM = "/usr/lib/apptainer-fleet/node-health"
LOOK = f"/usr/bin/python3 -I -B {PROGRAM}.pyz --json hardware devices"
SCENARIO = Path(__file__).resolve().parent.parent

Node = Callable[[str], Host]


@pytest.fixture(scope="session")
def c1(node: Node) -> Host:
    """A node with two GPUs."""
    return node("c1")


@pytest.fixture(scope="session")
def image(node: Node) -> str:
    """The image, built by a user on both compute nodes."""
    for name in ("c1", "c2"):
        node(name).check_output("printf %%s %s > /tmp/glibc.def", (SCENARIO / "glibc.def").read_text())
        build = f"apptainer --quiet build --force {IMAGE} /tmp/glibc.def"
        node(name).check_output("runuser --login alice --command %s", build)
    return IMAGE


@pytest.fixture(scope="session")
def alice(head: Host, image: str) -> Callable[[str], str]:
    """Run a shell command as a user on the login node; return what it prints."""
    return lambda command: head.check_output("runuser --login alice --command %s", command)


@pytest.fixture(scope="session")
def inside(c1: Host, image: str) -> Callable[..., Any]:
    """Run a shell command as a user in a container on c1, with options for apptainer; return how it ended."""

    def run(command: str, *options: str) -> Any:
        line = f"apptainer exec {' '.join(options)} {image} sh -c '{command}'"
        return c1.run("runuser --login alice --command %s", line)

    return run


@pytest.fixture(scope="session")
def state(head: Host) -> Callable[[str], tuple[list[str], str]]:
    """What slurmctld says of a node: its states, and the Reason."""

    def ask(name: str) -> tuple[list[str], str]:
        data = json.loads(head.check_output("scontrol show node %s --json", name))["nodes"][0]
        return data["state"], data["reason"]

    return ask


@pytest.fixture(scope="session")
def wait(state: Callable[[str], tuple[list[str], str]]) -> Callable[..., str]:
    """Wait until a node is drained, or is not, and return the Reason."""

    def until(name: str, *, drained: bool) -> str:
        deadline = time.monotonic() + 120
        while ("DRAIN" in state(name)[0]) != drained:
            assert time.monotonic() < deadline, state(name)
            time.sleep(0.5)
        return state(name)[1]

    return until

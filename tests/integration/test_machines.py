"""Virtual machines of the lab: restored from a snapshot, each one of its own, and gone with ``down``."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from labs import assert_host_is_as, fleet, host_state, kill_up_after, succeed, write_inventory

from fleet.lab.model import lab_home
from fleet.lab.run import processes_naming

NODES = {
    "v1": {"lab_address": "10.77.99.21", "lab_backend": "qemu"},
    "v2": {"lab_address": "10.77.99.22", "lab_backend": "qemu"},
    "a": {"lab_address": "10.77.99.11"},
}
KILLS = 3


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Path]:
    inventory = write_inventory(tmp_path, "itlab", "10.77.99.0/24", NODES, repository="a")
    yield inventory
    fleet("down", "--name", "itlab")


def test_machines_and_a_container_are_one_lab_and_leave_nothing(lab: Path) -> None:
    succeed("up", "-i", lab, "--install-host-packages")  # the snapshot is made, if the cache has none
    succeed("down", "-i", lab)
    before = host_state()
    succeed("up", "-i", lab)
    kernels = {name: succeed("ssh", "-i", lab, name, "uname -r") for name in NODES}
    assert kernels["v1"] == kernels["v2"] != kernels["a"]
    for what in (
        "cat /etc/machine-id",
        "cat /sys/class/net/*0/address",
        "cat /etc/ssh/ssh_host_ed25519_key.pub",
        "hostname",
        "head -c 16 /dev/urandom | od -x",
        "cat /proc/sys/kernel/random/uuid",
    ):
        assert len({succeed("ssh", "-i", lab, name, what) for name in NODES}) == len(NODES), what
    for name in ("v1", "v2"):
        assert abs(int(succeed("ssh", "-i", lab, name, "date +%s")) - time.time()) < 60
        assert "cpu" in succeed("ssh", "-i", lab, name, "cat /sys/fs/cgroup/cgroup.controllers")
    greeting = "import socket; print(socket.create_connection(('{}', 22)).recv(4).decode())"
    for here, there in (("v1", "v2"), ("v2", "a"), ("a", "v1")):
        said = succeed("ssh", "-i", lab, here, f'python3 -c "{greeting.format(there)}"')
        assert said.strip() == "SSH-"
    assert "nothing to change" in succeed("up", "-i", lab)
    succeed("down", "-i", lab)
    assert_host_is_as(before)


def test_a_machine_that_lost_its_power_boots_its_own_disk(lab: Path) -> None:
    succeed("up", "-i", lab)
    identity = succeed("ssh", "-i", lab, "v1", "echo kept > /root/kept; sync; cat /etc/machine-id")
    for pid in processes_naming("itlab", lab_home("itlab") / "nodes/v1"):
        os.kill(pid, signal.SIGKILL)
    assert fleet("status", "-i", lab).returncode == 3
    succeed("up", "-i", lab)
    assert succeed("ssh", "-i", lab, "v1", "cat /root/kept /etc/machine-id") == f"kept\n{identity}"


def test_killed_up_leaves_nothing_after_down(lab: Path) -> None:
    succeed("up", "-i", lab)
    succeed("down", "-i", lab)
    before = host_state()
    for _ in range(KILLS):
        kill_up_after(lab, random.uniform(0.5, 6))  # noqa: S311
        succeed("down", "-i", lab)
        assert_host_is_as(before)

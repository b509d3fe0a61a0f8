"""The lab on this machine: it does what it says, and leaves nothing, however it ends.

Needs root, and a machine where nothing else makes mounts, links, nft tables or names meanwhile. Where that
cannot be had, LAB_TEST_BUSY_MACHINE=1 compares only what can be told to be these labs' by name.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from labs import assert_host_is_as, fleet, host_state, kill_up_after, succeed, write_inventory

from fleet.lab.model import lab_home
from fleet.lab.run import marked_processes

NODES = {"a": {"lab_address": "10.77.99.11"}, "b": {"lab_address": "10.77.99.12"}}
KILLS = 10


@pytest.fixture(scope="module", autouse=True)
def images() -> None:
    """Make what is cached before anything is timed or killed."""
    Path("/run/systemd/nspawn").mkdir(parents=True, exist_ok=True)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Path]:
    inventory = write_inventory(tmp_path, "itlab", "10.77.99.0/24", NODES)
    yield inventory
    fleet("down", "--name", "itlab")


def test_up_status_exec_and_down_leaves_nothing(lab: Path) -> None:
    before = host_state()
    assert fleet("status", "-i", lab).returncode == 3
    succeed("up", "-i", lab)
    assert fleet("status", "-i", lab).returncode == 0
    assert succeed("exec", "-i", lab, "id -u") == "a,b\n0\n"
    assert fleet("exec", "-i", lab, "-w", "b", "exit 7").returncode == 7
    assert "not in lab" in fleet("exec", "-i", lab, "-w", "c[1-9]", "true").stderr
    assert succeed("ssh", "-i", lab, "b", "hostname") == "b\n"
    assert "Login Prompts" in succeed("logs", "-i", lab, "a")
    succeed("down", "-i", lab)
    assert_host_is_as(before)


def test_nodes_are_real_and_know_each_other(lab: Path) -> None:
    succeed("up", "-i", lab)
    assert succeed("exec", "-i", lab, "ps -p 1 -o comm=") == "a,b\nsystemd\n"
    failed = "systemctl is-system-running --wait >/dev/null; systemctl --failed --no-legend --plain"
    assert succeed("exec", "-i", lab, failed) == ""
    assert "a.itlab.internal" in succeed("ssh", "-i", lab, "b", "getent hosts a")
    assert (
        "10.77.99.12"
        in subprocess.run(
            ["getent", "hosts", "b.itlab.internal"], capture_output=True, text=True, check=True
        ).stdout
    )
    assert "crw-rw-rw-" in succeed("ssh", "-i", lab, "a", "ls -l /dev/fuse")
    identities = succeed("exec", "-i", lab, "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub")
    assert not identities.startswith("a,b\n"), "two nodes share an identity"
    # The repository is signed, has two versions of both packages, and a node takes it by its key alone.
    fetch = "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://a:8080/dists/lab/InRelease\").status)'"
    assert succeed("ssh", "-i", lab, "b", fetch).strip() == "200"


def test_second_up_changes_nothing(lab: Path) -> None:
    succeed("up", "-i", lab)
    first = succeed(
        "exec", "-i", lab, "cat /proc/sys/kernel/random/boot_id /etc/machine-id; stat -c %Y /proc/1"
    )
    assert "nothing to change" in succeed("up", "-i", lab)
    assert "nothing to do" in succeed("up", "-i", lab, "--dry-run")
    assert first == succeed(
        "exec", "-i", lab, "cat /proc/sys/kernel/random/boot_id /etc/machine-id; stat -c %Y /proc/1"
    )


def test_dry_runs_say_all_and_do_nothing(lab: Path) -> None:
    before = host_state()
    said = succeed("up", "-i", lab, "--dry-run")
    for expected in (
        "bridge lab-itlab",
        "nft table ip fleet_lab_itlab",
        "/etc/hosts",
        "boot node a",
        "boot node b",
    ):
        assert expected in said
    assert_host_is_as(before)
    succeed("up", "-i", lab)
    said = succeed("down", "-i", lab, "--dry-run")
    assert "bridge lab-itlab" in said
    assert fleet("status", "-i", lab).returncode == 0


def test_two_labs_side_by_side(lab: Path, tmp_path: Path) -> None:
    before = host_state()
    other = write_inventory(tmp_path, "itlab2", "10.77.98.0/24", {"a": {"lab_address": "10.77.98.11"}})
    try:
        succeed("up", "-i", lab)
        succeed("up", "-i", other)
        ours, theirs = (succeed("ssh", "-i", path, "a", "cat /etc/machine-id") for path in (lab, other))
        assert ours != theirs
        succeed("down", "-i", lab)
        assert succeed("ssh", "-i", other, "a", "true") == ""
        assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"
    finally:
        fleet("down", "--name", "itlab2")
    assert_host_is_as(before)


def test_what_systemd_kills_in_one_node_runs_on_in_the_others(lab: Path) -> None:
    succeed("up", "-i", lab)
    for node in "ab":
        succeed("ssh", "-i", lab, node, "systemd-run --quiet --unit=same sleep 1000")
    succeed("ssh", "-i", lab, "a", "systemctl kill --signal=KILL same; ! systemctl --quiet is-active same")
    assert succeed("ssh", "-i", lab, "b", "systemctl is-active same") == "active\n"


def test_a_network_in_use_is_refused_before_anything_is_made(lab: Path, tmp_path: Path) -> None:
    succeed("up", "-i", lab)
    other = write_inventory(tmp_path, "itlab2", "10.77.99.0/25", {"x": {"lab_address": "10.77.99.20"}})
    before = host_state()
    refused = fleet("up", "-i", other)
    assert refused.returncode == 1
    assert "lab_network 10.77.99.0/25: 10.77.99.0/24 is on lab-itlab already" in refused.stderr
    assert "mend: " in refused.stderr
    assert_host_is_as(before)


def test_a_node_that_lost_its_power_boots_again_with_its_disk(lab: Path) -> None:
    succeed("up", "-i", lab)
    succeed("ssh", "-i", lab, "a", "echo kept > /root/kept; sync")
    holder = next(
        p for p in marked_processes("itlab") if b"nodes/a/" in Path(f"/proc/{p}/cmdline").read_bytes()
    )
    os.kill(holder, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while fleet("status", "-i", lab).returncode == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert fleet("status", "-i", lab).returncode == 3
    said = succeed("up", "-i", lab)
    assert "boot" in said
    assert succeed("ssh", "-i", lab, "a", "cat /root/kept") == "kept\n"


def test_a_node_joins_and_leaves_with_the_inventory(lab: Path, tmp_path: Path) -> None:
    succeed("up", "-i", lab)
    machine = succeed("ssh", "-i", lab, "a", "cat /etc/machine-id")
    write_inventory(tmp_path, "itlab", "10.77.99.0/24", {**NODES, "c": {"lab_address": "10.77.99.13"}})
    succeed("up", "-i", lab)
    assert "10.77.99.13" in succeed("ssh", "-i", lab, "a", "getent hosts c")
    assert succeed("ssh", "-i", lab, "a", "cat /etc/machine-id") == machine
    write_inventory(tmp_path, "itlab", "10.77.99.0/24", NODES)
    succeed("up", "-i", lab)
    assert fleet("ssh", "-i", lab, "c", "true").returncode == 1
    assert not any(b"nodes/c/" in Path(f"/proc/{p}/cmdline").read_bytes() for p in marked_processes("itlab"))


def test_a_node_that_reboots_comes_back(lab: Path) -> None:
    succeed("up", "-i", lab)
    boot = succeed("ssh", "-i", lab, "a", "cat /proc/sys/kernel/random/boot_id; stat -c %Z /proc/1")
    fleet("ssh", "-i", lab, "a", "systemctl reboot")
    deadline = time.monotonic() + 30
    now = boot
    while now in (boot, "") and time.monotonic() < deadline:
        time.sleep(0.3)
        now = fleet("ssh", "-i", lab, "a", "cat /proc/sys/kernel/random/boot_id; stat -c %Z /proc/1").stdout
    assert now not in (boot, "")
    assert succeed("ssh", "-i", lab, "b", "getent hosts a") != ""


def test_another_network_is_another_network_everywhere(lab: Path, tmp_path: Path) -> None:
    succeed("up", "-i", lab)
    moved = {
        name: {"lab_address": host["lab_address"].replace(".99.", ".98.")} for name, host in NODES.items()
    }
    write_inventory(tmp_path, "itlab", "10.77.98.0/25", moved)
    succeed("up", "-i", lab)
    assert "nothing to change" in succeed("up", "-i", lab)
    rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    assert "10.77.98.0/25" in rules
    assert "10.77.99." not in rules
    assert "10.77.98.11/25" in succeed("ssh", "-i", lab, "a", "ip -brief address")


def test_what_names_nodes_is_mended(lab: Path) -> None:
    """As after a kill between the making of a node and the writing of the names."""
    succeed("up", "-i", lab)
    home = lab_home("itlab")
    (home / "ssh_config").write_text("")
    (home / "named.json").unlink()
    assert "names" in succeed("up", "-i", lab)
    assert succeed("exec", "-i", lab, "true") == ""


def test_junk_among_the_nodes_goes(lab: Path) -> None:
    succeed("up", "-i", lab)
    nodes = lab_home("itlab") / "nodes"
    (nodes / "file").touch()
    (nodes / "link").symlink_to("/etc")
    succeed("up", "-i", lab)
    assert "nothing to change" in succeed("up", "-i", lab)
    assert Path("/etc/passwd").exists()


def test_a_lab_of_another_checkout_is_left_alone(lab: Path, tmp_path: Path) -> None:
    succeed("up", "-i", lab)
    (tmp_path / "other").mkdir()
    other = write_inventory(
        tmp_path / "other", "itlab", "10.77.98.0/24", {"c": {"lab_address": "10.77.98.11"}}
    )
    for command in ("up", "down"):
        refused = fleet(command, "-i", other)
        assert refused.returncode == 1
        assert f"made from {lab}" in refused.stderr
    assert "nothing to change" in succeed("up", "-i", lab)
    lab.unlink()  # whoever made it has gone: it is anybody's
    succeed("down", "-i", other)


def test_a_lab_of_another_state_folder_is_left_alone(lab: Path, tmp_path: Path) -> None:
    succeed("up", "-i", lab)
    other = {"XDG_STATE_HOME": str(tmp_path / "state")}
    for command in ("up", "down"):
        refused = fleet(command, "-i", lab, env=other)
        assert refused.returncode == 1
        assert "from another state folder" in refused.stderr
    assert "itlab" not in succeed("down", "--all", "--dry-run", env=other)
    assert succeed("exec", "-i", lab, "true") == ""


def test_labs_come_and_go_at_the_same_time(tmp_path: Path) -> None:
    """Names that only together are the same: lab it, node lab-a, and lab it-lab, node a."""
    before = host_state()
    inventories = [
        write_inventory(tmp_path, "it", "10.77.99.0/24", {"lab-a": {"lab_address": "10.77.99.11"}}),
        write_inventory(tmp_path, "it-lab", "10.77.98.0/24", {"a": {"lab_address": "10.77.98.11"}}),
    ]
    try:
        for command in ("up", "down") * 2:
            with ThreadPoolExecutor() as pool:
                results = list(pool.map(lambda path: fleet(command, "-i", path), inventories))  # noqa: B023
            assert [result.returncode for result in results] == [0, 0], [r.stderr for r in results]
    finally:
        for name in ("it", "it-lab"):
            fleet("down", "--name", name)
    assert_host_is_as(before)


def test_killed_up_leaves_nothing_after_down(lab: Path) -> None:
    succeed("up", "-i", lab)  # caches are warm then: every kill hits the work on the host
    started = time.monotonic()
    succeed("down", "-i", lab)
    succeed("up", "-i", lab)
    usual = time.monotonic() - started
    succeed("down", "-i", lab)
    before = host_state()
    for kill in range(KILLS):
        moment = random.uniform(0.2, usual)  # noqa: S311
        kill_up_after(lab, moment)
        if kill % 2:
            succeed("up", "-i", lab)
            assert succeed("exec", "-i", lab, "true") == ""
        succeed("down", "-i", lab)
        assert_host_is_as(before), f"kill {kill} after {moment:.2f} s"


@pytest.mark.parametrize("moment", [0.5, 10.0])
def test_killed_image_build_leaves_nothing_after_down(lab: Path, tmp_path: Path, moment: float) -> None:
    before = host_state()
    cold = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    kill_up_after(lab, moment, once=lambda: any((tmp_path / "cache").rglob("*.part")), env=cold)
    assert list((tmp_path / "cache").rglob("*.part")), "the kill came too late"
    succeed("down", "-i", lab, env=cold)
    assert_host_is_as(before)

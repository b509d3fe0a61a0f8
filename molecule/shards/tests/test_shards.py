"""fleet site --on: 60 hosts over two execution nodes, which may get lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret
from shared.pulling import Computer
from testinfra.host import Host

from fleet.hostlist import fold
from fleet.lab.model import Lab, load_lab

PROJECT = Path(__file__).parents[3]
SCENARIO = PROJECT / "molecule/shards"
CONTROL = "/run/apptainer-fleet-mesh/control.sock"
PASSWORD = "only the controller has this"  # noqa: S105
#: Sixty addresses: thirty of each real node.
HOSTS = {
    f"n{number:02}": ("t1" if number <= 30 else "t2", f"10.77.94.{100 + number}") for number in range(1, 61)
}


@pytest.fixture(scope="module")
def lab() -> Lab:
    return load_lab(SCENARIO / "inventory")


@pytest.fixture(scope="module")
def control(lab_state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The mesh's control socket on the controller, as one of this machine."""
    path = tmp_path_factory.mktemp("mesh") / "control.sock"
    forward = ["ssh", "-F", str(lab_state / "ssh_config"), "-N", "-L", f"{path}:{CONTROL}", "head"]
    with subprocess.Popen(forward) as process:
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.1)
        yield path
        process.terminate()


@pytest.fixture(scope="module")
def inventory(node: Callable[[str], Host], lab_state: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site's inventory: nothing in it is known on this machine alone, and its variables are in a vault."""
    folder = tmp_path_factory.mktemp("site") / "inventory"
    (folder / "group_vars").mkdir(parents=True)
    (folder / "files").mkdir()
    for name in ("t1", "t2"):
        for real, address in HOSTS.values():
            if real == name:
                node(name).check_output("ip address replace %s/24 dev host0", address)
    shutil.copy(lab_state / "known_hosts", folder / "files")
    repository = json.loads((lab_state / "repository.json").read_text())
    shutil.copy(repository["key"], folder / "files/key.asc")
    variables = {
        "ansible_user": "root",
        "ansible_ssh_common_args": "-o UserKnownHostsFile={{ inventory_dir }}/files/known_hosts"
        " -o HostKeyAlias={{ real }}",
        "apptainer_version": repository["versions"][0],
        "apptainer_repository": {
            **{name: repository[name] for name in ("url", "suite", "component")},
            "key": "{{ inventory_dir }}/files/key.asc",
        },
        "user_namespaces_max": int(Path("/proc/sys/user/max_user_namespaces").read_text()),
    }
    secret = VaultLib([("default", VaultSecret(PASSWORD.encode()))])
    (folder / "group_vars/all.yml").write_bytes(secret.encrypt(yaml.safe_dump(variables)))
    hosts = {name: {"ansible_host": address, "real": real} for name, (real, address) in HOSTS.items()}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"apptainer": {"hosts": hosts}}))
    return folder


class Site:
    """The command, with a state of its own.

    :param folder: where it keeps that, and what it says.
    """

    def __init__(self, folder: Path, inventory: Path, *options: str) -> None:
        self.folder, self._inventory, self._options = folder, inventory, options
        self._password = folder / "ask"
        self._password.write_text(f"#!/bin/sh\necho '{PASSWORD}'\n")
        self._password.chmod(0o700)

    def begin(self, *arguments: str, inventory: Path | None = None) -> subprocess.Popen[str]:
        """Start it."""
        where = ["-i", str(inventory or self._inventory), "--json", "--on", "e[1-2]"]
        return subprocess.Popen(
            [sys.executable, "-m", "fleet", "site", *where, *self._options, *arguments],
            env={
                **os.environ,
                "ANSIBLE_VAULT_PASSWORD_FILE": str(self._password),
                "XDG_STATE_HOME": str(self.folder / "state"),
            },
            stdout=(self.folder / "stdout").open("w"),
            stderr=(self.folder / "stderr").open("w"),
            text=True,
        )

    @property
    def progress(self) -> str:
        """What it has said of its progress so far."""
        return (self.folder / "stderr").read_text()

    def end(self, process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
        """Wait for it: exit status and result."""
        status = process.wait(600)
        said = (self.folder / "stdout").read_text()
        print(said, self.progress)
        return status, json.loads(said or "{}")

    @property
    def retry(self) -> list[str]:
        """Who is left for another run."""
        (again,) = self.folder.glob("state/apptainer-fleet/inventories/*/retry")
        return again.read_text().split()


@pytest.fixture
def site(control: Path, inventory: Path, lab_state: Path, tmp_path: Path) -> Site:
    return Site(tmp_path, inventory, "--mesh", str(control), "--ssh-key", str(lab_state / "ssh/id_ed25519"))


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.3)


def ask(control: Path, command: dict[str, str]) -> str:
    """Say a command to Receptor on the controller; return its answer, a line."""
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rwb") as stream:
        connection.connect(str(control))
        stream.readline()
        stream.write(json.dumps(command).encode() + b"\n")
        stream.flush()
        answer = stream.readline().decode()
        if "Send stdin" in answer:
            connection.shutdown(socket.SHUT_WR)
            answer = stream.readline().decode()
        return answer


def others(control: Path) -> set[str]:
    return set(json.loads(ask(control, {"command": "status"})).get("RoutingTable") or {}) - {"head"}


def left_there(host: Host) -> str:
    """What is left of runs in the memory of a node of the mesh."""
    folder = "/run/apptainer-fleet-mesh"
    return host.check_output(f"find {folder}/data {folder}/tmp -type f ! -path '*/tmp/ansible/*'")


def test_1_the_mesh_takes_signed_work_alone(control: Path) -> None:
    until(lambda: others(control) == {"e1", "e2"})
    work = {"command": "work", "subcommand": "submit", "node": "e1", "worktype": "ansible-runner"}
    # Signed by nobody, as it would be from another member of the mesh.
    assert "could not verify signature" in ask(control, {**work, "signwork": "false"})
    for unit in json.loads(ask(control, {"command": "work", "subcommand": "list"})):
        ask(control, {"command": "work", "subcommand": "release", "unitid": unit})


def test_2_sixty_hosts_over_two_execution_nodes(site: Site, node: Callable[[str], Host]) -> None:
    process = site.begin("--shards", "4")
    until(lambda: "ansible-playbook" in node("e1").check_output("ps -eo args"))
    seen = node("e1").check_output("ps -eo args")
    assert PASSWORD not in seen
    assert "PRIVATE KEY" not in seen
    status, result = site.end(process)
    assert (status, result["ok"]) == (0, sorted(HOSTS))
    begun = set(re.findall(r"shard (\d) of 4 on (e\d)", site.progress))
    assert sorted(number for number, _ in begun) == ["1", "2", "3", "4"]
    assert {name for _, name in begun} == {"e1", "e2"}
    # Inventory, key and password are gone everywhere.
    for name in ("head", "e1", "e2"):
        until(lambda name=name: left_there(node(name)) == "", 20)


def test_3_hosts_that_are_silent_are_named_and_hold_up_nobody(site: Site, inventory: Path) -> None:
    where = site.folder / "inventory"
    shutil.copytree(inventory, where)
    hosts = yaml.safe_load((where / "hosts.yml").read_text())
    silent = ["n07", "n23", "n58"]
    for number, name in enumerate(silent, start=90):
        hosts["apptainer"]["hosts"][name]["ansible_host"] = f"10.77.94.{number}"
    (where / "hosts.yml").write_text(yaml.safe_dump(hosts))
    status, result = site.end(site.begin(inventory=where))
    assert (status, result["unreachable"], site.retry) == (4, silent, silent)
    assert result["ok"] == sorted(HOSTS.keys() - set(silent))


def test_4_an_execution_node_dies_in_the_middle(
    site: Site, lab: Lab, node: Callable[[str], Host], control: Path
) -> None:
    victim = Computer(lab, "e1", node)
    process = site.begin()
    until(lambda: "shard 1 of 2 on e1: " in site.progress)
    victim.cut_power()
    assert process.poll() is None
    status, result = site.end(process)
    assert (status, result["ok"]) == (0, sorted(HOSTS))
    (event,) = result["events"]
    assert re.match(r"execution node e1: lost, .* in task .*; n\[01-30\] done again on e2", event)
    victim.boot()
    until(lambda: others(control) == {"e1", "e2"})


def test_5_both_die(site: Site, lab: Lab, node: Callable[[str], Host], control: Path) -> None:
    victims = [Computer(lab, name, node) for name in ("e1", "e2")]
    process = site.begin("--shards", "3")
    until(lambda: all(f"of 3 on {name}: " in site.progress for name in ("e1", "e2")))
    for victim in victims:
        victim.cut_power()
    status, result = site.end(process)
    assert (status, result["stopped"], result["ok"]) == (3, "no execution node is left", [])
    assert fold([*result["failed"], *result["not_tried"]]) == "n[01-60]"
    assert len(result["failed"]) == 40
    assert sorted(event[:17] for event in result["events"]) == ["execution node e1", "execution node e2"]
    assert site.retry == sorted(HOSTS)
    for victim in victims:
        victim.boot()
    until(lambda: others(control) == {"e1", "e2"})


def test_6_a_node_that_is_not_on_the_mesh_is_refused(site: Site) -> None:
    assert site.begin("--on", "e[1-3]").wait(60) == 1
    assert "--on e3: not on the mesh" in site.progress

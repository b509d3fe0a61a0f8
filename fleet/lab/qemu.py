"""Nodes as virtual machines with a kernel of their own, restored from a snapshot in about two seconds.

For what containers cannot prove: sysctls outside ``net``, AppArmor, cgroup limits, modules, a real boot.
A node's first start restores the snapshot and gives it an identity; every later one boots its disk.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from fleet.errors import FleetError
from fleet.lab.cache import made
from fleet.lab.host import debian_mirror
from fleet.lab.identity import NodeFile, hosts_file, identity_files, make_host_key
from fleet.lab.machine import IGNORE_SHARED, Machine, cold_start, disk_option, read_line, start_qemu
from fleet.lab.model import Lab, Node, node_home
from fleet.lab.qmp import Qmp, connected
from fleet.lab.run import kill_processes, processes_naming, run

#: A few seconds are enough on a quiet machine.
RESTORE_DEADLINE = 600.0
#: In a node's folder: its disk may differ from the snapshot's; it has got its identity.
STARTED, NAMED = "started", "named"
INTERFACE = "eth0"


class Qemu:
    """The backend ``qemu``."""

    programs: Mapping[str, str] = {
        "qemu-system-x86_64": "qemu-system-x86",
        "qemu-img": "qemu-utils",
        "mkfs.ext4": "e2fsprogs",
    }

    def image_folder(self, lab: Lab, node: Node) -> Path:
        """The snapshot in the cache."""
        return self._machine(lab, node).folder

    def has_image(self, lab: Lab, node: Node) -> bool:
        """Whether it is there, and no file of it was cut short."""
        return self._machine(lab, node).is_made

    def build_image(self, lab: Lab, node: Node) -> None:
        """Make the snapshot: image, disk, cold boot, saving."""
        self._machine(lab, node).build(lab.name)

    def create(self, lab: Lab, node: Node) -> None:
        """Make the node's disk, an overlay of the snapshot's."""
        if node.serves_repository:
            raise FleetError(
                f"node {node.name}: a virtual machine cannot serve the lab's packages",
                "put a node of backend nspawn into group lab_repository",
            )
        home = node_home(lab.name, node.name)
        if home.exists():
            shutil.rmtree(home)
        home.mkdir(parents=True)
        make_host_key(lab, node)
        base = self.image_folder(lab, node) / "disk.qcow2"
        run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, home / "disk.qcow2"],
            lab_name=lab.name,
        )
        (home / "node.json").write_text(self._recipe(lab, node))

    def is_whole(self, lab: Lab, node: Node) -> bool:
        """Whether the recipe it was made from is there and is today's, and no first start was cut short."""
        home = node_home(lab.name, node.name)
        recipe = home / "node.json"
        if not recipe.exists() or recipe.read_text() != self._recipe(lab, node):
            return False
        return (home / NAMED).exists() or not (home / STARTED).exists()

    def write_hosts(self, lab: Lab, node: Node) -> None:
        """Over SSH, if it runs; one that does not yet gets it with its identity."""
        if self.is_running(lab.name, node.name):
            from fleet.lab.remote import run_on  # noqa: PLC0415

            run_on(lab, node.name, ["tee", "/etc/hosts"], stdin=hosts_file(lab))

    def start(self, lab: Lab, node: Node) -> None:
        """Restore it from the snapshot and give it its identity, or boot it if it has one."""
        try:
            self._start(lab, node)
        except FleetError as error:
            raise FleetError(
                f"node {node.name}: {error.message}",
                f"fleet lab logs {node.name}; if it happens again, remove {self.image_folder(lab, node)},"
                " which is then made anew",
            ) from error

    def _start(self, lab: Lab, node: Node) -> None:
        home = node_home(lab.name, node.name)
        self.kill(lab.name, node.name)  # one that a killed `up` has not brought to its network
        for name in ("qmp.sock", "identity.sock"):
            (home / name).unlink(missing_ok=True)
        has_identity = (home / NAMED).exists()
        deadline = time.monotonic() + RESTORE_DEADLINE
        (home / STARTED).touch()
        process = start_qemu(self._command(lab, node, cold=has_identity), home, lab.name)
        with connected(home / "qmp.sock", deadline, process.poll) as connection:
            qmp = Qmp(connection)
            tap = _tap(lab.name, node.name)
            run(["ip", "link", "set", tap, "master", lab.bridge, "up"], lab_name=lab.name)
            if has_identity:
                return
            qmp.ask("migrate-set-capabilities", capabilities=[IGNORE_SHARED])
            qmp.ask("migrate-incoming", uri=f"exec:cat {self.image_folder(lab, node)}/state")
            qmp.wait_for_migration(deadline)
            qmp.ask("cont")
        with connected(home / "identity.sock", deadline, process.poll) as agent:
            said = b""
            while said != b"ready\n":
                # It waits again if its kernel could not go on after all, and has booted.
                agent.sendall(json.dumps(self._order(lab, node)).encode() + b"\n")
                said = read_line(agent.recv)
        (home / NAMED).touch()

    def is_running(self, lab_name: str, node_name: str) -> bool:
        """Whether its QEMU is there and is on the lab's network."""
        there = processes_naming(lab_name, node_home(lab_name, node_name))
        return bool(there) and Path("/sys/class/net", _tap(lab_name, node_name), "master").exists()

    def kill(self, lab_name: str, node_name: str) -> None:
        """Kill its QEMU."""
        kill_processes(lambda: processes_naming(lab_name, node_home(lab_name, node_name)))

    def _machine(self, lab: Lab, node: Node) -> Machine:
        return Machine.of(node, debian_mirror(lab.mirror))

    def _recipe(self, lab: Lab, node: Node) -> str:
        image = self.image_folder(lab, node)
        made_of = {"image": image.name, "made": made(image), "network": str(lab.network)}
        return json.dumps({**node.spec(), **made_of}, sort_keys=True)

    def _command(self, lab: Lab, node: Node, *, cold: bool) -> list[str]:
        machine, home = self._machine(lab, node), node_home(lab.name, node.name)
        argv = machine.command(machine.folder, shared=False)
        # The same devices in the same order as in the snapshot, but for the other end of the network card.
        boot = cold_start(machine.folder)
        boot[boot.index("hubport,id=net,hubid=0")] = (
            f"tap,id=net,ifname={_tap(lab.name, node.name)},script=no,downscript=no"
        )
        argv += [*boot, "-drive", disk_option(home / "disk.qcow2")]
        return argv if cold else [*argv, "-S", "-incoming", "defer"]

    def _order(self, lab: Lab, node: Node) -> dict[str, object]:
        """What the agent in the machine (guest/lab-identity) is to do."""
        files = identity_files(lab, node, interface=INTERFACE, link=f"MACAddress={_mac(lab, node)}")
        return {
            "time": time.time(),
            "seed": secrets.token_hex(64),
            "name": node.name,
            "files": {path: _plain(file) for path, file in files.items()},
            "commands": [
                ["systemd-tmpfiles", "--create", "--prefix=/dev"],
                ["systemctl", "reload", "ssh"],
                ["networkctl", "reload"],
            ],
        }


def _plain(file: NodeFile) -> tuple[int, int, str]:
    fields = asdict(file)
    return fields["mode"], fields["owner"], fields["content"]


def _digest(lab_name: str, node_name: str) -> str:
    return hashlib.sha256(f"{lab_name}/{node_name}".encode()).hexdigest()


def _tap(lab_name: str, node_name: str) -> str:
    """Name of the node's link on this machine; a link's name has fifteen characters at the most."""
    return f"lab{_digest(lab_name, node_name)[:11]}"


def _mac(lab: Lab, node: Node) -> str:
    """A locally administered address of its own: all clones of a snapshot wake up with the same."""
    digits = _digest(lab.name, node.name)
    return ":".join(["52", "54", *(digits[i : i + 2] for i in range(0, 8, 2))])

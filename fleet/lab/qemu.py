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
from fleet.lab.host import debian_mirror
from fleet.lab.identity import NodeFile, hosts_file, identity_files, make_host_key
from fleet.lab.machine import IGNORE_SHARED, Machine, cold_start, disk_option, expect_line, start_qemu
from fleet.lab.model import Lab, Node, node_home
from fleet.lab.qmp import Qmp, connected
from fleet.lab.run import kill_processes, processes_naming, run

RESTORE_DEADLINE = 60.0
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
        """Whether the recipe it was made from is there and is today's."""
        recipe = node_home(lab.name, node.name) / "node.json"
        return recipe.exists() and recipe.read_text() == self._recipe(lab, node)

    def write_hosts(self, lab: Lab, node: Node) -> None:
        """Over SSH, if it runs; one that does not yet gets it with its identity."""
        if self.is_running(lab.name, node.name):
            from fleet.lab.remote import run_on  # noqa: PLC0415

            run_on(lab, node.name, ["tee", "/etc/hosts"], stdin=hosts_file(lab))

    def start(self, lab: Lab, node: Node) -> None:
        """Restore it from the snapshot and give it its identity, or boot it if it has one."""
        home = node_home(lab.name, node.name)
        for name in ("qmp.sock", "identity.sock"):
            (home / name).unlink(missing_ok=True)
        has_identity = (home / "started").exists()
        deadline = time.monotonic() + RESTORE_DEADLINE
        argv = self._command(lab, node, cold=has_identity)
        start_qemu(argv, home, lab.name)
        with connected(home / "qmp.sock", deadline) as connection:
            qmp = Qmp(connection)
            run(["ip", "link", "set", _tap(lab, node), "master", lab.bridge, "up"], lab_name=lab.name)
            if has_identity:
                return
            qmp.ask("migrate-set-capabilities", capabilities=[IGNORE_SHARED])
            qmp.ask("migrate-incoming", uri=f"exec:cat {self.image_folder(lab, node)}/state")
            qmp.wait_for_migration(deadline)
            # From here on its disk is not the snapshot's any more.
            (home / "started").touch()
            qmp.ask("cont")
        with connected(home / "identity.sock", deadline) as agent:
            agent.sendall(json.dumps(self._order(lab, node)).encode() + b"\n")
            expect_line(agent.recv, b"ready\n")

    def is_running(self, lab_name: str, node_name: str) -> bool:
        """Whether its QEMU is there."""
        return bool(processes_naming(lab_name, node_home(lab_name, node_name)))

    def kill(self, lab_name: str, node_name: str) -> None:
        """Kill its QEMU."""
        kill_processes(lambda: processes_naming(lab_name, node_home(lab_name, node_name)))

    def _machine(self, lab: Lab, node: Node) -> Machine:
        return Machine.of(node, debian_mirror(lab.mirror))

    def _recipe(self, lab: Lab, node: Node) -> str:
        made_of = {"image": self.image_folder(lab, node).name, "network": str(lab.network)}
        return json.dumps({**node.spec(), **made_of}, sort_keys=True)

    def _command(self, lab: Lab, node: Node, *, cold: bool) -> list[str]:
        machine, home = self._machine(lab, node), node_home(lab.name, node.name)
        argv = machine.command(machine.folder, shared=False)
        # The same devices in the same order as in the snapshot, but for the other end of the network card.
        boot = cold_start(machine.folder)
        boot[boot.index("hubport,id=net,hubid=0")] = (
            f"tap,id=net,ifname={_tap(lab, node)},script=no,downscript=no"
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


def _digest(lab: Lab, node: Node) -> str:
    return hashlib.sha256(f"{lab.name}/{node.name}".encode()).hexdigest()


def _tap(lab: Lab, node: Node) -> str:
    """Name of the node's link on this machine; a link's name has fifteen characters at the most."""
    return f"lab{_digest(lab, node)[:11]}"


def _mac(lab: Lab, node: Node) -> str:
    """A locally administered address of its own: all clones of a snapshot wake up with the same."""
    digits = _digest(lab, node)
    return ":".join(["52", "54", *(digits[i : i + 2] for i in range(0, 8, 2))])

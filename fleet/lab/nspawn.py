"""Nodes as booted systemd-nspawn containers over an overlay: seconds instead of minutes.

They share the host's kernel: what depends on it (sysctls outside ``net``, AppArmor, cgroup limits) is not
proved here. Everything a node has on the host besides its folder, the overlay mount above all, lives in
mount and PID namespaces that end with its first process, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

from fleet.errors import FleetError
from fleet.lab.host import debian_mirror
from fleet.lab.image import FIRST_UID, BaseImage
from fleet.lab.model import REPOSITORY_PORT, Lab, Node, lab_home
from fleet.lab.network import hosts_lines
from fleet.lab.repository import PackageRepository
from fleet.lab.run import ISOLATED, environment, marked_processes, run

#: $1 overlay options, $2 its mount point, the rest: what to run there.
#: The tmpfs keeps nspawn's own notes about the machine inside this mount namespace.
MOUNT_AND_RUN = (
    'mount -t overlay overlay -o "$1" "$2" && mkdir -p /run/systemd/nspawn'
    ' && mount -t tmpfs tmpfs /run/systemd/nspawn && shift 2 && exec "$@"'
)

REPOSITORY_MOUNT = "/srv/lab-repository"
REPOSITORY_UNIT = f"""\
[Unit]
Description=Package repository of the lab
[Service]
DynamicUser=yes
ExecStart=/usr/bin/python3 -m http.server --directory {REPOSITORY_MOUNT} {REPOSITORY_PORT}
Restart=on-failure
[Install]
WantedBy=multi-user.target
"""


class Nspawn:
    """The backend ``nspawn``."""

    def image_folder(self, lab: Lab, node: Node) -> Path:
        """The unpacked root in the cache."""
        return self._image(lab, node).folder

    def build_image(self, lab: Lab, node: Node) -> None:
        """Make the unpacked root with mmdebstrap."""
        self._image(lab, node).build(lab.name)

    def create(self, lab: Lab, node: Node) -> None:
        """Write all that makes this node different from its image into the overlay's upper layer."""
        home = node_home(lab.name, node.name)
        if home.exists():
            shutil.rmtree(home)
        for part in ("upper", "work", "root"):
            (home / part).mkdir(parents=True, mode=0o755)
        upper = home / "upper"
        for path, content in self._files(lab, node).items():
            _write(upper, path, content)
        public_key = (lab.home / "ssh/id_ed25519.pub").read_text()
        for login in ("root", *(f"home/{user}" for user in node.users)):
            _write(upper, f"{login}/.ssh/authorized_keys", public_key)
        for uid, user in enumerate(node.users, FIRST_UID):
            own = upper / "home" / user
            for entry in (own, *own.rglob("*")):
                os.chown(entry, uid, uid)
        wants = upper / "etc/systemd/system/multi-user.target.wants"
        if node.serves_repository:
            wants.mkdir(parents=True, exist_ok=True)
            (wants / "lab-repository.service").symlink_to("/etc/systemd/system/lab-repository.service")
        host_key = upper / "etc/ssh/ssh_host_ed25519_key"
        run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", node.name, "-f", host_key],
            lab_name=lab.name,
        )
        # Written last: a node with this file is a whole one.
        _write(home, "node.json", self._recipe(lab, node))

    def is_whole(self, lab: Lab, node: Node) -> bool:
        """Whether the recipe it was made from is there and is today's."""
        recipe = node_home(lab.name, node.name) / "node.json"
        return recipe.exists() and recipe.read_text() == self._recipe(lab, node)

    def write_hosts(self, lab: Lab, node: Node) -> None:
        """Write it to the overlay: the running one through nspawn's mount namespace, else the upper layer."""
        home = node_home(lab.name, node.name)
        for pid in _holders(lab.name, node.name):
            seen_by_nspawn = Path(f"/proc/{pid}/root{home}/root")
            if (seen_by_nspawn / "etc").exists():
                _write(seen_by_nspawn, "etc/hosts", _hosts(lab))
                return
        _write(home / "upper", "etc/hosts", _hosts(lab))

    def start(self, lab: Lab, node: Node) -> None:
        """Boot it in a session of its own, its console going to ``console.log``."""
        home = node_home(lab.name, node.name)
        lower = self.image_folder(lab, node)
        overlay = f"lowerdir={lower},upperdir={home}/upper,workdir={home}/work"
        binds = []
        if node.serves_repository:
            folder = PackageRepository(debian_mirror(lab.mirror), lab.name).folder
            binds = [f"--bind-ro={folder}:{REPOSITORY_MOUNT}"]
        with (home / "console.log").open("ab") as console:
            subprocess.Popen(
                [
                    *ISOLATED,
                    *["sh", "-c", MOUNT_AND_RUN, "sh", overlay, str(home / "root")],
                    *["systemd-nspawn", "--quiet", "--boot", "--directory", str(home / "root")],
                    *["--machine", f"{lab.name}-{node.name}", "--hostname", node.name],
                    *["--register=no", "--keep-unit", f"--network-bridge={lab.bridge}"],
                    *["--resolv-conf=off", "--link-journal=no", "--capability=all", "--console=read-only"],
                    # systemd's word for an orderly power-off.
                    *["--kill-signal=SIGRTMIN+3", *binds],
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment(
                    lab.name,
                    {
                        # Slurm and rootless containers want cgroup v2, also where the host is hybrid.
                        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
                        # /proc/sys/net is the node's own; the rest is the host's and stays read-only.
                        "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
                    },
                ),
            )

    def is_running(self, lab_name: str, node_name: str) -> bool:
        """Whether the process that holds its namespaces is there."""
        return bool(_holders(lab_name, node_name))

    def kill(self, lab_name: str, node_name: str) -> None:
        """Kill the first process of its PID namespace; the kernel does the rest."""
        deadline = time.monotonic() + 10
        while holders := _holders(lab_name, node_name):
            for pid in holders:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise FleetError(
                    f"node {node_name}: does not end on SIGKILL", "look for processes in state D"
                )
            time.sleep(0.02)

    def _recipe(self, lab: Lab, node: Node) -> str:
        return json.dumps({**node.spec(), "image": self.image_folder(lab, node).name}, sort_keys=True)

    def _image(self, lab: Lab, node: Node) -> BaseImage:
        return BaseImage.of(node, debian_mirror(lab.mirror))

    def _files(self, lab: Lab, node: Node) -> dict[str, str]:
        devices = "".join(f"c {d.path} {d.mode} root root - {d.major}:{d.minor}\n" for d in node.devices)
        files = {
            "etc/hostname": f"{node.name}\n",
            "etc/machine-id": f"{secrets.token_hex(16)}\n",
            "etc/resolv.conf": _name_servers(),
            "etc/hosts": _hosts(lab),
            "etc/tmpfiles.d/lab-devices.conf": devices,
            "etc/systemd/network/10-lab.network": (
                f"[Match]\nName=host0\n[Network]\nAddress={node.address}/{lab.network.prefixlen}\n"
                f"Gateway={lab.gateway}\nLinkLocalAddressing=no\n"
            ),
            "etc/ssh/sshd_config.d/lab.conf": "HostKey /etc/ssh/ssh_host_ed25519_key\nUseDNS no\n",
        }
        if node.serves_repository:
            files["etc/systemd/system/lab-repository.service"] = REPOSITORY_UNIT
        return files


def node_home(lab_name: str, node_name: str) -> Path:
    """Everything a node has on disk."""
    return lab_home(lab_name) / "nodes" / node_name


def _holders(lab_name: str, node_name: str) -> list[int]:
    """The marked processes with the node's folder in their command line: unshare and systemd-nspawn.

    The node's own processes are below them and carry no mark; they end with the PID namespace.
    """
    folder = f"{node_home(lab_name, node_name)}/".encode()
    found = []
    for pid in marked_processes(lab_name):
        with contextlib.suppress(OSError):
            if folder in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def _hosts(lab: Lab) -> str:
    return f"127.0.0.1 localhost\n::1 localhost\n{hosts_lines(lab)}"


def _name_servers() -> str:
    """This machine's name servers, but for a resolver on its loopback, which a node could not reach."""
    uplink = Path("/run/systemd/resolve/resolv.conf")
    lines = (uplink if uplink.exists() else Path("/etc/resolv.conf")).read_text().splitlines()
    return "".join(
        f"{line}\n" for line in lines if not line.startswith(("nameserver 127.", "nameserver ::1"))
    )


def _write(root: Path, name: str, content: str) -> None:
    """Write a file atomically; a login folder and what is below it are for their owner alone."""
    path = root / name
    private = name.startswith(("root/", "home/"))
    path.parent.mkdir(parents=True, exist_ok=True)
    if private:
        path.parent.chmod(0o700)
        path.parent.parent.chmod(0o700)
    part = path.with_name(f".{path.name}.part")
    part.write_text(content)
    part.chmod(0o600 if private else 0o644)
    part.rename(path)

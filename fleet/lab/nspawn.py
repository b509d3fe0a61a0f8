"""Nodes as booted systemd-nspawn containers over an overlay: seconds instead of minutes.

They share the host's kernel: what depends on it (sysctls outside ``net``, AppArmor, cgroup limits) is not
proved here. Everything a node has on the host besides its folder, the overlay mount above all, lives in
mount and PID namespaces that end with its first process, however that ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from fleet.lab import control_groups
from fleet.lab.cache import made
from fleet.lab.host import debian_mirror
from fleet.lab.identity import NodeFile, hosts_file, identity_files, make_host_key
from fleet.lab.image import BaseImage
from fleet.lab.model import REPOSITORY_PORT, Lab, Node, node_home
from fleet.lab.repository import PackageRepository
from fleet.lab.run import ISOLATED, environment, kill_processes, processes_naming

#: $1 overlay options, $2 its mount point, $3 control groups to be in, the rest: what to run there. The tmpfs
#: keeps nspawn's own notes about the machine inside this mount namespace. Status 133 asks for a reboot
#: (systemd-nspawn(1)).
MOUNT_AND_RUN = """\
mount -t overlay overlay -o "$1" "$2" && mkdir -p /run/systemd/nspawn || exit
mount -t tmpfs tmpfs /run/systemd/nspawn || exit
for group in $3; do echo 0 > "$group/cgroup.procs" || exit; done
shift 3
while "$@"; [ $? = 133 ]; do :; done
"""

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


#: How systemd serves automounts. It looks for this once, long before the node's own devices are made.
AUTOFS = Path("/dev/autofs")
#: They would fail: a container has no modules to load, and no terminal that anybody sits at.
NOT_IN_A_CONTAINER = ("console-getty.service", "systemd-modules-load.service")


class Nspawn:
    """The backend ``nspawn``."""

    programs: Mapping[str, str] = {"systemd-nspawn": "systemd-container"}

    def image_folder(self, lab: Lab, node: Node) -> Path:
        """The unpacked root in the cache."""
        return self._image(lab, node).folder

    def has_image(self, lab: Lab, node: Node) -> bool:
        """Whether it is there: it was renamed when it was whole."""
        return self.image_folder(lab, node).exists()

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
        make_host_key(lab, node)
        for path, file in identity_files(lab, node, interface="host0").items():
            _write(home / "upper", path, file)
        if node.serves_repository:
            unit = "/etc/systemd/system/lab-repository.service"
            _write(home / "upper", unit, NodeFile(REPOSITORY_UNIT))
            wants = home / "upper/etc/systemd/system/multi-user.target.wants"
            wants.mkdir()
            (wants / "lab-repository.service").symlink_to(unit)
        units = home / "upper/etc/systemd/system"
        units.mkdir(parents=True, exist_ok=True)
        for unit in NOT_IN_A_CONTAINER:
            (units / unit).symlink_to("/dev/null")
        # Written last: a node with this file is a whole one.
        (home / "node.json").write_text(self._recipe(lab, node))

    def is_whole(self, lab: Lab, node: Node) -> bool:
        """Whether the recipe it was made from is there and is today's."""
        recipe = node_home(lab.name, node.name) / "node.json"
        return recipe.exists() and recipe.read_text() == self._recipe(lab, node)

    def write_hosts(self, lab: Lab, node: Node) -> None:
        """Write it to the overlay: the running one through nspawn's mount namespace, else the upper layer."""
        home = node_home(lab.name, node.name)
        upper = home / "upper"
        running = (Path(f"/proc/{pid}/root{home}/root") for pid in processes_naming(lab.name, home))
        root = next((root for root in running if (root / "etc").exists()), upper)
        _write(root, "/etc/hosts", NodeFile(hosts_file(lab)))

    def start(self, lab: Lab, node: Node) -> None:
        """Boot it in a session of its own, its console going to ``console.log``."""
        home = node_home(lab.name, node.name)
        lower = self.image_folder(lab, node)
        overlay = f"lowerdir={lower},upperdir={home}/upper,workdir={home}/work"
        groups = control_groups.make(lab.name, node.name)
        binds = []
        if node.serves_repository:
            folder = PackageRepository(debian_mirror(lab.mirror), lab.name).folder
            binds = [f"--bind-ro={folder}:{REPOSITORY_MOUNT}"]
        for path in node.shared_folders:
            folder = lab.home / "shared" / path.strip("/").replace("/", "_")
            folder.mkdir(parents=True, exist_ok=True)
            binds.append(f"--bind={folder}:{path}")
        if AUTOFS.exists():
            binds.append(f"--bind={AUTOFS}")
        with (home / "console.log").open("ab") as console:
            process = subprocess.Popen(
                [
                    *ISOLATED,
                    *["sh", "-c", MOUNT_AND_RUN, "sh", overlay, str(home / "root")],
                    " ".join(map(str, groups)),
                    *["systemd-nspawn", "--quiet", "--boot", "--directory", str(home / "root")],
                    *["--machine", _machine_name(lab, node), "--hostname", node.name],
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
        # A program that has only just begun has no environment to be known by yet, for a moment.
        while process.poll() is None and not self.is_running(lab.name, node.name):
            time.sleep(0.01)

    def is_running(self, lab_name: str, node_name: str) -> bool:
        """Whether unshare or systemd-nspawn is there.

        The node's own processes are below them and carry no mark; they end with the PID namespace.
        """
        return bool(processes_naming(lab_name, node_home(lab_name, node_name)))

    def kill(self, lab_name: str, node_name: str) -> None:
        """Kill the first process of its PID namespace; the kernel does the rest."""
        kill_processes(lambda: processes_naming(lab_name, node_home(lab_name, node_name)))

    def _recipe(self, lab: Lab, node: Node) -> str:
        image = self.image_folder(lab, node)
        made_of = {"image": image.name, "made": made(image), "network": str(lab.network)}
        return json.dumps({**node.spec(), **made_of}, sort_keys=True)

    def _image(self, lab: Lab, node: Node) -> BaseImage:
        return BaseImage.of(node, debian_mirror(lab.mirror))


def _machine_name(lab: Lab, node: Node) -> str:
    """Unique on this machine, since its end of the network is named after it: no lab's name has a dot."""
    name = f"{lab.name}.{node.name}"
    # machine names have 64 characters at the most
    return name if len(name) <= 64 else hashlib.sha256(name.encode()).hexdigest()  # noqa: PLR2004


def _write(root: Path, name: str, file: NodeFile) -> None:
    """Write a node's file atomically below the folder that is its root."""
    path = root / name.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(file.content)
    part.chmod(file.mode)
    os.chown(part, file.owner, file.owner)
    if path.parent.name == ".ssh":
        for login in (path.parent, path.parent.parent):
            login.chmod(0o700)
            os.chown(login, file.owner, file.owner)
    part.rename(path)

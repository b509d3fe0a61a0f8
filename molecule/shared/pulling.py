"""What the tests of nodes that pull share: the server of the repository, boots, and what Slurm says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testinfra.host import Host

from fleet.lab.lab import BACKENDS
from fleet.lab.model import Lab, node_home

RESULT = "/var/lib/apptainer-fleet/pull.json"
SETTINGS = "/etc/apptainer-fleet/pull.json"
SERVED = "/srv/git/cluster.git"
GIT_DAEMON = """\
[Service]
ExecStart=/usr/bin/git daemon --base-path=/srv/git --export-all --reuseaddr
[Install]
WantedBy=multi-user.target
"""


def serve_repository(head: Host) -> None:
    """Let *head* serve an empty repository, to be pushed to over SSH and fetched by anybody."""
    head.check_output("git init --quiet --bare --initial-branch=main %s", SERVED)
    # By root, of root's repositories; nobody else logs in there.
    head.check_output("printf %%s %s > /etc/systemd/system/git-daemon.service", GIT_DAEMON)
    head.check_output("systemctl enable --quiet --now git-daemon")


def fleet_lab(*arguments: str) -> None:
    """Run `fleet lab`, which has to succeed."""
    argv = [str(Path(sys.executable).with_name("fleet")), "lab", *arguments]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


class Computer:
    """A compute node of the lab as a thing with a power switch and a disk.

    :param connect: makes a new testinfra host; the old connection does not survive a boot.
    """

    def __init__(self, lab: Lab, name: str, connect: Callable[[str], Host]) -> None:
        self._lab, self.name, self._connect = lab, name, connect
        self._node = lab.node(name)
        self._backend = BACKENDS[self._node.backend]
        self.home = node_home(lab.name, name)
        # What makes up its disk, and what only its kernel needs.
        self._disk = {"nspawn": ("upper", "work"), "qemu": ("disk.qcow2",)}[self._node.backend]

    @property
    def host(self) -> Host:
        """The node as testinfra has it."""
        return self._connect(self.name)

    def cut_power(self) -> None:
        """Switch it off as a power cut does."""
        self._backend.kill(self._lab.name, self.name)

    def shut_down(self) -> None:
        """Let it write everything out and switch itself off."""
        self.host.run("systemd-run --on-active=1 systemctl poweroff")
        deadline = time.monotonic() + 300
        while self._backend.is_running(self._lab.name, self.name):
            assert time.monotonic() < deadline, f"{self.name} does not shut down"
            time.sleep(0.2)

    def boot(self) -> None:
        """Switch it on and wait until one can log in."""
        fleet_lab("up", "--inventory", str(self._lab.inventory))

    def keep_disk(self) -> None:
        """Keep the disk of a node that is off as the image that a stateless node boots."""
        self._copy_disk(self.home, self.home / "image")

    def fresh_disk(self) -> None:
        """Give a node that is off the disk that was kept."""
        self._copy_disk(self.home / "image", self.home)

    @property
    def has_kept_disk(self) -> bool:
        """Whether there is a disk that was kept, by an earlier run of the tests perhaps."""
        return (self.home / "image").exists()

    def _copy_disk(self, source: Path, target: Path) -> None:
        target.mkdir(exist_ok=True)
        for part in self._disk:
            if (target / part).is_dir():
                shutil.rmtree(target / part)
            # With device nodes and extended attributes, of which overlays are made.
            subprocess.run(
                ["cp", "--archive", "--no-target-directory", source / part, target / part], check=True
            )

    def result(self) -> dict[str, Any]:
        """How its last pull went; empty if there was none."""
        file = self.host.file(RESULT)
        return json.loads(file.content_string) if file.exists else {}

    def pull(self) -> dict[str, Any]:
        """Let it pull now, as its timer does, and return how that went."""
        self.host.run("systemctl start apptainer-fleet-pull.service")
        return self.result()

    def wait_for_boot(self, seconds: float) -> dict[str, Any]:
        """Wait until the pull at boot has ended, well or not, and return how it went."""
        show = "systemctl show --value --property=ActiveState apptainer-fleet-pull-boot.service"
        # On the node: a login costs an emulated one a second.
        until = f"until {show} | grep --quiet -e ^active -e failed; do sleep 1; done"
        ended = self.host.run("timeout %s sh -c %s", str(seconds), until)
        assert ended.succeeded, f"the pull at boot is {self.host.check_output(show)}"
        return self.result()


class Slurm:
    """The cluster as its controller sees it."""

    def __init__(self, head: Host) -> None:
        self._head = head

    def state(self, name: str) -> str:
        """Return the state of a node, such as ``idle``; with ``*`` it does not answer."""
        return self._head.check_output("sinfo --noheader --nodes=%s --format=%%T", name).strip()

    def wait_for(self, name: str, wanted: str, seconds: float) -> None:
        """Wait until a node is in the wanted state."""
        deadline = time.monotonic() + seconds
        while (state := self.state(name)) != wanted:
            assert time.monotonic() < deadline, f"{name} is {state}"
            time.sleep(1)

"""What the tests of all scenarios need: the nodes of the scenario's inventory, and playbooks that may fail.

A test module names its nodes in ``testinfra_hosts``; they are reached as Ansible reaches them, with the
ssh_config of the lab. The scenario is the one whose folder the test module is in.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

from fleet.lab.lab import BOOT_DEADLINE
from fleet.lab.model import lab_home, load_lab

PROJECT = Path(__file__).resolve().parent.parent
_RECAP = re.compile(r"^(?P<host>\S+)\s+: ok=\d+\s+changed=(?P<changed>\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Result:
    """How ``ansible-playbook`` ended: return code, everything it printed, and changed tasks per host."""

    code: int
    output: str

    @property
    def changed(self) -> dict[str, int]:
        """Inventory name → number of tasks that changed something, or would."""
        return {match["host"]: int(match["changed"]) for match in _RECAP.finditer(self.output)}


def _scenario() -> Path:
    # Molecule runs pytest in the folder of the scenario and says so.
    return Path(os.environ.get("MOLECULE_SCENARIO_DIRECTORY", Path.cwd()))


def pytest_configure(config: pytest.Config) -> None:
    """Point testinfra at the lab of the scenario."""
    inventory = _scenario() / "inventory"
    if inventory.is_dir():
        # One connection for all commands: testinfra asks for it, but leaves it to ssh_config to say where.
        folder = Path(tempfile.mkdtemp(prefix="molecule-"))
        config.add_cleanup(lambda: _disconnect(folder))
        ssh_config = folder / "ssh_config"
        lab = lab_home(load_lab(inventory).name)
        ssh_config.write_text(f"ControlPath {folder}/%C\nInclude {lab}/ssh_config\n")
        config.option.connection = "ssh"
        config.option.ssh_config = str(ssh_config)


def _disconnect(folder: Path) -> None:
    for socket in folder.iterdir():
        if socket.is_socket():
            subprocess.run(
                ["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "-"], capture_output=True, check=False
            )
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def lab_state() -> Path:
    """The folder of the scenario's lab, with ``repository.json`` in it."""
    return lab_home(load_lab(_scenario() / "inventory").name)


@pytest.fixture(scope="session")
def node(lab_state: Path) -> Callable[[str], Host]:
    """Return a node by its name, over a connection that outlives no boot."""
    return lambda name: testinfra.get_host(f"ssh://{name}", ssh_config=str(lab_state / "ssh_config"))


@pytest.fixture(scope="session")
def head(node: Callable[[str], Host]) -> Host:
    """The controller, which is the login node too in clusters that have no other."""
    return node("head")


@pytest.fixture(scope="session")
def repository(lab_state: Path) -> dict[str, Any]:
    """The lab's package repository: ``url``, ``versions`` (oldest first), ``packages`` and more."""
    facts: dict[str, Any] = json.loads((lab_state / "repository.json").read_text())
    return facts


@pytest.fixture
def reboot(host: Host) -> Callable[[], None]:
    """Boot the test's node anew and wait until one can log in to the new system."""

    def boot_id() -> str:
        try:
            return str(host.run("cat /proc/sys/kernel/random/boot_id").stdout.strip())
        except RuntimeError:  # what testinfra calls a connection that fails
            return ""

    def run() -> None:
        before = boot_id()
        # The connection may end before the answer.
        host.run("systemd-run --on-active=1 systemctl reboot")
        deadline = time.monotonic() + BOOT_DEADLINE
        while boot_id() in ("", before):
            assert time.monotonic() < deadline, "the node did not come back"
            time.sleep(1)

    return run


@pytest.fixture(scope="session")
def another_key(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with an OpenPGP key that has signed nothing of the lab."""
    folder = tmp_path_factory.mktemp("another-key")
    gpg = ["gpg", "--homedir", str(folder), "--batch", "--quiet", "--pinentry-mode", "loopback"]
    make = [*gpg, "--passphrase", "", "--quick-generate-key", "another key", "ed25519", "sign", "0"]
    subprocess.run(make, check=True, capture_output=True)
    key = folder / "another.asc"
    key.write_bytes(subprocess.run([*gpg, "--armor", "--export"], check=True, capture_output=True).stdout)
    subprocess.run(["gpgconf", "--homedir", str(folder), "--kill", "all"], check=False)
    return str(key)


@pytest.fixture(scope="session")
def playbook() -> Callable[..., Result]:
    """Run a playbook of the scenario: ``playbook("converge.yml", "--check", apptainer_version="1.2.3")``."""

    def run(name: str, *options: str, **variables: object) -> Result:
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "ansible", "playbook"),
                *("--inventory", str(_scenario() / "inventory"), "--extra-vars", json.dumps(variables)),
                *options,
                str(_scenario() / name),
            ],
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Result(ended.returncode, ended.stdout)

    return run

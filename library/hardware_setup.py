#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: a node takes up its drivers and units, and is held against its class."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hardware_setup
short_description: A node takes up drivers, device permissions and units, and is held against its class
description:
  - Follows M(managed_files), which has written what says so for every boot, and has it so from now on.
    Modules are loaded, udev and systemd read what was written, units run, users are in their groups.
  - Then reads the hardware as M(hardware_facts) does, and says what the node lacks of its class.
  - A program that does not end within O(deadline) is killed, and the module fails with its name.
options:
  modules:
    description: >-
      Kernel modules to be loaded. One that the running kernel has not got is an error, but in check mode,
      where a package may bring it.
    type: list
    elements: str
    default: []
  written:
    description: >-
      Files that were written or removed, as M(managed_files) returns them. Rules of udev among them are
      applied to the devices that are there, those of tmpfiles.d are acted upon; a unit is restarted if it is
      among them and runs.
    type: list
    elements: path
    default: []
  units:
    description: Units of systemd, enabled and running, in this order.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: With its ending.
        type: str
        required: true
      needs:
        description: A kernel module. Where it is not loaded, the unit is enabled only.
        type: str
  restart:
    description: Further units that are restarted, if they run, when anything of theirs is in O(written).
    type: list
    elements: str
    default: []
  memberships:
    description: Group, then its users. A group that is missing is made; nobody is taken out of one.
    type: dict
    default: {}
  expect:
    description: What a node of its class has, as O(expect) of M(hardware_facts).
    type: dict
    default: {}
  required:
    description: Whether a node that lacks some of it is an error. In check mode it is none.
    type: bool
    default: false
  deadline:
    description: Seconds for each program.
    type: int
    default: 120
attributes:
  check_mode:
    support: full
    description: Works on a node without packages of a driver.
  diff_mode:
    support: full
    description: Says what would be done.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: The driver is loaded, and there are eight cards
  hardware_setup:
    modules: [nvidia, nvidia_uvm]
    units:
      - {name: nvidia-persistenced.service, needs: nvidia}
    expect:
      gpus: {vendor: nvidia, count: 8, model: H100}
    required: true
"""

RETURN = r"""
actions:
  description: What was done, or would be, in this order.
  returned: success
  type: list
  elements: str
  sample: ["load nvidia_uvm", "enable nvidia-persistenced.service"]
mismatches:
  description: What the node lacks of O(expect), as sentences.
  returned: success
  type: list
  elements: str
  sample: ["8 x nvidia H100 in its class, 2 there"]
"""

import grp
import subprocess
from pathlib import Path
from typing import Any, Dict, List

from ansible.module_utils import hardware, health_checks
from ansible.module_utils.basic import AnsibleModule

LOADED = "/sys/module"
KERNELS = "/lib/modules"
UDEV_CONTROL = "/run/udev/control"


class SetupError(Exception):
    """The node can't be had as it is wanted; the message says why."""


class Node:
    """Programs on the node, each within a deadline, and what was done with them."""

    def __init__(self, deadline: int, dry: bool) -> None:
        self.deadline = deadline
        self.dry = dry
        self.actions: List[str] = []

    def run(self, *argv: str) -> "subprocess.CompletedProcess[str]":
        try:
            return subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                universal_newlines=True,
                timeout=self.deadline,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SetupError(f"{' '.join(argv)} did not end within {self.deadline} s") from None
        except OSError as error:
            raise SetupError(f"{argv[0]}: {error.strerror}") from error

    def act(self, what: str, *argv: str, hint: str = "") -> None:
        """Do something that changes the node, but in check mode. Raises SetupError with what it says."""
        self.actions.append(what)
        if self.dry:
            return
        ended = self.run(*argv)
        if ended.returncode:
            said = "; ".join((ended.stderr + ended.stdout).split("\n")).strip("; ")
            raise SetupError(f"{' '.join(argv)} fails: {said}{hint}")

    def succeeds(self, *argv: str) -> bool:
        return self.run(*argv).returncode == 0


def is_loaded(name: str) -> bool:
    """Whether a module is loaded, or built into the running kernel."""
    if (Path(LOADED) / name.replace("-", "_")).exists():
        return True
    release = Path("/proc/sys/kernel/osrelease").read_text().strip()
    try:
        builtin = (Path(KERNELS) / release / "modules.builtin").read_text()
    except OSError:
        return False
    return f"/{name.replace('-', '_')}.ko" in builtin.replace("-", "_")


def load(node: Node, names: List[str]) -> None:
    for name in names:
        if not is_loaded(name):
            hint = ": install the driver for the running kernel, or boot the kernel that it is for"
            node.act(f"load {name}", "modprobe", name, hint=hint)


def read_anew(node: Node, written: List[str]) -> None:
    if any("/systemd/" in path for path in written):
        node.act("reload systemd", "systemctl", "daemon-reload")
    for path in written:
        if Path(path).parent.name == "tmpfiles.d" and (node.dry or Path(path).exists()):
            node.act(f"make what {path} says", "systemd-tmpfiles", "--create", path)
    rules = any("/udev/rules.d/" in path for path in written)
    # A container has no udev; its devices are what it was given.
    if rules and Path(UDEV_CONTROL).exists():
        node.act("reload udev", "udevadm", "control", "--reload")
        node.act("apply rules of udev", "udevadm", "trigger", "--action=change")
        node.act("wait for udev", "udevadm", "settle", f"--timeout={node.deadline}")


def run_units(node: Node, params: Dict[str, Any]) -> None:
    written = params["written"]
    for unit in params["units"]:
        name, needs = unit["name"], unit["needs"]
        if not node.succeeds("systemctl", "--quiet", "is-enabled", name):
            node.act(f"enable {name}", "systemctl", "enable", name)
        if needs and not is_loaded(needs):
            continue
        if not node.succeeds("systemctl", "--quiet", "is-active", name):
            node.act(f"start {name}", "systemctl", "start", name)
        elif any(f"/{name}" in path for path in written):
            node.act(f"restart {name}", "systemctl", "restart", name)
    for name in params["restart"]:
        if any(f"/{name}" in path for path in written) and node.succeeds(
            "systemctl", "--quiet", "is-active", name
        ):
            node.act(f"restart {name}", "systemctl", "restart", name)


def join(node: Node, memberships: Dict[str, List[str]]) -> None:
    for group, users in memberships.items():
        try:
            members = grp.getgrnam(group).gr_mem
        except KeyError:
            members = []
            node.act(f"make group {group}", "groupadd", "--system", group)
        for user in users:
            if user not in members:
                node.act(f"add {user} to {group}", "gpasswd", "--add", user, group)


def run(module: AnsibleModule) -> Dict[str, Any]:
    """Bring the node to what is wanted. Raises SetupError."""
    params = module.params
    try:
        expect = health_checks.CHECKS["hardware"].read(params["expect"])
    except ValueError as error:
        raise SetupError(f"expect{error}") from error
    node = Node(params["deadline"], module.check_mode)
    join(node, params["memberships"])
    read_anew(node, params["written"])
    load(node, params["modules"])
    run_units(node, params)
    mismatches = hardware.mismatches(expect, hardware.read()) if expect else []
    if mismatches and params["required"] and not module.check_mode:
        raise SetupError("; ".join(mismatches))
    after = "".join(f"{action}\n" for action in node.actions)
    return {
        "changed": bool(node.actions),
        "actions": node.actions,
        "mismatches": mismatches,
        "diff": {"before": "", "after": after},
    }


def main() -> None:
    """Run the module."""
    unit = {"name": {"type": "str", "required": True}, "needs": {"type": "str"}}
    module = AnsibleModule(
        argument_spec={
            "modules": {"type": "list", "elements": "str", "default": []},
            "written": {"type": "list", "elements": "path", "default": []},
            "units": {"type": "list", "elements": "dict", "default": [], "options": unit},
            "restart": {"type": "list", "elements": "str", "default": []},
            "memberships": {"type": "dict", "default": {}},
            "expect": {"type": "dict", "default": {}},
            "required": {"type": "bool", "default": False},
            "deadline": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except SetupError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()

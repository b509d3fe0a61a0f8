#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: LNet's networks on a client of Lustre."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lnet
short_description: LNet by /etc/lnet.conf, and never another LNet below a mounted Lustre
description:
  - Writes C(/etc/lnet.conf), has C(lnet.service) started now and at every boot, and compares what
    C(lnetctl export) says with what is wanted, afterwards too.
  - LNet is only stopped while no Lustre is mounted. If Lustre is mounted and LNet is to be another, the
    module fails before anything is touched, or unmounts first with O(change=unmount), which is refused as
    long as a process uses Lustre.
  - Refuses a node whose modprobe options configure networks of LNet, too, and a kernel that no module of
    Lustre was built for.
options:
  networks:
    description: Networks that the node is on, as C(lustre_networks) of role lustre.
    type: list
    elements: dict
    required: true
    suboptions:
      net:
        description: The network, such as V(tcp), V(tcp1) or V(o2ib).
        type: str
        required: true
      interfaces:
        description: Its interfaces, one NI each.
        type: list
        elements: str
        required: true
      tunables:
        description: Parameters of its NIs by the names of lnetctl, such as V(peer_credits); whole numbers.
        type: dict
        default: {}
  routes:
    description: Ways to other networks.
    type: list
    elements: dict
    default: []
    suboptions:
      net:
        description: The other network.
        type: str
        required: true
      gateway:
        description: NID of the router.
        type: str
        required: true
      hop:
        description: How many routers there are on the way.
        type: int
      priority:
        description: V(0) is the best.
        type: int
  change:
    description: What to do if LNet is to be another and Lustre is mounted.
    type: str
    choices: [refuse, unmount]
    default: refuse
attributes:
  check_mode:
    support: full
    description: Works on a node without Lustre, of which only the file is predicted.
  diff_mode:
    support: full
    description: Of the files.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Have InfiniBand and Ethernet, and the way to the old file system
  lnet:
    networks:
      - {net: o2ib, interfaces: [ib0, ib1], tunables: {peer_credits: 32}}
      - {net: tcp, interfaces: [eth0]}
    routes:
      - {net: o2ib1, gateway: 10.1.0.9@o2ib}
"""

RETURN = r"""
differences:
  description: What of LNet was another than it is to be.
  returned: success
  type: list
  elements: str
  sample: ["tcp is missing"]
actions:
  description: What was done, or would be, in this order.
  returned: success
  type: list
  elements: str
  sample: [enable lnet.service, start lnet.service]
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any, Dict, List, Optional

from ansible.module_utils import atomic_file, lustre, mounts, unmounting
from ansible.module_utils.basic import AnsibleModule

SERVICE = "lnet.service"
ORDER = "/etc/systemd/system/lnet.service.d/apptainer-fleet.conf"
ORDER_TEXT = (
    "# Ansible writes this file (apptainer-fleet): what is changed here is lost.\n[Unit]\n"
    "Wants=network-online.target\n# Of rdma-core: the devices of the fabric are there.\n"
    "After=network-online.target rdma-hw.target\n"
)
HEAD = "# Ansible writes this file (apptainer-fleet): what is changed here is lost.\n"
OWNER = (0, 0)
INTERFACES = "/sys/class/net"


class LnetError(Exception):
    """LNet can't be had as it is wanted; the message says why, and the mend."""


class Run:
    """One call of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.actions: List[str] = []
        self.diff: List[Dict[str, str]] = []
        self.warnings: List[str] = []

    def running(self) -> Optional[lustre.Lnet]:
        """Return LNet's configuration as it is, None if LNet has none. Raises LnetError."""
        if shutil.which("lnetctl") is None:
            return None
        # What is not asked with --backup, which is of 2.13, says more and the same.
        for argv in (["lnetctl", "export", "--backup"], ["lnetctl", "export"]):
            code, out, _ = self.module.run_command(argv)
            if code == 0:
                try:
                    found = lustre.parse(out)
                except lustre.LustreError as error:
                    raise LnetError(f"{' '.join(argv)}: {error}") from error
                return found if found.networks else None
        return None

    def refuse(self, wanted: lustre.Lnet) -> None:
        """Raise LnetError for a node that can't have it."""
        both = lustre.static_configuration()
        if both:
            raise LnetError(
                f"{', '.join(both)}: options of modprobe configure networks of LNet, and so would"
                f" {lustre.CONFIGURATION}; remove one of them: networks, ip2nets and routes there, or"
                " lustre_networks here"
            )
        missing = [
            name for one in wanted.networks for name in one.interfaces if not Path(INTERFACES, name).exists()
        ]
        if missing:
            text = f"there is no interface {', '.join(missing)} for LNet; there is {', '.join(interfaces())}"
            if not self.module.check_mode:
                raise LnetError(f"lustre_networks: {text}")
            self.warnings.append(f"{text}, unless an earlier task makes it")
        problem = lustre.kernel_problem(os.uname().release)
        if problem:
            if not self.module.check_mode:
                raise LnetError(problem)
            self.warnings.append(f"{problem}; unless the packages bring it")

    def put(self, path: str, text: str) -> bool:
        before = (atomic_file.read(path) or b"").decode(errors="replace")
        if before == text:
            return False
        self.diff.append({"before_header": path, "after_header": path, "before": before, "after": text})
        if not self.module.check_mode:
            Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            atomic_file.replace(path, text.encode(), 0o644, OWNER)
        return True

    def systemctl(self, *words: str) -> None:
        """Run systemctl. Raises LnetError."""
        self.actions.append(" ".join(words))
        problem = "" if self.module.check_mode else unmounting.systemctl(words, unmounting.PATIENCE)
        if problem:
            raise LnetError(f"{problem} (journalctl -u {SERVICE})")

    def asked(self, verb: str) -> bool:
        return self.module.run_command(["systemctl", "--quiet", verb, SERVICE])[0] == 0

    def unmount(self, why: List[str]) -> None:
        """Have no Lustre mounted. Raises LnetError."""
        paths = [
            mount.path
            for mount in mounts.listed()
            if mount.type == "lustre" or lustre.is_source(mount.source)
        ]
        if not paths:
            return
        if self.module.params["change"] == "refuse":
            raise LnetError(
                f"LNet is to be another ({'; '.join(why)}), and Lustre is mounted at {', '.join(paths)}."
                " Nothing was touched: LNet is changed on drained nodes alone, by"
                " playbooks/change_file_systems.yml"
            )
        # All are asked before the first one goes; what is mounted in another comes last.
        for path in paths:
            busy = unmounting.in_use(path)
            if busy:
                raise LnetError(busy)
        for path in reversed(paths):
            self.actions.append(f"unmount {path}")
            problem = "" if self.module.check_mode else unmounting.unmount(path)
            if problem:
                raise LnetError(problem)

    def different(self, wanted: lustre.Lnet, running: Optional[lustre.Lnet]) -> List[str]:
        """Return in what LNet is to be another, as words."""
        if running is None:
            return ["it is not there"]
        written = (atomic_file.read(lustre.CONFIGURATION) or b"").decode(errors="replace")
        before = lustre.Lnet()
        # A file of the site may be an export of everything, values of LNet's own too.
        if written.startswith(HEAD):
            with contextlib.suppress(ValueError):  # Somebody has edited it; it is written anew.
                before = lustre.parse(written)
        return lustre.differences(wanted, running) + lustre.left_over(before, wanted, running)

    def stop(self, running: Optional[lustre.Lnet]) -> None:
        """Have no LNet. Raises LnetError."""
        if self.asked("is-active"):
            self.systemctl("stop", SERVICE)
        elif running is not None:
            # Somebody else has begun it, and then the service would not.
            self.actions.append("lustre_rmmod")
            if not self.module.check_mode:
                self.module.run_command(["lustre_rmmod"], check_rc=True)

    def start(self, wanted: lustre.Lnet) -> None:
        """Have LNet take the file. Raises LnetError."""
        self.systemctl("start", SERVICE)
        if self.module.check_mode:
            return
        now = self.running()
        left = lustre.differences(wanted, now or lustre.Lnet())
        if left:
            raise LnetError(f"{lustre.CONFIGURATION} was imported, and then {'; '.join(left)}")


def interfaces() -> List[str]:
    try:
        return sorted(os.listdir(INTERFACES))  # noqa: PTH208
    except OSError:
        return []


def run(module: AnsibleModule) -> Dict[str, Any]:
    """Bring LNet to what is wanted. Raises LnetError, OSError, and ValueError for wrong networks."""
    networks = [{**one, "tunables": one.get("tunables") or {}} for one in module.params["networks"]]
    wanted = lustre.read(networks, module.params["routes"])
    this = Run(module)
    this.refuse(wanted)
    running = this.running()
    different = this.different(wanted, running)
    if different and running:
        this.unmount(different)
    if different:
        # Before the file is another: the next run would not see what is left over of the old one.
        this.stop(running)
    written = this.put(lustre.CONFIGURATION, HEAD + lustre.render(wanted))
    ordered = this.put(ORDER, ORDER_TEXT)
    if ordered:
        this.systemctl("daemon-reload")
    if not this.asked("is-enabled"):
        this.systemctl("enable", SERVICE)
    if different:
        this.start(wanted)
    for warning in this.warnings:
        module.warn(warning)
    return {
        "changed": bool(written or ordered or this.actions),
        "differences": different,
        "actions": this.actions,
        "diff": this.diff,
    }


def main() -> None:
    """Run the module."""
    networks = {
        "net": {"type": "str", "required": True},
        "interfaces": {"type": "list", "elements": "str", "required": True},
        "tunables": {"type": "dict", "default": {}},
    }
    routes = {
        "net": {"type": "str", "required": True},
        "gateway": {"type": "str", "required": True},
        "hop": {"type": "int"},
        "priority": {"type": "int"},
    }
    module = AnsibleModule(
        argument_spec={
            "networks": {"type": "list", "elements": "dict", "options": networks, "required": True},
            "routes": {"type": "list", "elements": "dict", "options": routes, "default": []},
            "change": {"type": "str", "choices": ["refuse", "unmount"], "default": "refuse"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except LnetError as error:
        module.fail_json(msg=str(error))
    except ValueError as error:
        module.fail_json(msg=f"networks{error}".replace("\n", "; "))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()

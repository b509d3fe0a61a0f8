#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: leftovers of old installations on the local file systems of a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: setuid_audit
short_description: Find leftovers of old Singularity and Apptainer installations
description:
  - Looks through the local file systems of a node for setuid programs of Singularity and Apptainer
    (C(starter-suid), and C(sexec), C(action-suid) and their like of Singularity 2), for C(singularity) in a
    C(bin) folder, and for C(singularity) in an C(etc) folder.
  - Network, FUSE and unknown file systems are never entered, symbolic links never followed.
  - Changes nothing and removes nothing. An audit that met its deadline says so, also in a warning.
options:
  roots:
    description: Folders to look into, with the local file systems that are mounted below them.
    type: list
    elements: path
    default: [/]
  allowed:
    description: Paths of what is meant to be there, such as the setuid starter of the installed package.
    type: list
    elements: path
    default: []
  deadline:
    description: Seconds after which the audit ends, wherever it is.
    type: int
    default: 60
attributes:
  check_mode:
    support: full
    description: It is the same as without.
  diff_mode:
    support: none
    description: There is nothing to differ.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Look for setuid programs of old installations
  setuid_audit:
    allowed: [/usr/libexec/apptainer/bin/starter-suid]
  register: leftovers
"""

RETURN = r"""
findings:
  description: What was found, by path.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: The file or folder.
      type: str
    kind:
      description: V(setuid), V(program) or V(configuration).
      type: str
    owner:
      description: Its user, by name if the node's own files know one.
      type: str
    group:
      description: Its group.
      type: str
    mode:
      description: Its mode, octal.
      type: str
      sample: "4755"
    nosuid:
      description: Whether it is mounted so that its setuid bit means nothing at present.
      type: bool
    package:
      description: The package that it belongs to, empty if none does.
      type: str
    allowed:
      description: Whether it is in O(allowed).
      type: bool
stray:
  description: The paths of all that is not in O(allowed).
  returned: success
  type: list
  elements: str
complete:
  description: Whether all of it was seen, that is, there was no deadline and no unreadable folder.
  returned: success
  type: bool
stopped_at:
  description: The folder at which the deadline came, empty if it did not.
  returned: success
  type: str
unreadable:
  description: The first hundred folders that could not be read, and why.
  returned: success
  type: list
  elements: str
walked:
  description: Where each walk began, one for each local file system.
  returned: success
  type: list
  elements: str
not_entered:
  description: Mount points of file systems that are not local, with their types.
  returned: success
  type: list
  elements: str
entries:
  description: How many names were looked at.
  returned: success
  type: int
"""

import grp
import os
import pwd
from pathlib import Path
from typing import Dict, List, Tuple

from ansible.module_utils import mounts, setuid_audit
from ansible.module_utils.basic import AnsibleModule


def packages(module: AnsibleModule, paths: List[str]) -> Dict[str, str]:
    """Return path → package, where a package manager knows it."""

    def run(argv: List[str]) -> Tuple[int, str]:
        program = module.get_bin_path(argv[0])
        return module.run_command([program, *argv[1:]])[:2] if program else (127, "")

    return setuid_audit.packages(run, paths) or {}


def user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "roots": {"type": "list", "elements": "path", "default": ["/"]},
            "allowed": {"type": "list", "elements": "path", "default": []},
            "deadline": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    allowed = set(module.params["allowed"])
    for root in module.params["roots"]:
        if not root.startswith("/"):
            module.fail_json(msg=f"roots: {root!r} is not absolute")
    if module.params["deadline"] <= 0:
        module.fail_json(msg="deadline: give at least one second")
    try:
        # Mount points may be of any encoding, as paths are.
        mountinfo = os.fsdecode(Path(mounts.MOUNTINFO).read_bytes())
    except OSError as error:
        module.fail_json(msg=f"{mounts.MOUNTINFO} can't be read: {error.strerror}")
    roots = [os.path.realpath(root) for root in module.params["roots"]]
    audit = setuid_audit.audit(module.params["deadline"], mountinfo, roots)
    findings = sorted(audit.findings, key=lambda finding: finding.path)
    package = packages(module, [finding.path for finding in findings])
    if audit.stopped_at is not None:
        module.warn(
            f"The deadline of {module.params['deadline']} seconds came at {audit.stopped_at}, "
            f"after {audit.entries} names: raise it, or give fewer roots"
        )
    module.exit_json(
        changed=False,
        findings=[
            {
                "path": finding.path,
                "kind": finding.kind,
                "owner": user(finding.uid),
                "group": group(finding.gid),
                "mode": f"{finding.mode:04o}",
                "nosuid": finding.nosuid,
                "package": package.get(finding.path, ""),
                "allowed": finding.path in allowed,
            }
            for finding in findings
        ],
        stray=[finding.path for finding in findings if finding.path not in allowed],
        complete=audit.stopped_at is None and not audit.unreadable_count,
        stopped_at=audit.stopped_at or "",
        unreadable=audit.unreadable,
        walked=audit.walked,
        not_entered=audit.not_entered,
        entries=audit.entries,
    )


if __name__ == "__main__":
    main()

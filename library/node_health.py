#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the health program of a node, its settings, and its gate before slurmd."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_health
short_description: The health program of a compute node, and what it demands of the node
description:
  - Installs the program C(/usr/lib/apptainer-fleet/node-health.pyz), one file that needs Python and nothing
    else of this project, and its settings. C(docs/node-health.md) says what it does.
  - C(/usr/lib/apptainer-fleet/node-health) runs it for Slurm's C(HealthCheckProgram), which has no arguments.
  - The program is not run by this module, so a node that is unhealthy can be configured.
options:
  state:
    description: Whether the node has it.
    type: str
    choices: [present, absent]
    default: present
  settings:
    description: >-
      What the node has to be, as C(docs/node-health.md) describes it. Judged before anything is written.
    type: dict
  gate:
    description: >-
      Units of systemd, such as V(slurmd.service), that start only once the node was healthy since its boot.
      Until then they try again from time to time.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
    description: The program and its settings are compared, not written.
  diff_mode:
    support: full
    description: Of the program, shows its SHA-256.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: A node is healthy if a user can run containers and /scratch answers
  node_health:
    settings:
      node: c1
      manager: slurm
      checks:
        apptainer: {version: 1.4.5, setuid: false}
        container: {user: nobody, interval: 3600}
        mounts:
          - {path: /scratch, type: lustre}
    gate: [slurmd.service]
"""

RETURN = r"""
paths:
  description: The files that were written or removed, or would be.
  returned: success
  type: list
  elements: str
"""

import glob
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ansible.module_utils import atomic_file, node_health, program_bundle
from ansible.module_utils.basic import AnsibleModule

FOLDER = "/usr/lib/apptainer-fleet"
PROGRAM = f"{FOLDER}/node-health.pyz"
WRAPPER = f"{FOLDER}/node-health"
UNITS = "/etc/systemd/system"
DROP_IN = "apptainer-fleet-node-health.conf"
SETTINGS = node_health.SETTINGS
OWNER = (0, 0)

_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.@-]*\.service")
_HEAD = "# Ansible writes this file (apptainer-fleet): what is changed here is lost.\n"
_RUN = f"/usr/bin/python3 -I -B {PROGRAM}"

#: Path → content and mode.
Files = Dict[str, Tuple[bytes, int]]


def drop_in() -> str:
    """Return what is added to a unit that waits for a healthy node."""
    return (
        f"{_HEAD}# A node that is not healthy when it boots takes no jobs. It looks again until it is.\n"
        "[Unit]\nStartLimitIntervalSec=0\n\n"
        f"[Service]\nExecStartPre={_RUN} --gate\nRestart=on-failure\nRestartSec=10\n"
    )


def files(settings: Mapping[str, Any], gate: List[str]) -> Files:
    """Return what the node has to have. Raises HealthError for wrong settings."""
    node_health.read(settings)
    for unit in gate:
        if not _UNIT.fullmatch(unit):
            raise node_health.HealthError(f"gate: {unit!r} is no service of systemd, such as slurmd.service")
    text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
    wrapper = (
        f"#!/bin/sh\n{_HEAD}# For Slurm, whose HealthCheckProgram has no arguments.\nexec {_RUN} --act\n"
    )
    return {
        PROGRAM: (program_bundle.bundle("node_health"), 0o644),
        SETTINGS: (text.encode(), 0o644),
        WRAPPER: (wrapper.encode(), 0o755),
        **{f"{UNITS}/{unit}.d/{DROP_IN}": (drop_in().encode(), 0o644) for unit in gate},
    }


def shown(path: str, content: Optional[bytes]) -> str:
    """Return a content as a diff shows it."""
    if content is None:
        return ""
    return (
        f"sha256 {hashlib.sha256(content).hexdigest()}\n"
        if path == PROGRAM
        else content.decode(errors="replace")
    )


def run(module: AnsibleModule) -> Dict[str, Any]:
    """Bring the node to what is wanted. Raises HealthError and OSError."""
    params = module.params
    present = params["state"] == "present"
    wanted = files(params["settings"], params["gate"]) if present else {}
    known = (PROGRAM, SETTINGS, WRAPPER, *glob.glob(f"{UNITS}/*.d/{DROP_IN}"))  # noqa: PTH207
    paths, diff = [], []
    for path in dict.fromkeys((*wanted, *known)):
        before, (after, mode) = atomic_file.read(path), wanted.get(path, (None, 0))
        if before == after and (after is None or Path(path).stat().st_mode & 0o7777 == mode):
            continue
        paths.append(path)
        diff.append(
            {
                "before_header": path,
                "after_header": path,
                "before": shown(path, before),
                "after": shown(path, after),
            }
        )
        if module.check_mode:
            continue
        if after is None:
            Path(path).unlink()
        else:
            Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            atomic_file.replace(path, after, mode, OWNER)
    if not module.check_mode and any(path.endswith(DROP_IN) for path in paths):
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)
    return {"changed": bool(paths), "paths": paths, "diff": diff}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "settings": {"type": "dict"},
            "gate": {"type": "list", "elements": "str", "default": []},
        },
        required_if=[("state", "present", ("settings",))],
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except node_health.HealthError as error:
        module.fail_json(msg=f"settings: {error}")
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()

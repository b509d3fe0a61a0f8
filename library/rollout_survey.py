#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: what a rollout has to know of a node before it plans."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_survey
short_description: Read what a rollout has to know of this node
description:
  - Says which Apptainer users get, what kind of system the node is, and how much space there is where
    packages are installed and unpacked. Changes nothing.
options:
  space:
    description: MiB that have to be free on the file system of each of O(paths); it fails where they are not.
    type: int
    default: 0
  paths:
    description: Where packages go; those that are missing don't count.
    type: list
    elements: path
    default: [/usr, /var/cache, /var/lib, /etc]
attributes:
  check_mode:
    support: full
    description: Does in check mode what it always does, since it changes nothing.
  diff_mode:
    support: none
    description: There is nothing to show a difference of.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Read what is there
  rollout_survey:
    space: 500
"""

RETURN = r"""
version:
  description: The version of Apptainer as it prints it, empty without one.
  returned: success
  type: str
  sample: 1.4.5-2
system:
  description: Distribution, its version, and the processor.
  returned: success
  type: str
  sample: debian13-x86_64
free:
  description: MiB that are free for each path.
  returned: always
  type: dict
  sample: {/usr: 20480}
"""

import os
import platform
from pathlib import Path
from typing import List

from ansible.module_utils import apptainer_packages, node_distribution
from ansible.module_utils.basic import AnsibleModule


def free(paths: List[str]) -> dict:
    """Return MiB free for root by path; missing ones are left out."""
    found = {}
    for path in paths:
        if Path(path).is_dir():
            system = os.statvfs(path)
            found[path] = system.f_bavail * system.f_frsize // 2**20
    return found


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "space": {"type": "int", "default": 0},
            "paths": {
                "type": "list",
                "elements": "path",
                "default": ["/usr", "/var/cache", "/var/lib", "/etc"],
            },
        },
        supports_check_mode=True,
    )

    def run(argv: List[str]) -> tuple:
        environment = apptainer_packages.ENVIRONMENT
        return module.run_command(list(argv), environ_update=environment, expand_user_and_vars=False)

    try:
        space = free(module.params["paths"])
        program = apptainer_packages.find(run)
        fields = node_distribution.read(apptainer_packages.read_text(node_distribution.OS_RELEASE) or "")
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    short = [path for path, number in space.items() if number < module.params["space"]]
    if short:
        module.fail_json(
            msg=f"{', '.join(short)}: less than {module.params['space']} MiB are free; make room there",
            free=space,
        )
    module.exit_json(
        changed=False,
        version=(program.version or "") if program else "",
        system=f"{fields.get('ID', 'unknown')}{fields.get('VERSION_ID', '')}-{platform.machine()}",
        free=space,
    )


if __name__ == "__main__":
    main()

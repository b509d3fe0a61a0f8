#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: which Slurm is on a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_versions
short_description: Read which packages of Slurm a node has, and which of its daemons run
description:
  - Reads the package database, dpkg's or RPM's. Changes nothing.
options: {}
attributes:
  check_mode:
    support: full
    description: Nothing is changed.
  diff_mode:
    support: none
    description: Nothing is changed, so nothing can differ.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Read which Slurm is here
  slurm_versions:
  register: slurm
"""

RETURN = r"""
versions:
  description: Version by package; empty without Slurm.
  returned: success
  type: dict
  sample: {slurmd: 24.11.5-4+deb13u1}
running:
  description: Daemons that run, in the order in which they are upgraded.
  returned: success
  type: list
  elements: str
  sample: [slurmd]
"""

import re

from ansible.module_utils.basic import AnsibleModule

# Of Debian and Ubuntu; of the RPM packages that Slurm's own specification makes.
PACKAGES = (
    *("slurmdbd", "slurmctld", "slurmd", "sackd", "slurm-client"),
    *("slurm-wlm-basic-plugins", "slurm-wlm-mysql-plugin"),
    *("slurm", "slurm-slurmdbd", "slurm-slurmctld", "slurm-slurmd", "slurm-sackd"),
)
DAEMONS = ("slurmdbd", "slurmctld", "slurmd", "sackd")


def versions(module: AnsibleModule) -> dict:
    """Return version by package. Packages that are not there make both programs fail, and are no error."""
    if module.get_bin_path("dpkg-query"):
        show = ["dpkg-query", "--show", "--showformat=${Package} ${Version} ${db:Status-Status}\\n"]
    else:
        show = ["rpm", "--query", "--queryformat=%{NAME} %{VERSION}-%{RELEASE} installed\\n"]
    # RPM says of a package that is not there that it is not; dpkg may know its name alone.
    lines = re.findall(r"^(\S+) (\S+) installed$", module.run_command([*show, *PACKAGES])[1], re.MULTILINE)
    return {package: version for package, version in lines if package in PACKAGES}


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    running = [
        daemon
        for daemon in DAEMONS
        if module.run_command(["systemctl", "--quiet", "is-active", daemon])[0] == 0
    ]
    module.exit_json(changed=False, versions=versions(module), running=running)


if __name__ == "__main__":
    main()

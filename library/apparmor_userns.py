#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: programs that may create user namespaces although AppArmor restricts that."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apparmor_userns
short_description: Let programs create user namespaces although AppArmor restricts that
description:
  - Owns one file in C(/etc/apparmor.d) with a profile for each program that allows user namespaces and
    confines nothing, and has the kernel load it. Ubuntu since 23.10 demands one from programs of users.
  - Profiles are named by the program's path. The kernel takes those before patterns, so they do not
    contradict the profile of a package for the same program.
  - Does nothing where AppArmor is off, or is not to be managed from the node because that is a container.
options:
  path:
    description: The file to own, for example C(/etc/apparmor.d/apptainer-starter).
    type: path
    required: true
  programs:
    description: Absolute paths; they need not exist. Without one, file and loaded profiles are removed.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    support: full
    description: The new file is given to C(apparmor_parser) in check mode, too, without loading it.
  diff_mode:
    support: full
    description: Of each file.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Let Apptainer create user namespaces
  apparmor_userns:
    path: /etc/apparmor.d/apptainer-starter
    programs: [/usr/libexec/apptainer/bin/starter]
"""

RETURN = r"""
enabled:
  description: Whether AppArmor is on and can be managed here.
  returned: success
  type: bool
loaded:
  description: The profiles that the kernel was given, or would be.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils import apparmor
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(argument_spec=dict(apparmor.SPEC), supports_check_mode=True)
    try:
        module.exit_json(**apparmor.bring(module.params, module.check_mode, module.run_command))
    except apparmor.AppArmorError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()

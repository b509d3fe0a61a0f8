#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: kernel parameters, now and after the next boot."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_parameters
short_description: Set kernel parameters now and for every boot
description:
  - Owns one file in C(/etc/sysctl.d) and writes the same values to the running kernel.
  - The running kernel comes first, so a value that it refuses never gets into the file.
  - A parameter that already has its value is not written again. One that this kernel does not have is
    reported in RV(skipped_parameters) and written to the file with C(-) before it, which sysctl.d(5) reads as
    "if there is one".
options:
  path:
    description: The file to own, for example C(/etc/sysctl.d/60-user-namespaces.conf).
    type: path
    required: true
  parameters:
    description: Names and values. A value is one line of text, a number, or a boolean (1 and 0).
    type: dict
    required: true
  limits:
    description: What a parameter has to be whoever sets it. Looked at before anything is changed.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The parameter.
        type: str
        required: true
      minimum:
        description: It must not be smaller.
        type: int
      maximum:
        description: It must not be larger.
        type: int
      reason:
        description: A sentence for the one who has to mend it.
        type: str
        required: true
attributes:
  check_mode:
    support: full
    description: Predicts changes, skipped parameters and errors, also that of a read-only C(/proc/sys).
  diff_mode:
    support: full
    description: Shows the file and the values of the running kernel.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Let users create user namespaces
  kernel_parameters:
    path: /etc/sysctl.d/60-user-namespaces.conf
    parameters:
      user.max_user_namespaces: 15000
      kernel.unprivileged_userns_clone: true
"""

RETURN = r"""
changes:
  description: What the running kernel got another value for.
  returned: success
  type: list
  elements: dict
  sample: [{name: user.max_user_namespaces, before: "0", after: "15000"}]
skipped_parameters:
  description: Parameters that this kernel does not have.
  returned: success
  type: list
  elements: str
  sample: [kernel.unprivileged_userns_clone]
"""

import os

from ansible.module_utils import atomic_file, kernel_parameters
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "parameters": {"type": "dict", "required": True},
            "limits": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "minimum": {"type": "int"},
                    "maximum": {"type": "int"},
                    "reason": {"type": "str", "required": True},
                },
            },
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    limits = [kernel_parameters.Limit(**limit) for limit in module.params["limits"]]
    try:
        plan = kernel_parameters.plan(module.params["parameters"], limits, kernel_parameters.PROC_SYS)
        old = (atomic_file.read(path) or b"").decode(errors="surrogateescape")
        if not module.check_mode:
            for change in plan.changes:
                kernel_parameters.apply(change, kernel_parameters.PROC_SYS)
            if old != plan.text:
                atomic_file.replace(path, plan.text.encode(), owner=(0, 0) if os.geteuid() == 0 else None)
    except kernel_parameters.KernelParameterError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{path} can't be written: {error.strerror}")

    def values(attribute: str) -> str:
        return "".join(f"{change.name} = {getattr(change, attribute)}\n" for change in plan.changes)

    module.exit_json(
        changed=bool(plan.changes) or old != plan.text,
        changes=[{"name": c.name, "before": c.running, "after": c.wanted} for c in plan.changes],
        skipped_parameters=list(plan.skipped),
        diff=[
            {"before_header": path, "after_header": path, "before": old, "after": plan.text},
            {
                "before_header": "running kernel",
                "after_header": "running kernel",
                "before": values("running"),
                "after": values("wanted"),
            },
        ],
    )


if __name__ == "__main__":
    main()

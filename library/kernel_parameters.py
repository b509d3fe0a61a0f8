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
  - Other files of sysctl.d(5), and C(/etc/sysctl.conf), that would undo a value at the next boot are an error
    that names file and line, and the hardening it comes from where that is known (DISA STIG, dev-sec).
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
  conflicts:
    description:
      - V(refuse) fails if another file undoes a value of O(parameters) at the next boot, or brings one that
        O(limits) forbid. V(report) warns.
      - A file that is read before O(path) with another value never fails. It is in RV(overruled), and in a
        warning if it does not belong to the distribution, as whoever wrote it may set it again.
    type: str
    choices: [refuse, report]
    default: refuse
  report:
    description: Further parameters whose running values to return in RV(running).
    type: list
    elements: str
    default: []
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
running:
  description: What each parameter of O(report) was before anything was changed, null if this kernel lacks it.
  returned: success
  type: dict
  sample: {kernel.apparmor_restrict_unprivileged_userns: "1"}
lost:
  description: What other files undo at the next boot; each a phrase with parameter, value, file and line.
  returned: success
  type: list
  elements: str
overruled:
  description: What other files say and O(path) overrules, in such phrases.
  returned: success
  type: list
  elements: str
skipped_parameters:
  description: Parameters that this kernel does not have.
  returned: success
  type: list
  elements: str
  sample: [kernel.unprivileged_userns_clone]
"""

import os
from typing import Dict, List

from ansible.module_utils import atomic_file, kernel_parameters, sysctl_files
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.kernel_parameters import KernelParameterError, Limit
from ansible.module_utils.sysctl_files import Setting

# What lies there is the distribution's, and no sign of hardening.
VENDOR = ("/usr/lib/", "/lib/")


def lost(values: Dict[str, str], limits: List[Limit], settings: List[Setting]) -> List[str]:
    """Return what is wrong after the next boot: values that other files undo, or that a limit forbids."""
    problems = [
        f"{setting.describe()}, is read later at a boot and undoes {setting.name} = {values[setting.name]}"
        for setting in sysctl_files.lost(values, settings)
    ]
    for limit in limits:
        setting = sysctl_files.last(settings, limit.name)
        if limit.name not in values and setting is not None:
            try:
                kernel_parameters.check_limit(limit, setting.value, "the next boot")
            except KernelParameterError as error:
                problems.append(f"{error}. It comes from {setting.describe()}")
    return problems


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "parameters": {"type": "dict", "required": True},
            "conflicts": {"type": "str", "choices": ["refuse", "report"], "default": "refuse"},
            "report": {"type": "list", "elements": "str", "default": []},
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
    settings: List[Setting] = []
    try:
        names = [*module.params["parameters"], *(limit.name for limit in limits)]
        settings = sysctl_files.others(names, path, sysctl_files.FOLDERS, sysctl_files.SYSCTL_CONF)
        plan = kernel_parameters.plan(module.params["parameters"], limits, kernel_parameters.PROC_SYS)
        running = {
            name: kernel_parameters.running_value(name, kernel_parameters.PROC_SYS)
            for name in module.params["report"]
        }
        problems = lost(plan.values, limits, settings)
        if problems and module.params["conflicts"] == "refuse":
            raise KernelParameterError(
                "; ".join(problems) + ": remove that line, or the hardening that writes it"
            )
        old = (atomic_file.read(path) or b"").decode(errors="surrogateescape")
        if not module.check_mode:
            for change in plan.changes:
                kernel_parameters.apply(change, kernel_parameters.PROC_SYS)
            if old != plan.text:
                atomic_file.replace(path, plan.text.encode(), owner=(0, 0) if os.geteuid() == 0 else None)
    except KernelParameterError as error:
        message = str(error)
        # Whoever set what is wrong now; the other messages have it already.
        origins = [s.describe() for s in settings if message.startswith(s.name) and s.path not in message]
        module.fail_json(msg=message + "".join(f". There is {origin}" for origin in origins))
    except OSError as error:
        module.fail_json(msg=f"{path} can't be written: {error.filename}: {error.strerror}")

    overruled = sysctl_files.overruled(plan.values, settings)
    for problem in problems:
        module.warn(problem)
    for setting in overruled:
        if not setting.path.startswith(VENDOR):
            module.warn(f"{setting.describe()}, contradicts {path}, which is read later and wins at a boot")

    def values(attribute: str) -> str:
        return "".join(f"{change.name} = {getattr(change, attribute)}\n" for change in plan.changes)

    module.exit_json(
        changed=bool(plan.changes) or old != plan.text,
        changes=[{"name": c.name, "before": c.running, "after": c.wanted} for c in plan.changes],
        skipped_parameters=list(plan.skipped),
        running=running,
        lost=problems,
        overruled=[setting.describe() for setting in overruled],
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

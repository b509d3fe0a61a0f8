#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: all that the kernel and its files say about user namespaces, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: user_namespaces
short_description: Set up user namespaces for containers in one call
description:
  - Does in one call, which costs a run over many nodes a third of three, what M(kernel_parameters),
    M(apparmor_userns) and M(subordinate_ids) do, in this order.
  - What is not given is left alone. If a part fails, those before it are done; the next run goes on there.
options:
  kernel:
    description: Kernel parameters, now and for every boot. The options of M(kernel_parameters).
    type: dict
  apparmor:
    description: >-
      Programs that may create user namespaces, on a node whose kernel withholds them by AppArmor
      (C(kernel.apparmor_restrict_unprivileged_userns) is there). The options of M(apparmor_userns).
    type: dict
  subordinate_ids:
    description: Ranges of IDs for users. The options of M(subordinate_ids).
    type: dict
attributes:
  check_mode:
    support: full
    description: Predicts what each part does.
  diff_mode:
    support: full
    description: That of each part.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Let users create user namespaces, and 5,000 of them build images
  user_namespaces:
    kernel:
      path: /etc/sysctl.d/60-user-namespaces.conf
      parameters:
        user.max_user_namespaces: 15000
    apparmor:
      path: /etc/apparmor.d/apptainer-starter
      programs: [/usr/libexec/apptainer/bin/starter]
    subordinate_ids:
      users: [10000-14999]
      start: 1000000
"""

RETURN = r"""
kernel:
  description: What M(kernel_parameters) returns.
  returned: if O(kernel) is given
  type: dict
apparmor:
  description: What M(apparmor_userns) returns.
  returned: if O(apparmor) is given, and the kernel withholds namespaces
  type: dict
subordinate_ids:
  description: What M(subordinate_ids) returns.
  returned: if O(subordinate_ids) is given
  type: dict
"""

from typing import Any, Dict, List, Mapping

from ansible.module_utils import apparmor, kernel_parameters, subordinate_id_files, subordinate_ids
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

RESTRICTION = "kernel.apparmor_restrict_unprivileged_userns"


#: Option → the arguments of the module that it stands for.
SPECS: Mapping[str, Mapping[str, Any]] = {
    "kernel": kernel_parameters.SPEC,
    "apparmor": apparmor.SPEC,
    "subordinate_ids": subordinate_id_files.SPEC,
}


def validated(module: AnsibleModule, name: str) -> Dict[str, Any]:
    """Return an option with the defaults of the module that it stands for, empty if it is not given."""
    given = module.params[name]
    if given is None:
        return {}
    result = ArgumentSpecValidator(dict(SPECS[name])).validate(given)
    if result.error_messages:
        module.fail_json(msg=f"{name}: {'; '.join(result.error_messages)}")
    return dict(result.validated_parameters)


def bring(module: AnsibleModule, results: Dict[str, Dict[str, Any]]) -> None:
    """Bring the node to the module's parameters, and put the result of each part into *results*.

    Raises KernelParameterError, AppArmorError, SubordinateIDError and OSError.
    """
    params, check = {name: validated(module, name) for name in SPECS}, module.check_mode
    # As it was before anything is changed.
    restricted = kernel_parameters.running_value(RESTRICTION, kernel_parameters.PROC_SYS) is not None
    if params["kernel"]:
        results["kernel"] = kernel_parameters.bring(params["kernel"], check)
    if params["apparmor"] and restricted:
        results["apparmor"] = apparmor.bring(params["apparmor"], check, module.run_command)
    if params["subordinate_ids"]:
        results["subordinate_ids"] = subordinate_id_files.bring(params["subordinate_ids"], check)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "kernel": {"type": "dict"},
            "apparmor": {"type": "dict"},
            "subordinate_ids": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    results: Dict[str, Dict[str, Any]] = {}
    problem = ""
    try:
        bring(module, results)
    except (
        kernel_parameters.KernelParameterError,
        apparmor.AppArmorError,
        subordinate_ids.SubordinateIDError,
    ) as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
    diff: List[Dict[str, str]] = []
    for result in results.values():
        for text in result.pop("warnings", []):
            module.warn(text)
        parts = result.pop("diff", [])
        diff += parts if isinstance(parts, list) else [parts]
    changed = any(result["changed"] for result in results.values())
    shown = {"diff": diff} if module._diff and changed else {}
    if problem:
        module.fail_json(msg=problem, changed=changed, **shown, **results)
    module.exit_json(changed=changed, **shown, **results)


if __name__ == "__main__":
    main()

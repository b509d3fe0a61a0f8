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

from ansible.module_utils import kernel_parameters
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(argument_spec=dict(kernel_parameters.SPEC), supports_check_mode=True)
    try:
        result = kernel_parameters.bring(module.params, module.check_mode)
    except kernel_parameters.KernelParameterError as error:
        module.fail_json(msg=str(error))
    for text in result.pop("warnings"):
        module.warn(text)
    module.exit_json(**result)


if __name__ == "__main__":
    main()

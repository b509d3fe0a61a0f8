#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: judge Apptainer as it is on the node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apptainer_lint
short_description: Judge Apptainer as it is on this node
description:
  - Looks at the node (release, setuid starter, C(apptainer.conf) and its sibling files, their owners and
    modes, the kernel's settings for user namespaces, mounts) and holds it against the rules L01 to L30 and
    the advisories.
  - Reads C(apptainer.conf) as Apptainer does, so that a setting that is ignored is found.
  - Never touches what is on a file system of the network; what is there is not judged.
  - Fails if there are errors that are not waived.
  - A node without Apptainer has no findings.
options:
  waivers:
    description: Findings to live with. What is waived is still returned.
    type: list
    elements: dict
    default: []
    suboptions:
      rule:
        description: The rule (V(L12)) or the advisory (V(CVE-2025-65105)).
        type: str
        required: true
      reason:
        description: Why.
        type: str
        required: true
      expires:
        description: The last day of the waiver, V(2027-01-31). After it the waiver itself is an error.
        type: str
        required: true
  profile:
    description: >-
      The security profile that the site has chosen. In V(compatible) limits that bind nobody are no error.
    type: str
    choices: [rootless, enforced, compatible]
  report_only:
    description: Do not fail, whatever is found.
    type: bool
    default: false
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
- name: Judge Apptainer as it is on the node
  apptainer_lint:
    profile: enforced
    waivers:
      - rule: L28
        reason: root in containers gets file capabilities only, decided by the security group
        expires: 2027-06-30
"""

RETURN = r"""
version:
  description: The version of Apptainer, null if there is none.
  returned: always
  type: str
  sample: 1.4.5
findings:
  description: What is wrong, in the order of the rules.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: The rule, or V(waiver) for a waiver that does not count.
      type: str
      sample: L12
    severity:
      description: V(error) or V(warning), whether or not it is waived.
      type: str
    subject:
      description: The directive, file, path or advisory.
      type: str
      sample: allow setuid-mount extfs
    message:
      description: What is wrong.
      type: str
    mend:
      description: What to do about it.
      type: str
    reference:
      description: Where to read on.
      type: str
      sample: CVE-2023-30549
    evidence:
      description: What was seen.
      type: str
      sample: allow setuid-mount extfs = yes
    waived:
      description: Until when and for which reason it is waived; empty if it is not.
      type: str
"""

import datetime
from typing import List

from ansible.module_utils import apptainer_facts, apptainer_packages, apptainer_rules, apptainer_waivers
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "waivers": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "rule": {"type": "str", "required": True},
                    "reason": {"type": "str", "required": True},
                    "expires": {"type": "str", "required": True},
                },
            },
            "profile": {"type": "str", "choices": ["rootless", "enforced", "compatible"]},
            "report_only": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )

    def command(argv: List[str]) -> tuple:
        environment = apptainer_packages.ENVIRONMENT
        return module.run_command(list(argv), environ_update=environment, expand_user_and_vars=False)

    today = datetime.date.today()
    waivers, problems = apptainer_waivers.read(module.params["waivers"], apptainer_rules.WAIVABLE, today)
    try:
        node = apptainer_facts.gather(command, module.params["profile"])
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    findings = [*map(apptainer_rules.bad_waiver, problems), *apptainer_rules.judge(node, waivers)]
    if node.version and node.directives is None:
        module.warn(
            f"the directives of Apptainer {node.version} are not known, so apptainer.conf is not judged"
        )
    result = {"version": node.version, "findings": [finding._asdict() for finding in findings]}
    stopping = [str(finding) for finding in findings if finding.stops]
    if stopping and not module.params["report_only"]:
        module.fail_json(msg="\n".join(["Apptainer on this node breaks rules:", *stopping]), **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright: apptainer-fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Judge an inventory on the controller, before any node is contacted."""

from __future__ import annotations

DOCUMENTATION = r"""
module: inventory_check
short_description: Judge an inventory before any node is contacted
version_added: "0.1.0"
description:
  - Holds an inventory against the C(argument_specs) of the roles and the rules of C(fleet.validate), and
    fails with all errors at once, each with the variable, the file and line it stands in, what is wrong and
    the mend.
  - Runs on the controller with the Python that runs Ansible, reads files only and changes nothing.
  - Findings that are no errors are returned.
options:
  sources:
    description: Inventory files or directories, as given to C(ansible-playbook -i).
    type: list
    elements: path
    required: true
  project:
    description: The checkout that holds the roles and the package C(fleet).
    type: path
    required: true
requirements:
  - ansible-core, ClusterShell and PyYAML in the Python that runs the module
attributes:
  check_mode:
    description: Does in check mode what it always does, since it changes nothing.
    support: full
  diff_mode:
    description: There is nothing to show a difference of.
    support: none
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Refuse a wrong inventory
  inventory_check:
    sources: "{{ ansible_inventory_sources }}"
    project: "{{ playbook_dir | dirname }}"
  delegate_to: localhost
  run_once: true
  vars:
    ansible_connection: local
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
"""

RETURN = r"""
findings:
  description: What was found and does not stop a run. Errors are in the message of the failed task.
  returned: success
  type: list
  elements: dict
  contains:
    severity:
      description: Always V(warning).
      type: str
      sample: warning
    rule:
      description: Short name of the rule, for programs.
      type: str
      sample: not-known-yet
    variable:
      description: The variable, or null.
      type: str
      sample: lab_repository_facts
    file:
      description: Absolute path of the file it stands in, or null.
      type: str
      sample: /srv/fleet/inventories/site/group_vars/all.yml
    line:
      description: The line, from 1, or null.
      type: int
      sample: 12
    where:
      description: The group, or the hosts as a hostlist.
      type: str
      sample: group all
    what:
      description: What is wrong.
      type: str
      sample: "its value cannot be known yet: /root/.local/state/x/repository.json: File not found"
    mend:
      description: What to do about it.
      type: str
      sample: no mistake if it reads a file that is made later
    text:
      description: All of it as people read it.
      type: str
"""

import json
import os
import sys

from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(
        argument_spec={
            "sources": {"type": "list", "elements": "path", "required": True},
            "project": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    project = module.params["project"]
    # A program of its own, because `ansible` inside a module is the small part that travels to nodes; the
    # inventory and template code is in the controller's.
    argv = [sys.executable, "-m", "fleet", "validate", "--json", "--project", project]
    for source in module.params["sources"]:
        argv += ["-i", source]
    path = os.pathsep.join(part for part in (project, os.environ.get("PYTHONPATH")) if part)
    rc, out, err = module.run_command(argv, cwd=project, environ_update={"PYTHONPATH": path})
    try:
        findings = json.loads(out)
    except ValueError:
        module.fail_json(msg="fleet validate did not run: %s" % (err or out).strip(), rc=rc)
    errors = [finding["text"] for finding in findings if finding["severity"] == "error"]
    if errors:
        module.fail_json(msg="\n".join(["The inventory has errors; no node was contacted.", *errors]))
    module.exit_json(changed=False, findings=findings)


if __name__ == "__main__":
    main()

#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: judge images by a policy."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_policy_check
short_description: Judge images by a policy
description:
  - Holds SIF images against a policy (signers, digests of C(images.lock), architecture, file systems, setuid
    files and devices within, labels, age, size, owners, modes) and returns a verdict on each. What a policy
    can say stands in C(docs/images.md).
  - A file that is no image, can't be read or changes meanwhile has a verdict that says so; like other errors
    it fails the module if O(fail_on) says so.
  - Reads each file through one descriptor, never waits for a FIFO or a device, and unpacks nothing.
  - What was found is remembered in O(cache), so that an unchanged image costs one stat.
  - Signatures are verified by C(apptainer verify) on the node, with the keys of O(keyrings) alone.
options:
  paths:
    description: >-
      Images, folders (all images in them and below), and patterns such as V(/scratch/*/images/*.sif).
      Symbolic links to folders are not followed.
    type: list
    elements: path
    required: true
  policy:
    description: The policy, as C(docs/images.md) describes it. A key that is none is an error.
    type: dict
    required: true
  lock:
    description: The content of C(images.lock), for the rule C(locked).
    type: dict
  keyrings:
    description: >-
      Files on the node with the keys that signatures are verified with; OpenPGP keyrings, or one public key
      in PEM each. Needed if the policy has the rule C(signatures).
    type: list
    elements: path
    default: []
  patterns:
    description: Names of images in folders.
    type: list
    elements: str
    default: ['*.sif']
  cache:
    description: >-
      A SQLite file of the user that runs this, and of nobody else, for what was found; made if it is
      missing, and anew if it is damaged. Empty for none.
    type: path
    default: /var/cache/apptainer-fleet/images.sqlite
  jobs:
    description: How many images are read at a time.
    type: int
    default: 2
  fail_on:
    description: The least severity of a finding, not waived, that makes the module fail.
    type: str
    choices: [info, warning, error, never]
    default: error
attributes:
  check_mode:
    support: full
    description: Does in check mode what it always does, since it changes nothing but its cache.
  diff_mode:
    support: none
    description: There is nothing to show a difference of.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Judge all images of the store
  image_policy_check:
    paths: [/shared/images]
    policy: "{{ lookup('ansible.builtin.file', 'image_policy.yml') | from_yaml }}"
    lock: "{{ lookup('ansible.builtin.file', 'images.lock') | from_yaml }}"
    keyrings: [/etc/apptainer/global-pgp-public]

- name: Report what users have, and refuse nothing
  image_policy_check:
    paths: ['/scratch/*/images']
    policy:
      rules:
        signatures:
          signers: [A1B2C3D4E5F60718293A4B5C6D7E8F9001122334]
        setuid_files: []
    keyrings: [/etc/apptainer/global-pgp-public]
    fail_on: never
  register: report
"""

RETURN = r"""
images:
  description: The verdict on each image, in the order of O(paths) and of names in a folder.
  returned: when the policy can be read
  type: list
  elements: dict
  contains:
    path:
      description: The image.
      type: str
    size:
      description: Its size in bytes.
      type: int
    sha256:
      description: Its digest; null if it was not read to its end.
      type: str
    severity:
      description: The worst severity of what is not waived; null if there is nothing.
      type: str
      sample: error
    findings:
      description: What is wrong.
      type: list
      elements: dict
      contains:
        rule:
          description: The rule.
          type: str
          sample: setuid_files
        severity:
          description: V(info), V(warning) or V(error), whether or not it is waived.
          type: str
        evidence:
          description: What was seen.
          type: str
          sample: 'files with setuid or setgid (1): /usr/bin/su'
        mend:
          description: What to do about it.
          type: str
        scope:
          description: The scope with labels that demands it, or empty.
          type: str
        waived:
          description: Until when and for which reason it is waived; empty if it is not.
          type: str
refused:
  description: The images with a finding at least as bad as O(fail_on), or with an error if that is V(never).
  returned: when the policy can be read
  type: list
  elements: str
"""

from ansible.module_utils import image_parameters
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **image_parameters.SPEC,
            "policy": {"type": "dict", "required": True},
            "paths": {"type": "list", "elements": "path", "required": True},
            "patterns": {"type": "list", "elements": "str", "default": ["*.sif"]},
            "jobs": {"type": "int", "default": 2},
            "fail_on": {
                "type": "str",
                "choices": ["info", "warning", "error", "never"],
                "default": "error",
            },
        },
        supports_check_mode=True,
    )
    jobs, patterns = module.params["jobs"], module.params["patterns"]
    if jobs < 1:
        module.fail_json(msg=f"jobs: must be at least 1, not {jobs}")
    try:
        with image_parameters.checker(module.params, jobs=jobs, patterns=patterns) as checker:
            verdicts = list(checker.check(module.params["paths"]))
    except image_parameters.ParameterError as error:
        module.fail_json(msg=str(error))

    severity = "error" if module.params["fail_on"] == "never" else module.params["fail_on"]
    refused = [verdict for verdict in verdicts if verdict.refused(severity)]
    result = {
        "images": [verdict.as_dict() for verdict in verdicts],
        "refused": [verdict.shown for verdict in refused],
    }
    if refused and module.params["fail_on"] != "never":
        lines = [f"{one.shown}: {finding}" for one in refused for finding in one.counting(severity)]
        first = f"{len(refused)} of {len(verdicts)} images are refused:"
        module.fail_json(msg="\n".join([first, *lines]), **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()

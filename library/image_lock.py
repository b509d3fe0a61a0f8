#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: images that were made, written into images.lock."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_lock
short_description: Write images that were made into images.lock
description:
  - Adds images to C(images.lock), on the controller, with the Python that runs Ansible, as
    C(fleet image lock) does. Others may do so at the same moment.
  - A name and version that is locked stays what it is.
options:
  path:
    description: The file; made if it is missing.
    type: path
    required: true
  images:
    description: The images.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The name.
        type: str
        required: true
      version:
        description: The version.
        type: str
        required: true
      sha256:
        description: The digest; empty for one that check mode did not make.
        type: str
        required: true
      size:
        description: Bytes.
        type: int
        required: true
      architecture:
        description: The architecture.
        type: str
      signers:
        description: Full fingerprints of those who signed all of it.
        type: list
        elements: str
        default: []
      source:
        description: What it was made from, on one line.
        type: str
  project:
    description: The checkout that holds the package C(fleet).
    type: path
    required: true
requirements:
  - the requirements of C(fleet) in the Python that runs the module
attributes:
  check_mode:
    support: full
    description: Images that were not made are in the diff without a digest.
  diff_mode:
    support: full
    description: Shows the file before and after.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Lock what was made
  image_lock:
    path: "{{ inventory_dir }}/images.lock"
    images:
      - name: hello
        version: '1.0'
        sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
        size: 1171456
        architecture: amd64
        signers: [A1B2C3D4E5F60718293A4B5C6D7E8F9001122334]
        source: docker://quay.io/org/hello:1.0@sha256:…
    project: "{{ playbook_dir | dirname }}"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
lock:
  description: The content of the file, with what was added.
  returned: success
  type: dict
"""

import sys
from pathlib import Path
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule


def add(params: Dict[str, Any], *, check_mode: bool) -> Dict[str, Any]:
    """Add the images and return the module's result. Raises FleetError and LockError."""
    # Found through `project`.
    from fleet.errors import FleetError  # noqa: PLC0415
    from fleet.images import files  # noqa: PLC0415
    from module_utils import image_lock  # noqa: PLC0415

    path = Path(params["path"])
    made = [one for one in params["images"] if one["sha256"]]
    entries = [{key: value for key, value in one.items() if value is not None} for one in made]
    new = image_lock.read({"images": entries}).images
    with files.changing_lock(path) as before:
        lock = before
        for image in new:
            there = before.find(image.name, image.version)
            if there is not None and there.sha256 != image.sha256:
                raise FleetError(
                    f"{image.name} {image.version} has the SHA-256 {there.sha256}, not {image.sha256}",
                    "give it another version",
                )
            if there is None:
                lock = lock.with_image(image)
        if lock != before and not check_mode:
            files.write_lock(path, lock)
    predicted = [f"{one['name']} {one['version']}\n" for one in params["images"] if not one["sha256"]]
    after = files.lock_text(lock) + "".join(f"# will be made: {line}" for line in predicted)
    header = str(path)
    return {
        "changed": lock != before or bool(predicted),
        "lock": lock.as_dict(),
        "diff": {
            **{"before_header": header, "after_header": header},
            **{"before": files.lock_text(before), "after": after},
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "images": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "version": {"type": "str", "required": True},
                    "sha256": {"type": "str", "required": True},
                    "size": {"type": "int", "required": True},
                    "architecture": {"type": "str"},
                    "signers": {"type": "list", "elements": "str", "default": []},
                    "source": {"type": "str"},
                },
            },
            "project": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    sys.path.insert(0, module.params["project"])
    from fleet.errors import FleetError  # noqa: PLC0415

    try:
        result = add(module.params, check_mode=module.check_mode)
    except (FleetError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: publish an image in a store, or take it out."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_publish
short_description: Publish an image in a store, or put it into quarantine
description:
  - Copies an image into the folder of a store as C(NAME_VERSION.sif), judged by a policy before and after the
    copy, so that users see the whole image or none. Beside it stands C(NAME_VERSION.sif.sha256), which
    C(sha256sum -c) takes.
  - Nothing is replaced. Another content under the same name and version is refused, as is a content that is
    in quarantine. Of publishers at the same moment, on whatever nodes of a shared file system, one wins.
  - Whatever fails, a full disk or a broken image, the store is as it was.
  - With O(state=quarantined) the image goes to the folder C(.quarantine) of the store with a record of the
    reason. Jobs that use it go on.
options:
  store:
    description: The folder of the store. Only its owner may be able to write to it.
    type: path
    required: true
  name:
    description: The name of the image; letters, digits, dots, plus and minus.
    type: str
    required: true
  version:
    description: Its version, likewise.
    type: str
    required: true
  state:
    description: Whether it is in the store, or taken out of it.
    type: str
    choices: [published, quarantined]
    default: published
  src:
    description: The image, a file on the node. Not looked at if it is published already.
    type: path
  sha256:
    description: The digest that it has to have, as in C(images.lock).
    type: str
  reason:
    description: Why it goes into quarantine.
    type: str
  policy:
    description: The policy that it has to keep, as C(docs/images.md) describes it.
    type: dict
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
  cache:
    description: As of M(image_policy_check); a published image that has not changed costs one stat.
    type: path
    default: /var/cache/apptainer-fleet/images.sqlite
  mode:
    description: The permissions of published images, octal.
    type: str
    default: '0644'
  fail_on:
    description: The least severity of a finding, not waived, that keeps an image out.
    type: str
    choices: [info, warning, error]
    default: error
attributes:
  check_mode:
    support: full
    description: Judges the image as if it were in the store, and copies nothing.
  diff_mode:
    support: full
    description: Shows the digest under the name, before and after.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Publish an image
  image_publish:
    store: /shared/images
    name: hello
    version: '1.0'
    src: /root/hello.sif
    sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    policy: "{{ lookup('ansible.builtin.file', 'image_policy.yml') | from_yaml }}"
    lock: "{{ lookup('ansible.builtin.file', 'images.lock') | from_yaml }}"
    keyrings: [/etc/apptainer/global-pgp-public]

- name: Take it out of the store
  image_publish:
    store: /shared/images
    name: hello
    version: '1.0'
    state: quarantined
    reason: holds a private key, ticket 4711
"""

RETURN = r"""
image:
  description: Where the image is published, or was.
  returned: success
  type: str
  sample: /shared/images/hello_1.0.sif
sha256:
  description: The digest of the image; null if there was none to take out.
  returned: success
  type: str
verdict:
  description: What keeps the image out, as M(image_policy_check) returns it.
  returned: when the policy refuses it
  type: dict
"""

import os
from typing import Any, Dict, Tuple

from ansible.module_utils import atomic_file, image_lock, image_parameters, image_policy
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.image_check import Checker
from ansible.module_utils.image_lock import Locked
from ansible.module_utils.image_policy import Policy
from ansible.module_utils.image_store import RefusedError, Store, StoreError, digest_line


def wanted(params: Dict[str, Any]) -> Tuple[Locked, int]:
    """Return image and mode that are asked for. Raises ValueError, beginning with the wrong parameter."""
    read: Dict[str, Any] = {}
    for key, field in {**image_lock.FIELDS, "mode": image_policy.RULES["mode"]}.items():
        if params.get(key) is not None:
            try:
                read[key] = field.read(params[key])
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
    return Locked(read["name"], read["version"], read.get("sha256", ""), 0), read["mode"]


def publish(module: AnsibleModule, image: Locked, mode: int) -> Dict[str, Any]:
    """Publish it, and return what the module returns. Raises ParameterError and StoreError."""
    params = module.params
    path = f"{os.path.realpath(params['store'])}/{image.file_name}"
    before = digest_file(path)
    with image_parameters.checker(params) as checker:
        missing = [key for key in ("store", "src") if not os.path.lexists(params[key])]
        if module.check_mode and missing and not os.path.lexists(path):
            # Tasks before this one make them, and have made nothing in check mode.
            module.warn(f"{' and '.join(missing)} not there yet, so {image.file_name} was not judged")
            changed = True
        else:
            store = Store(params["store"], checker, mode, params["fail_on"])
            changed = store.publish(image, params["src"], dry_run=module.check_mode)
    after = digest_line(image.sha256, image.file_name).decode()
    return {
        "changed": changed,
        "image": path,
        "sha256": image.sha256,
        "diff": difference(path, before, after),
    }


def quarantine(module: AnsibleModule, image: Locked) -> Dict[str, Any]:
    """Take it out, and return what the module returns. Raises StoreError."""
    store = Store(module.params["store"], Checker(Policy()))
    path = store.place(image)
    before = digest_file(path)
    record = store.quarantine(image.name, image.version, module.params["reason"], dry_run=module.check_mode)
    return {
        "changed": record is not None,
        "image": path,
        "sha256": record.sha256 if record else None,
        "diff": difference(path, before, "" if record else before),
    }


def digest_file(path: str) -> str:
    """Return the content of the digest beside an image, empty if there is none that can be read."""
    try:
        return (atomic_file.read(f"{path}.sha256") or b"").decode("utf-8", "replace")
    except OSError:
        return ""


def difference(path: str, before: str, after: str) -> Dict[str, str]:
    """Return the diff of the digest beside an image."""
    header = f"{path}.sha256"
    return {"before_header": header, "after_header": header, "before": before, "after": after}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **image_parameters.SPEC,
            "store": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["published", "quarantined"], "default": "published"},
            "src": {"type": "path"},
            "sha256": {"type": "str"},
            "reason": {"type": "str"},
            "mode": {"type": "str", "default": "0644"},
            "fail_on": {"type": "str", "choices": ["info", "warning", "error"], "default": "error"},
        },
        required_if=[
            ("state", "published", ("src", "sha256", "policy")),
            ("state", "quarantined", ("reason",)),
        ],
        supports_check_mode=True,
    )
    try:
        image, mode = wanted(module.params)
    except ValueError as error:
        module.fail_json(msg=str(error))
    try:
        if module.params["state"] == "published":
            result = publish(module, image, mode)
        else:
            result = quarantine(module, image)
    except RefusedError as error:
        module.fail_json(msg=str(error), verdict=error.verdict.as_dict())
    except (image_parameters.ParameterError, StoreError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

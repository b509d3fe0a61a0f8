#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the keys whose signatures Apptainer trusts on a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apptainer_keyring
short_description: Set the keys whose signatures Apptainer trusts on a node
description:
  - Owns Apptainer's global keyring, which C(apptainer verify) and the execution control list take keys from.
    It holds exactly the keys of O(keys) afterwards, in binary form, as C(0644 root:root).
  - Each key is named by its full fingerprint, which is computed from the key material. A key with another
    one, a secret key, a short key ID, a key of another version than 4 and whatever is no key are refused, and
    the keyring stays as it was.
  - Where Apptainer is installed it has to list the same keys before the new keyring replaces the old.
options:
  keys:
    description: All keys. An empty list leaves an empty keyring, with which no signature is trusted.
    type: list
    elements: dict
    required: true
    suboptions:
      fingerprint:
        description: 40 hexadecimal digits; blanks as gpg prints them may be there.
        type: str
        required: true
      content:
        description: >-
          The public key, ASCII-armored, or its binary form in base64. Others that are in it are not taken.
        type: str
        required: true
  path:
    description: The keyring.
    type: path
    default: /etc/apptainer/global-pgp-public
attributes:
  check_mode:
    support: full
    description: Works on a node without Apptainer.
  diff_mode:
    support: full
    description: A line for each key, with fingerprint, user IDs and a digest of all its packets.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Trust the keys of the site and no other
  apptainer_keyring:
    keys:
      - fingerprint: 5994BE54C31CF1B5E1994F987C52CF6D055F072B
        content: "{{ lookup('ansible.builtin.file', 'keys/site.asc') }}"
"""

RETURN = r"""
fingerprints:
  description: The keys in the keyring, or those that would be.
  returned: success
  type: list
  elements: str
removed:
  description: The keys that were in it and are in O(keys) no more.
  returned: success
  type: list
  elements: str
"""

import os
import stat

from ansible.module_utils import apptainer_keyring, atomic_file, openpgp
from ansible.module_utils.basic import AnsibleModule

MODE = 0o644


def secured(path: str) -> bool:
    """Whether the keyring is a file that only root can write."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    owned = os.geteuid() != 0 or (status.st_uid, status.st_gid) == (0, 0)
    return stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == MODE and owned


def check_with_apptainer(module: AnsibleModule, content: bytes) -> None:
    """Raise OpenPGPError unless Apptainer, if it is there, lists the keys of *content*."""
    apptainer = module.get_bin_path("apptainer")
    if apptainer is not None:
        apptainer_keyring.prove(
            apptainer, content, lambda argv, variables: module.run_command(argv, environ_update=variables)
        )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "keys": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "no_log": False,
                "options": {
                    "fingerprint": {"type": "str", "required": True},
                    "content": {"type": "str", "required": True},
                },
            },
            "path": {"type": "path", "default": "/etc/apptainer/global-pgp-public"},
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    try:
        keys = apptainer_keyring.selected(module.params["keys"])
        content = openpgp.keyring(keys)
        wanted = sorted(key.fingerprint for key in keys)
        old = atomic_file.read(path)
        before, before_lines = apptainer_keyring.present(old)
        changed = old != content or not secured(path)
        if changed:
            check_with_apptainer(module, content)
        if changed and not module.check_mode:
            atomic_file.replace(path, content, MODE, (0, 0) if os.geteuid() == 0 else None)
    except openpgp.OpenPGPError as error:
        module.fail_json(msg=str(error))
    except FileNotFoundError:
        module.fail_json(msg=f"{path} can't be written, as its folder is missing: install Apptainer first")
    except OSError as error:
        module.fail_json(msg=f"{path}: {error.strerror}")

    module.exit_json(
        changed=changed,
        fingerprints=wanted,
        removed=sorted(set(before) - set(wanted)),
        diff={
            "before_header": path,
            "after_header": path,
            "before": "".join(f"{line}\n" for line in before_lines),
            "after": "".join(f"{line}\n" for line in sorted(key.describe() for key in keys)),
        },
    )


if __name__ == "__main__":
    main()

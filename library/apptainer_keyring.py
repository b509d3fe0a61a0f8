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

import base64
import binascii
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import List, Optional, Tuple

from ansible.module_utils import atomic_file, openpgp
from ansible.module_utils.basic import AnsibleModule

MODE = 0o644


def selected(keys: List[dict]) -> List[openpgp.PublicKey]:
    """Return the keys that were asked for. Raises OpenPGPError, which names the entry."""
    result = []
    for number, entry in enumerate(keys):
        content = entry["content"].encode()
        try:
            if not content.lstrip().startswith(b"-----"):
                content = base64.b64decode(b"".join(content.split()), validate=True)
            result.append(openpgp.select(content, entry["fingerprint"]))
        except binascii.Error as error:
            raise openpgp.OpenPGPError(f"keys[{number}] is neither ASCII-armored nor base64") from error
        except openpgp.OpenPGPError as error:
            raise openpgp.OpenPGPError(f"keys[{number}]: {error}") from error
    return result


def present(content: Optional[bytes]) -> Tuple[List[str], List[str]]:
    """Return the fingerprints in a keyring that may be anything, and a line for each, for the diff."""
    if not content:
        return [], []
    try:
        keys = openpgp.public_keys(content)
    except openpgp.OpenPGPError as error:
        return [], [f"{len(content)} bytes that are no keyring: {printable(error)}"]
    return [key.fingerprint for key in keys], sorted(key.describe() for key in keys)


def printable(error: Exception) -> str:
    return openpgp.printable(str(error).encode())


def secured(path: str) -> bool:
    """Whether the keyring is a file that only root can write."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    owned = os.geteuid() != 0 or (status.st_uid, status.st_gid) == (0, 0)
    return stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == MODE and owned


def check_with_apptainer(module: AnsibleModule, content: bytes, wanted: List[str]) -> None:
    """Raise OpenPGPError unless Apptainer, if it is there, lists the keys *wanted* for *content*."""
    apptainer = module.get_bin_path("apptainer")
    if apptainer is None or not content:
        return
    with tempfile.TemporaryDirectory(prefix="apptainer-keyring-") as folder:
        (Path(folder) / "pgp-public").write_bytes(content)
        code, out, err = module.run_command(
            [apptainer, "key", "list"],
            environ_update={"APPTAINER_KEYSDIR": folder, "APPTAINER_CONFIGDIR": folder, "LC_ALL": "C"},
        )
    listed = sorted(re.findall(r"\b[0-9A-F]{40}\b", out.upper()))
    if code or listed != wanted:
        raise openpgp.OpenPGPError(
            f"Apptainer on this node lists {', '.join(listed) or 'no key'} in the new keyring and not "
            f"{', '.join(wanted)}: {err.strip() or 'it does not support the others'}"
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
        keys = selected(module.params["keys"])
        content = openpgp.keyring(keys)
        wanted = sorted(key.fingerprint for key in keys)
        old = atomic_file.read(path)
        before, before_lines = present(old)
        changed = old != content or not secured(path)
        if changed:
            check_with_apptainer(module, content, wanted)
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

#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: MUNGE on a node, with the key of the cluster, proven."""

from __future__ import annotations

DOCUMENTATION = r"""
module: munge
short_description: Give a node the MUNGE key of its cluster and prove that it works
description:
  - Writes C(/etc/munge/munge.key) atomically as C(0400 munge:munge), keeps the service enabled and running,
    and restarts it only if the key changed or if the proof fails without that.
  - Without O(key) the node's own key is the cluster's; it is made of 1024 random bytes if there is none.
    The result holds that key then, so register it in a task with C(no_log).
  - With O(create=false) the node uses the key that somebody has put there, and fails without one.
  - Neither keys nor credentials stand in arguments of programs, in logs, or in files that others can read.
options:
  key:
    description: The key, base64. Without it the node keeps its own, or makes one.
    type: str
  create:
    description:
      - Whether the node's own key is the cluster's, made and returned by this module.
      - If not, the key file has to be there, from before MUNGE was installed if need be, and the result holds
        no secret.
    type: bool
    default: true
  rotation:
    description:
      - V(prepare) puts a key beside the one in use, in C(munge.key.next). Without O(key) it is a new one, or
        that of a rotation that was interrupted, and is returned.
      - V(commit) brings that key into use, if there is one, and restarts the service.
    type: str
    choices: [prepare, commit]
  credential:
    description:
      - What another node encoded; this one has to decode it, which needs equal keys and equal clocks.
      - Without it the node decodes what it encoded itself.
    type: str
attributes:
  check_mode:
    support: full
    description: >-
      Works on a node without MUNGE. In place of a key that would be made, one that nobody keeps is returned.
  diff_mode:
    support: full
    description: Says that the key differs, never how.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Read the key of the cluster
  munge:
  delegate_to: head
  run_once: true
  register: cluster_munge
  no_log: true

- name: Use it on every node
  munge:
    key: "{{ cluster_munge.key }}"
    credential: "{{ cluster_munge.credential }}"

- name: Use the key that came with the image of the node
  munge:
    create: false
"""

RETURN = r"""
key:
  description: The key of this node, base64. Secret.
  returned: success, without O(key), with O(create) or O(rotation=prepare)
  type: str
credential:
  description: What another node has to decode; only root can, within ten minutes. Secret.
  returned: success, without O(key) and with O(create); empty in check mode if MUNGE does not run yet
  type: str
restarted:
  description: Whether a running service was restarted, or would be.
  returned: success
  type: bool
"""

import base64
import binascii
import os
import pwd
from pathlib import Path
from typing import Optional, Tuple

from ansible.module_utils import atomic_file, munge
from ansible.module_utils.basic import AnsibleModule

KEY_FILE = munge.KEY_FILE


def munge_user() -> Optional[Tuple[int, int]]:
    """Return uid and gid of the user munge, or None where MUNGE is not installed."""
    try:
        user = pwd.getpwnam("munge")
    except KeyError:
        return None
    return user.pw_uid, user.pw_gid


def key_file_is(key: bytes, owner: Optional[Tuple[int, int]]) -> bool:
    """Whether the key file holds *key* and belongs to nobody but *owner*."""
    if owner is None or atomic_file.read(KEY_FILE) != key:
        return False
    status = Path(KEY_FILE).stat()
    return status.st_mode & 0o7777 == munge.KEY_MODE and (status.st_uid, status.st_gid) == owner


def prepare(module: AnsibleModule) -> dict:
    """Put the next key beside the one in use."""
    owner = munge_user()
    if owner is None:
        raise munge.MungeError("there is no user munge: a key is changed where there is one")
    present = atomic_file.read(munge.NEXT_KEY_FILE)
    given = module.params["key"]
    key = base64.b64decode(given, validate=True) if given is not None else present or munge.new_key()
    munge.check_key(key)
    if present != key and not module.check_mode:
        atomic_file.replace(munge.NEXT_KEY_FILE, key, munge.KEY_MODE, owner)
    result = {"changed": present != key}
    return result if given is not None else {**result, "key": base64.b64encode(key).decode()}


def commit(module: AnsibleModule) -> dict:
    """Bring the next key into use."""
    key = atomic_file.read(munge.NEXT_KEY_FILE)
    if key is None:
        return {"changed": False, "restarted": False}
    munge.check_key(key)
    if not module.check_mode:
        # Killed between these two, a node has the key that all others have by then.
        atomic_file.replace(KEY_FILE, key, munge.KEY_MODE, munge_user())
        module.run_command(["systemctl", "restart", "munge"], check_rc=True)
        Path(munge.NEXT_KEY_FILE).unlink()
    return {"changed": True, "restarted": True}


def run(module: AnsibleModule) -> dict:
    if module.params["rotation"]:
        return {"prepare": prepare, "commit": commit}[module.params["rotation"]](module)
    given = module.params["key"]
    key = base64.b64decode(given, validate=True) if given is not None else atomic_file.read(KEY_FILE)
    if key is None:
        if not module.params["create"]:
            raise munge.MungeError(
                f"there is no {KEY_FILE}: put the key of the cluster there when the node is provisioned,"
                " as root and with mode 0400"
            )
        key = munge.new_key()
    munge.check_key(key)

    owner = munge_user()
    if owner is None and not module.check_mode:
        raise munge.MungeError("there is no user munge: install the package munge first")

    rekeyed = not key_file_is(key, owner)
    # `is-active` and `is-enabled` fail for a unit that does not exist, as for one that is off.
    running = module.run_command(["systemctl", "--quiet", "is-active", "munge"])[0] == 0
    enabled = module.run_command(["systemctl", "--quiet", "is-enabled", "munge"])[0] == 0

    if not module.check_mode:
        if rekeyed:
            atomic_file.replace(KEY_FILE, key, munge.KEY_MODE, owner)
        if not (running and enabled):
            module.run_command(["systemctl", "enable", "--now", "munge"], check_rc=True)
    restart = running and (rekeyed or not proven(module))
    if not module.check_mode:
        if restart:
            module.run_command(["systemctl", "restart", "munge"], check_rc=True)
        if restart or not running:
            # Not a second time otherwise: munged takes a credential once only.
            munge.decode(module.params["credential"] or munge.encode())

    result = {
        "changed": rekeyed or restart or not running or not enabled,
        "restarted": restart,
        "diff": {
            "before_header": KEY_FILE,
            "after_header": KEY_FILE,
            "before": "another key, owner or mode\n" if rekeyed and os.path.lexists(KEY_FILE) else "",
            "after": "the key of the cluster, 0400 munge:munge\n" if rekeyed else "",
        },
    }
    if given is None and module.params["create"]:
        result["key"] = base64.b64encode(key).decode()
        # Where the service would only be started or restarted, there is nothing yet that could encode.
        result["credential"] = "" if module.check_mode and (restart or not running) else munge.encode()
    return result


def proven(module: AnsibleModule) -> bool:
    """Whether the running munged decodes what it is shown; a restart mends no clocks: they are an error."""
    try:
        munge.decode(module.params["credential"] or munge.encode())
    except munge.ClockError:
        raise
    except munge.MungeError:
        return False
    return True


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "key": {"type": "str", "no_log": True},
            "credential": {"type": "str", "no_log": True},
            "create": {"type": "bool", "default": True},
            "rotation": {"type": "str", "choices": ["prepare", "commit"]},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except binascii.Error:
        module.fail_json(msg="key is not base64")
    except munge.MungeError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{KEY_FILE}: {error.strerror}")


if __name__ == "__main__":
    main()

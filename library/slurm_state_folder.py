#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the folder of slurmctld's state, the same one on every controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_state_folder
short_description: Have one folder for slurmctld's state, and prove that controllers share it
description:
  - A backup slurmctld that has another C(StateSaveLocation) than the first one knows of no job, and ends them
    all when it takes over. So the folder has to be on a file system that all controllers share.
  - On the first controller the folder is made, and a file with a random mark in it. On the others the mark
    has to be the same; nothing is written there.
options:
  path:
    description: The folder.
    type: path
    required: true
  owner:
    description: The user that slurmctld runs as.
    type: str
    default: slurm
  mark:
    description: What the first controller returned; without it, this is the first one.
    type: str
attributes:
  check_mode:
    support: full
    description: Where nothing is shared yet, on bare nodes, no difference is found.
  diff_mode:
    support: none
    description: Files of a daemon, most of them binary, are not shown.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Have the folder on the first controller
  slurm_state_folder:
    path: /shared/slurm/state
  delegate_to: head1
  register: state

- name: Find the same one on the second
  slurm_state_folder:
    path: /shared/slurm/state
    mark: "{{ state.mark }}"
  delegate_to: head2
"""

RETURN = r"""
mark:
  description: What is in the folder and nowhere else; empty in check mode if there is nothing yet.
  returned: success
  type: str
"""

import os
import pwd
import secrets
from pathlib import Path

from ansible.module_utils import atomic_file
from ansible.module_utils.basic import AnsibleModule

MARK = ".apptainer-fleet"


class StateError(Exception):
    """The controllers do not share the folder; the message says what to mend."""


def first(module: AnsibleModule, folder: Path) -> dict:
    """Have the folder and its mark."""
    present = atomic_file.read(str(folder / MARK))
    if present:
        return {"changed": False, "mark": present.decode(errors="replace").strip()}
    if module.check_mode:
        return {"changed": True, "mark": ""}
    try:
        owner = pwd.getpwnam(module.params["owner"])
    except KeyError:
        raise StateError(f"there is no user {module.params['owner']}: install slurmctld first") from None
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    mark = secrets.token_hex(16)
    atomic_file.replace(str(folder / MARK), f"{mark}\n".encode(), 0o644, (owner.pw_uid, owner.pw_gid))
    return {"changed": True, "mark": mark}


def other(module: AnsibleModule, folder: Path) -> dict:
    """Find the mark of the first controller."""
    wanted = module.params["mark"]
    found = (atomic_file.read(str(folder / MARK)) or b"").decode(errors="replace").strip()
    if found != wanted and wanted:
        seen = "another folder" if found else "not there, or empty"
        raise StateError(
            f"{folder} of the first controller is {seen} on this one: mount one file system on all hosts of "
            "slurm_controller, and let slurm_state_folder be in it"
        )
    return {"changed": False, "mark": found}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "owner": {"type": "str", "default": "slurm"},
            "mark": {"type": "str"},
        },
        supports_check_mode=True,
    )
    folder = Path(module.params["path"])
    try:
        module.exit_json(**(first if module.params["mark"] is None else other)(module, folder))
    except StateError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()

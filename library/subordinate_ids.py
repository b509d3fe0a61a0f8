#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: ranges of subordinate user and group IDs for many users at once."""

from __future__ import annotations

DOCUMENTATION = r"""
module: subordinate_ids
short_description: Give users ranges of subordinate user and group IDs
description:
  - Sees to it that each of many users has one range in C(/etc/subuid) and C(/etc/subgid), which C(newuidmap),
    and with it C(apptainer --fakeroot), lets them use.
  - A user who has a large enough range keeps it. The others get the first free places in the order of
    O(users), the same in both files; the same files and list give the same result on every node, so append
    new users at the end of the list.
  - No new range overlaps another, or holds the ID of a user or group in C(/etc/passwd) and C(/etc/group).
  - Lines of others, comments and the order of lines stay. Ranges of users who are no longer listed stay, too,
    as files of theirs may still belong to these IDs.
options:
  users:
    description: >-
      Names, user IDs, or ranges of user IDs such as V(10000-14999). A user who is listed by ID is written so.
    type: list
    elements: raw
    required: true
  start:
    description: The first ID to give away. Choose it above all IDs of users in the directory service.
    type: int
    default: 100000
  count:
    description: How many IDs each user gets. Apptainer needs 65536.
    type: int
    default: 65536
  existing:
    description: >-
      V(keep) refuses to touch ranges that are there; one that is smaller than O(count), disabled, or
      overlapping is an error. V(replace) makes all ranges of O(users) anew that are not of exactly O(count)
      at or after O(start), which takes the files in their containers away from users.
    type: str
    choices: [keep, replace]
    default: keep
  subuid:
    description: The file of user IDs.
    type: path
    default: /etc/subuid
  subgid:
    description: The file of group IDs.
    type: path
    default: /etc/subgid
attributes:
  check_mode:
    support: full
    description: Predicts each file as it then is.
  diff_mode:
    support: full
    description: Of each file.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Let 5,000 users and two more build images
  subordinate_ids:
    users: [10000-14999, alice, bob]
    start: 1000000
"""

RETURN = r"""
assigned:
  description: How many users got a range in a file.
  returned: success
  type: int
users:
  description: How many users were asked for.
  returned: success
  type: int
"""

from ansible.module_utils import subordinate_id_files, subordinate_ids
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(argument_spec=dict(subordinate_id_files.SPEC), supports_check_mode=True)
    try:
        result = subordinate_id_files.bring(module.params, module.check_mode)
    except subordinate_ids.SubordinateIDError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    for text in result.pop("warnings"):
        module.warn(text)
    if not (module._diff and result["diff"]):
        del result["diff"]
    module.exit_json(**result)


if __name__ == "__main__":
    main()

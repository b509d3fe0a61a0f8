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

import contextlib
import fcntl
import os
import pwd
import re
import time
from pathlib import Path
from typing import Dict, Iterator, List, Sequence

from ansible.module_utils import atomic_file, subordinate_ids
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.subordinate_ids import SubordinateIDError

PASSWD = "/etc/passwd"  # noqa: S105
GROUP = "/etc/group"
NSSWITCH = "/etc/nsswitch.conf"
# As long as lckpwdf(3), with which useradd and usermod lock the same files, waits.
LOCK_SECONDS = 15


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Keep useradd and its like out, which lock all such files by one in the same folder."""
    with Path(path).with_name(".pwd.lock").open("ab") as lock:
        Path(lock.name).chmod(0o600)
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise SubordinateIDError(f"another program keeps {lock.name} locked") from error
                time.sleep(0.1)
        yield


def read(path: str) -> str:
    return os.fsdecode(atomic_file.read(path) or b"")


def numbers(path: str) -> List[int]:
    """Return the IDs in a passwd(5) or group(5) file; the directory service may have millions more."""
    fields = (line.split(":") for line in read(path).split("\n"))
    return [int(field[2]) for field in fields if len(field) > 2 and field[2].isdecimal()]  # noqa: PLR2004


def aliases(owners: Sequence[str]) -> Dict[str, str]:
    """Return the other name, or number, of each of *owners*, where it has one."""
    result: Dict[str, str] = {}
    for owner in owners:
        with contextlib.suppress(KeyError, OverflowError):
            known = pwd.getpwuid(int(owner)) if owner.isdigit() else pwd.getpwnam(owner)
            result[owner] = known.pw_name if owner.isdigit() else str(known.pw_uid)
    return result


def check_once(users: Sequence[str]) -> None:
    """Raise SubordinateIDError for a user who is listed by name and by number."""
    listed = set(users)
    if any(user.isdigit() for user in users):
        names = [user for user in users if not user.isdigit()]
        for name, number in aliases(names).items():
            if number in listed:
                raise SubordinateIDError(f"users: {name} and {number} are the same user: list one of them")


def subid_sources(text: str) -> str:
    """Return what nsswitch.conf names as the source of subordinate IDs, or "files"."""
    match = re.search(r"(?m)^[ \t]*subid[ \t]*:[ \t]*([^#\n]*)", text)
    return match.group(1).strip() if match else "files"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "users": {"type": "list", "elements": "raw", "required": True},
            "start": {"type": "int", "default": 100_000},
            "count": {"type": "int", "default": 65_536},
            "existing": {"type": "str", "choices": ["keep", "replace"], "default": "keep"},
            "subuid": {"type": "path", "default": "/etc/subuid"},
            "subgid": {"type": "path", "default": "/etc/subgid"},
        },
        supports_check_mode=True,
    )
    paths = module.params["subuid"], module.params["subgid"]
    try:
        users = subordinate_ids.expand(module.params["users"])
        check_once(users)
        with contextlib.nullcontext() if module.check_mode else locked(paths[0]):
            old = read(paths[0]), read(paths[1])
            owners = sorted({name for text in old for name in subordinate_ids.other_names(text, users)})
            listed = [int(user) for user in users if user.isdigit()]
            plan = subordinate_ids.plan(
                users,
                (
                    subordinate_ids.File(paths[0], old[0], tuple(numbers(PASSWD) + listed)),
                    subordinate_ids.File(paths[1], old[1], tuple(numbers(GROUP))),
                ),
                start=module.params["start"],
                count=module.params["count"],
                replace=module.params["existing"] == "replace",
                aliases=aliases(owners),
            )
            if not module.check_mode:
                for path, before, after in zip(paths, old, plan.texts):  # noqa: B905 - Python 3.8
                    if before != after:
                        owner = (0, 0) if os.geteuid() == 0 else None
                        atomic_file.replace(path, os.fsencode(after), owner=owner)
    except SubordinateIDError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")

    sources = subid_sources(read(NSSWITCH))
    if "files" not in sources.split():
        module.warn(
            f"{NSSWITCH} takes subordinate IDs from {sources!r}: {paths[0]} and {paths[1]} mean nothing"
        )
    result = {"changed": old != plan.texts, "assigned": len(plan.assigned), "users": len(users)}
    # Half a megabyte with 5,000 users, so not where nobody looks at it.
    if module._diff and result["changed"]:
        result["diff"] = [
            {"before_header": path, "after_header": path, "before": before, "after": after}
            for path, before, after in zip(paths, old, plan.texts)  # noqa: B905 - Python 3.8
        ]
    module.exit_json(**result)


if __name__ == "__main__":
    main()

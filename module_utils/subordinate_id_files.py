# SPDX-License-Identifier: Apache-2.0
"""The node's files of subordinate IDs: read, locked and written as useradd does it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence

from . import atomic_file, subordinate_ids

#: The arguments of the modules that call `bring`.
SPEC: Mapping[str, Any] = {
    "users": {"type": "list", "elements": "raw", "required": True},
    "start": {"type": "int", "default": 100_000},
    "count": {"type": "int", "default": 65_536},
    "existing": {"type": "str", "choices": ["keep", "replace"], "default": "keep"},
    "subuid": {"type": "path", "default": "/etc/subuid"},
    "subgid": {"type": "path", "default": "/etc/subgid"},
}
PASSWD = "/etc/passwd"  # noqa: S105
GROUP = "/etc/group"
NSSWITCH = "/etc/nsswitch.conf"
# As long as lckpwdf(3), with which useradd and usermod lock the same files, waits.
LOCK_SECONDS = 15


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
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
                    raise subordinate_ids.SubordinateIDError(
                        f"another program keeps {lock.name} locked"
                    ) from error
                time.sleep(0.1)
        yield


def _read(path: str) -> str:
    return os.fsdecode(atomic_file.read(path) or b"")


def _numbers(path: str) -> List[int]:
    """Return the IDs in a passwd(5) or group(5) file; the directory service may have millions more."""
    fields = (line.split(":") for line in _read(path).split("\n"))
    return [int(field[2]) for field in fields if len(field) > 2 and field[2].isdecimal()]  # noqa: PLR2004


def _aliases(owners: Sequence[str]) -> Dict[str, str]:
    """Return the other name, or number, of each of *owners*, where it has one."""
    result: Dict[str, str] = {}
    for owner in owners:
        with contextlib.suppress(KeyError, OverflowError):
            known = pwd.getpwuid(int(owner)) if owner.isdigit() else pwd.getpwnam(owner)
            result[owner] = known.pw_name if owner.isdigit() else str(known.pw_uid)
    return result


def _check_once(users: Sequence[str]) -> None:
    """Raise subordinate_ids.SubordinateIDError for a user who is listed by name and by number."""
    listed = set(users)
    if any(user.isdigit() for user in users):
        names = [user for user in users if not user.isdigit()]
        for name, number in _aliases(names).items():
            if number in listed:
                raise subordinate_ids.SubordinateIDError(
                    f"users: {name} and {number} are the same user: list one of them"
                )


def _sources(text: str) -> str:
    """Return what nsswitch.conf names as the source of subordinate IDs, or "files"."""
    match = re.search(r"(?m)^[ \t]*subid[ \t]*:[ \t]*([^#\n]*)", text)
    return match.group(1).strip() if match else "files"


def bring(params: Mapping[str, Any], check: bool) -> Dict[str, Any]:
    """Bring the node to *params*, or with *check* only predict it; return the result of a module.

    params: values of `SPEC`. The result has ``warnings``, too.
    Raises subordinate_ids.SubordinateIDError and OSError.
    """
    paths = params["subuid"], params["subgid"]
    users = subordinate_ids.expand(params["users"])
    _check_once(users)
    with contextlib.nullcontext() if check else _locked(paths[0]):
        old = _read(paths[0]), _read(paths[1])
        owners = sorted({name for text in old for name in subordinate_ids.other_names(text, users)})
        listed = [int(user) for user in users if user.isdigit()]
        plan = subordinate_ids.plan(
            users,
            (
                subordinate_ids.File(paths[0], old[0], tuple(_numbers(PASSWD) + listed)),
                subordinate_ids.File(paths[1], old[1], tuple(_numbers(GROUP))),
            ),
            start=params["start"],
            count=params["count"],
            replace=params["existing"] == "replace",
            aliases=_aliases(owners),
        )
        if not check:
            for path, before, after in zip(paths, old, plan.texts):  # noqa: B905 - Python 3.8
                if before != after:
                    owner = (0, 0) if os.geteuid() == 0 else None
                    atomic_file.replace(path, os.fsencode(after), owner=owner)
    sources = _sources(_read(NSSWITCH))
    warning = f"{NSSWITCH} takes subordinate IDs from {sources!r}: {paths[0]} and {paths[1]} mean nothing"
    return {
        "changed": old != plan.texts,
        "assigned": len(plan.assigned),
        "users": len(users),
        "warnings": [] if "files" in sources.split() else [warning],
        # Half a megabyte with 5,000 users, so not of what has not changed.
        "diff": [
            {"before_header": path, "after_header": path, "before": before, "after": after}
            for path, before, after in zip(paths, old, plan.texts)  # noqa: B905 - Python 3.8
            if before != after
        ],
    }

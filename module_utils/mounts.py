# SPDX-License-Identifier: Apache-2.0
"""What is mounted on a node, and whether it answers, without ever waiting for a server that is away.

Which file systems there are comes from the kernel's list (proc(5), mountinfo), which asks no server. Whether
one answers is asked by a process of its own: the kernel may keep it for ever, and nothing waits for it.
"""

from __future__ import annotations

import errno
import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, Tuple

from . import bounded

MOUNTINFO = "/proc/self/mountinfo"

#: File systems whose server may be away, so that to look at them may take forever.
NETWORK_TYPES = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "cvmfs2", "fuse.ceph", "fuse.cvmfs2", "fuse.glusterfs"),
        *("fuse.sshfs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "panfs", "pvfs2", "smb3", "wekafs"),
    )
)
#: The kernel's own, without files that anybody installed.
PSEUDO_TYPES = frozenset(
    ["autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs"]
    + ["efivarfs", "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "resctrl", "rpc_pipefs"]
    + ["securityfs", "selinuxfs", "sysfs", "tracefs"]
)


@dataclass(frozen=True)
class Mount:
    """A mount of mountinfo; *device* is ``major:minor``, *root* the folder of that file system."""

    number: int
    parent: int
    device: str
    root: str
    path: str
    options: Tuple[str, ...]
    type: str
    source: str = ""


def parse(text: str) -> List[Mount]:
    """Return the mounts of a /proc/PID/mountinfo, in its order. Lines that are none are left out."""
    mounts = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, described = left.split(" "), [*right.split(" "), ""]
        try:
            number, parent = int(fields[0]), int(fields[1])
        except (ValueError, IndexError):
            continue
        if separator and len(fields) >= 6 and described[0]:  # noqa: PLR2004 - proc(5)
            root, path, options = _unescape(fields[3]), _unescape(fields[4]), tuple(fields[5].split(","))
            mounts.append(
                Mount(number, parent, fields[2], root, path, options, described[0], _unescape(described[1]))
            )
    return mounts


def listed() -> List[Mount]:
    """Return the mounts that this process sees. Raises OSError."""
    return parse(Path(MOUNTINFO).read_text(errors="surrogateescape"))


def _unescape(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), path)


def probe(paths: Iterable[str], seconds: float) -> Dict[str, str]:
    """Ask the file systems that *paths* are on for their size; return path → what is wrong, "" if it answers.

    All are asked at once, so that it takes *seconds* at the most, however many do not answer. A path below an
    automount point mounts it.
    """
    tasks = {path: bounded.Task(functools.partial(_ask, path), seconds) for path in paths}
    # One that no signal ends is not waited for.
    ended = bounded.run(tasks, reaping=0)
    return {
        path: f"{path} did not answer within {seconds:g} s" if answer.late else answer.value or answer.error
        for path, answer in ended.items()
    }


def _ask(path: str) -> str:
    """Return what is wrong with the file system that *path* is on, empty if it answers."""
    try:
        os.statvfs(path)
    except OSError as error:
        return f"{path}: {_WORDS.get(error.errno or 0) or error.strerror}"
    return ""


_WORDS: Mapping[int, str] = {
    errno.ENOTCONN: "its server or its program is gone (transport endpoint is not connected)",
    errno.ESTALE: "stale file handle; mount it anew",
}

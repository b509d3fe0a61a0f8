# SPDX-License-Identifier: Apache-2.0
"""What is mounted on a node, and whether it answers, without ever waiting for a server that is away.

Which file systems there are comes from the kernel's list (proc(5), mountinfo), which asks no server. Whether
one answers is asked by a process of its own: the kernel may keep it for ever, and nothing waits for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import time
from dataclasses import dataclass
from typing import Dict, Iterable, List, Mapping, Tuple

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


def _unescape(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), path)


def probe(paths: Iterable[str], seconds: float) -> Dict[str, str]:
    """Ask the file systems that *paths* are on for their size; return path → what is wrong, "" if it answers.

    All are asked at once, so that it takes *seconds* at the most, however many do not answer. A path below an
    automount point mounts it.
    """
    asked = {path: _ask(path) for path in dict.fromkeys(paths)}
    waiting = {pipe: path for path, (_, pipe) in asked.items()}
    end = time.monotonic() + seconds
    answers: Dict[str, str] = {}
    while waiting:
        ready, _, _ = select.select(list(waiting), [], [], max(0.0, end - time.monotonic()))
        if not ready:
            break
        for pipe in ready:
            answers[waiting.pop(pipe)] = os.read(pipe, 4096).decode(errors="replace")
    for path, (child, pipe) in asked.items():
        os.close(pipe)
        if path in answers:
            os.waitpid(child, 0)
        else:
            # It may be one that no signal ends, so nobody waits for it.
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, os.WNOHANG)
            answers[path] = f"{path} did not answer within {seconds:g} s"
    return {path: answers[path] for path in asked}


def _ask(path: str) -> Tuple[int, int]:
    """Start the question; return the process that asks it, and the pipe on which the answer comes."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    # Whoever reads what this program prints, ssh for example, waits until nobody has its output open.
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.setsid()
        for other in [int(name) for name in os.listdir("/proc/self/fd")]:  # noqa: PTH208 - module_utils is for 3.8
            if other > 2 and other != writing:  # noqa: PLR2004
                _close(other)
        os.statvfs(path)
        answer = ""
    except OSError as error:
        answer = f"{path}: {_WORDS.get(error.errno or 0) or error.strerror}"
    except BaseException:  # noqa: BLE001 - nothing of this process's may go on in the other one
        answer = f"{path} can't be asked"
    try:
        os.write(writing, answer.encode(errors="replace"))
    finally:
        os._exit(0)


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # It was the one by which the list was read.
        os.close(descriptor)


_WORDS: Mapping[int, str] = {
    errno.ENOTCONN: "its server or its program is gone (transport endpoint is not connected)",
    errno.ESTALE: "stale file handle; mount it anew",
}

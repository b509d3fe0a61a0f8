# SPDX-License-Identifier: Apache-2.0
"""Unmounting what a unit of systemd has mounted, if nobody uses it: never lazily, never by force.

Sources: systemctl(1), umount(8). An automount that is stopped takes away what is mounted on it without asking
(systemd, automount.c), so its mount goes first, and the automount only once that is gone.
"""

from __future__ import annotations

import os
import subprocess
from typing import Sequence

from . import file_systems, mounts

#: Seconds for unmounting; a client may have to write out what it holds.
PATIENCE = 120


def systemctl(words: Sequence[str], seconds: float) -> str:
    """Run systemctl for *seconds* at the most; return what went wrong, empty if nothing did."""
    try:
        ended = subprocess.run(
            ["systemctl", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=seconds, env={**os.environ, "LC_ALL": "C.UTF-8"}, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"systemctl {' '.join(words)} took longer than {seconds:g} s"
    except OSError as error:
        return f"systemctl: {error.strerror}"
    said = " ".join(ended.stdout.decode(errors="replace").split())
    return f"systemctl {' '.join(words)}: {said or ended.returncode}" if ended.returncode else ""


def in_use(path: str) -> str:
    """Return who uses a file system, as a sentence; empty if nobody does."""
    busy = file_systems.users(path)
    more = f" and {len(busy) - 5} more" if len(busy) > 5 else ""  # noqa: PLR2004 - a line
    return f"{path} is in use by process {', '.join(busy[:5])}{more}: it stays mounted" if busy else ""


def unmount(path: str, seconds: float = PATIENCE) -> str:
    """Unmount what is at *path* and stop its automount; return why it could not be, empty if it was."""
    name = file_systems.escape(path)
    busy = in_use(path)
    if busy:
        return busy
    problem = systemctl(["stop", f"{name}.mount"], seconds)
    if file_systems.mounted(path, mounts.listed()).mount:
        return f"{path} could not be unmounted: {problem or in_use(path) or 'it was mounted again'}"
    if file_systems.mounted(path, mounts.listed()).watched:
        problem = systemctl(["stop", f"{name}.automount"], seconds)
        if file_systems.mounted(path, mounts.listed()).watched:
            return f"the automount of {path} could not be stopped: {problem}"
    return ""

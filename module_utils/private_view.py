# SPDX-License-Identifier: Apache-2.0
"""Run a program that sees a folder in place of another, which everybody else goes on to see as it is.

So a program can be asked what it makes of files at their real place before they are there. It takes a mount
namespace of its own (mount_namespaces(7)), for which root needs CAP_SYS_ADMIN, as he has on any real node.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from typing import Mapping, Sequence, Tuple

_NEW_MOUNTS, _PRIVATE, _BIND = 0x20000, 0x40000 | 0x4000, 0x1000  # linux/sched.h, linux/mount.h
#: Seconds. A program that hangs must not hang the run.
PATIENCE = 120


class NoViewError(Exception):
    """This process may not make mount namespaces; the message says so."""


def run(
    argv: Sequence[str], folder: str, seen_at: str, environment: Mapping[str, str]
) -> Tuple[int, str, str]:
    """Run *argv* with *folder* in the place of the folder *seen_at*; return its code, output and errors.

    environment: all variables that the program gets. A program that takes more than `PATIENCE` is ended, with
    the code -9. Raises NoViewError and OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def enter() -> None:
        # Nothing that is mounted here may be seen outside, so the whole tree is made private first.
        failed = (
            libc.unshare(_NEW_MOUNTS)
            or libc.mount(b"none", b"/", None, _PRIVATE, None)
            or libc.mount(os.fsencode(folder), os.fsencode(seen_at), None, _BIND, None)
        )
        if failed:
            raise OSError(ctypes.get_errno(), "no mount namespace")

    try:
        ended = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            cwd="/",
            preexec_fn=enter,  # noqa: PLW1509 - modules have one thread
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.SubprocessError as error:
        if isinstance(error, subprocess.TimeoutExpired):
            return -9, "", f"nothing, for {PATIENCE} seconds"
        raise NoViewError("a program can't be shown the new files: this needs CAP_SYS_ADMIN") from error
    return ended.returncode, ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace")

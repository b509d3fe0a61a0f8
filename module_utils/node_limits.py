# SPDX-License-Identifier: Apache-2.0
"""Limits that RDMA and accelerators need: locked memory, and shared memory, wherever a job may come from.

Of what slurmd starts, pam_limits is not asked, so its unit has a limit of its own.
Sources: limits.conf(5); systemd.exec(5), LimitMEMLOCK=; tmpfs(5).
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, Sequence

HEAD = "# Ansible writes this file (apptainer-fleet): what is changed here is lost.\n"
PAM = "/etc/security/limits.d/90-apptainer-fleet.conf"
DROP_IN = "apptainer-fleet-limits.conf"
SHARED = "apptainer-fleet-shared-memory.service"

_SIZE = re.compile(r"[1-9][0-9]*[kmgKMG]?|[1-9][0-9]?%|100%")
_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.@-]*\.service")


class LimitError(ValueError):
    """What is wrong with a variable; the message goes on after its name."""


def check_memlock(value: object) -> None:
    """Raise LimitError unless it is ``unlimited`` or a number of KiB."""
    if str(value) != "unlimited" and not re.fullmatch(r"[1-9][0-9]*", str(value)):
        raise LimitError(f"must be unlimited or a number of KiB, not {value!r}")


def check_shared_memory(value: object) -> None:
    """Raise LimitError unless it is empty, or a size as the file system tmpfs takes it."""
    if value and not _SIZE.fullmatch(str(value)):
        raise LimitError(f"must be a size such as 64G or 80%, not {value!r}")


def check_units(names: Sequence[object]) -> None:
    """Raise LimitError unless all are services of systemd."""
    for name in names:
        if not _UNIT.fullmatch(str(name)):
            raise LimitError(f"{name!r} is no service of systemd, such as slurmd.service")


def files(settings: Mapping[str, Any]) -> List[Dict[str, str]]:
    """Return the files of a node, for module managed_files."""
    memlock, shared = str(settings["memlock"]), str(settings["shared_memory"] or "")
    # The asterisk of limits.conf(5) is not root.
    lines = "".join(f"{who} {kind} memlock {memlock}\n" for who in ("*", "root") for kind in ("soft", "hard"))
    # systemd counts bytes, and takes K for 1024.
    limit = "infinity" if memlock == "unlimited" else f"{memlock}K"
    result = [{"path": PAM, "content": HEAD + lines}]
    result += [
        {
            "path": f"/etc/systemd/system/{unit}.d/{DROP_IN}",
            "content": f"{HEAD}[Service]\nLimitMEMLOCK={limit}\n",
        }
        for unit in settings["units"]
    ]
    if shared:
        result.append({"path": f"/etc/systemd/system/{SHARED}", "content": _shared(shared)})
    return result


def _shared(size: str) -> str:
    # A percent sign is one of systemd's own in a unit.
    words = size.replace("%", "%%")
    return (
        f"{HEAD}[Unit]\nDescription=Size of the shared memory\nBefore=slurmd.service\n\n"
        "[Service]\nType=oneshot\nRemainAfterExit=yes\n"
        f"ExecStart=/bin/mount -o remount,size={words} /dev/shm\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


def units(settings: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """Return the units that run."""
    return [{"name": SHARED, "needs": None}] if settings["shared_memory"] else []

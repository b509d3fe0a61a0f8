# SPDX-License-Identifier: Apache-2.0
"""Units of systemd for the scanner of images: a service that may do very little, and its timer.

Sources: systemd.exec(5), systemd.resource-control(5), systemd.timer(5). What an older systemd does not know
it ignores with a warning.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Mapping

# What could end a line, or stand for something else in a unit.
_PATH = re.compile(r"/[^\s%\"'\\$]*")
_CALENDAR = re.compile(r"[A-Za-z0-9 *:/.,~_+-]+")
_HEAD = "# Ansible writes this file (apptainer-fleet): what is changed here is lost.\n"


class UnitError(ValueError):
    """What no unit can hold; the message begins with the option's name."""


def service(program: str, settings: str, wanted: Mapping[str, Any]) -> str:
    """Return the service; *wanted* are the options of the module `image_scanner`. Raises UnitError."""
    for name in ("deadline", "memory_mib", "jobs", "quarantine_limit"):
        if wanted[name] < 1:
            raise UnitError(f"{name}: must be at least 1, not {wanted[name]}")
    written = [str(Path(wanted[name]).parent) for name in ("results", "metrics", "cache") if wanted[name]]
    written += wanted["quarantine"]
    for path in written:
        if not _PATH.fullmatch(path):
            raise UnitError(f"{path}: must be an absolute path without blanks, quotes and signs of systemd")
    options: Dict[str, Any] = {
        "Type": "oneshot",
        "ExecStart": f"/usr/bin/python3 -I -B {program} {settings}",
        "TimeoutStartSec": wanted["deadline"],
        # After everybody else.
        "Nice": 19,
        "CPUSchedulingPolicy": "idle",
        "IOSchedulingClass": "idle",
        "MemoryMax": f"{wanted['memory_mib']}M",
        "TasksMax": 256,
        # May read what users have, and become nobody for what reads images of strangers.
        "CapabilityBoundingSet": "CAP_DAC_READ_SEARCH CAP_SETUID CAP_SETGID",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ReadWritePaths": " ".join(f"-{path}" for path in dict.fromkeys(written)),
        # Its own /tmp; images in that of the node are to be seen.
        "RuntimeDirectory": "apptainer-fleet-image-scan",
        "RuntimeDirectoryMode": "0700",
        "Environment": "TMPDIR=/run/apptainer-fleet-image-scan",
        "PrivateDevices": "yes",
        "ProtectClock": "yes",
        "ProtectControlGroups": "yes",
        "ProtectHostname": "yes",
        "ProtectKernelLogs": "yes",
        "ProtectKernelModules": "yes",
        "ProtectKernelTunables": "yes",
        # For the names of owners, from a daemon of this node.
        "RestrictAddressFamilies": "AF_UNIX",
        "RestrictNamespaces": "yes",
        "RestrictRealtime": "yes",
        "RestrictSUIDSGID": "yes",
        "LockPersonality": "yes",
        "SystemCallArchitectures": "native",
        "SystemCallFilter": "@system-service",
        "UMask": "0077",
    }
    lines = "".join(f"{name}={value}\n" for name, value in options.items())
    return (
        f"{_HEAD}[Unit]\nDescription=Judge container images by the policy of the site\n\n[Service]\n{lines}"
    )


def timer(calendar: str, splay: int) -> str:
    """Return the timer. Raises UnitError."""
    if not _CALENDAR.fullmatch(calendar):
        raise UnitError(f"calendar: {calendar!r} is no calendar event of systemd, such as '*-*-* 02:00'")
    if splay < 0:
        raise UnitError(f"splay: must not be less than 0, not {splay}")
    return (
        f"{_HEAD}[Unit]\nDescription=Judge container images from time to time\n\n"
        f"[Timer]\nOnCalendar={calendar}\nRandomizedDelaySec={splay}\nFixedRandomDelay=yes\nPersistent=yes\n\n"
        "[Install]\nWantedBy=timers.target\n"
    )

# SPDX-License-Identifier: Apache-2.0
"""Releases of Slurm, and which of them work together.

Sources: upgrades.html of Slurm 24.11 and 25.05 (compatibility window, order); rpc and state versions of each
release. A daemon reads the state, and speaks the protocol, of the two majors before its own; from 24.11 of
three.
"""

from __future__ import annotations

import re
from typing import Dict, List, Mapping, Sequence, Tuple

#: Majors in order. One that is newer than all of these is not judged by number, but refused by name.
MAJORS = ("20.11", "21.08", "22.05", "23.02", "23.11", "24.05", "24.11", "25.05", "25.11", "26.05")
_WIDER_SINCE = "24.11"
# Whoever speaks to the other is never newer than it, so these are upgraded from left to right.
_SPEAK = (
    ("slurmdbd", "slurmctld"),
    ("slurmctld", "slurmd"),
    ("slurmctld", "sackd"),
    ("slurmctld", "slurm-client"),
)

_VERSION = re.compile(r"(?:\d+:)?(?P<major>\d{2}\.\d{2})(?:[.\-~+][\w.\-~+]*)?")


class ReleaseError(ValueError):
    """An upgrade that Slurm does not bear; the message says why, and what to do instead."""


def major(version: str) -> str:
    """Return the major release of a package's version: ``24.11.5-4`` is ``24.11``. Raises ReleaseError."""
    found = _VERSION.fullmatch(version)
    if not found:
        raise ReleaseError(f"slurm_version: {version!r} is no version of Slurm: write it as 24.11 or 24.11.5")
    if found["major"] not in MAJORS:
        raise ReleaseError(
            f"slurm_version: it is not known which releases work with {found['major']}; known are "
            f"{', '.join(MAJORS)}"
        )
    return found["major"]


def oldest(release: str) -> str:
    """Return the oldest major whose daemons and state a daemon of the major *release* understands."""
    at = MAJORS.index(release)
    return MAJORS[max(0, at - (3 if at >= MAJORS.index(_WIDER_SINCE) else 2))]


def steps(before: str, after: str) -> List[str]:
    """Return the majors to go through from *before* to *after*, the last one being *after*."""
    path: List[str] = []
    at = before
    while at != after:
        reachable = [name for name in MAJORS if MAJORS.index(oldest(name)) <= MAJORS.index(at)]
        at = min(reachable[-1], after, key=MAJORS.index)
        path.append(at)
    return path


def check_wanted(version: str) -> None:
    """Raise ReleaseError unless the variable is empty, or a version that APT can be asked for."""
    if version:
        major(version)


def check(installed: Mapping[str, Mapping[str, str]], target: str, covered: Sequence[str]) -> None:
    """Raise ReleaseError unless all packages can go to *target* one after the other.

    *installed* are versions by package, by host; *covered* the hosts that this run brings to *target*. The
    others stay as they are, and have to work with them.
    """
    wanted = major(target)
    place = MAJORS.index
    for host in sorted(installed):
        for package, version in sorted(installed[host].items()):
            have = major(version)
            if host in covered and place(have) > place(wanted):
                raise ReleaseError(
                    f"{host} has {package} {version}, newer than slurm_version {target}: Slurm can't go back "
                    "to another major release, as the older one does not read the state of the newer"
                )
            if host in covered and place(have) < place(oldest(wanted)):
                raise ReleaseError(
                    f"{host} has {package} {version}, and Slurm {wanted} takes over from {oldest(wanted)} "
                    f"and newer: go there by way of {', '.join(steps(have, wanted))}"
                )
    after = _after(installed, wanted, covered)
    for above, below in _SPEAK:
        _check_order(after, above, below)


def _after(
    installed: Mapping[str, Mapping[str, str]], wanted: str, covered: Sequence[str]
) -> Dict[str, List[Tuple[str, str]]]:
    """Return (host, major) by package, as they are when the run has ended."""
    after: Dict[str, List[Tuple[str, str]]] = {}
    for host, packages in installed.items():
        for package, version in packages.items():
            after.setdefault(package, []).append((host, wanted if host in covered else major(version)))
    return after


def _check_order(after: Mapping[str, List[Tuple[str, str]]], above: str, below: str) -> None:
    """Raise ReleaseError if something *below* is newer than, or too old for, what is *above* it."""
    for host, release in after.get(above, []):
        for other, other_release in after.get(below, []):
            newer = MAJORS.index(other_release) > MAJORS.index(release)
            if newer or MAJORS.index(other_release) < MAJORS.index(oldest(release)):
                why = "newer than" if newer else "too old for"
                raise ReleaseError(
                    f"{below} {other_release} of {other} would be {why} {above} {release} of {host}: have "
                    f"{host if newer else other} in the same run"
                )

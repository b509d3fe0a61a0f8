# SPDX-License-Identifier: Apache-2.0
"""Which of the distributions that a role has a variable file for is on a node."""

from __future__ import annotations

import shlex
from typing import Any, Dict, Mapping, NamedTuple, Sequence, Tuple

OS_RELEASE = "/etc/os-release"
_MATCHES = {"id": "ID", "platform": "PLATFORM_ID"}


class DistributionError(Exception):
    """A node whose distribution has no variable file; the message names it and those there are."""


class Distribution(NamedTuple):
    """What a variable file says of a distribution.

    name: for people. package_manager: ``apt``, ``dnf`` or ``zypper``. architecture: the node's, as its
    packages call it. helpers: packages to have beside Apptainer. hint: where Apptainer's packages are.
    """

    name: str
    package_manager: str
    architecture: str
    helpers: Tuple[str, ...]
    hint: str


def choose(distributions: Sequence[Mapping[str, Any]], os_release: str, machine: str) -> Distribution:
    """Return the one of *distributions* that the node has.

    distributions: the content of variable files. ``name``, ``package_manager``, ``architectures`` (by
    machine), ``helpers`` and ``hint``, and how to know it: all of ``id`` (ID), ``like`` (a word of ID_LIKE)
    and ``platform`` (PLATFORM_ID) that are given, and ``versions`` (VERSION_ID, or what stands before its
    dot). os_release: the text of os-release(5). machine: as ``uname -m`` says. Raises DistributionError.
    """
    fields = read(os_release)
    for candidate in distributions:
        if _fits(candidate, fields):
            break
    else:
        known = ", ".join(candidate["name"] for candidate in distributions)
        raise DistributionError(
            f"{fields.get('PRETTY_NAME', 'this system')} is none of the distributions that Apptainer can be"
            f" installed on: {known}. Where one of these has the same packages, add the node's to its file in"
            " roles/apptainer/vars/main"
        )
    architecture = candidate["architectures"].get(machine)
    if architecture is None:
        known = ", ".join(candidate["architectures"])
        raise DistributionError(f"this node's processor is {machine}, and Apptainer is installed on {known}")
    return Distribution(
        candidate["name"],
        candidate["package_manager"],
        architecture,
        tuple(candidate["helpers"]),
        candidate["hint"],
    )


def read(os_release: str) -> Dict[str, str]:
    """Return the fields of an os-release file (os-release(5)); what is no assignment is left out."""
    fields = {}
    for line in os_release.splitlines():
        name, separator, value = line.strip().partition("=")
        if separator and not name.startswith("#"):
            try:
                fields[name] = "".join(shlex.split(value))
            except ValueError:
                fields[name] = value
    return fields


def _fits(candidate: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
    version = fields.get("VERSION_ID", "")
    return (
        all(fields.get(field) == candidate[key] for key, field in _MATCHES.items() if key in candidate)
        and ("like" not in candidate or candidate["like"] in fields.get("ID_LIKE", "").split())
        and (
            "versions" not in candidate
            or {version, version.split(".")[0]} & set(candidate["versions"]) != set()
        )
    )

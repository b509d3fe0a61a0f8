# SPDX-License-Identifier: Apache-2.0
"""Filters on file systems of the network, for roles that don't mount them: containers and health checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from module_utils import file_systems, lustre
from module_utils.file_systems import FileSystem

#: Seconds in which a file system has to answer: an automount may have to mount it first.
ANSWER = 10


def _mounted(variables: Mapping[str, Any]) -> list[FileSystem]:
    """What a host has, of its variables: roles that are not at work on it have no say."""
    found: list[FileSystem] = []
    for owner in file_systems.OWNERS:
        entries = variables.get(f"{owner}_file_systems") if owner in variables["group_names"] else None
        try:
            found += file_systems.read(entries or [], owner)
        except ValueError as error:
            raise AnsibleFilterError(f"{owner}_file_systems{error}") from error
    return found


def apptainer_with_binds(config: Mapping[str, Any], variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``apptainer_config`` with what containers see of file systems in its 'bind path'.

    variables: of the host, with ``group_names``. Raises AnsibleFilterError.
    """
    try:
        return file_systems.with_binds(config, file_systems.binds(_mounted(variables)))
    except ValueError as error:
        raise AnsibleFilterError(f"file systems{error}") from error


def file_system_checks(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return what node_health is to look at, for a host's variables. Raises AnsibleFilterError."""
    checks: dict[str, Any] = {}
    if found := _mounted(variables):
        checks["mounts"] = [{"path": one.path, "timeout": ANSWER} for one in found]
    networks = variables.get("lustre_networks") if "lustre" in variables["group_names"] else None
    if networks:
        try:
            checks["lustre"] = {"networks": [one.net for one in lustre.read(networks).networks]}
        except ValueError as error:
            raise AnsibleFilterError(f"lustre_networks{error}") from error
    return checks


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"apptainer_with_binds": apptainer_with_binds, "file_system_checks": file_system_checks}

# SPDX-License-Identifier: Apache-2.0
"""Filter of the role node_health: the settings of a node's health program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from module_utils import apptainer_profiles, apptainer_version, node_health

#: What every node needs, whatever it is for.
GENERAL: Mapping[str, Any] = {
    "writable": ["/"],
    "disk": [
        {"path": path, "free_percent": 1, "free_inodes_percent": 1}
        for path in ("/", "/tmp")  # noqa: S108
    ],
}


def node_health_settings(
    checks: Mapping[str, Any],
    *,
    node: str,
    manager: str,
    drain: bool,
    resume: bool,
    heals: int,
    apptainer: Mapping[str, Any] | None = None,
    nhc: Sequence[str] = (),
    roles: Sequence[Mapping[str, Any]] = (),
    metrics: str = "",
) -> dict[str, Any]:
    """Return the settings of `module_utils.node_health`.

    *checks* are those of the site, which win over those that are made here; null takes one away. *apptainer*
    is of the role of this name: version, profile, user, image, folder, and the container's interval; None
    where nodes have no Apptainer. *nhc* runs LBNL's Node Health Check. *roles* are checks that other roles
    ask for; entries of one check are joined. *metrics* is a file
    for Prometheus.
    Raises AnsibleFilterError, naming the variable.
    """
    result: dict[str, Any] = dict(GENERAL)
    try:
        if apptainer is not None:
            result |= _of_apptainer(apptainer)
        if nhc:
            result["commands"] = [{"name": "nhc", "argv": list(nhc)}]
        for asked in roles:
            for name, entry in asked.items():
                result[name] = _joined(result.get(name), entry)
        result |= checks
        settings = {
            "node": node,
            "manager": manager,
            "drain": drain,
            "resume": resume,
            "heals": heals,
            "metrics": metrics,
            "checks": {name: entry for name, entry in result.items() if entry is not None},
        }
        node_health.read(settings)
    except apptainer_version.VersionError as error:
        raise AnsibleFilterError(f"apptainer_version: {error}") from error
    except node_health.HealthError as error:
        raise AnsibleFilterError(f"node_health_checks: {error}") from error
    return settings


def _joined(known: Any, more: Any) -> Any:
    """Return two entries of one check as one."""
    if isinstance(known, list):
        return [*known, *more]
    return {**known, **more} if isinstance(known, dict) else more


def _of_apptainer(wanted: Mapping[str, Any]) -> dict[str, Any]:
    profile = apptainer_profiles.PROFILES[wanted["profile"]]
    enforced = profile.whitestrict
    result: dict[str, Any] = {
        "apptainer": {
            "version": apptainer_version.parse(wanted["version"]).release,
            "setuid": profile.suid,
        },
        "user_namespaces": {"available": profile.user_namespaces},
    }
    # Where the list is on, nothing but an image of the site can run.
    if wanted["user"] and wanted["interval"] and (wanted["image"] or not enforced):
        result["container"] = {
            "user": wanted["user"],
            "enforced": enforced,
            "interval": wanted["interval"],
            **{name: wanted[name] for name in ("image", "folder") if wanted[name]},
        }
    return result


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"node_health_settings": node_health_settings}

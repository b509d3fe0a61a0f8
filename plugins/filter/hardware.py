# SPDX-License-Identifier: Apache-2.0
"""Filters of roles for hardware: from their variables to files, modules and units of a node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from module_utils import accelerators, infiniband, node_limits


def gpu_node(settings: Mapping[str, Any], folder: str = "") -> dict[str, Any]:
    """Return what a node of a class needs: files, absent, modules, units, memberships, expect.

    *settings* are the variables of the role gpu without its name; *folder* is where Apptainer's configuration
    is, empty where there is none. Raises AnsibleFilterError, naming the variable.
    """
    checks = {
        "accelerators": accelerators.check_accelerators,
        "device_mode": accelerators.check_mode,
        "device_group": accelerators.check_group,
    }
    _check("gpu", settings, checks)
    return {
        "files": accelerators.files(settings),
        "absent": [accelerators.MODULES, accelerators.OPTIONS, accelerators.UDEV],
        "modules": accelerators.modules(settings),
        "units": accelerators.units(settings),
        "memberships": accelerators.memberships(settings),
        "expect": accelerators.checks(settings, folder).get("hardware", {}),
    }


def gpu_checks(variables: Mapping[str, Any], folder: str = "") -> dict[str, Any]:
    """Return the checks of node_health for a host with these *variables*; see `gpu_node` for *folder*."""
    return accelerators.checks(accelerators.of_class(variables), folder)


def infiniband_node(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a node on a fabric needs: files, absent, modules, units, expect.

    *settings* are the variables of the role infiniband without its name. Raises AnsibleFilterError, naming
    the variable.
    """
    checks = {"soft_roce": infiniband.check_soft_roce, "ipoib": infiniband.check_ipoib}
    _check("infiniband", settings, checks)
    return {
        "files": infiniband.files(settings),
        "absent": [infiniband.MODULES, *infiniband.LEFT],
        "modules": infiniband.modules(settings),
        "units": infiniband.units(settings),
        "expect": infiniband.checks(settings).get("hardware", {}),
    }


def infiniband_checks(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checks of node_health for a host with these *variables*."""
    return infiniband.checks(infiniband.of_class(variables))


def limits_node(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what limits are made of: files, absent, units.

    *settings* are the variables of the role limits without its name. Raises AnsibleFilterError, naming the
    variable.
    """
    checks = {
        "memlock": node_limits.check_memlock,
        "shared_memory": node_limits.check_shared_memory,
        "units": node_limits.check_units,
    }
    _check("limits", settings, checks)
    shared = f"/etc/systemd/system/{node_limits.SHARED}"
    return {
        "files": node_limits.files(settings),
        "absent": [shared, f"/etc/systemd/system/*.d/{node_limits.DROP_IN}"],
        "units": node_limits.units(settings),
    }


def _check(role: str, settings: Mapping[str, Any], checks: Mapping[str, Callable[[Any], object]]) -> None:
    for name, check in checks.items():
        try:
            check(settings.get(name) or [])
        except ValueError as error:
            raise AnsibleFilterError(f"{role}_{name}: {error}") from error


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "gpu_checks": gpu_checks,
            "gpu_node": gpu_node,
            "infiniband_checks": infiniband_checks,
            "infiniband_node": infiniband_node,
            "limits_node": limits_node,
        }

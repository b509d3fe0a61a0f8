# SPDX-License-Identifier: Apache-2.0
"""Filters of the role apptainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from module_utils import apptainer_state


def apptainer_desired_state(
    version: object, profile: object, repository: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the desired state of a node: see `module_utils.apptainer_state.desired_state`.

    Raises AnsibleFilterError with one line for each problem, which begins with the variable.
    """
    try:
        return apptainer_state.desired_state(version, profile, repository, config)
    except apptainer_state.StateError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filters, for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return filter name → function."""
        return {"apptainer_desired_state": apptainer_desired_state}

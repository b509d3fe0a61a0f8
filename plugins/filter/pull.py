# SPDX-License-Identifier: Apache-2.0
"""Filters of the role pull: from its variables to the files of the program on the node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from module_utils import pull


def pull_desired_state(variables: Mapping[str, Any]) -> dict[str, str]:
    """Return ``settings`` and ``signers``, the contents of pull.json and allowed_signers.

    *variables* are those of the role by their names without the prefix: all that have a check.
    Raises AnsibleFilterError, naming the variable that has to be mended.
    """
    values = {name: _plain(value) for name, value in variables.items()}
    for name, check in pull.CHECKS.items():
        try:
            check(values[name])
        except ValueError as error:
            raise AnsibleFilterError(f"pull_{name}: {error}") from error
    settings = pull.Settings.of({name: values[name] for name in pull.Settings._fields})
    return {"settings": settings.text(), "signers": pull.allowed_signers(values["signers"])}


def pull_drop_in(unit: str, folder: str, name: str, content: str) -> dict[str, str]:
    """Return the drop-in file *name* of *unit* below *folder*, as module managed_files wants it."""
    return {"path": f"{folder}/{unit}.d/{name}", "content": content}


def _plain(value: Any) -> Any:
    """Return Ansible's own kinds of values as Python's, which JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, str) else value


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"pull_desired_state": pull_desired_state, "pull_drop_in": pull_drop_in}

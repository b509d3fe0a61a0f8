# SPDX-License-Identifier: Apache-2.0
"""Filter of the role apptainer that reads public keys, armored or binary, from files of the controller."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ansible.errors import AnsibleFilterError

from module_utils import openpgp


def apptainer_read_keys(keys: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return ``fingerprint`` and ``content`` (base64), as the module `apptainer_keyring` takes them.

    keys: ``apptainer_keys``, each with ``fingerprint`` and ``file``, an absolute path. Only the key that was
    promised leaves the file. Raises AnsibleFilterError with one line for each problem, so that a wrong key is
    refused before a node is touched.
    """
    result, problems = [], []
    for number, entry in enumerate(keys):
        file = Path(entry["file"]).expanduser()
        try:
            if not file.is_absolute():
                raise openpgp.OpenPGPError("is not absolute: begin it with {{ inventory_dir }}, for example")
            key = openpgp.select(file.read_bytes(), entry["fingerprint"])
            result.append({"fingerprint": key.fingerprint, "content": base64.b64encode(key.raw).decode()})
        except OSError as error:
            problems.append(f"apptainer_keys[{number}]: {file}: {error.strerror}")
        except openpgp.OpenPGPError as error:
            problems.append(f"apptainer_keys[{number}]: {file}: {error}")
    if problems:
        raise AnsibleFilterError("\n".join(problems))
    return result


class FilterModule:
    """The filter, for Ansible."""

    def filters(self) -> dict[str, Callable[..., object]]:
        """Return filter name → function."""
        return {"apptainer_read_keys": apptainer_read_keys}

# SPDX-License-Identifier: Apache-2.0
"""capability.json: which users and groups may ask for which capabilities in containers, in setuid mode.

Source: ``pkg/util/capabilities`` of https://github.com/apptainer/apptainer; capabilities(7).
"""

from __future__ import annotations

import json
import re
from typing import Dict, FrozenSet, List, Mapping, NamedTuple, Tuple, Union

#: With one of these a user is as good as root on the node (capabilities(7), "Notes to kernel developers").
ROOT_EQUIVALENT: FrozenSet[str] = frozenset(
    f"CAP_{name}"
    for name in (
        *("BPF", "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "MKNOD", "SETFCAP", "SETGID"),
        *("SETPCAP", "SETUID", "SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_PTRACE"),
        *("SYS_RAWIO", "MAC_ADMIN", "MAC_OVERRIDE", "PERFMON", "CHECKPOINT_RESTORE"),
    )
)
_NAME = re.compile(r"CAP_[A-Z][A-Z0-9_]*")


class CapabilityError(ValueError):
    """A text that is no capability.json; the message says where and why."""


class Grants(NamedTuple):
    """Names of users and groups → capabilities, as written."""

    users: Mapping[str, Tuple[str, ...]] = {}
    groups: Mapping[str, Tuple[str, ...]] = {}

    def all(self) -> List[Tuple[str, str]]:
        """Return every grant: (``user alice``, ``CAP_NET_RAW``)."""
        return [
            (f"{kind} {name}", capability)
            for kind, grants in (("user", self.users), ("group", self.groups))
            for name, capabilities in grants.items()
            for capability in capabilities
        ]


def read(content: Union[bytes, str]) -> Grants:
    """Return what *content* grants; nothing if it is empty, as packages have it. Raises CapabilityError."""
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        if not text.strip():
            return Grants()
        document = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CapabilityError(f"is no JSON that can be read: {error}") from error
    if not isinstance(document, dict):
        raise CapabilityError("must be an object with users and groups")
    unknown = sorted(set(document) - {"users", "groups"})
    if unknown:
        raise CapabilityError(f"has {', '.join(unknown)}, but only users and groups are known")
    return Grants(_grants("users", document.get("users")), _grants("groups", document.get("groups")))


def _unique(pairs: List[Tuple[str, object]]) -> Dict[str, object]:
    found: Dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key} stands there twice")
        found[key] = value
    return found


def _grants(kind: str, value: object) -> Dict[str, Tuple[str, ...]]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CapabilityError(f"{kind} must be an object: name → list of capabilities")
    for name, capabilities in value.items():
        if not isinstance(capabilities, list):
            raise CapabilityError(f"{kind}: {name} must have a list of capabilities")
        for capability in capabilities:
            if not isinstance(capability, str) or not _NAME.fullmatch(capability):
                raise CapabilityError(f"{kind}: {name} has {capability!r}, which is none like CAP_NET_RAW")
    return {name: tuple(capabilities) for name, capabilities in value.items()}

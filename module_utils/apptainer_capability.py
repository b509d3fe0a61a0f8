# SPDX-License-Identifier: Apache-2.0
"""capability.json: which users and groups may ask for which capabilities in containers, in setuid mode.

Apptainer takes a name that is no capability, and such a grant is then without effect; here it is an error.

Source: ``pkg/util/capabilities`` of https://github.com/apptainer/apptainer; capabilities(7).
"""

from __future__ import annotations

import difflib
import json
import re
from typing import Dict, FrozenSet, List, Mapping, NamedTuple, Tuple, Union

from . import typed
from .typed import Field

#: With one of these a user is as good as root on the node (capabilities(7), "Notes to kernel developers").
ROOT_EQUIVALENT: FrozenSet[str] = frozenset(
    f"CAP_{name}"
    for name in (
        *("BPF", "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "MKNOD", "SETFCAP", "SETGID"),
        *("SETPCAP", "SETUID", "SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_PTRACE"),
        *("SYS_RAWIO", "MAC_ADMIN", "MAC_OVERRIDE", "PERFMON", "CHECKPOINT_RESTORE"),
    )
)
#: All that Linux has, up to 6.12 (capabilities(7), linux/capability.h).
CAPABILITIES: FrozenSet[str] = ROOT_EQUIVALENT | frozenset(
    f"CAP_{name}"
    for name in (
        *("AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "FSETID", "IPC_LOCK", "IPC_OWNER"),
        *("KILL", "LEASE", "LINUX_IMMUTABLE", "NET_ADMIN", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_RAW"),
        *("SYSLOG", "SYS_NICE", "SYS_PACCT", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM"),
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


def wanted(description: object) -> Grants:
    """Return the grants of *description*: ``users`` and ``groups``, each name → list of capabilities.

    Raises ValueError with a line for each problem.
    """
    grants: Grants = _WANTED(description)
    return grants


def render(grants: Grants) -> str:
    """Return capability.json for *grants*, as Apptainer itself writes it: `read` of it is the same."""
    document = {"users": grants.users, "groups": grants.groups}
    return json.dumps(document, indent="\t", sort_keys=True) + "\n"


def _capability(value: object) -> str:
    if isinstance(value, str) and value in CAPABILITIES:
        return value
    close = difflib.get_close_matches(str(value).upper(), sorted(CAPABILITIES), n=1)
    hint = f"; did you mean {close[0]}?" if close else ", like CAP_NET_RAW"
    raise ValueError(f"{typed.shown(value)} is no capability of Linux{hint}")


def _by_name(value: object) -> Dict[str, Tuple[str, ...]]:
    """Read name → capabilities."""
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a mapping: name → list of capabilities, not {typed.shown(value)}")
    name, several = typed.text(what="a name, in quotes if it is a number"), typed.items(_capability)
    found: Dict[str, Tuple[str, ...]] = {}
    problems: List[str] = []
    for key, capabilities in value.items():
        try:
            found[name(key)] = several(capabilities)
        except ValueError as error:
            problems += [f".{key}{'' if line[0] == '[' else ': '}{line}" for line in str(error).split("\n")]
    if problems:
        raise ValueError("\n".join(problems))
    return found


_WANTED = typed.nested({"users": Field(_by_name), "groups": Field(_by_name)}, Grants)


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

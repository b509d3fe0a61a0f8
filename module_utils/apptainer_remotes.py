# SPDX-License-Identifier: Apache-2.0
"""remote.yaml of the node: the remote endpoints and key servers that all its users have.

Apptainer fails with every command for remotes, keys and downloads while the file has a field that it doesn't
know. Tokens and credentials are no part of it here: all users can read the file, so those belong to users.

Source: ``internal/pkg/remote`` of https://github.com/apptainer/apptainer.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple, Sequence, Tuple

from . import typed
from .typed import Field

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?"
_URI = re.compile(rf"{_HOST}(/[A-Za-z0-9._~/-]*)?")
_SERVER = re.compile(rf"(https?|hkps?)://{_HOST}(/[A-Za-z0-9._~/-]*)?")


class Keyserver(NamedTuple):
    """A key server. insecure: whether its certificate is not checked."""

    uri: str
    insecure: bool = False


class Remote(NamedTuple):
    """An endpoint. exclusive: users can choose no other. insecure: it is asked without TLS."""

    name: str
    uri: str
    exclusive: bool = False
    insecure: bool = False
    keyservers: Tuple[Keyserver, ...] = ()


def wanted(description: object) -> Tuple[Remote, ...]:
    """Return the endpoints of *description*, a list of mappings with the fields of `Remote`.

    The first is the one that users have unless they choose another. Raises ValueError with a line for each
    problem.
    """
    remotes: Tuple[Remote, ...] = _WANTED(description)
    names = [remote.name for remote in remotes]
    found = [f"two are named {name}" for name in dict.fromkeys(names) if names.count(name) > 1]
    found += [
        f"{remote.name} is exclusive, so put it first: no other can be used"
        for remote in remotes[1:]
        if remote.exclusive
    ]
    if found:
        raise ValueError("\n".join(found))
    return remotes


def render(remotes: Sequence[Remote]) -> str:
    """Return remote.yaml for *remotes*; the first is active. JSON's strings are also those of YAML."""
    lines = [_HEAD, f"Active: {json.dumps(remotes[0].name if remotes else '')}"]
    lines.append("Remotes:" if remotes else "Remotes: {}")
    for remote in remotes:
        lines += [
            f"  {json.dumps(remote.name)}:",
            f"    URI: {json.dumps(remote.uri)}",
            "    System: true",
            f"    Exclusive: {json.dumps(remote.exclusive)}",
        ]
        # A field that the first releases don't know.
        lines += ["    Insecure: true"] if remote.insecure else []
        lines += ["    Keyservers:"] if remote.keyservers else []
        for server in remote.keyservers:
            lines += [
                f"      - URI: {json.dumps(server.uri)}",
                "        Skip: false",
                "        External: true",
                f"        Insecure: {json.dumps(server.insecure)}",
            ]
    return "\n".join(lines) + "\n"


_HEAD = "# Ansible writes this file (apptainer-fleet): what is changed here is lost."


_KEYSERVER = {
    "uri": Field(typed.text(_SERVER, "like https://keys.example.org"), required=True),
    "insecure": Field(typed.boolean),
}
_REMOTE = {
    "name": Field(typed.text(_NAME, "one word"), required=True),
    "uri": Field(typed.text(_URI, "a host without https://, like cloud.apptainer.org"), required=True),
    "exclusive": Field(typed.boolean),
    "insecure": Field(typed.boolean),
    "keyservers": Field(typed.items(typed.nested(_KEYSERVER, Keyserver))),
}
_WANTED = typed.items(typed.nested(_REMOTE, Remote))

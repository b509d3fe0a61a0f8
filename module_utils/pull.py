# SPDX-License-Identifier: Apache-2.0
"""What a node needs to know to converge itself: where its desired state is, and whose signature makes it so.

Sources: gitprotocol-common(5) and git-fetch(1), "GIT URLS"; git-check-ref-format(1); ssh-keygen(1), "ALLOWED
SIGNERS"; RFC 4253 section 6.6 (a public key begins with its type); systemd.unit(5) (names of units).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Sequence

#: On the node: what the program is told, and how its last run ended.
SETTINGS = "/etc/apptainer-fleet/pull.json"
RESULT = "/var/lib/apptainer-fleet/pull.json"
#: How git may reach a repository. Others (``ext::``) run commands.
TRANSPORTS = ("file", "git", "http", "https", "ssh")
KEY_TYPES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)

_URL = re.compile(r"(?P<transport>[a-z+.-]+)://(?P<authority>([^/\s-][^/\s]*)?)/\S+")
_SSH_SHORT = re.compile(r"(\w[\w.-]*@)?\w[\w.-]*:(?!//)[^\s:-]\S*")
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]*")
_INSIDE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_SIGNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]*")
_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.@-]*\.(service|socket|target)")


class Settings(NamedTuple):
    """What the node's program is told by the role, in a JSON file.

    :param repository: where git fetches from, a URL or an absolute path.
    :param reference: branch or tag.
    :param inventory: path of the inventory inside the repository.
    :param playbook: path of the playbook inside the repository.
    :param before: systemd units that start only on a node that has converged since it booted.
    :param timeout: seconds that a converge may take.
    :param results: folder or http(s) URL that gets a copy of each result as NODE.json; empty for none.
    """

    repository: str
    reference: str
    inventory: str
    playbook: str
    before: Sequence[str]
    timeout: int
    results: str

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Return checked settings. Raises ValueError, whose message begins with the name of the setting."""
        wrong = sorted(set(cls._fields) ^ set(values))
        if wrong:
            raise ValueError(f"{wrong[0]}: " + ("is missing" if wrong[0] in cls._fields else "is no setting"))
        for name in cls._fields:
            try:
                CHECKS[name](values[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return cls(**values)

    @classmethod
    def read(cls, text: str) -> Settings:
        """Return the settings of the file's *text*. Raises ValueError."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("is no JSON object")
        return cls.of(values)

    def text(self) -> str:
        """Return the content of the file."""
        return json.dumps(self._asdict(), indent=2) + "\n"


def check_repository(value: Any) -> None:
    """Raise ValueError unless *value* is something that git fetches from, and holds no password."""
    text = _string(value)
    if text.startswith("/"):
        if re.search(r"[\x00-\x20\x7f]", text):
            raise ValueError(f"{text!r} has white space in it")
        return
    url = _URL.fullmatch(text)
    if url:
        if url["transport"] not in TRANSPORTS:
            raise ValueError(f"{url['transport']}:// is none of {', '.join(TRANSPORTS)}")
        if ":" in url["authority"].rpartition("@")[0]:
            raise ValueError("has a password in it that anybody could read: use a deploy key of SSH instead")
        return
    if "::" in text or not _SSH_SHORT.fullmatch(text):
        raise ValueError(
            f"{text!r} is neither an absolute path nor a URL such as https://git.example.org/cluster.git"
        )


def check_reference(value: Any) -> None:
    """Raise ValueError unless *value* can be a branch or a tag (git-check-ref-format(1))."""
    text = _string(value)
    parts = text.split("/")
    bad = ".." in text or any(p == "" or p.startswith(".") or p.endswith((".", ".lock")) for p in parts)
    if not _REFERENCE.fullmatch(text) or bad:
        raise ValueError(f"{text!r} is no name of a branch or tag")


def check_inside(value: Any) -> None:
    """Raise ValueError unless *value* is a path inside the repository, such as ``inventories/site``."""
    text = _string(value)
    if not _INSIDE.fullmatch(text):
        raise ValueError(f"{text!r} is no path inside the repository, such as inventories/site")


def check_units(value: Any) -> None:
    """Raise ValueError unless *value* is a list of names of systemd units with their suffix."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{value!r} is no list")
    for unit in value:
        if not isinstance(unit, str) or not _UNIT.fullmatch(unit):
            raise ValueError(f"{unit!r} is no systemd unit with its suffix, such as slurmd.service")


def check_results(value: Any) -> None:
    """Raise ValueError unless *value* is empty, an absolute path, or a http(s) URL without a password."""
    text = "" if value == "" else _string(value)
    if re.search(r"[\x00-\x20\x7f]", text):
        raise ValueError(f"{text!r} has white space in it")
    if not text or text.startswith("/"):
        return
    match = re.fullmatch(r"https?://([^/?#]+)(/[^?#]*)?", text)
    if not match:
        raise ValueError(f"{text!r} is neither an absolute path nor a URL such as https://c.example.org/pull")
    if "@" in match[1]:
        raise ValueError("has a user or a password in it that anybody could read")


def check_seconds(value: Any, least: int = 1) -> None:
    """Raise ValueError unless *value* is a whole number that is not less than *least*."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{value!r} is no whole number of seconds from {least}")


def check_seconds_or_none(value: Any) -> None:
    """Raise ValueError unless *value* is a whole number from 0."""
    check_seconds(value, 0)


def allowed_signers(signers: Any) -> str:
    """Return the content of an ALLOWED SIGNERS file for git.

    :param signers: dicts with ``name`` and ``key``, a public key of SSH as in ``id_ed25519.pub``.
    :raises ValueError: there is none, or one can't be what it has to be.
    """
    if not isinstance(signers, (list, tuple)) or not signers:
        raise ValueError("names nobody: without a key no commit could be accepted")
    lines: List[str] = []
    for signer in signers:
        entry: Dict[str, Any] = dict(signer) if isinstance(signer, Mapping) else {}
        if set(entry) != {"name", "key"}:
            raise ValueError(f"{signer!r} is no signer: each has a name and a key")
        if not isinstance(entry["name"], str) or not _SIGNER.fullmatch(entry["name"]):
            raise ValueError(f"{entry['name']!r} is no name of a signer, such as alice@example.org")
        kind, key = _public_key(entry["name"], entry["key"])
        # The namespace is the one that git signs in: a signature of something else by the same key is none.
        lines.append(f'{entry["name"]} namespaces="git" {kind} {key}\n')
    return "".join(lines)


#: What a variable of role pull (without the prefix) may be, beyond its type; each raises ValueError.
CHECKS: Mapping[str, Callable[[Any], object]] = {
    "repository": check_repository,
    "reference": check_reference,
    "inventory": check_inside,
    "playbook": check_inside,
    "before": check_units,
    "results": check_results,
    "signers": allowed_signers,
    "interval": check_seconds,
    "timeout": check_seconds,
    "splay": check_seconds_or_none,
    "patience": check_seconds_or_none,
}


def _public_key(name: str, value: Any) -> List[str]:
    words = value.split() if isinstance(value, str) else []
    if len(words) < 2 or words[0] not in KEY_TYPES or "\n" in value.strip():  # noqa: PLR2004 - type and key
        raise ValueError(
            f"the key of {name} is no public key of SSH: it is one line, such as ssh-ed25519 AAAA…, of type"
            f" {', '.join(KEY_TYPES)}"
        )
    try:
        blob = base64.b64decode(words[1], validate=True)
        size = struct.unpack(">I", blob[:4])[0]
        inner = blob[4 : 4 + size]
    except (binascii.Error, struct.error):
        inner, blob, size = b"", b"", 0
    # The type, and something behind it: a line that was cut off when it was copied has less.
    if inner != words[0].encode() or not _is_whole(blob):
        raise ValueError(f"the key of {name} is damaged: copy the whole line of the .pub file")
    return words[:2]


def _is_whole(blob: bytes) -> bool:
    """Whether *blob* is a sequence of two or more strings, each behind its length (RFC 4251, section 5)."""
    count = 0
    while blob:
        if len(blob) < 4:  # noqa: PLR2004 - the length itself
            return False
        size = struct.unpack(">I", blob[:4])[0]
        if len(blob) < 4 + size:
            return False
        blob, count = blob[4 + size :], count + 1
    return count > 1


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value

# SPDX-License-Identifier: Apache-2.0
"""A node of Torque or OpenPBS, taken offline and online for the health program; notes of others are kept.

A node has one note. What stands there already stays behind the Reason of the health program, as in
``node_health: disk: / has 1 % free (5f3a9c) | rack 7: door``, and is the note again when the node is online
again. Where both are too long for OpenPBS, the note stays as it is and a person takes the node online.

Sources: pbsnodes(8) of Torque 6 (-x, -o, -c, -N) and of OpenPBS 23 (-v -F json, -o, -r, -C). Never run with a
real server: the tests hold it against answers as these manuals describe them.
"""

from __future__ import annotations

import json
from typing import Callable, List, NamedTuple, Optional, Tuple
from xml.etree import ElementTree

from . import slurm_nodes

#: Runs a program: argv → exit code, standard output, standard error.
Run = Callable[[List[str]], Tuple[int, str, str]]
_BETWEEN = " | "


class PbsError(Exception):
    """PBS can't be asked or refuses, or a note would be lost; the message says why."""


class State(NamedTuple):
    """A node: whether it is *offline*, and its *note*."""

    offline: bool
    note: str


class Flavour(NamedTuple):
    """How a node is asked for, read, set offline and online with a note, and how long a note may be."""

    query: Callable[[str], List[str]]
    parse: Callable[[str, str], State]
    offline: Callable[[str, str], List[str]]
    online: Callable[[str, str], List[str]]
    length: int


def _torque_state(text: str, node: str) -> State:
    for element in ElementTree.fromstring(text).iter("Node"):  # noqa: S314 - of the site's own server
        if element.findtext("name") == node:
            states = (element.findtext("state") or "").split(",")
            return State("offline" in [word.strip() for word in states], element.findtext("note") or "")
    raise KeyError(node)


def _openpbs_state(text: str, node: str) -> State:
    data = json.loads(text)["nodes"][node]
    return State("offline" in data["state"].split(","), data.get("comment") or "")


TORQUE = Flavour(
    query=lambda node: ["pbsnodes", "-x", node],
    parse=_torque_state,
    offline=lambda node, note: ["pbsnodes", "-o", "-N", note, node],
    online=lambda node, note: ["pbsnodes", "-c", "-N", note, node],
    length=1000,
)
OPENPBS = Flavour(
    query=lambda node: ["pbsnodes", "-v", node, "-F", "json"],
    parse=_openpbs_state,
    offline=lambda node, note: ["pbsnodes", "-o", "-C", note, node],
    online=lambda node, note: ["pbsnodes", "-r", "-C", note, node],
    length=80,
)


class PbsNode:
    """A node, through *run*, for programs whose Reasons carry the seal of *tag* (`slurm_nodes.sealed`)."""

    def __init__(self, node: str, tag: str, flavour: Flavour, run: Run) -> None:
        self._node, self._tag, self._flavour, self._run = node, tag, flavour, run

    def reason(self) -> Optional[str]:
        """Return why it is offline, None if it is not. Raises PbsError, as all methods do."""
        state = self._read()
        if not state.offline:
            return None
        return self._split(state.note)[0] or state.note or "offline, without a note"

    def drain(self, reason: str) -> None:
        """Take it offline, unless it is; its note stays behind *reason*."""
        state = self._read()
        if not state.offline:
            # One of ours on a node that is online was left by a person who took it online.
            self._set(reason, self._split(state.note)[1])

    def change(self, old: str, new: str) -> None:
        """Change the reason, if it is still *old*."""
        state = self._read()
        if state.offline and self._split(state.note)[0] == old:
            self._set(new, self._split(state.note)[1])

    def resume(self, reason: str) -> None:
        """Take it online with the note that it had, if it is offline for exactly *reason*."""
        state = self._read()
        ours, note = self._split(state.note)
        if state.offline and ours == reason:
            self._do(self._flavour.online(self._node, note))

    def _set(self, reason: str, note: str) -> None:
        whole = f"{reason}{_BETWEEN}{note}" if note else reason
        if len(whole) > self._flavour.length:
            # The text is worth less than the note; its first words name the check.
            room = self._flavour.length - (len(note) + len(_BETWEEN) if note else 0)
            text = slurm_nodes.text_of(reason)
            short = slurm_nodes.sealed(self._tag, text, room) if room >= len(self._tag) + 16 else ""  # noqa: PLR2004
            whole = (f"{short}{_BETWEEN}{note}" if note else short) if short else note
        self._do(self._flavour.offline(self._node, whole))

    def _split(self, note: str) -> Tuple[str, str]:
        """Return the Reason in a note, empty if there is none of ours, and the rest."""
        first, between, rest = note.partition(_BETWEEN)
        return (first, rest) if slurm_nodes.is_sealed(self._tag, first) else ("", note)

    def _read(self) -> State:
        argv = self._flavour.query(self._node)
        out = self._do(argv)
        try:
            return self._flavour.parse(out, self._node)
        except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
            raise PbsError(f"`{' '.join(argv)}` says nothing of {self._node}: {out[:80]!r}") from error

    def _do(self, argv: List[str]) -> str:
        code, out, err = self._run(argv)
        if code:
            said = (err or out).strip() or "it said nothing"
            raise PbsError(f"`{' '.join(argv)}` failed ({code}): {said}")
        return out

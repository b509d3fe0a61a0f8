"""OpenPBS and Torque: nodes are set offline with a comment or a note, which names the rollout.

Written by their manuals and tested on what their commands print; never run against a real server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any
from xml.etree import ElementTree

from fleet.rollout.commands import Run
from fleet.rollout.model import Plan, Seen
from fleet.rollout.scheduler import SchedulerError

_DOWN = frozenset(
    ("down", "unknown", "state-unknown", "stale", "initializing", "unresolvable", "provisioning", "sleep")
)


def parse_openpbs(text: str) -> dict[str, Seen]:
    """Nodes in what ``pbsnodes -av -F json`` prints. Raises SchedulerError."""
    try:
        return {name: _openpbs(node) for name, node in json.loads(text).get("nodes", {}).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise SchedulerError(f"pbsnodes: its JSON can't be read: {error}") from error


def _openpbs(node: Mapping[str, Any]) -> Seen:
    states = set(re.split(r"[,\s]+", str(node.get("state", "unknown"))))
    jobs = node.get("jobs") or ()
    queue = str(node.get("queue") or node.get("resources_available", {}).get("Qlist") or "nodes")
    held = "offline" in states
    return Seen(
        frozenset(queue.split(",")),
        held,
        busy=bool(jobs),
        up=not states & _DOWN,
        reason=str(node.get("comment", "")) if held else "",
    )


def parse_torque(text: str) -> dict[str, Seen]:
    """Nodes in what ``pbsnodes -x`` prints. Raises SchedulerError."""
    # An entity would be expanded, and a server has no need of one.
    if "<!" in text:
        raise SchedulerError("pbsnodes: its XML has a document type, which it never has")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - no document type, so nothing is expanded
    except ElementTree.ParseError as error:
        raise SchedulerError(f"pbsnodes: its XML can't be read: {error}") from error
    return {node.findtext("name", ""): _torque(node) for node in root.iter("Node")}


def _torque(node: ElementTree.Element) -> Seen:
    states = set(node.findtext("state", "unknown").split(","))
    held = "offline" in states
    status = dict(part.split("=", 1) for part in (node.findtext("status") or "").split(",") if "=" in part)
    return Seen(
        frozenset((node.findtext("properties") or "nodes").split(",")),
        held,
        busy=bool((node.findtext("jobs") or "").strip()),
        up=not states & _DOWN,
        reason=node.findtext("note", "") if held else "",
        booted=float(status.get("boottime", 0) or 0),
    )


class Pbs:
    """OpenPBS, or with *torque* Torque, as a Scheduler.

    :param run: runs its commands as a user that may set nodes offline.
    """

    # A comment of OpenPBS has at most 80 characters, so that of a failed node may not have its log.
    longest = 80

    def __init__(self, run: Run, *, torque: bool = False) -> None:
        self._run, self._torque = run, torque

    def _do(self, argv: list[str]) -> str:
        code, out, err = self._run(argv)
        if code:
            raise SchedulerError(f"`{' '.join(argv)}` failed ({code}): {(err or out).strip()}")
        return out

    def look(self) -> Mapping[str, Seen]:
        if self._torque:
            return parse_torque(self._do(["pbsnodes", "-x"]))
        return parse_openpbs(self._do(["pbsnodes", "-av", "-F", "json"]))

    def drain(self, nodes: Collection[str], reason: str, plan: Plan) -> None:
        seen = self.look()
        names = [n for n in nodes if n in seen and (not seen[n].held or plan.owns(seen[n].reason))]
        if names:
            text = ["-N", reason] if self._torque else ["-C", reason]
            self._do(["pbsnodes", "-o", *text, *names])

    def resume(self, nodes: Collection[str], plan: Plan) -> None:
        seen = self.look()
        names = [n for n in nodes if n in seen and seen[n].held and plan.owns(seen[n].reason)]
        if names:
            # -c clears offline in Torque, -r in both; an empty text takes the note away.
            self._do(
                ["pbsnodes", "-c", "-N", "", *names] if self._torque else ["pbsnodes", "-r", "-C", "", *names]
            )

    def reboot(self, nodes: Collection[str], plan: Plan) -> None:
        raise SchedulerError(self.no_reboot())

    def no_reboot(self) -> str:
        return "PBS reboots no nodes"

    def ends(self) -> Mapping[str, float]:
        """Not asked for: the order is then that of the plan, nodes without jobs first."""
        return {}

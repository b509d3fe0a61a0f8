"""Runs of ansible-playbook, as the callback fleet_progress has logged them: who, when, how hosts ended."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet.hostlist import fold

#: Bytes that are read of a log, from its end: some fifty runs on 5,000 hosts.
MOST = 32 << 20
#: How a host ended, the worst first; and what it was in a task, if its run had no end.
STATES = ("unreachable", "failed", "changed", "ok")
#: Of a hostlist, so many characters are shown.
_SHOWN = 300


@dataclass
class Run:
    """One run. *ended* is 0 as long as there is no end of it; *hosts*: host → one of `STATES`."""

    began: float
    playbook: str
    user: str
    ended: float = 0.0
    hosts: dict[str, str] = field(default_factory=dict)

    def folded(self) -> list[tuple[str, int, str]]:
        """State, number of hosts, and which they are; of those that went well the number alone."""
        found = []
        for state in STATES:
            hosts = [host for host, one in self.hosts.items() if one == state]
            if hosts:
                names = fold(hosts) if state in STATES[:2] else ""
                found.append((state, len(hosts), names[:_SHOWN] + "…" * (len(names) > _SHOWN)))
        return found


def read(paths: Iterable[Path], most: int = MOST) -> list[Run]:
    """Return the runs in the logs *paths*, the last one first.

    A line that is cut, as the last one of a run that was killed, is left out. Raises OSError.
    """
    made: list[Run] = []
    for path in paths:
        under_way: dict[str, Run] = {}
        for event in _events(path, most):
            # Without that word: a log of before there was one, of one run at a time.
            key = str(event.get("run", ""))
            if event["event"] == "playbook":
                under_way[key] = Run(
                    event["time"], str(event.get("playbook", "")), str(event.get("user", ""))
                )
                made.append(under_way[key])
            elif key in under_way:
                _take(under_way[key], event)
    return sorted(made, key=lambda run: -run.began)


def _events(path: Path, most: int) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - most))
        if size > most:
            file.readline()
        # Not more than there was: a run may be writing.
        lines = file.read(most).split(b"\n")
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not isinstance(event, dict) or not isinstance(event.get("time"), int | float):
            continue
        if isinstance(event.get("event"), str):
            yield event


def _take(run: Run, event: dict[str, Any]) -> None:
    host = event.get("host")
    if not isinstance(host, str):
        return
    if event["event"] == "end":
        run.ended = event["time"]
        run.hosts[host] = next((state for state in STATES[:3] if event.get(state)), "ok")
    elif event["event"] == "host" and not run.ended and event.get("state") in STATES:
        before = run.hosts.get(host, "ok")
        run.hosts[host] = min(before, event["state"], key=STATES.index)

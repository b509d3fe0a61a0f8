"""One page per rollout: what happened to each node and when, and what it cost users. It needs nothing but
a browser.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet import page
from fleet.rollout.journal import Entry
from fleet.rollout.model import Plan, fold
from fleet.rollout.state import Stage, State
from fleet.rollout.view import duration, said

# What a node is doing after an entry of each kind; others change nothing.
_PHASES = {
    "drain?": "drain",
    "ready": "idle",
    "step": "idle",
    "step-failed": "idle",
    "step-broken": "idle",
    "resume?": "resume",
    "giveback?": "resume",
    "returned": "",
    "givenback": "",
    "again": "",
    "left": "",
    "failed": "failed",
}
PHASES = ("drain", "idle", "apply", "reboot", "verify", "resume", "failed")
#: Rows of the picture; beyond them nodes with the same story share one.
ROWS = 400


@dataclass(slots=True)
class Story:
    """What happened to a node.

    :param spans: (phase, begin, end), in seconds since the epoch.
    """

    spans: list[tuple[str, float, float]] = field(default_factory=list)

    def seconds(self, *phases: str) -> float:
        """How long it was in these phases; in all without one."""
        return sum(end - begin for phase, begin, end in self.spans if not phases or phase in phases)


def stories(plan: Plan, entries: Sequence[Entry]) -> dict[str, Story]:
    """The story of each node. A clock that went back makes a span empty, never negative."""
    made = {name: Story() for name in plan.nodes}
    open_: dict[str, tuple[str, float]] = {}
    last = max((entry.at for entry in entries), default=0.0)
    for entry in entries:
        phase = _PHASES.get(entry.kind)
        if entry.kind == "step?":
            name = plan.steps[entry.data["step"]].name
            phase = name if name in PHASES else "apply"
        if phase is None:
            continue
        for node in entry.nodes:
            if node not in made:
                continue
            if node in open_:
                before, begin = open_.pop(node)
                made[node].spans.append((before, begin, max(begin, entry.at)))
            if phase:
                open_[node] = (phase, entry.at)
    for node, (phase, begin) in open_.items():
        made[node].spans.append((phase, begin, max(begin, last)))
    return made


def facts(plan: Plan, state: State, entries: Sequence[Entry], status: str) -> dict[str, Any]:
    """What the page shows."""
    told = stories(plan, entries)
    times = [at for story in told.values() for _, *span in story.spans for at in span]
    begin = min(times, default=entries[0].at if entries else 0.0)
    end = max(times, default=begin)
    rows: dict[tuple[tuple[str, float, float], ...], list[str]] = defaultdict(list)
    for name, story in told.items():
        if story.spans:
            rows[tuple(story.spans)].append(name)
    shown = sorted(rows.items(), key=lambda row: row[0][0][1])
    waiting = [story.seconds("drain") for story in told.values() if story.spans]
    jobs = entries and entries[0].at
    return {
        "plan": plan,
        "status": status,
        "stopped": state.stopped,
        "begun": datetime.datetime.fromtimestamp(jobs).strftime("%Y-%m-%d %H:%M:%S") if jobs else "never",
        "took": duration(max(0.0, entries[-1].at - entries[0].at)) if entries else "0 s",
        "counts": [
            (stage.value, len(state.at(stage)), fold(state.at(stage))) for stage in Stage if state.at(stage)
        ],
        "lost": f"{sum(story.seconds() for story in told.values()) / 3600:.2f}",
        "by_phase": [
            (phase, f"{sum(story.seconds(phase) for story in told.values()) / 3600:.2f}") for phase in PHASES
        ],
        "waited": duration(sum(waiting) / len(waiting)) if waiting else "0 s",
        "longest": duration(max(waiting, default=0)),
        "reasons": [
            (name, node.stage.value, node.why, node.log)
            for name, node in state.nodes.items()
            if node.why and node.stage in (Stage.FAILED, Stage.LEFT, Stage.DONE)
        ],
        "rows": [(fold(names), spans) for spans, names in shown[:ROWS]],
        "more": max(0, len(shown) - ROWS),
        "begin": begin,
        "span": max(1.0, end - begin),
        "end_label": duration(end - begin),
        "phases": PHASES,
        "events": [text for text in (said(plan, entry) for entry in entries) if text],
        "duration": duration,
    }


def render(plan: Plan, state: State, entries: Sequence[Entry], status: str) -> str:
    """The page as HTML: no script, nothing from elsewhere, names and messages escaped."""
    return page.render("rollout.html.j2", facts(plan, state, entries, status))

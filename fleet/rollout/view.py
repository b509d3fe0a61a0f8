"""A rollout for people at a terminal and for programs: the same facts as text and as JSON."""

from __future__ import annotations

import datetime
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fleet.rollout.journal import Entry
from fleet.rollout.model import Plan, brief, fold
from fleet.rollout.state import FINAL, UNDER_WAY, Stage, State

# Lines of a picture beside its table and what was said of nodes.
_AROUND = 9
_COLOURS = {Stage.DONE: "green", Stage.FAILED: "red", Stage.LEFT: "yellow"}
_SAID = {
    "run": "a controller is at work",
    "batch": "chosen for batch {number}",
    "drain?": "being drained",
    "ready": "drained, and empty",
    "step?": "step {step} begins: {log}",
    "step": "step {step} done",
    "step-failed": "FAILED: {why}",
    "step-broken": "FAILED: {why}",
    "again": "resumed by somebody else; drained again",
    "resume?": "being resumed",
    "returned": "done {why}",
    "giveback?": "being given back",
    "failed": "stays drained, with a Reason",
    "left": "left alone: {why}",
    "stop": "STOPPED: {why}",
    "request": "somebody asked to {what}",
    "trouble": "waiting: {what}",
    "end": "ended: {outcome}",
}


def said(plan: Plan, entry: Entry) -> str:
    """An entry of the journal as a sentence; empty for those that only programs need."""
    text = _SAID.get(entry.kind)
    if text is None:
        return ""
    data = defaultdict(str, {name: str(value) for name, value in entry.data.items()})
    if "step" in entry.data:
        data["step"] = plan.steps[int(entry.data["step"])].name
    nodes = f"{fold(entry.nodes)} " if entry.nodes else ""
    at = datetime.datetime.fromtimestamp(entry.at).strftime("%H:%M:%S")
    return f"{at} {nodes}{text.format_map(data)}".rstrip()


def duration(seconds: float) -> str:
    """Seconds as people say them: ``95`` → ``1 min 35 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def eta(state: State, entries: Sequence[Entry], now: float) -> float | None:
    """Seconds to the end if nodes go on as they did in the last batches; None while nobody knows."""
    started = next((entry.at for entry in entries if entry.kind == "batch"), None)
    ended = sum(node.stage in FINAL for node in state.nodes.values())
    left = len(state.nodes) - ended
    if started is None or not ended or not left:
        return None
    return max(0.0, now - started) / ended * left


def as_dict(plan: Plan, state: State, entries: Sequence[Entry], *, running: bool) -> dict[str, Any]:
    """All that is known of a rollout, as JSON-ready data; hostlists are folded."""
    stages: dict[str, list[str]] = defaultdict(list)
    reasons: dict[tuple[Stage, str], list[str]] = defaultdict(list)
    for name, node in state.nodes.items():
        stages[node.stage].append(name)
        if node.stage in (Stage.FAILED, Stage.LEFT) or (node.stage is Stage.DONE and node.why):
            reasons[node.stage, node.why].append(name)
    return {
        "id": plan.id,
        "cluster": plan.cluster,
        "what": plan.title,
        "kind": plan.kind,
        "version": plan.version or None,
        "status": status_of(state, running=running),
        "stopped": state.stopped or None,
        "request": state.request or None,
        "running": running,
        "batch": state.batch,
        "nodes": len(state.nodes),
        "stages": {stage: fold(names) for stage, names in stages.items()},
        "counts": {stage: len(names) for stage, names in stages.items()},
        "reasons": [
            {"nodes": fold(names), "stage": stage, "why": why} for (stage, why), names in reasons.items()
        ],
        "logs": {
            name: node.log for name, node in state.nodes.items() if node.stage is Stage.FAILED and node.log
        },
        "skipped": dict(plan.left),
        "eta_seconds": eta(state, entries, time.time()) if running else None,
        "begun": entries[0].at if entries else None,
        "last": entries[-1].at if entries else None,
    }


def status_of(state: State, *, running: bool) -> str:
    """One word: an outcome, ``running``, or ``interrupted``: not ended, and no controller at work."""
    return state.outcome or ("running" if running else "interrupted")


def bar(state: State, width: int = 30) -> Text:
    """How far it is: done, failed or left, under way, pending."""
    total = max(1, len(state.nodes))
    text, used = Text(), 0
    for stages, colour, sign in (
        ((Stage.DONE,), "green", "█"),
        ((Stage.FAILED, Stage.LEFT), "red", "▓"),
        (tuple(UNDER_WAY), "cyan", "▒"),
    ):
        number = round(len(state.at(*stages)) * width / total)
        text.append(sign * number, colour)
        used += number
    return text.append("░" * max(0, width - used), "dim")


def picture(
    plan: Plan, state: State, entries: Sequence[Entry], waiting: str, *, running: bool, rows: int = 0
) -> Group:
    """The whole of a rollout on a screen that may have 80 columns.

    :param rows: lines that it may take, so that its end is not lost; 0 for as many as it needs.
    """
    facts = as_dict(plan, state, entries, running=running)
    ended = sum(node.stage in FINAL for node in state.nodes.values())
    head = Text(f"rollout {plan.id}: {plan.title} on {len(state.nodes)} nodes of {plan.cluster}", "bold")
    line = bar(state).append(f"  {ended}/{len(state.nodes)}")
    if state.batch >= 0:
        line.append(f"  batch {state.batch}")
    if facts["eta_seconds"]:
        line.append(f"  about {duration(facts['eta_seconds'])} left")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    table.add_column(overflow="ellipsis" if rows else "fold", no_wrap=bool(rows))
    for stage in Stage:
        if stage in facts["stages"]:
            table.add_row(
                Text(stage, _COLOURS.get(stage, "")), str(facts["counts"][stage]), facts["stages"][stage]
            )
    parts: list[Any] = [head, line, table]
    said_of = [
        Text(f"{one['nodes']}: {one['why']}", _COLOURS.get(one["stage"], "")) for one in facts["reasons"]
    ]
    said_of += [Text(f"{name}: {log}", "dim") for name, log in sorted(facts["logs"].items())[:5]]
    room = max(2, rows - table.row_count - _AROUND) if rows else len(said_of)
    for text in said_of[:room]:
        if rows:
            text.no_wrap, text.overflow = True, "ellipsis"
        parts.append(text)
    if len(said_of) > room:
        parts.append(Text(f"{len(said_of) - room} more lines: fleet rollout status", "dim"))
    began = next((entry for entry in reversed(entries) if entry.kind == "step?"), None)
    if running and began and state.at(Stage.RUNNING):
        since = datetime.datetime.fromtimestamp(began.at).strftime("%H:%M:%S")
        at_work = f"{plan.steps[int(began.data['step'])].name} since {since}: {began.data.get('log', '')}"
        parts.append(Text(at_work, "dim", overflow="ellipsis", no_wrap=True))
    status = facts["status"] + (f": {state.stopped}" if state.stopped else "")
    if waiting and running:
        status += f"; waiting: {waiting}"
    if state.request and not state.outcome:
        status += f"; asked to {state.request}"
    parts.append(Text(status, "green" if facts["status"] == "complete" else "bold"))
    if facts["status"] in ("interrupted", "paused", "stopped"):
        parts.append(Text("go on: fleet rollout resume", "dim"))
    return Group(*parts)


def show_plan(plan: Plan, console: Console) -> None:
    """Print a plan."""
    settings = plan.settings
    console.print(Text(f"{plan.kind} to {plan.title} on {plan.cluster}: {len(plan.nodes)} nodes", "bold"))
    if not plan.nodes:
        console.print("nothing to do")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("batch", "nodes", ""):
        table.add_column(column, overflow="fold", justify="right" if column == "nodes" else "left")
    rows = [("canary", plan.canary), *((str(n), batch) for n, batch in enumerate(plan.batches, 1))]
    for name, nodes in rows:
        if nodes:
            table.add_row(name, str(len(nodes)), fold(nodes))
    if table.row_count:
        console.print(table)
    limits = ", ".join(
        f"{value} of {'each partition' if name == '*' else name}"
        for name, value in settings.unavailable.items()
    )
    facts = [
        ("steps", " → ".join(("drain", *(step.name for step in plan.steps), "resume"))),
        ("not available at most", limits),
        ("failures", f"at most {settings.failures}, and no canary"),
        (
            "jobs",
            f"waited for {duration(settings.drain_timeout)}" if settings.drain_timeout else "waited for",
        ),
        ("windows", "; ".join(settings.windows) or "always"),
        *((f"class {name}", brief(nodes)) for name, nodes in plan.classes.items()),
        *((f"now at {version}", nodes) for version, nodes in plan.before.items()),
    ]
    details = Table(box=None, pad_edge=False, show_header=False)
    details.add_column(style="dim")
    details.add_column(overflow="fold")
    for name, value in facts:
        details.add_row(name, value)
    console.print(details)
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, why in plan.left.items():
        reasons[why].append(name)
    for why, names in reasons.items():
        console.print(Text(f"left out: {fold(names)}: {why}", "yellow"))

"""What to do next: from the plan, the journal and what the scheduler shows. It does nothing itself.

Because it is a function of these alone, a controller that was killed at any moment and one that was not come
to the same end: what was intended and not answered is seen in the scheduler, or simply done again, which
harms nothing. The rules for each event are in docs/rollout.md; a rule that is changed here is changed there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fleet.rollout.budget import Budget
from fleet.rollout.model import Plan, Seen, brief
from fleet.rollout.state import FINAL, UNDER_WAY, NodeState, Stage, State

#: So often a node that somebody else resumed is drained again, or one whose jobs don't end is tried again.
PATIENCE = 2
#: So often a step is tried anew on a node that could not be reached.
TRIES = 2


@dataclass(frozen=True, slots=True)
class Note:
    """Something to write down; nothing is to be done."""

    kind: str
    nodes: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Act:
    """Something to do: ``drain``, ``resume``, ``giveback``, ``fail``, ``step`` or ``reboot``.

    The driver writes *data* down with the intention. It becomes the entry ``KIND?`` (``step?`` for a reboot).
    """

    kind: str
    nodes: tuple[str, ...]
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """What is next.

    :param notes: to be written before anything else.
    :param acts: in this order; a step comes last, because it takes long.
    :param waiting: what is waited for, for people; empty if nothing is.
    :param outcome: how it ended, empty if it has not.
    """

    notes: tuple[Note, ...] = ()
    acts: tuple[Act, ...] = ()
    waiting: str = ""
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class Now:
    """What the driver knows beside the journal.

    :param seen: all nodes of the scheduler.
    :param open: whether a maintenance window is open.
    :param waited: node → seconds that this controller has seen it in its stage; *silent*: not up, or not at
        all. A new controller begins anew, and the clock of the machine doesn't matter.
    :param ends: seconds until the jobs of a node end.
    :param soaked: seconds since this controller saw the last node of the last batch end.
    """

    seen: Mapping[str, Seen]
    open: bool = True
    waited: Mapping[str, float] = field(default_factory=dict)
    silent: Mapping[str, float] = field(default_factory=dict)
    ends: Mapping[str, float] = field(default_factory=dict)
    soaked: float = 0


class _Round:
    """One decision in the making."""

    def __init__(self, plan: Plan, state: State, now: Now) -> None:
        self.plan, self.state, self.now = plan, state, now
        self.budget = Budget(plan.settings.unavailable, now.seen)
        #: No node that has not been begun is begun; those that have been are brought to an end.
        self.closing = bool(state.stopped) or state.request in ("pause", "abort")
        self._notes: dict[tuple[str, tuple[tuple[str, Any], ...]], list[str]] = defaultdict(list)
        self._acts: dict[tuple[str, tuple[tuple[str, Any], ...]], list[str]] = defaultdict(list)
        self.waits: dict[str, list[str]] = defaultdict(list)

    def note(self, kind: str, node: str, **data: Any) -> None:
        self._notes[kind, tuple(sorted(data.items()))].append(node)

    def act(self, kind: str, node: str, **data: Any) -> None:
        self._acts[kind, tuple(sorted(data.items()))].append(node)

    def wait(self, why: str, node: str) -> None:
        self.waits[why].append(node)

    def decision(self, outcome: str = "") -> Decision:
        notes = [Note(kind, tuple(nodes), dict(data)) for (kind, data), nodes in self._notes.items()]
        order = ("fail", "resume", "giveback", "drain", "reboot", "step")
        acts = sorted(
            (Act(kind, tuple(nodes), dict(data)) for (kind, data), nodes in self._acts.items()),
            # Of steps the last one first: its nodes go back to users.
            key=lambda act: (order.index(act.kind), -act.data.get("step", 0)),
        )
        # One play at a time: the others see what came of it first.
        first = next((act for act in acts if act.kind == "step"), None)
        acts = [act for act in acts if act.kind != "step" or act is first]
        if any(self._costs(name) for act in acts if act.kind == "fail" for name in act.nodes):
            # A failed node is kept from users whatever the budget is; what is left of it is seen next time.
            acts = [act for act in acts if act.kind != "drain"]
        waiting = "; ".join(f"{brief(nodes)} {why}" for why, nodes in self.waits.items())
        return Decision(tuple(notes), tuple(acts), waiting, outcome)

    def _costs(self, name: str) -> bool:
        return name in self.now.seen and self.now.seen[name].available

    # --- one node -------------------------------------------------------------------------------------------

    def visit(self, name: str, node: NodeState) -> None:
        seen = self.now.seen.get(name)
        if node.stage is Stage.FAILING:
            # Also where it is gone: then there is no Reason to write, and the journal has it.
            self.act("fail", name, why=node.why, log=node.log)
        elif seen is None:
            self._unknown(name, node)
        elif seen.held and not self.plan.owns(seen.reason) and node.stage is not Stage.CHOSEN:
            self._taken(name, node, seen)
        else:
            visits: dict[Stage, Callable[[str, NodeState, Seen], None]] = {
                Stage.CHOSEN: self._chosen,
                Stage.DRAINING: self._draining,
                Stage.READY: self._ready,
                Stage.RUNNING: self._ready,
                Stage.RESUMING: self._resuming,
                Stage.RETURNING: self._returning,
            }
            visits[node.stage](name, node, seen)

    def _unknown(self, name: str, node: NodeState) -> None:
        """The scheduler does not know the node: a new one, or one that vanished."""
        if self.plan.kind == "provision" and node.stage is not Stage.RESUMING:
            if self.closing and not node.touched:
                self.note("givenback", name)
            elif node.stage in (Stage.CHOSEN, Stage.DRAINING):
                self.note("ready", name)
            elif node.error and not (node.unreachable and node.tries < TRIES):
                self.act("fail", name, why=node.error, log=node.log)
            elif node.steps < len(self.plan.steps):
                self._step(name, node, None)
            else:
                self.act("resume", name)
        elif node.stage is Stage.CHOSEN and not node.touched:
            self.note("left", name, why="the scheduler does not know it")
        else:
            self._patience(name, "is gone from the scheduler")

    def _taken(self, name: str, node: NodeState, seen: Seen) -> None:
        """Somebody else holds it now, so it is theirs: nothing more is done to it, least of all a resume."""
        done, steps = (
            f"held by {seen.by or 'somebody else'}: {seen.reason or 'no reason'}",
            len(self.plan.steps),
        )
        if node.steps == steps:
            self.note("returned", name, why=f"{done}, so it was not resumed")
        else:
            where = f", after {node.steps} of {steps} steps" if node.touched else ""
            self.note("left", name, why=f"{done}{where}")

    def _chosen(self, name: str, node: NodeState, seen: Seen) -> None:
        mine = seen.held and self.plan.owns(seen.reason)
        if seen.held and not mine:
            self._taken(name, node, seen)
        elif not node.touched and (self.closing or not self.now.open) and not mine:
            self.note("givenback", name)
        elif not node.touched and self.closing:
            self.act("giveback", name)
        elif not seen.up and not mine and not node.touched and self.plan.kind != "provision":
            self.note("left", name, why="down, or does not answer the scheduler")
        elif self.budget.take(seen):
            self.act("drain", name, reason=self.plan.title)
        else:
            self.wait(f"for the budget of partition {', '.join(self.budget.full(seen.partitions))}", name)

    def _draining(self, name: str, node: NodeState, seen: Seen) -> None:
        if not seen.held:
            # Either the drain was intended and never done, or somebody resumed it.
            self._resumed_by_somebody(name, node)
        elif not node.touched and (self.closing or (seen.busy and not self.now.open)):
            self.act("giveback", name)
        elif not seen.busy:
            self.note("ready", name)
        elif self._overdue(name, self.plan.settings.drain_timeout):
            self.act("giveback", name, deferred=True)
        else:
            self.wait("for jobs to end", name)

    def _ready(self, name: str, node: NodeState, seen: Seen) -> None:
        if node.error and not (node.unreachable and node.tries < TRIES):
            self.act("fail", name, why=node.error, log=node.log)
        elif not seen.held:
            self._resumed_by_somebody(name, node)
        elif node.stage is Stage.READY and not node.touched and (self.closing or not self.now.open):
            self.act("giveback", name)
        elif node.steps == len(self.plan.steps):
            self.act("resume", name)
        elif seen.busy:
            # Somebody resumed it, a job began, and somebody drained it again.
            self.wait("for jobs to end", name)
        elif not seen.up and self.plan.kind != "provision" and self.plan.steps[node.steps].playbook:
            self._patience(name, "does not answer the scheduler")
        else:
            self._step(name, node, seen)

    def _resuming(self, name: str, node: NodeState, seen: Seen) -> None:
        if seen.held:
            if self._overdue(name, self.plan.settings.node_timeout):
                self.act("fail", name, why="the scheduler does not resume it", log="")
            else:
                self.act("resume", name)
        elif seen.up:
            self.note("returned", name)
        else:
            self._patience(name, "does not come back to the scheduler")

    def _returning(self, name: str, node: NodeState, seen: Seen) -> None:
        if seen.held:
            self.act("giveback", name)
        elif node.deferrals > PATIENCE:
            self.note("left", name, why="its jobs did not end in time, again and again")
        else:
            self.note("givenback", name)

    # --- parts of that --------------------------------------------------------------------------------------

    def _step(self, name: str, node: NodeState, seen: Seen | None) -> None:
        step = self.plan.steps[node.steps]
        if step.playbook:
            self.act("step", name, step=node.steps)
        elif seen is None:
            self._patience(name, "is gone from the scheduler")
        elif node.stage is Stage.RUNNING and seen.up and seen.booted > node.booted:
            self.note("step", name, step=node.steps)
        elif node.stage is not Stage.RUNNING or not node.rebooting:
            self.act("reboot", name, step=node.steps)
        elif self._overdue(name, self.plan.settings.node_timeout):
            self.act("fail", name, why="does not come back from its reboot", log="")
        else:
            self.wait("to come back from its reboot", name)

    def _resumed_by_somebody(self, name: str, node: NodeState) -> None:
        if node.redrains >= PATIENCE and not node.touched:
            self.note("left", name, why="somebody else resumed it, again and again")
        else:
            self.note("again", name)

    def _patience(self, name: str, what: str) -> None:
        if self.now.silent.get(name, 0) >= self.plan.settings.node_timeout:
            self.act("fail", name, why=what, log="")
        else:
            self.wait(what, name)

    def _overdue(self, name: str, seconds: float) -> bool:
        return bool(seconds) and self.now.waited.get(name, 0) >= seconds


def decide(plan: Plan, state: State, now: Now) -> Decision:
    """Say what is next.

    What is decided is to be done before the next call, or not at all: both are right.
    """
    if state.outcome:
        return Decision(outcome=state.outcome)
    this = _Round(plan, state, now)
    under_way = [(name, node) for name, node in state.nodes.items() if node.stage in UNDER_WAY]
    order = _by_end(plan, now)
    for name, node in sorted(under_way, key=lambda item: order(item[0])):
        this.visit(name, node)
    decision = _gathered(this.decision(), plan, state, now)
    if under_way:
        return _stop_if_spent(decision, plan, state)
    if state.stopped or state.request:
        return _closed(state)
    return _open_batch(plan, state, now)


def _gathered(decision: Decision, plan: Plan, state: State, now: Now) -> Decision:
    """Keep a step back while more nodes may soon be ready: a play takes as long for one node as for many."""
    step = next((act for act in decision.acts if act.kind == "step"), None)
    if step is None or decision.notes:
        # A note changes what there is to decide; it costs nothing to look again.
        return _without_steps(decision) if step else decision
    coming = [name for name in state.at(Stage.CHOSEN, Stage.DRAINING) if not state.nodes[name].touched]
    waited = max((now.waited.get(name, 0) for name in step.nodes), default=0)
    if coming and waited < plan.settings.gather and not state.nodes[step.nodes[0]].touched:
        held_back = f"{brief(step.nodes)} for more nodes to be drained"
        waiting = "; ".join(filter(None, (held_back, decision.waiting)))
        return Decision(decision.notes, _without_steps(decision).acts, waiting)
    return decision


def _without_steps(decision: Decision) -> Decision:
    acts = tuple(act for act in decision.acts if act.kind != "step")
    return Decision(decision.notes, acts, decision.waiting, decision.outcome)


def _stop_if_spent(decision: Decision, plan: Plan, state: State) -> Decision:
    """Stop when the failure budget is spent: of canaries none may fail."""
    failing = [name for act in decision.acts if act.kind == "fail" for name in act.nodes]
    fresh = [name for name in failing if state.nodes[name].stage is not Stage.FAILING]
    count = state.failures + len(fresh)
    canaries = state.canaries + sum(state.nodes[name].canary for name in fresh)
    if state.stopped or not (canaries or count > plan.settings.failures):
        return decision
    why = "a canary failed" if canaries else f"{count} nodes failed, at most {plan.settings.failures} may"
    acts = tuple(act for act in decision.acts if act.kind in ("fail", "resume"))
    return Decision((Note("stop", (), {"why": why}), *decision.notes), acts, decision.waiting)


def _closed(state: State) -> Decision:
    if state.request == "pause" and not state.stopped:
        return Decision(outcome="paused")
    # What was to be tried again is still drained, with the Reason that it had.
    tried = tuple(name for name in state.at(Stage.PENDING) if state.nodes[name].touched)
    if tried:
        return Decision((Note("failed", tried),))
    return Decision(outcome="aborted" if state.request == "abort" else "stopped")


def _open_batch(plan: Plan, state: State, now: Now) -> Decision:
    """Nothing is under way: choose the next nodes, or end."""
    pending = state.at(Stage.PENDING)
    if not pending:
        good = all(node.stage is Stage.DONE for node in state.nodes.values())
        return Decision(outcome="complete" if good else "incomplete")
    if not now.open:
        return Decision(waiting="for a maintenance window")
    if state.batch == 0 and plan.canary and now.soaked < plan.settings.soak:
        return Decision(waiting=f"{plan.settings.soak - now.soaked:.0f} s more, to see how the canaries do")
    canaries = _canaries(plan, state, pending)
    chosen = canaries or _next(plan, state, pending, now)
    data = {"number": state.batch + 1, "canary": bool(canaries)}
    return Decision((Note("batch", tuple(chosen), data),))


def _canaries(plan: Plan, state: State, pending: list[str]) -> list[str]:
    """Nodes that have to prove it first: the plan's, then one of each class that has none done yet."""
    if not plan.canary:
        return []
    if state.batch < 0:
        return [name for name in plan.canary if name in pending]
    waiting = set(pending)
    unproved = [
        nodes
        for nodes in plan.classes.values()
        if not any(state.nodes[name].stage is Stage.DONE for name in nodes if name in state.nodes)
    ]
    first = (next((name for name in nodes if name in waiting), "") for nodes in unproved)
    return [name for name in first if name]


def _next(plan: Plan, state: State, pending: list[str], now: Now) -> list[str]:
    """As many as the plan has in a batch of this number; those whose jobs end first."""
    number = state.batch + 1 - bool(plan.canary)
    sizes = [len(batch) for batch in plan.batches] or [len(plan.nodes)]
    size = sizes[min(max(number, 0), len(sizes) - 1)]
    # Those that were given back come last.
    by_end = _by_end(plan, now)
    return sorted(pending, key=lambda name: (state.nodes[name].deferrals, by_end(name)))[: max(size, 1)]


def _by_end(plan: Plan, now: Now) -> Callable[[str], tuple[float, int]]:
    place = {name: number for number, name in enumerate(plan.nodes)}

    def order(name: str) -> tuple[float, int]:
        seen = now.seen.get(name)
        end = now.ends.get(name, 0.0 if not (seen and seen.busy) else float("inf"))
        return end, place.get(name, len(place))

    return order


def remaining(state: State) -> Iterable[str]:
    """The nodes that are not at an end."""
    return [name for name, node in state.nodes.items() if node.stage not in FINAL]

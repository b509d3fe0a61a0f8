"""Where each node of a rollout is, from the journal alone."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from fleet.rollout.journal import Entry
from fleet.rollout.model import Plan


class Stage(enum.StrEnum):
    """Where a node is. What was intended last is what may have been done, or not."""

    PENDING = "pending"  # not begun, or given back
    CHOSEN = "chosen"  # in the batch that is under way, not drained yet
    DRAINING = "draining"  # drained, jobs may still run
    READY = "ready"  # drained and empty: the next step can begin
    RUNNING = "running"  # a step runs, or ran when the controller died
    RESUMING = "resuming"  # all steps done, being resumed
    RETURNING = "returning"  # being given back untouched
    FAILING = "failing"  # failed, its Reason being written
    DONE = "done"
    FAILED = "failed"  # stays drained, with a Reason
    LEFT = "left"  # left alone: somebody else's


#: Stages in which a rollout may hold a node.
UNDER_WAY = frozenset(
    (Stage.CHOSEN, Stage.DRAINING, Stage.READY, Stage.RUNNING, Stage.RESUMING, Stage.RETURNING, Stage.FAILING)
)
#: Stages that a node leaves no more in this rollout, unless it is told to try again.
FINAL = frozenset((Stage.DONE, Stage.FAILED, Stage.LEFT))

# By kind of entry, where its nodes are then. Kinds that are not here move no node.
_MOVES = {
    "batch": Stage.CHOSEN,
    "drain?": Stage.DRAINING,
    "ready": Stage.READY,
    "step?": Stage.RUNNING,
    "step": Stage.READY,
    "step-failed": Stage.READY,
    "step-broken": Stage.READY,
    "again": Stage.CHOSEN,
    "resume?": Stage.RESUMING,
    "returned": Stage.DONE,
    "giveback?": Stage.RETURNING,
    "givenback": Stage.PENDING,
    "fail?": Stage.FAILING,
    "failed": Stage.FAILED,
    "left": Stage.LEFT,
    "retry": Stage.PENDING,
}


@dataclass(slots=True)
class NodeState:
    """One node.

    :param canary: it was chosen to prove the change for others.
    :param steps: how many steps are proved done.
    :param begun: how many steps were begun: if any was, the node may be neither old nor new.
    :param tries: how often the present step failed because the node could not be reached.
    :param error: why the last step failed, until something comes of that; *unreachable* if that was it.
    :param drained: a drain of it was answered.
    :param redrains: how often somebody else resumed it.
    :param deferrals: how often it was given back because its jobs did not end.
    :param booted: its boot time before the reboot that is under way; *rebooting* once that was answered.
    """

    stage: Stage = Stage.PENDING
    batch: int = -1
    canary: bool = False
    steps: int = 0
    begun: int = 0
    tries: int = 0
    error: str = ""
    unreachable: bool = False
    drained: bool = False
    redrains: int = 0
    deferrals: int = 0
    booted: float = 0
    rebooting: bool = False
    why: str = ""
    log: str = ""

    @property
    def touched(self) -> bool:
        """Whether a step was begun, so that it has to be brought to an end."""
        return self.begun > 0

    def apply(self, name: str, entry: Entry) -> None:  # noqa: PLR0912 - one branch for each kind
        """Move on by an entry that names this node."""
        data = entry.data
        self.stage = _MOVES.get(entry.kind, self.stage)
        match entry.kind:
            case "batch":
                self.batch, self.canary = data["number"], data.get("canary", False)
            case "drain":
                self.drained = True
            case "step?":
                self.begun, self.error, self.rebooting = self.begun + 1, "", False
                self.booted = data.get("booted", {}).get(name, 0)
                self.log = data.get("log", "")
            case "reboot":
                self.rebooting = True
            case "step":
                self.steps, self.tries = data["step"] + 1, 0
            case "step-failed":
                self.tries += 1
                self.error, self.unreachable = data["why"], data.get("unreachable", False)
            case "step-broken":
                self.begun -= 1
                if self.touched:
                    self.error, self.unreachable = data["why"], False
            case "again":
                self.redrains += self.drained
                self.drained = False
            case "giveback?":
                self.deferrals += bool(data.get("deferred"))
            case "givenback":
                self.drained = False
            case "fail?" | "left":
                self.why, self.log, self.error = data["why"], data.get("log", ""), ""
            case "retry":
                self.steps = self.tries = self.redrains = self.deferrals = 0
            case "returned":
                self.why = data.get("why", "")


@dataclass(slots=True)
class State:
    """A whole rollout.

    :param batch: number of the last batch that was opened, -1 before the first.
    :param failures: nodes that failed since a controller was last told to go on; *canaries* so many of them.
    :param request: ``pause`` or ``abort``, if somebody asked for it and nobody took it back.
    :param stopped: why nothing new is begun, empty if it is.
    :param outcome: how it ended, empty if it has not.
    :param last: number of the last entry.
    """

    nodes: dict[str, NodeState] = field(default_factory=dict)
    batch: int = -1
    failures: int = 0
    canaries: int = 0
    request: str = ""
    stopped: str = ""
    outcome: str = ""
    last: int = 0

    @classmethod
    def of(cls, plan: Plan, entries: Iterable[Entry] = ()) -> State:
        """The state after some entries."""
        state = cls({node: NodeState() for node in plan.nodes})
        for entry in entries:
            state.apply(entry)
        return state

    def apply(self, entry: Entry) -> None:
        """Move on by one entry."""
        self.last = entry.seq
        match entry.kind:
            case "run":
                self.request = self.stopped = self.outcome = ""
                self.failures = self.canaries = 0
            case "request":
                self.request = entry.data["what"]
            case "stop":
                self.stopped = entry.data["why"]
            case "end":
                self.outcome = entry.data["outcome"]
            case "batch":
                self.batch = entry.data["number"]
        for name in entry.nodes:
            node = self.nodes.get(name)
            if node is None:
                continue
            if entry.kind == "fail?" and node.stage is not Stage.FAILING:
                self.failures += 1
                self.canaries += node.canary
            node.apply(name, entry)

    def at(self, *stages: Stage) -> list[str]:
        """The nodes in some stages, in the order of the plan."""
        return [name for name, node in self.nodes.items() if node.stage in stages]

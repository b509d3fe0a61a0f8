"""Does what the engine says, and writes every intention down before it, every result after it."""

from __future__ import annotations

import datetime
import os
import re
import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fleet.rollout import window
from fleet.rollout.engine import Act, Decision, Now, decide
from fleet.rollout.journal import Entry, Journal
from fleet.rollout.model import Plan, Seen, Step
from fleet.rollout.scheduler import Scheduler, SchedulerError
from fleet.rollout.state import UNDER_WAY, State

#: Between two looks at the scheduler, also where there is something to do at once.
SHORTEST = 1.0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a step on some nodes.

    :param failed: node → what was said; a node that is neither here nor in *unreachable* was a success.
    :param broken: why the playbook did nothing to any node; empty if it did.
    """

    failed: Mapping[str, str] = field(default_factory=dict)
    unreachable: Mapping[str, str] = field(default_factory=dict)
    broken: str = ""


class Steps(Protocol):
    """Runs steps on nodes."""

    def run(self, plan: Plan, step: Step, nodes: Collection[str], folder: Path) -> Result:
        """Run a playbook on drained nodes, perhaps not for the first time; *folder* is for what it says."""
        ...


class Clock:
    """Time, and waiting; tests have their own."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def wall(self) -> datetime.datetime:
        """The local time."""
        return datetime.datetime.now()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class Driver:
    """One controller at work on one rollout; the caller has the lock.

    :param show: called after each entry of the journal, and each time that what is waited for changes.
    """

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        scheduler: Scheduler,
        steps: Steps,
        *,
        clock: Clock | None = None,
        show: Callable[[State, Entry | None, str], None] = lambda *_: None,
    ) -> None:
        self.plan, self.journal, self.scheduler, self.steps = plan, journal, scheduler, steps
        self.clock = clock or Clock()
        self.show = show
        self.state = State.of(plan)
        #: Set by a signal handler: what to ask of this rollout at the next chance.
        self.asked = ""
        self.waiting = ""
        self._stage_since: dict[str, tuple[object, float]] = {}
        self._silent_since: dict[str, float] = {}
        self._batch_ended: float | None = None
        self._looked = float("-inf")
        self._trouble = ""

    def run(self, command: str = "start") -> str:
        """Go on until there is an outcome, and return it. Raises JournalError."""
        self.take_over(command)
        while True:
            if outcome := self.round():
                return outcome

    def take_over(self, command: str) -> None:
        """Be the one who works on it from now on; what stopped the one before is over."""
        where = {"host": socket.gethostname(), "file": str(self.journal.file.resolve())}
        self._write("run", pid=os.getpid(), command=command, **where)

    def round(self) -> str:
        """Look, decide, do; return the outcome, empty while there is none."""
        if self.asked:
            self._write("request", what=self.asked)
            self.asked = ""
        seen = self._look()
        if seen is None:
            return ""
        decision = self._decide(seen)
        # Notes cost nothing: there is no need to look again before the next decision.
        while decision.notes and not decision.acts:
            decision = self._decide(seen)
        if decision.outcome:
            self._write("end", outcome=decision.outcome)
        elif not decision.acts:
            self._wait(decision.waiting)
        return decision.outcome

    # --- one round ------------------------------------------------------------------------------------------

    def _look(self) -> Mapping[str, Seen] | None:
        self.clock.sleep(max(0.0, self._looked + SHORTEST - self.clock.monotonic()))
        self._looked = self.clock.monotonic()
        try:
            seen = self.scheduler.look()
        except SchedulerError as error:
            self._say_trouble(error)
            self.clock.sleep(self.plan.settings.poll)
            return None
        self._trouble = ""
        return seen

    def _decide(self, seen: Mapping[str, Seen]) -> Decision:
        self._catch_up()
        decision = decide(self.plan, self.state, self._now(seen))
        for note in decision.notes:
            self._write(note.kind, note.nodes, **note.data)
        for act in decision.acts:
            try:
                self._perform(act, seen)
            except SchedulerError as error:
                # The intention stands in the journal; what came of it will be seen.
                self._say_trouble(error)
                self.clock.sleep(self.plan.settings.poll)
                break
        return decision

    def _perform(self, act: Act, seen: Mapping[str, Seen]) -> None:
        nodes, data = act.nodes, dict(act.data)
        match act.kind:
            case "drain":
                self._write("drain?", nodes, **data)
                self.scheduler.drain(nodes, self._reason(data["reason"]), self.plan)
                self._write("drain", nodes)
            case "resume" | "giveback":
                self._write(f"{act.kind}?", nodes, **data)
                self.scheduler.resume(nodes, self.plan)
                self._write(act.kind, nodes)
            case "fail":
                self._write("fail?", nodes, **data)
                self.scheduler.drain(nodes, self._reason(f"failed: {data['why']}", data["log"]), self.plan)
                self._write("failed", nodes)
            case "reboot":
                booted = {name: seen[name].booted for name in nodes if name in seen}
                self._write("step?", nodes, booted=booted, **data)
                self.scheduler.reboot(nodes, self.plan)
                self._write("reboot", nodes)
            case "step":
                self._step(nodes, data["step"])

    def _step(self, nodes: Collection[str], number: int) -> None:
        step = self.plan.steps[number]
        folder = self.journal.home / self.plan.id / f"{self.state.last + 1:06}-{step.name}"
        log = str(folder / "stdout")
        self._write("step?", nodes, step=number, log=log)
        result = self.steps.run(self.plan, step, nodes, folder)
        if result.broken:
            self._write("step-broken", nodes, step=number, why=f"{step.name}: {result.broken}", log=log)
            self._write("stop", why=f"{step.name}: {result.broken} ({log})")
            return
        good = [name for name in nodes if name not in result.failed and name not in result.unreachable]
        if good:
            self._write("step", good, step=number)
        for said, unreachable in ((result.failed, False), (result.unreachable, True)):
            texts: dict[str, list[str]] = {}
            for name in nodes:
                if name in said:
                    texts.setdefault(said[name], []).append(name)
            for text, names in texts.items():
                why = f"{step.name}: {text}"
                self._write("step-failed", names, step=number, why=why, log=log, unreachable=unreachable)

    # --- what it knows --------------------------------------------------------------------------------------

    def _now(self, seen: Mapping[str, Seen]) -> Now:
        mono = self.clock.monotonic()
        under_way = False
        for name, node in self.state.nodes.items():
            if node.stage not in UNDER_WAY:
                continue
            under_way = True
            key = (node.stage, node.steps)
            if self._stage_since.get(name, (None, 0))[0] != key:
                self._stage_since[name] = (key, mono)
            if name in seen and seen[name].up:
                self._silent_since.pop(name, None)
            else:
                self._silent_since.setdefault(name, mono)
        if under_way:
            self._batch_ended = None
        elif self._batch_ended is None:
            self._batch_ended = mono
        return Now(
            seen=seen,
            open=window.is_open(self.plan.settings.windows, self.clock.wall()),
            waited={name: mono - since for name, (_, since) in self._stage_since.items()},
            silent={name: mono - since for name, since in self._silent_since.items()},
            ends={} if under_way else self._ends(),
            soaked=mono - self._batch_ended if self._batch_ended is not None else 0,
        )

    def _ends(self) -> Mapping[str, float]:
        """When jobs end, asked only between two batches; without an answer the plan's order counts."""
        try:
            return self.scheduler.ends()
        except SchedulerError:
            return {}

    def _reason(self, text: str, log: str = "") -> str:
        plain = re.sub(r"[^ -~]+", " ", text)
        return self.plan.reason(plain, self.scheduler.longest, f" ({log})" if log else "")

    def _catch_up(self) -> None:
        """Take in what others wrote: requests to pause or to abort."""
        for entry in self.journal.entries(self.plan.id, self.state.last):
            self.state.apply(entry)

    def _write(self, kind: str, nodes: Collection[str] = (), **data: object) -> None:
        entry = self.journal.write(self.plan.id, kind, nodes, **data)
        self._catch_up()
        self.show(self.state, entry, "")

    def _say_trouble(self, error: SchedulerError) -> None:
        if error.message != self._trouble:
            self._trouble = error.message
            self._write("trouble", what=error.message)

    def _wait(self, waiting: str) -> None:
        if waiting != self.waiting:
            self.waiting = waiting
            self.show(self.state, None, waiting)
        self.clock.sleep(self.plan.settings.poll)

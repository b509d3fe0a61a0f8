"""A model of a cluster for tests of rollouts: nodes, a scheduler, steps, and an administrator who interferes.

The cluster keeps the rules itself: what must never happen is recorded in ``violations`` when it does. With a
file it outlives the process, as a real one does, whatever happens to the controller.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fleet.rollout.budget import limit
from fleet.rollout.driver import Result
from fleet.rollout.model import Plan, Seen, Settings, Step
from fleet.rollout.scheduler import SchedulerError

STEPS = (Step("apply", "site.yml", ("apptainer",)), Step("verify", "rollout_verify.yml"))


@dataclass
class FakeNode:
    """One node.

    :param applied: version → how often a step ``apply`` brought it there.
    :param bad: name of a step that fails on it.
    :param unreachable: so many steps don't reach it.
    """

    partition: str = "main"
    held: bool = False
    reason: str = ""
    by: str = ""
    jobs: int = 0
    up: bool = True
    there: bool = True
    booted: float = 1
    version: str = "1"
    verified: str = "1"
    bad: str = ""
    unreachable: int = 0
    applied: dict[str, int] = field(default_factory=dict)


class FakeCluster:
    """The cluster: a Scheduler and Steps in one, as both look at the same nodes.

    :param file: where it lives; in memory without one.
    :param hook: called at each point at which a controller may die, with the point's name.
    """

    longest = 200

    def __init__(self, nodes: Mapping[str, FakeNode], file: Path | None = None) -> None:
        self.nodes = dict(nodes)
        self.file = file
        self.violations: list[str] = []
        self.hook: Callable[[str], None] = lambda _: None
        self.limits: Mapping[str, str] = {"*": "100%"}
        self.calls: list[str] = []
        self.fail_next = 0  # so many calls don't get an answer
        self.late = False  # those that don't are carried out all the same
        self.save()

    # --- persistence ----------------------------------------------------------------------------------------

    @classmethod
    def load(cls, file: Path) -> FakeCluster:
        """The cluster as it is, for a new controller."""
        data = json.loads(file.read_text())
        cluster = cls({}, None)
        cluster.nodes = {name: FakeNode(**node) for name, node in data["nodes"].items()}
        cluster.violations, cluster.limits, cluster.file = data["violations"], data["limits"], file
        return cluster

    def save(self) -> None:
        """Let the file have what happened; without one do nothing."""
        if self.file:
            nodes = {name: asdict(node) for name, node in self.nodes.items()}
            data = {"nodes": nodes, "violations": self.violations, "limits": dict(self.limits)}
            new = self.file.with_suffix(".new")
            new.write_text(json.dumps(data))
            new.replace(self.file)

    # --- Scheduler ------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        if self.fail_next:
            self.fail_next -= 1
            raise SchedulerError("slurmctld does not answer")

    def look(self) -> Mapping[str, Seen]:
        self.calls.append("look")
        self._answer()
        return {
            name: Seen(frozenset([n.partition]), n.held, n.jobs > 0, n.up, n.reason, n.by, n.booted)
            for name, n in self.nodes.items()
            if n.there
        }

    def _many(self, call: str, nodes: Collection[str], act: Callable[[FakeNode], None]) -> None:
        """One call for many nodes: the controller may die before, in the middle, and before the answer."""
        self.calls.append(call)
        self.hook(f"{call}: before")
        if self.fail_next and not self.late:
            self._answer()
        for number, name in enumerate(nodes):
            if name in self.nodes and self.nodes[name].there:
                act(self.nodes[name])
            if number == 0:
                self.save()
                self.hook(f"{call}: after its first node")
        self.save()
        self._answer()
        self.hook(f"{call}: done, not answered")

    def drain(self, nodes: Collection[str], reason: str, plan: Plan) -> None:
        def act(node: FakeNode) -> None:
            if node.held and not plan.owns(node.reason):
                return
            fresh = not node.held and node.up
            node.held, node.reason, node.by = True, reason, "root"
            if fresh and "failed:" not in reason:
                self._check_budget(node.partition)

        self._many("drain", nodes, act)

    def _check_budget(self, partition: str) -> None:
        members = [node for node in self.nodes.values() if node.partition == partition and node.there]
        missing = sum(node.held or not node.up for node in members)
        allowed = limit(self.limits.get(partition, self.limits["*"]), len(members))
        if missing > allowed:
            self.violations.append(f"{missing} of {partition} missing, {allowed} may")

    def resume(self, nodes: Collection[str], plan: Plan) -> None:
        def act(node: FakeNode) -> None:
            if node.held and plan.owns(node.reason):
                if node.version != node.verified:
                    self.violations.append("resumed a node that nothing was proved of")
                node.held, node.reason, node.by = False, "", ""

        self._many("resume", nodes, act)

    def no_reboot(self) -> str:
        return ""

    def reboot(self, nodes: Collection[str], plan: Plan) -> None:
        def act(node: FakeNode) -> None:
            if node.held and plan.owns(node.reason):
                if node.jobs:
                    self.violations.append("rebooted under a job")
                node.booted += 1

        self._many("reboot", nodes, act)

    def ends(self) -> Mapping[str, float]:
        return {}

    # --- Steps ----------------------------------------------------------------------------------------------

    def run(self, plan: Plan, step: Step, nodes: Collection[str], folder: Path) -> Result:
        failed, unreachable = {}, {}
        self.hook(f"{step.name}: before")
        for number, name in enumerate(nodes):
            node = self.nodes[name]
            if node.unreachable:
                node.unreachable -= 1
                unreachable[name] = "no route to host"
                continue
            if node.bad == step.name:
                failed[name] = f"{step.name} is broken"
            elif step.name == "apply":
                self._upgrade(name, node, plan)
            elif step.name == "verify":
                if node.version != plan.version:
                    self.violations.append(f"{name} verified at {node.version}")
                node.verified = node.version
            if number == 0:
                self.save()
                self.hook(f"{step.name}: after its first node")
        self.save()
        self.hook(f"{step.name}: done, not answered")
        return Result(failed, unreachable)

    def _upgrade(self, name: str, node: FakeNode, plan: Plan) -> None:
        if node.jobs:
            self.violations.append(f"{name} upgraded under a job")
        if not node.held:
            self.violations.append(f"{name} upgraded though it takes jobs")
        if node.held and not plan.owns(node.reason):
            self.violations.append(f"{name} upgraded though {node.reason!r} holds it")
        # Idempotent, as the role is: a second time changes nothing.
        if node.version != plan.version:
            node.version = plan.version
            node.applied[plan.version] = node.applied.get(plan.version, 0) + 1


class FakeClock:
    """Time that passes when one waits, and by what *each* does."""

    def __init__(self, each: Callable[[], None] = lambda: None, wall: float = 1.8e9) -> None:
        self.now, self.epoch, self.each = 1000.0, wall, each

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> object:
        return datetime.datetime.fromtimestamp(self.epoch + self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.each()


def make_plan(nodes: Collection[str], **changes: object) -> Plan:
    """A plan for an upgrade to version 2: one canary, then two nodes, then all others."""
    names = list(nodes)
    values: dict[str, object] = {
        "id": "r1",
        "cluster": "test",
        "kind": "upgrade",
        "steps": STEPS,
        "canary": tuple(names[:1]),
        "batches": tuple(filter(None, (tuple(names[1:3]), tuple(names[3:])))),
        "version": "2",
        "classes": {"main": tuple(names)},
        "settings": Settings(unavailable={"*": "100%"}, gather=0, poll=1, node_timeout=30),
    }
    return Plan(**{**values, **changes})  # type: ignore[arg-type]

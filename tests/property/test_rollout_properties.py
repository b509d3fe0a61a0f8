"""A rollout among administrators, crashes and a scheduler that may not answer: what holds all the time."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rollout_fakes import STEPS, FakeClock, FakeCluster, FakeNode, make_plan

from fleet.rollout.driver import Driver
from fleet.rollout.journal import Journal
from fleet.rollout.model import Settings, Step
from fleet.rollout.state import Stage, State

NAMES = [f"c{n}" for n in range(1, 7)]
ENDED = {Stage.DONE, Stage.FAILED, Stage.LEFT}
node = st.sampled_from(NAMES)


class Killed(BaseException):
    """The controller dies here."""


class Rollout(RuleBasedStateMachine):
    """One cluster, one rollout, and everybody who does something between two looks of the controller."""

    @initialize(reboot=st.booleans(), limit=st.sampled_from(["1", "2", "50%"]))
    def begin(self, reboot, limit):
        self.folder = tempfile.TemporaryDirectory()
        self.journal = Journal(Path(self.folder.name))
        self.journal._db.execute("PRAGMA synchronous=OFF")
        steps = (STEPS[0], Step("reboot"), STEPS[1]) if reboot else STEPS
        limits = {"*": limit}
        careful = Settings(
            unavailable=limits, gather=2, poll=1, node_timeout=20, drain_timeout=15, failures=2
        )
        self.plan = make_plan(NAMES, steps=steps, settings=careful)
        self.journal.begin(self.plan)
        nodes = {name: FakeNode(partition="gpu" if name == "c6" else "main") for name in NAMES}
        self.cluster = FakeCluster(nodes)
        self.cluster.limits = limits
        self.foreign = {}
        self.outcome = ""
        self.controller()

    def controller(self):
        self.driver = Driver(self.plan, self.journal, self.cluster, self.cluster, clock=FakeClock())
        self.driver.take_over("resume")

    def round(self):
        try:
            self.outcome = self.driver.round()
        except Killed:
            self.cluster.hook = lambda _: None
            self.controller()

    # --- the controller -------------------------------------------------------------------------------------

    @precondition(lambda self: not self.outcome)
    @rule(times=st.integers(1, 6))
    def look(self, times):
        for _ in range(times):
            if not self.outcome:
                self.round()

    @precondition(lambda self: not self.outcome)
    @rule(point=st.integers(1, 12))
    def die_and_be_followed(self, point):
        points = iter(range(1, 1000))

        def hook(_):
            if next(points) == point:
                raise Killed

        self.cluster.hook = hook
        self.round()
        self.cluster.hook = lambda _: None

    @rule()
    def be_followed(self):
        self.outcome = ""
        self.controller()

    @rule(what=st.sampled_from(["pause", "abort"]))
    def ask(self, what):
        self.journal.write("r1", "request", what=what)

    @precondition(lambda self: self.outcome)
    @rule()
    def try_failed_nodes_again(self):
        state = State.of(self.plan, self.journal.entries("r1"))
        if failed := state.at(Stage.FAILED):
            self.journal.write("r1", "retry", failed)
        self.outcome = ""
        self.controller()

    # --- everybody else -------------------------------------------------------------------------------------

    @rule(name=node, why=st.sampled_from(["fan", "fleet r2: apptainer 3", "xfleet r1: no"]))
    def administrator_drains(self, name, why):
        self.cluster.nodes[name].held, self.cluster.nodes[name].reason = True, why
        self.cluster.nodes[name].by = "jdoe"
        self.foreign[name] = why

    @rule(name=node)
    def administrator_adds_to_a_reason(self, name):
        found = self.cluster.nodes[name]
        if found.held:
            found.reason, found.by = f"{found.reason} and the fan", "jdoe"
            self.foreign[name] = found.reason

    @rule(name=node)
    def administrator_resumes(self, name):
        self.cluster.nodes[name].held, self.cluster.nodes[name].reason = False, ""
        self.foreign.pop(name, None)

    @rule(name=node)
    def job_begins(self, name):
        if not self.cluster.nodes[name].held and self.cluster.nodes[name].up:
            self.cluster.nodes[name].jobs += 1

    @rule(name=node)
    def jobs_end(self, name):
        self.cluster.nodes[name].jobs = 0

    @rule(name=node)
    def node_crashes(self, name):
        found = self.cluster.nodes[name]
        found.up, found.jobs, found.booted = False, 0, found.booted + 1

    @rule(name=node)
    def node_comes_back(self, name):
        self.cluster.nodes[name].up = self.cluster.nodes[name].there = True

    @rule(name=node)
    def node_vanishes(self, name):
        # With slurm.conf its drain goes, too.
        found = self.cluster.nodes[name]
        found.there, found.jobs, found.held, found.reason = False, 0, False, ""
        self.foreign.pop(name, None)

    @rule(name=node, step=st.sampled_from(["", "apply", "verify"]))
    def node_breaks(self, name, step):
        self.cluster.nodes[name].bad = step

    @rule(name=node, times=st.integers(0, 2))
    def node_can_not_be_reached(self, name, times):
        self.cluster.nodes[name].unreachable = times

    @rule(times=st.integers(1, 4), late=st.booleans())
    def scheduler_does_not_answer(self, times, late):
        self.cluster.fail_next, self.cluster.late = times, late

    # --- what holds -----------------------------------------------------------------------------------------

    @invariant()
    def nothing_forbidden_was_done(self):
        """Budget, upgrades under jobs or on nodes that take some, resumed nodes that nothing proves."""
        assert getattr(self, "cluster", None) is None or self.cluster.violations == []

    @invariant()
    def what_others_hold_keeps_its_reason(self):
        for name, why in getattr(self, "foreign", {}).items():
            found = self.cluster.nodes[name]
            assert (found.held, found.reason) == (True, why), name

    def teardown(self):
        """All goes well from now on: it comes to an end, none is lost or left drained without a reason."""
        if not hasattr(self, "cluster"):
            return
        for found in self.cluster.nodes.values():
            found.jobs, found.up, found.there, found.bad, found.unreachable = 0, True, True, "", 0
        self.cluster.fail_next = 0
        for number in range(400):
            if self.outcome:
                break
            if number == 100:  # it waits for the budget, which others and failed nodes use up
                for name, known in self.driver.state.nodes.items():
                    if name in self.foreign or known.stage is Stage.FAILED:
                        self.administrator_resumes(name)
            self.round()
        assert self.outcome, "it goes on for ever"
        self.nothing_forbidden_was_done()
        self.what_others_hold_keeps_its_reason()
        state = State.of(self.plan, self.journal.entries("r1"))
        self.journal.close()
        self.folder.cleanup()
        for name, known in state.nodes.items():
            found = self.cluster.nodes[name]
            ours = found.held and self.plan.owns(found.reason)
            assert known.stage in ENDED or self.outcome in ("aborted", "paused", "stopped")
            assert known.stage in ENDED | {Stage.PENDING}
            if ours:
                assert known.stage is Stage.FAILED or (self.outcome == "paused" and known.touched)
                assert "failed:" in found.reason, name
            if known.stage is Stage.DONE:
                assert known.steps == len(self.plan.steps)
                assert found.version == found.verified == "2"
            if known.stage in (Stage.LEFT, Stage.FAILED):
                assert known.why, name


TestRollout = Rollout.TestCase
TestRollout.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)

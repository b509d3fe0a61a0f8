"""The engine and its driver on a model of a cluster: every rule of docs/rollout.md."""

from __future__ import annotations

import datetime

import pytest
from rollout_fakes import STEPS, FakeClock, FakeCluster, FakeNode, make_plan

from fleet.rollout.driver import Driver, Result
from fleet.rollout.journal import Journal
from fleet.rollout.model import Settings, Step
from fleet.rollout.state import Stage

NAMES = [f"c{n}" for n in range(1, 8)]


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal")
    journal._db.execute("PRAGMA synchronous=OFF")  # nothing here cuts the power
    yield journal
    journal.close()


class Site:
    """A cluster with a rollout; ``run`` is one controller, from its start to its end."""

    def __init__(self, journal, **changes):
        self.cluster = FakeCluster({name: FakeNode() for name in NAMES})
        self.plan = make_plan(NAMES, **changes)
        self.cluster.limits = self.plan.settings.unavailable
        self.journal = journal
        self.rounds = 0
        self.events = {}  # round → what happens then
        self.clock = FakeClock(self._each)
        journal.begin(self.plan)

    def _each(self):
        self.rounds += 1
        assert self.rounds < 2000, "it goes on for ever"
        self.events.pop(self.rounds, lambda: None)()

    def run(self):
        self.driver = Driver(self.plan, self.journal, self.cluster, self.cluster, clock=self.clock)
        outcome = self.driver.run()
        assert not self.cluster.violations
        return outcome

    def settings(self, **values):
        return Settings(
            **{"unavailable": {"*": "100%"}, "gather": 0, "poll": 1, "node_timeout": 30, **values}
        )

    def node(self, name):
        return self.cluster.nodes[name]

    def why(self, name):
        return self.driver.state.nodes[name].why

    def kinds(self, name=None):
        entries = self.journal.entries(self.plan.id)
        return [entry.kind for entry in entries if name is None or name in entry.nodes]

    def when(self, condition, act):
        """Do something once, as soon as it is time."""

        def each():
            self.rounds += 1
            assert self.rounds < 2000, "it goes on for ever"
            if condition() and act:
                done, self.clock.each = act, self._each
                done()

        self.clock.each = each


@pytest.fixture
def site(journal):
    return lambda **changes: Site(journal, **changes)


def test_all_nodes_are_upgraded_canary_first_and_resumed(site):
    site = site()
    assert site.run() == "complete"
    assert all(n.version == n.verified == "2" and not n.held for n in site.cluster.nodes.values())
    assert all(n.applied == {"2": 1} for n in site.cluster.nodes.values())
    batches = [entry.nodes for entry in site.journal.entries("r1") if entry.kind == "batch"]
    assert batches == [("c1",), ("c2", "c3"), ("c4", "c5", "c6", "c7")]


def test_one_call_drains_a_batch_and_one_resumes_it(site):
    site = site()
    site.run()
    assert site.cluster.calls.count("drain") == 3
    assert site.cluster.calls.count("resume") == 3


def test_every_act_stands_in_the_journal_before_it_and_its_result_after(site):
    site = site()
    site.run()
    wanted = [
        "batch",
        "drain?",
        "drain",
        "ready",
        "step?",
        "step",
        "step?",
        "step",
        "resume?",
        "resume",
        "returned",
    ]
    assert all(site.kinds(name) == wanted for name in NAMES)


def test_a_node_with_a_job_is_waited_for(site):
    site = site()
    site.node("c1").jobs = 1
    site.events[20] = lambda: setattr(site.node("c1"), "jobs", 0)
    assert site.run() == "complete"
    assert site.rounds > 20


def test_what_somebody_drained_before_keeps_its_reason_and_is_left(site):
    site = site()
    site.node("c5").held, site.node("c5").reason, site.node("c5").by = True, "PSU beeps #4711", "jdoe"
    assert site.run() == "incomplete"
    assert (site.node("c5").held, site.node("c5").reason) == (True, "PSU beeps #4711")
    assert site.node("c5").version == "1" and "jdoe: PSU beeps #4711" in site.why("c5")


def test_what_somebody_drains_meanwhile_is_theirs(site):
    site = site()
    site.node("c2").jobs = 1

    def drain():
        site.node("c2").reason, site.node("c2").by = "fan", "jdoe"

    site.when(lambda: site.node("c2").held, drain)
    assert site.run() == "incomplete"
    assert (site.node("c2").held, site.node("c2").reason) == (True, "fan")
    assert "fan" in site.why("c2")


def test_what_somebody_resumes_is_drained_again_and_left_after_the_third_time(site):
    site = site()
    site.node("c2").jobs = 1

    def each():
        site.rounds += 1
        assert site.rounds < 500
        if site.node("c2").held:
            site.node("c2").held = False

    site.clock.each = each
    assert site.run() == "incomplete"
    assert site.kinds("c2").count("again") == 2 and "resumed" in site.why("c2")
    assert not site.node("c2").held


def test_what_somebody_resumes_half_done_is_drained_again_however_often(site):
    """Between its two steps it is neither old nor new: it may not stay with users."""
    site = site()
    node, times = site.node("c2"), []
    run = site.cluster.run

    def steps(plan, step, nodes, folder):
        result = run(plan, step, nodes, folder)
        if "c2" in nodes and step.name == "apply":
            node.held, node.reason, node.jobs = False, "", 1
            site.clock.each = each
        return result

    def each():
        site._each()
        node.jobs = max(0, node.jobs - 1)
        if node.held and len(times) < 5:
            times.append(site.rounds)
            node.held, node.reason, node.jobs = False, "", 3

    site.cluster.run = steps
    assert site.run() == "complete"
    assert len(times) == 5 and site.kinds("c2").count("again") == 6
    assert node.verified == "2" and not node.held


def test_a_job_that_runs_when_a_step_is_due_is_waited_for(site):
    """Somebody resumed it, it got a job, and somebody drained it again with our Reason."""
    site = site()
    node = site.node("c2")
    run = site.cluster.run

    def steps(plan, step, nodes, folder):
        result = run(plan, step, nodes, folder)
        if "c2" in nodes and step.name == "apply":
            node.jobs = 1
            site.events[site.rounds + 30] = lambda: setattr(node, "jobs", 0)
        elif "c2" in nodes:
            assert not node.jobs
        return result

    site.cluster.run = steps
    assert site.run() == "complete"
    assert site.rounds > 30


def test_a_node_that_does_not_come_back_after_its_resume_is_drained_as_failed(site):
    site = site(settings=Settings(unavailable={"*": "100%"}, gather=0, poll=1, node_timeout=20))
    resume = site.cluster.resume

    def crash(nodes, plan):
        resume(nodes, plan)
        if "c2" in nodes:
            site.node("c2").up = False

    site.cluster.resume = crash
    assert site.run() == "incomplete"
    assert site.node("c2").held
    assert site.node("c2").reason.startswith("fleet r1: failed: does not come back to the scheduler")


def test_a_spent_budget_is_waited_for_and_its_partition_is_named(site):
    site = site(settings=Settings(unavailable={"*": "100%", "gpu": "1"}, gather=0, poll=1))
    site.node("c1").partition = site.node("c7").partition = "gpu"
    site.node("c7").held, site.node("c7").reason, site.node("c7").by = True, "fan", "jdoe"
    said = set()

    def each():
        site._each()
        said.add(site.driver.waiting)
        if site.rounds == 20:
            assert not site.node("c1").held
            site.node("c7").held, site.node("c7").reason = False, ""

    site.clock.each = each
    assert site.run() == "complete"
    assert "c1 for the budget of partition gpu" in said


def test_a_node_that_is_down_is_left_and_counts(site):
    site = site(settings=Settings(unavailable={"*": "1"}, gather=0, poll=1, node_timeout=5))
    site.node("c7").up = False
    site.events[50] = lambda: setattr(site.node("c7"), "up", True)
    assert site.run() == "complete"
    assert site.rounds > 50  # the only one that might be missing was c7


def test_a_failed_node_stays_drained_with_reason_and_log_and_others_go_on(site):
    site = site()
    site.node("c4").bad = "verify"
    assert site.run() == "incomplete"
    node = site.node("c4")
    assert node.held and node.reason.startswith("fleet r1: failed: verify: verify is broken (")
    assert "verify/stdout" in node.reason
    assert [n.held for n in site.cluster.nodes.values()].count(True) == 1


def test_a_canary_that_fails_stops_it(site):
    site = site()
    site.node("c1").bad = "apply"
    assert site.run() == "stopped"
    assert all(site.node(name).version == "1" and not site.node(name).held for name in NAMES[1:])


def test_the_failure_budget_stops_it_and_gives_back_what_is_not_begun(site):
    site = site(settings=Settings(unavailable={"*": "100%"}, gather=0, poll=1, failures=1))
    site.node("c2").bad = site.node("c3").bad = "apply"
    assert site.run() == "stopped"
    held = [name for name, node in site.cluster.nodes.items() if node.held]
    assert held == ["c2", "c3"]
    assert all(site.node(name).version == "1" for name in NAMES[3:])


def test_a_stopped_one_goes_on_and_tries_failed_nodes_again_if_told(site):
    site = site()
    site.node("c1").bad = "apply"
    assert site.run() == "stopped"
    site.node("c1").bad = ""
    site.journal.write("r1", "retry", ["c1"])
    assert site.run() == "complete"
    assert not site.node("c1").held and site.node("c1").applied == {"2": 1}


def test_without_that_it_goes_on_with_another_canary(site):
    site = site()
    site.node("c1").bad = "apply"
    site.run()
    assert site.run() == "incomplete"
    batches = [entry.nodes for entry in site.journal.entries("r1") if entry.kind == "batch"]
    assert batches[:2] == [("c1",), ("c2",)]
    assert site.node("c1").held and site.node("c7").version == "2"


def test_an_unreachable_node_is_tried_twice(site):
    site = site()
    site.node("c2").unreachable, site.node("c3").unreachable = 1, 2
    assert site.run() == "incomplete"
    assert site.node("c2").version == "2" and not site.node("c2").held
    assert site.node("c3").held and "no route to host" in site.node("c3").reason


def test_a_playbook_that_does_nothing_anywhere_stops_it_and_nobody_is_harmed(site):
    site = site()
    site.cluster.run = lambda *_: Result(broken="ERROR! the inventory is wrong")
    assert site.run() == "stopped"
    assert not any(node.held for node in site.cluster.nodes.values())
    assert "the inventory is wrong" in site.driver.state.stopped


def test_a_verify_that_does_nothing_anywhere_leaves_nodes_drained(site):
    """They were changed, and nothing proves them."""
    site = site()
    run = site.cluster.run
    site.cluster.run = lambda plan, step, *a: (
        Result(broken="?") if step.name == "verify" else run(plan, step, *a)
    )
    assert site.run() == "stopped"
    assert [name for name, node in site.cluster.nodes.items() if node.held] == ["c1"]
    assert site.driver.state.nodes["c1"].stage is Stage.FAILED


def test_pause_finishes_what_is_begun_and_another_run_goes_on(site):
    site = site()
    site.when(lambda: site.node("c2").held, lambda: site.journal.write("r1", "request", what="pause"))
    assert site.run() == "paused"
    assert not any(node.held for node in site.cluster.nodes.values())
    assert site.node("c1").version == "2" and site.node("c7").version == "1"
    assert site.run() == "complete"


def test_abort_gives_back_what_is_not_begun(site):
    site = site()
    site.node("c2").jobs = 1
    site.when(lambda: site.node("c2").held, lambda: site.journal.write("r1", "request", what="abort"))
    assert site.run() == "aborted"
    assert not any(node.held for node in site.cluster.nodes.values())
    assert site.node("c2").version == "1"


class Asked(Journal):
    """A journal in which somebody asks for something behind a certain entry."""

    def ask(self, what, number):
        self.what, self.left = what, number

    def write(self, rollout, kind, nodes=(), **data):
        entry = super().write(rollout, kind, nodes, **data)
        self.left -= 1
        if self.left == 0:
            super().write(rollout, "request", what=self.what)
        return entry


@pytest.mark.parametrize("what", ["abort", "pause"])
def test_whenever_it_is_asked_to_end_nothing_is_left_half_done_or_drained(tmp_path, what):
    """Behind each entry of a rollout that reboots, with a job that ends late and a node that fails."""
    number = 0
    while True:
        number += 1
        journal = Asked(tmp_path / str(number))
        journal._db.execute("PRAGMA synchronous=OFF")
        journal.ask(what, number)
        site = Site(journal, steps=(STEPS[0], Step("reboot"), STEPS[1]))
        site.node("c2").jobs, site.node("c6").bad = 1, "verify"
        site.events[12] = lambda nodes=site.cluster.nodes: setattr(nodes["c2"], "jobs", 0)
        outcome = site.run()
        for name, node in site.cluster.nodes.items():
            stage = site.driver.state.nodes[name].stage
            assert stage in (Stage.FAILED, Stage.DONE, Stage.PENDING), (number, name)
            assert node.held == (stage is Stage.FAILED), (number, name)
            assert (node.version == node.verified == "2") == (stage is Stage.DONE), (number, name)
        journal.close()
        if journal.left > 0:  # it had ended before it came to that
            assert outcome == "incomplete" and number > 40
            break
        assert outcome in ("aborted", "paused", "incomplete"), number


def test_jobs_that_do_not_end_in_time_keep_their_node(site):
    site = site(settings=Settings(unavailable={"*": "100%"}, gather=0, poll=1, drain_timeout=10))
    site.node("c3").jobs = 1
    assert site.run() == "incomplete"
    assert not site.node("c3").held and "jobs did not end" in site.why("c3")
    assert site.kinds("c3").count("giveback") == 3


def test_outside_of_a_window_nothing_is_drained(site):
    site = site(settings=Settings(unavailable={"*": "100%"}, gather=0, poll=60, windows=("02:00-03:00",)))
    site.clock.epoch = datetime.datetime(2026, 11, 24, 1, 30).timestamp() - site.clock.now
    assert site.run() == "complete"
    first = next(entry for entry in site.journal.entries("r1") if entry.kind == "drain?")
    assert first and site.clock.wall() > datetime.datetime(2026, 11, 24, 2)


def test_when_a_window_closes_nodes_with_jobs_are_given_back(site):
    site = site(settings=Settings(unavailable={"*": "100%"}, gather=0, poll=300, windows=("02:00-03:00",)))
    site.clock.epoch = datetime.datetime(2026, 11, 24, 2, 30).timestamp() - site.clock.now
    site.node("c3").jobs = 1
    seen = []

    def look():
        at = site.clock.wall()
        seen.append((at, site.node("c3").held))
        if at > datetime.datetime(2026, 11, 24, 12):
            site.node("c3").jobs = 0

    site.when(look, None)
    assert site.run() == "complete"
    day = [held for at, held in seen if datetime.time(3, 6) < at.time() < datetime.time(23)]
    assert day and not any(day)


def test_a_clock_that_jumps_changes_no_timeout(site):
    site = site(settings=Settings(unavailable={"*": "100%"}, gather=0, poll=1, drain_timeout=100))
    site.node("c3").jobs = 1
    site.events[20] = lambda: setattr(site.clock, "epoch", site.clock.epoch + 1e6)
    site.events[30] = lambda: setattr(site.clock, "epoch", site.clock.epoch - 3e6)
    site.events[60] = lambda: setattr(site.node("c3"), "jobs", 0)
    assert site.run() == "complete"
    assert "giveback" not in site.kinds("c3")


def test_a_scheduler_that_is_restarted_is_waited_for(site):
    site = site()
    site.when(lambda: site.node("c2").held, lambda: setattr(site.cluster, "fail_next", 5))
    assert site.run() == "complete"
    assert site.kinds().count("trouble") >= 1
    assert all(n.applied == {"2": 1} for n in site.cluster.nodes.values())


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("call", ["drain", "resume"])
def test_a_call_without_an_answer_is_seen_or_repeated(site, call, late):
    site = site()
    site.cluster.late = late
    site.cluster.hook = lambda at: setattr(site.cluster, "fail_next", 1) if at == f"{call}: before" and (
        site.cluster.calls.count(call) == 2) else None  # fmt: skip
    assert site.run() == "complete"
    assert not any(node.held for node in site.cluster.nodes.values())


def test_a_node_that_vanishes_fails_and_the_others_go_on(site):
    site = site()
    site.node("c3").jobs = 1
    site.when(lambda: site.node("c3").held, lambda: setattr(site.node("c3"), "there", False))
    assert site.run() == "incomplete"
    assert "gone" in site.why("c3") and site.node("c7").version == "2"


def test_a_node_that_reboots_while_it_drains_goes_on_when_it_is_back(site):
    site = site()
    node = site.node("c2")
    node.jobs = 1

    def crash():
        node.up, node.jobs = False, 0
        node.booted += 1

    site.when(lambda: node.held, crash)
    site.events[20] = lambda: setattr(node, "up", True)
    assert site.run() == "complete"


def test_one_that_does_not_come_back_fails_and_stays_drained(site):
    site = site()
    node = site.node("c2")
    node.jobs = 1
    site.when(lambda: node.held, lambda: (setattr(node, "up", False), setattr(node, "jobs", 0)))
    assert site.run() == "incomplete"
    assert node.held and "does not answer" in node.reason


def test_a_budget_is_of_each_partition(site):
    site = site(settings=Settings(unavailable={"*": "100%", "gpu": "1"}, gather=0, poll=1))
    for name in ("c5", "c6", "c7"):
        site.node(name).partition = "gpu"
    most = []
    site.cluster.hook = lambda _: most.append(
        sum(n.held for n in site.cluster.nodes.values() if n.partition == "gpu")
    )
    assert site.run() == "complete"
    assert max(most) == 1


def test_a_reboot_is_a_step_of_its_own(site):
    site = site(steps=(STEPS[0], Step("reboot"), STEPS[1]))
    assert site.run() == "complete"
    assert all(node.booted == 2 for node in site.cluster.nodes.values())


def test_a_reboot_that_was_not_answered_is_not_repeated_on_a_node_that_did_it(site):
    site = site(steps=(STEPS[0], Step("reboot"), STEPS[1]))
    site.cluster.late = True
    site.cluster.hook = lambda at: setattr(site.cluster, "fail_next", 1) if at == "reboot: before" else None
    assert site.run() == "complete"
    assert all(node.booted == 2 for node in site.cluster.nodes.values())


def test_after_canaries_it_waits_as_long_as_it_was_told(site):
    site = site(settings=Settings(unavailable={"*": "100%"}, gather=0, poll=1, soak=300))
    before = site.clock.now
    assert site.run() == "complete"
    assert site.clock.now - before > 300


def test_each_class_is_proved_by_a_node_first(site):
    classes = {"a": tuple(NAMES[:4]), "b": tuple(NAMES[4:])}
    site = site(canary=("c1", "c5"), batches=(("c2", "c3", "c4", "c6", "c7"),), classes=classes)
    site.node("c5").held, site.node("c5").reason = True, "theirs"
    assert site.run() == "incomplete"
    batches = [entry.nodes for entry in site.journal.entries("r1") if entry.kind == "batch"]
    assert batches == [("c1", "c5"), ("c6",), ("c2", "c3", "c4", "c7")]


def test_new_nodes_are_configured_before_the_scheduler_knows_them(site):
    site = site(kind="provision", steps=(*STEPS, Step("join", "site.yml", ("slurm",))))
    for node in site.cluster.nodes.values():
        node.there = False
    run = site.cluster.run

    def join(plan, step, nodes, folder):
        if step.name != "join":
            for name in nodes:
                site.node(name).held, site.node(name).reason = (
                    True,
                    plan.reason("x", 80),
                )  # for the model's own rules
            result = run(plan, step, nodes, folder)
            for name in nodes:
                site.node(name).held = False
            return result
        for name in nodes:
            site.node(name).there = True
        return Result()

    site.cluster.run = join
    assert site.run() == "complete"
    assert all(node.verified == "2" and node.there for node in site.cluster.nodes.values())


def test_a_node_that_is_held_when_all_is_done_is_done_and_not_resumed(site):
    site = site()

    def drain():
        site.node("c1").held, site.node("c1").reason, site.node("c1").by = True, "fan", "jdoe"

    run = site.cluster.run

    def steps(plan, step, nodes, folder):
        result = run(plan, step, nodes, folder)
        if step.name == "verify" and "c1" in nodes:
            drain()
        return result

    site.cluster.run = steps
    assert site.run() == "complete"
    assert site.node("c1").reason == "fan" and "fan" in site.why("c1")


def test_a_failed_node_that_somebody_resumed_is_kept_from_users_before_others_are_drained(site):
    site = site(settings=Settings(unavailable={"*": "2"}, gather=0, poll=1, failures=9))
    site.node("c2").bad = "apply"
    run = site.cluster.run

    def steps(plan, step, nodes, folder):
        result = run(plan, step, nodes, folder)
        if "c2" in nodes:
            site.node("c2").held = False
        return result

    site.cluster.run = steps
    assert site.run() == "incomplete"  # and run() has seen that no budget was exceeded
    assert site.node("c2").reason.startswith("fleet r1: failed")


def test_a_class_on_which_the_proof_fails_stops_it_before_the_other_nodes_of_any_class(site):
    classes = {"a": tuple(NAMES[:4]), "b": tuple(NAMES[4:])}
    site = site(canary=("c1", "c5"), batches=(("c2", "c3", "c4", "c6", "c7"),), classes=classes)
    site.node("c5").bad = "verify"
    assert site.run() == "stopped"
    assert site.node("c1").version == "2" and not site.node("c1").held
    assert [name for name in NAMES if site.node(name).held] == ["c5"]
    assert all(site.node(name).version == "1" for name in ("c2", "c3", "c4", "c6", "c7"))

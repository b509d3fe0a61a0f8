"""The controller is killed at every step of the journal and of every act, and another one goes on.

A child process runs the real driver on the real journal; the cluster lives in a file, as a real one lives
outside. Each run dies at another point by SIGKILL, until a run has no further point. Then a second controller
resumes it.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

from rollout_fakes import STEPS, FakeClock, FakeCluster, FakeNode, make_plan

from fleet.rollout.driver import Driver
from fleet.rollout.journal import Journal, Lock
from fleet.rollout.model import Settings, Step
from fleet.rollout.state import Stage, State

NAMES = [f"c{n}" for n in range(1, 6)]
FOREIGN = "PSU beeps #4711"
SETTINGS = Settings(unavailable={"*": "2"}, gather=0, poll=1, node_timeout=30)
REBOOT = (STEPS[0], Step("reboot"), STEPS[1])


class MortalJournal(Journal):
    """Dies before or after an entry is written."""

    hook = staticmethod(lambda _: None)

    def write(self, rollout, kind, nodes=(), **data):
        self.hook(f"{kind}: before it is written")
        entry = super().write(rollout, kind, nodes, **data)
        self.hook(f"{kind}: written")
        return entry


def controller(folder: Path, die_at: int | None, command: str) -> bool:
    """Run a controller in a process of its own: True if it came to its end, False if it died at a point."""
    child = os.fork()
    if child == 0:
        status = 9
        try:
            points = iter(range(1, 100000))

            def hook(_: str) -> None:
                if next(points) == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)

            assert Lock(folder).take()
            journal = MortalJournal(folder)
            journal._db.execute("PRAGMA synchronous=OFF")  # a kill is no power cut
            cluster = FakeCluster.load(folder / "cluster.json")
            journal.hook = cluster.hook = hook
            rounds = iter(range(500))
            clock = FakeClock(lambda: next(rounds) and None)
            Driver(journal.plan(), journal, cluster, cluster, clock=clock).run(command)
            status = 0
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    if os.WIFSIGNALED(ended):
        assert os.WTERMSIG(ended) == signal.SIGKILL
        return False
    assert os.waitstatus_to_exitcode(ended) == 0, "the controller failed"
    return True


def begin(folder: Path, **changes: object) -> None:
    # A new file takes the disk a while, a copy of one does not.
    if not (folder.parent / "empty").exists():
        Journal(folder.parent / "empty").close()
    shutil.copytree(folder.parent / "empty", folder)
    journal = Journal(folder)
    journal._db.execute("PRAGMA synchronous=OFF")
    journal.begin(make_plan(NAMES, settings=SETTINGS, **changes))
    journal.close()
    nodes = {name: FakeNode() for name in NAMES}
    nodes["c4"].held, nodes["c4"].reason, nodes["c4"].by = True, FOREIGN, "jdoe"
    nodes["c5"].bad = "verify"
    cluster = FakeCluster(nodes, folder / "cluster.json")
    cluster.limits = {"*": "3"}  # two, and the one that is not ours
    cluster.save()


def check(folder: Path, steps: tuple[Step, ...], wanted: str = "2") -> None:
    """What has to hold at the end, however it came there."""
    journal = Journal(folder)
    plan = journal.plan()
    state = State.of(plan, journal.entries(plan.id))
    journal.close()
    cluster = FakeCluster.load(folder / "cluster.json")
    assert cluster.violations == []
    # None is lost: each node is at an end, and the journal says which.
    stages = {name: node.stage for name, node in state.nodes.items()}
    if wanted == "2":
        done, good = Stage.DONE, ("c1", "c2", "c3")
        assert stages == {**dict.fromkeys(good, done), "c4": Stage.LEFT, "c5": Stage.FAILED}
        assert all(cluster.nodes[name].version == "2" for name in good)
        assert cluster.nodes["c5"].reason.startswith("fleet r1: failed: verify: verify is broken")
    # What somebody else holds keeps its Reason; what we hold failed.
    assert (cluster.nodes["c4"].held, cluster.nodes["c4"].reason) == (True, FOREIGN)
    held = {name for name, node in cluster.nodes.items() if node.held and plan.owns(node.reason)}
    assert held == {name for name, stage in stages.items() if stage is Stage.FAILED}
    # Nothing harmful twice: one upgrade, and one reboot, unless it died between a reboot and its answer.
    assert all(node.applied.get("2", 0) <= 1 for node in cluster.nodes.values())
    assert all(node.booted <= (2 if Step("reboot") in steps else 1) for node in cluster.nodes.values())


def killed_everywhere(place: Path, steps: tuple[Step, ...]) -> int:
    """Kill a controller at each point, let another one go on, and return how many points there were."""
    points = 0
    while True:
        folder = place / str(points)
        begin(folder, steps=steps)
        if controller(folder, points + 1, "start"):
            check(folder, steps)
            return points
        assert controller(folder, None, "resume")
        check(folder, steps)
        points += 1


def test_killed_at_each_of_200_points_and_more_it_comes_to_the_same_end(tmp_path):
    points = {
        name: killed_everywhere(tmp_path / name, steps)
        for name, steps in (("upgrade", STEPS), ("upgrade and reboot", REBOOT))
    }
    print(f"killed at {points}: {sum(points.values())} points")
    assert sum(points.values()) >= 200


def test_killed_again_and_again_it_still_comes_there(tmp_path):
    """Each controller lives a little longer than what it takes to look at what the one before it left."""
    for life in range(10, 40, 3):
        folder = tmp_path / str(life)
        begin(folder)
        deaths = 0
        while not controller(folder, life, "resume"):
            deaths += 1
            assert deaths < 200, f"it gets nowhere with {life} points"
        check(folder, STEPS)


def test_killed_while_it_aborts_nothing_is_left_drained(tmp_path):
    points = 0
    while True:
        folder = tmp_path / str(points)
        begin(folder)
        assert not controller(folder, 40, "start")
        journal = Journal(folder)
        plan = journal.plan()
        # As `fleet rollout abort` does where no controller lives: it is one itself, and asks for the end at
        # once.
        if not aborting(folder, points + 1):
            assert aborting(folder, None)
            check(folder, STEPS, wanted="")
            points += 1
            continue
        check(folder, STEPS, wanted="")
        assert State.of(plan, journal.entries(plan.id)).outcome == "aborted"
        journal.close()
        break
    assert points > 10


def aborting(folder: Path, die_at: int | None) -> bool:
    child = os.fork()
    if child == 0:
        status = 9
        try:
            points = iter(range(1, 100000))

            def hook(_: str) -> None:
                if next(points) == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)

            journal = MortalJournal(folder)
            cluster = FakeCluster.load(folder / "cluster.json")
            journal.hook = cluster.hook = hook
            driver = Driver(journal.plan(), journal, cluster, cluster, clock=FakeClock())
            driver.asked = "abort"
            driver.run("abort")
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_of_two_that_start_at_once_one_has_the_lock(tmp_path):
    for number in range(5):
        home = tmp_path / str(number)
        home.mkdir()
        reader, writer = os.pipe()
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                os.close(writer)
                os.read(reader, 1)  # until all are there
                lock = Lock(home)
                status = 0 if lock.take() else 5
                if not status:
                    time.sleep(1.5)  # longer than the others try
                os._exit(status)
            children.append(child)
        os.close(writer)
        ended = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        os.close(reader)
        assert ended == [0, 5, 5]


def test_a_dead_controller_has_no_lock_and_a_living_one_has(tmp_path):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        assert Lock(tmp_path).take()
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)
    lock = Lock(tmp_path)
    assert not lock.take() and f"process {child} " in lock.holder()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert Lock(tmp_path).take()

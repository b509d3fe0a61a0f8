"""Budgets, windows, batches, the journal, and what runs of playbooks say."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import io
import json
import os
import re
import resource
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rollout_fakes import FakeCluster, FakeNode, make_plan

from fleet.errors import FleetError
from fleet.playbook import PlaybookResult
from fleet.rollout import budget, report, view
from fleet.rollout.driver import Driver, Result
from fleet.rollout.journal import Entry, Journal, JournalError, Lock, folder, is_locked
from fleet.rollout.model import Plan, Seen, Settings, Step, brief
from fleet.rollout.nodelist import NodeList
from fleet.rollout.planner import Wish, arrange, batches
from fleet.rollout.state import Stage, State
from fleet.rollout.steps import judge
from fleet.rollout.window import Window, is_open

NAMES = [f"c{n}" for n in range(1, 5)]


# --- budgets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size", "wanted"), [("10%", 100, 10), ("10%", 19, 1), ("10%", 3, 1), ("100%", 7, 7), ("3", 2, 3)]
)
def test_a_share_is_rounded_down_but_to_one_at_least(text, size, wanted):
    assert budget.limit(text, size) == wanted


@pytest.mark.parametrize("text", ["0", "0%", "101%", "-1", "ten", "1.5", "", "5 %"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ValueError, match="neither a number"):
        budget.check(text)


def test_a_node_in_two_partitions_costs_both():
    both = Seen(frozenset(("main", "gpu")))
    seen = {"a": both, "b": both, "c": Seen(frozenset(["main"]))}
    left = budget.Budget({"*": "2", "gpu": "1"}, seen)
    assert left.take(both)
    assert not left.take(both) and left.full(both.partitions) == ["gpu"]
    assert left.take(seen["c"])
    assert not left.take(seen["c"])


def test_what_is_missing_already_counts_and_costs_nothing_more():
    away = Seen(frozenset(["main"]), up=False)
    left = budget.Budget({"*": "1"}, {"a": away, "b": Seen(frozenset(["main"]))})
    assert left.take(away)
    assert not left.take(Seen(frozenset(["main"])))


# --- windows ------------------------------------------------------------------------------------------------


def at(text):
    return datetime.datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("22:00-06:00", "2026-11-24T23:00", "2026-11-24T06:00"),
        ("22:00-06:00", "2026-11-24T05:59", "2026-11-24T21:59"),
        ("sat,sun 08:00-20:00", "2026-11-28T08:00", "2026-11-27T08:00"),
        # Friday's night ends on Saturday; Saturday's does not begin.
        ("mon-fri 22:00-06:00", "2026-11-28T05:00", "2026-11-28T23:00"),
        ("fri-mon 08:00-09:00", "2026-11-30T08:30", "2026-12-01T08:30"),
        ("2026-11-24T22:00/2026-11-25T06:00", "2026-11-25T01:00", "2026-11-25T06:00"),
        ("00:00-24:00", "2026-11-25T23:59", None),
    ],
)
def test_windows(window, inside, outside):
    assert Window(window).contains(at(inside))
    assert outside is None or not Window(window).contains(at(outside))


@pytest.mark.parametrize(
    "text",
    [
        *("", "22-6", "25:00-26:00", "08:00-08:00", "holiday 08:00-09:00", "08:00-24:30"),
        *("2026-11-25/2026-11-24", "2026-11-24T22:00/never", "2026-11-24T22:00+01:00/2026-11-24T23:00+01:00"),
    ],
)
def test_what_is_no_window_is_refused(text):
    with pytest.raises(ValueError, match=r"no window|no time|no day|has to end"):
        Window(text)


def test_without_windows_it_is_always_open_and_one_of_several_is_enough():
    assert is_open((), at("2026-11-24T12:00"))
    assert is_open(("01:00-02:00", "12:00-13:00"), at("2026-11-24T12:00"))
    assert not is_open(("01:00-02:00",), at("2026-11-24T12:00"))


# --- plans --------------------------------------------------------------------------------------------------


def test_batches_double_up_to_the_largest():
    nodes = [f"n{n}" for n in range(20)]
    made = batches(nodes, 2, 6)
    assert [len(batch) for batch in made] == [2, 4, 6, 6, 2]
    assert [name for batch in made for name in batch] == nodes
    assert batches([], 2, 6) == ()


def test_nodes_whose_jobs_end_first_come_first_and_unknown_ends_last():
    wish = Wish("upgrade", tuple(NAMES), "2", settings=Settings(unavailable={"*": "1"}))
    seen = {name: Seen(frozenset(["main"]), busy=name != "c3") for name in NAMES}
    canary, others = arrange(wish, {"a": ["c1", "c2"], "b": ["c3", "c4"]}, seen, {"c1": 500.0, "c2": 60.0})
    assert canary == ("c3", "c2")
    assert others == (("c1",), ("c4",))


def test_a_single_node_is_no_canary_for_anybody():
    assert arrange(Wish("upgrade", ("c1",)), {"a": ["c1"]}, {}, {}) == ((), (("c1",),))


def test_a_plan_is_the_same_text_and_comes_back_from_it():
    made = make_plan(NAMES, left={"c9": "down"}, adopts=("fleet r0",))
    assert Plan.loads(made.dumps()) == made
    assert Plan.loads(made.dumps()).dumps() == made.dumps()


def test_a_reason_belongs_to_one_rollout():
    made = make_plan(NAMES, adopts=("fleet r0",))
    for plan in (made, make_plan(NAMES, id="r0")):
        for text in ("apptainer 2", "failed: x: y (z)"):
            reason = plan.reason(text, 200)
            assert reason.startswith(f"fleet {plan.id}: {text} (") and made.owns(reason)
            assert made.owns(f"{reason} : reboot issued : reboot complete")  # that is Slurm's
            for changed in (f"{reason}, fan beeps", f"x{reason}", reason.replace(text, "fan"), reason[:-1]):
                assert not made.owns(changed)
    assert not made.owns(make_plan(NAMES, id="r11").reason("apptainer 2", 200)) and not made.owns("")


@pytest.mark.parametrize("length", [80, 200])
def test_a_long_reason_is_cut_and_known_again_and_its_log_is_whole_or_not_there(length):
    made, log = make_plan(NAMES, id="r20261124-140500-1f2e"), f" (/{'var/' * 20}stdout)"
    reason = made.reason("x" * 300, length, log)
    assert len(reason) == length and made.owns(reason)
    assert (log in reason) == (length == 200)


def test_steps_of_each_kind():
    assert [s.name for s in Wish("upgrade", (), "2", reboot=True).steps()] == ["apply", "reboot", "verify"]
    assert Wish("upgrade", (), "2").steps()[0].tags == ("apptainer",)
    assert [s.playbook for s in Wish("provision", ()).steps()] == [
        "node.yml",
        "rollout_verify.yml",
        "site.yml",
    ]


# --- the journal --------------------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "j")
    yield journal
    journal.close()


def test_entries_come_back_in_order(journal):
    journal.begin(make_plan(NAMES))
    first = journal.write("r1", "drain?", ["c2", "c1"], reason="x")
    journal.write("r1", "drain", ["c1"])
    entries = journal.entries("r1")
    assert [(e.kind, sorted(e.nodes), e.data) for e in entries] == [
        ("drain?", ["c1", "c2"], {"reason": "x"}),
        ("drain", ["c1"], {}),
    ]
    assert [entry.kind for entry in journal.entries("r1", first.seq)] == ["drain"]
    assert journal.plan() == make_plan(NAMES)


def test_it_is_durable_and_of_a_known_schema(journal, tmp_path):
    ask = journal._db.execute
    assert ask("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert ask("PRAGMA journal_mode").fetchone() == ("delete",)
    assert ask("PRAGMA user_version").fetchone() == (1,)
    ask("PRAGMA user_version=99")
    with pytest.raises(JournalError, match="schema 99"):
        Journal(tmp_path / "j")


def test_a_file_that_is_no_journal_is_named(tmp_path):
    (tmp_path / "journal.sqlite").write_bytes(b"x" * 5000)
    with pytest.raises(JournalError, match=r"journal\.sqlite"):
        Journal(tmp_path)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("rollout", "plan", "{}"),
        ("rollout", "plan", "not JSON"),
        ("entry", "data", "not JSON"),
        ("entry", "data", "[]"),
        ("entry", "data", "{}"),
        ("entry", "data", '{"number": "two"}'),
        ("entry", "nodes", "c[1-"),
    ],
)
def test_a_journal_that_was_edited_into_nonsense_is_an_error_that_names_it(journal, table, column, value):
    journal.begin(make_plan(NAMES))
    journal.write("r1", "batch", ["c1"], number=0)
    journal._db.execute(f"UPDATE {table} SET {column} = ?", (value,))  # noqa: S608 - words of this test
    with pytest.raises(JournalError, match=r"journal\.sqlite: (entry 1|a plan) is not as this program"):
        journal.entries(journal.plan().id)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden"])
def test_a_cluster_is_no_path(name, tmp_path):
    with pytest.raises(FleetError, match="no name for a cluster"):
        folder(name, tmp_path)


def test_without_room_for_the_journal_nothing_is_done(tmp_path):
    """The limit on the size of files stands for the full disk; it is met in the middle of a batch."""
    journal = Journal(tmp_path / "j")
    made = make_plan(NAMES, settings=Settings(unavailable={"*": "100%"}, gather=0, poll=1))
    journal.begin(made)
    cluster = FakeCluster({name: FakeNode() for name in NAMES})
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    calls = list(cluster.calls)

    def fill(_):
        # From here on, nothing more fits: also not the rollback journal of SQLite.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
        calls[:] = cluster.calls

    cluster.hook = lambda point: fill(point) if point == "apply: before" else None
    driver = Driver(made, journal, cluster, cluster)
    try:
        with pytest.raises(JournalError) as raised:
            driver.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
    assert "fleet rollout resume" in str(raised.value)
    assert cluster.calls == calls  # after that nothing was asked of the scheduler
    journal.close()
    cluster.hook = lambda _: None
    again = Journal(tmp_path / "j")
    assert Driver(made, again, cluster, cluster).run("resume") == "complete"
    assert not cluster.violations and all(n.applied == {"2": 1} for n in cluster.nodes.values())
    again.close()


def test_a_disk_that_is_really_full_ends_it_and_room_lets_it_go_on(tmp_path):
    alone = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces here")
    tests = Path(__file__).parents[1]
    ended = subprocess.run(
        [*alone, sys.executable, str(tests / "rollout_full_disk.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(tests.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    full, mend, held, outcome, after, applied = ended.stdout.splitlines()
    assert "journal.sqlite" in full and "full" in full and "fleet rollout resume" in mend
    assert (held, outcome, after.strip()) == ("held: c1", "complete", "held:")
    assert applied == "{'2': 1} {'2': 1} {'2': 1}"


def test_a_lock_is_taken_where_there_is_no_room_to_say_by_whom(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fleet.rollout.journal.os.write", full)
    lock = Lock(tmp_path)
    assert lock.take()
    lock.release()
    with pytest.raises(JournalError, match="gone/lock: No such file or directory"):
        Lock(tmp_path / "gone").take()


def test_whoever_only_asks_does_not_keep_anybody_from_the_lock(tmp_path):
    assert not is_locked(tmp_path)
    lock = Lock(tmp_path)
    assert lock.take() and is_locked(tmp_path)
    lock.release()
    assert not is_locked(tmp_path)


def test_readers_and_a_writer_do_not_disturb_each_other(journal, tmp_path):
    journal.begin(make_plan(NAMES))
    other = Journal(tmp_path / "j")
    for number in range(20):
        journal.write("r1", "trouble", what=str(number))
        assert len(other.entries("r1")) == number + 1
        other.write("r1", "request", what="pause") if number == 19 else None
    assert journal.entries("r1")[-1].kind == "request"
    other.close()


# --- nodes without a scheduler ------------------------------------------------------------------------------


def test_a_list_of_nodes_remembers_who_holds_them(tmp_path):
    made, other = make_plan(NAMES), make_plan(NAMES, id="r2")
    groups = {"all": NAMES, "rack1": ["c1"]}
    reason = made.reason("x", 80)
    NodeList(tmp_path / "held.json", groups).drain(["c1", "c2"], reason, made)
    nodes = NodeList(tmp_path / "held.json", groups)
    nodes.drain(["c2", "c3"], other.reason("y", 80), other)
    seen = nodes.look()
    assert [name for name in NAMES if seen[name].held] == ["c1", "c2", "c3"]
    assert seen["c2"].reason == reason and seen["c1"].partitions == {"all", "rack1"}
    nodes.resume(NAMES, made)
    assert [name for name, node in nodes.look().items() if node.held] == ["c3"]


# --- what playbooks say -------------------------------------------------------------------------------------


def result(**values):
    return PlaybookResult(**{"status": 0, "changed": {}, "failures": [], "output": "", **values})


def test_nodes_fail_each_by_itself():
    said = result(status=6, failed={"c1": "dpkg  is\nlocked"}, unreachable={"c2": "no route", "head": "x"})
    assert judge(said, NAMES, proof=False) == Result({"c1": "dpkg is locked"}, {"c2": "no route"})


def test_of_a_long_message_the_end_is_kept():
    said = judge(result(status=2, failed={"c1": f"began {'x' * 900} no space"}), NAMES, proof=False)
    assert said.failed["c1"].startswith("began x") and said.failed["c1"].endswith("x no space")
    assert len(said.failed["c1"]) < 310


def test_what_is_not_proved_failed():
    said = result(results={"c1": {}, "c2": {}, "c3": {}})
    assert judge(said, NAMES, proof=True) == Result({"c4": "nothing proves it"})


@pytest.mark.parametrize(
    "said",
    [
        result(status=1, output="ERROR! the inventory is broken"),
        result(status=2, failed={"c1": "x"}, failures=["c1: x"], plays=frozenset(["Validate the inventory"])),
        result(status=2, failed={"head": "slurmctld"}, failures=["head: slurmctld"]),
    ],
)
def test_a_run_that_never_came_to_nodes_is_no_failure_of_nodes(said):
    found = judge(said, NAMES, proof=False)
    assert found.broken and not found.failed


# --- what people see ----------------------------------------------------------------------------------------


def test_the_page_has_each_node_escapes_what_it_is_told_and_needs_nothing_else(journal):
    made = make_plan(NAMES, settings=Settings(unavailable={"*": "100%"}, gather=0, poll=1))
    journal.begin(made)
    cluster = FakeCluster({name: FakeNode() for name in NAMES})
    cluster.nodes["c2"].held, cluster.nodes["c2"].reason = True, "<script>alert(1)</script>"
    cluster.nodes["c3"].bad = "verify"
    Driver(made, journal, cluster, cluster).run()
    entries = journal.entries("r1")
    state = State.of(made, entries)
    page = report.render(made, state, entries, "incomplete")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "lost node-hours" in page and "https:" not in page and "src=" not in page
    told = report.stories(made, entries)
    assert [phase for phase, *_ in told["c1"].spans] == [
        "drain",
        "idle",
        "apply",
        "idle",
        "verify",
        "idle",
        "resume",
    ]
    assert told["c3"].spans[-1][0] == "failed" and not told["c2"].spans
    said = view.as_dict(made, state, entries, running=False)
    assert json.loads(json.dumps(said))["counts"] == {"done": 2, "failed": 1, "left": 1}
    assert said["reasons"] == [
        {"nodes": "c2", "stage": "left", "why": "held by somebody else: <script>alert(1)</script>"},
        {"nodes": "c3", "stage": "failed", "why": "verify: verify is broken"},
    ]


def test_a_clock_that_goes_back_makes_no_negative_time():
    made = make_plan(["c1"], canary=(), batches=(("c1",),))
    entries = [
        Entry(1, 1000.0, "drain?", ("c1",), {"reason": ""}),
        Entry(2, 400.0, "ready", ("c1",)),
        Entry(3, 500.0, "resume?", ("c1",)),
        Entry(4, 600.0, "returned", ("c1",)),
    ]
    story = report.stories(made, entries)["c1"]
    assert [round(last - first) for _, first, last in story.spans] == [0, 100, 100]
    report.render(made, State.of(made, entries), entries, "complete")


@pytest.mark.parametrize("width", [80, 200])
def test_a_live_picture_of_many_nodes_fits_its_screen_and_keeps_its_end(journal, width):
    names = [f"n{number:04}" for number in range(1, 801)]
    made = make_plan(names, id="r20261124-140500-1f2e", settings=Settings(failures=99, poll=1, gather=0))
    journal.begin(made)
    entries = [journal.write(made.id, "batch", names, number=0)]
    entries += [journal.write(made.id, "drain?", names[::2], reason="x")]
    entries += [
        journal.write(made.id, "fail?", [name], why=f"apply: disk {name} is full " * 9, log="/l")
        for name in names[1:60:2]
    ]
    state = State.of(made, entries)
    for name in names[1:60:2]:
        state.nodes[name].stage = Stage.FAILED
    waiting = f"{brief(names[::2])} for jobs to end"
    console = Console(width=width, height=24, file=io.StringIO())
    console.print(view.picture(made, state, entries, waiting, running=True, rows=24))
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= width
    assert lines[-1].rstrip() == "running; waiting: 400 nodes for jobs to end"
    assert any("more lines: fleet rollout status" in line for line in lines)
    entries.append(journal.write(made.id, "step?", names[:1], step=0, log="/the/log"))
    at_work = State.of(made, entries)
    console = Console(width=width, height=24, file=io.StringIO())
    console.print(view.picture(made, at_work, entries, "", running=True, rows=24))
    assert re.search(r"^apply since [0-9:]{8}: /the/log", console.file.getvalue(), re.MULTILINE)
    assert len(console.file.getvalue().splitlines()) <= 24
    whole = Console(width=width, file=io.StringIO())
    whole.print(view.picture(made, state, entries, waiting, running=True))
    text = whole.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert all(f"disk {name} is full" in text for name in names[1:60:2])


def test_an_estimate_comes_from_what_is_done():
    made = make_plan(NAMES)
    entries = [Entry(1, 100.0, "batch", ("c1",), {"number": 0}), Entry(2, 160.0, "returned", ("c1",))]
    assert view.eta(State.of(made, entries), entries, 160.0) == pytest.approx(180.0)
    assert view.eta(State.of(made, []), [], 160.0) is None


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (95, "1 min 35 s"), (7500, "2 h 05 min")])
def test_durations(seconds, text):
    assert view.duration(seconds) == text


def test_five_thousand_nodes_are_decided_in_no_time(journal):
    """Not a limit on time: what is quadratic in nodes would not end here."""
    names = [f"n{n:04}" for n in range(5000)]
    made = dataclasses.replace(
        make_plan(names, canary=("n0000",), batches=(tuple(names[1:]),)),
        settings=Settings(unavailable={"*": "10%"}, gather=0, poll=1),
        steps=(Step("apply", "site.yml"),),
    )
    journal.begin(made)
    journal._db.execute("PRAGMA synchronous=OFF")
    cluster = FakeCluster({name: FakeNode(verified="2") for name in names})
    cluster._check_budget = lambda _: None

    class Clock:
        monotonic = staticmethod(time.monotonic)
        wall = staticmethod(datetime.datetime.now)
        sleep = staticmethod(lambda _: None)

    assert Driver(made, journal, cluster, cluster, clock=Clock()).run() == "complete"


def test_a_lost_entry_is_noticed_by_sqlite(journal):
    with pytest.raises(JournalError):
        journal.write("nobody's", "drain?", ["c1"])
    with pytest.raises(sqlite3.IntegrityError):
        journal._db.execute("INSERT INTO entry (rollout, at, kind, nodes, data) VALUES ('x', 0, '', '', '')")

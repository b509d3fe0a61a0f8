"""The log of callback fleet_progress at 5,000 hosts, and what reports make of it."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import plugin_files
import progress_events
import pytest

from fleet import runs

PROJECT = Path(__file__).parents[2]
HOSTS = 5000


@pytest.fixture(scope="module")
def plugin() -> Any:
    return plugin_files.load(PROJECT / "plugins/callback/fleet_progress.py")


def run(plugin: Any, log: Path | None, message: Any, seconds: float = 3600) -> list[str]:
    said: list[str] = []
    callback = progress_events.make(plugin, log, seconds, said)
    for _ in progress_events.play(callback, progress_events.hosts(HOSTS), message):
        pass
    return said


def test_thousands_of_hosts_are_a_few_lines(plugin: Any) -> None:
    said = run(plugin, None, lambda index: "disk full")
    assert said[0] == "Nodes (5000): n[0001-5000]"
    assert said[1].startswith("Work: 5000/5000 hosts, ") and said[1].endswith("50 changed, 100 failed")
    assert said[2].startswith("  changed n[0100,0200,0300,") and said[3].endswith(": disk full")
    # Two lines for the task, an empty one, and one for each way in which hosts ended.
    assert len(said) == 8 and said[-1].endswith("(100): ok 1, failed 1")
    assert sum(map(len, said)) < 40_000


def test_words_of_their_own_for_each_host_are_not_as_many_lines(plugin: Any) -> None:
    said = run(plugin, None, lambda index: f"block {index} is bad")
    assert len(said) == 8 + 19 and sum(line.startswith("  failed n") for line in said) == 19
    assert any("81 other messages, which are in the log" in line for line in said)


def test_what_it_remembers_does_not_grow_with_events(plugin: Any) -> None:
    callback = progress_events.make(plugin, None, 3600, [])
    hosts = progress_events.hosts(HOSTS)
    tracemalloc.start()
    try:
        most = 0
        for events in progress_events.play(callback, hosts, lambda index: "x" * 100_000):
            if events % 1000 == 0:
                most = max(most, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # The names of hosts, not what each has said.
    assert most < 4 << 20


def test_the_log_is_small_and_one_can_see_how_hosts_ended(plugin: Any, tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    run(plugin, log, lambda index: "x" * 100_000)
    lines = log.read_text().splitlines()
    # 150 hosts that changed or failed, an end for each, and four for playbook, play and tasks.
    assert len(lines) == 150 + HOSTS + 4 and log.stat().st_size < 2_000_000
    (made,) = runs.read([log])
    assert made.playbook == "site.yml" and made.user and made.ended >= made.began > 0
    folded = {state: (count, names) for state, count, names in made.folded()}
    assert {state: count for state, (count, _) in folded.items()} == {
        "failed": 100,
        "changed": 50,
        "ok": 4850,
    }
    assert folded["failed"][1].startswith("n[0001,0051,0101,") and len(folded["failed"][1]) <= 301


def events(*given: dict[str, Any]) -> str:
    return "".join(json.dumps({"time": 100 + number, **one}) + "\n" for number, one in enumerate(given))


BEGIN = {"event": "playbook", "playbook": "site.yml", "user": "ada", "run": "1"}


def test_a_run_that_was_killed_has_no_end_and_its_last_line_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    said = {"event": "host", "host": "n1", "state": "failed", "run": "1"}
    log.write_text(events(BEGIN, said, {**said, "host": "n2"})[:-20])
    (made,) = runs.read([log])
    assert (made.ended, made.hosts) == (0, {"n1": "failed"})


def test_runs_at_the_same_time_are_told_apart_and_the_last_is_first(tmp_path: Path) -> None:
    end = {"event": "end", "host": "n1", "ok": 3, "changed": 1, "failed": 0, "unreachable": 0}
    log = tmp_path / "log"
    other = {**BEGIN, "run": "2", "user": "bob"}
    log.write_text(events(BEGIN, other, {**end, "run": "1"}, {**end, "run": "2", "unreachable": 1}))
    assert [(one.user, one.hosts) for one in runs.read([log])] == [
        ("bob", {"n1": "unreachable"}),
        ("ada", {"n1": "changed"}),
    ]


def test_of_a_long_log_only_the_end_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(events(*({**BEGIN, "user": f"u{number}"} for number in range(1000))))
    made = runs.read([log], most=1000)
    assert 5 < len(made) < 15 and made[0].user == "u999"


@pytest.mark.parametrize(
    "line",
    [
        *("", "{", "[]", "7", "null", "{}", '{"event": "host"}', '{"time": "x", "event": "end"}', "\x00\xff"),
        *('{"time": 1, "event": ["end"]}', '{"time": 1, "event": "end", "host": 5}'),
    ],
)
def test_what_is_no_event_is_left_out(tmp_path: Path, line: str) -> None:
    log = tmp_path / "log"
    log.write_bytes(f"{line}\n{events(BEGIN)}{line}\n".encode("latin-1"))
    (made,) = runs.read([log])
    assert (made.user, made.hosts) == ("ada", {})


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        runs.read([tmp_path / "none"])

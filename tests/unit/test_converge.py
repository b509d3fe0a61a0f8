"""fleet site and fleet check: who takes part, what becomes of nodes that fail, what is said at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from rich.console import Console

from fleet import check as check_command
from fleet import converge
from fleet import site as site_command
from fleet.errors import FleetError
from fleet.playbook import Failure, PlaybookResult, Progress

PROJECT = Path(__file__).parents[2]
NODES = [f"n{number:03}" for number in range(1, 41)]


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "hosts.yml"
    groups = {"slurm_controller": {"hosts": {"ctl": {}}}, "slurm_compute": {"hosts": {"n[001-040]": {}}}}
    path.write_text(yaml.safe_dump(groups))
    return path


class Runs:
    """Stands for run_playbook: nodes of `bad` fail or are silent; keeps who was in which run."""

    def __init__(self, bad: Iterable[Failure] = (), changed: Iterable[str] = ()) -> None:
        self.bad = {failure.host: failure for failure in bad}
        self.changed = set(changed)
        self.parts: list[list[str]] = []
        self.extra: list[list[str]] = []

    def __call__(
        self, _playbook: Path, _sources: object, _console: Console, **options: Any
    ) -> PlaybookResult:
        extra, hosts = list(options["extra"]), list(options["limit"])
        self.parts.append(hosts)
        self.extra.append(extra)
        failures = [self.bad[host] for host in hosts if host in self.bad]
        changed = {host: 1 for host in hosts if host in self.changed}
        return PlaybookResult(
            2 if failures else 0, changed, [], "output", lost=failures, hosts=frozenset(hosts)
        )


@pytest.fixture
def fleet(inventory: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, Runs]]:
    def run(command: str, *arguments: str, **given: Any) -> tuple[Result, Runs]:
        runs = Runs(**given)
        module = {"site": site_command, "check": check_command}[command]
        monkeypatch.setattr(module, "run_playbook", runs)
        return CliRunner().invoke(getattr(module, command), ["-i", str(inventory), *arguments]), runs

    return run


def silent(*hosts: str) -> list[Failure]:
    return [Failure(host, "Gathering Facts", "Connection timed out", unreachable=True) for host in hosts]


def test_all_is_well(fleet: Any) -> None:
    ended, runs = fleet("site", changed=["n001"])
    assert ended.exit_code == 0
    assert runs.parts == [["ctl", *NODES]]
    assert "41 of 41 nodes converged, 1 of them changed" in ended.output


def test_silent_nodes_are_named_and_kept_and_stop_nothing(fleet: Any) -> None:
    ended, runs = fleet("site", "--batch", "15", bad=silent("n003", "n004", "n030"))
    assert ended.exit_code == 4
    assert [len(part) for part in runs.parts] == [16, 16, 11]
    assert all(part[0] == "ctl" for part in runs.parts)
    # Who is in which order is the inventory's; all were tried.
    assert {host for part in runs.parts for host in part} == {"ctl", *NODES}
    assert "UNREACHABLE n[003-004,030]\n38 of 41 nodes converged" in ended.output
    again, runs = fleet("site", "--retry")
    assert (again.exit_code, runs.parts) == (0, [["n003", "n004", "n030"]])
    nothing, _ = fleet("site", "--retry")
    assert "nothing to do again" in str(nothing.exception)


def test_the_inventory_is_judged_once(fleet: Any) -> None:
    _, runs = fleet("site", "--batch", "20")
    assert ["--skip-tags=validate" in extra for extra in runs.extra] == [False, True]


def test_failures_are_folded_by_what_they_say(fleet: Any) -> None:
    bad = [Failure(host, "Packages", "no such version") for host in NODES[:2]]
    ended, _ = fleet("site", bad=[*bad, Failure("n009", "Run slurmd", "port is taken"), *silent("n010")])
    assert ended.exit_code == 2
    assert ended.output.index("FAILED n[001-002]: Packages: no such version") < ended.output.index(
        "FAILED n009"
    )
    assert "37 of 41 nodes converged, 0 of them changed, 3 failed, 1 unreachable" in ended.output


@pytest.mark.parametrize(("bound", "parts"), [("2", 1), ("3", 4), ("5%", 1), ("10%", 4), ("100%", 4)])
def test_too_many_stop_what_has_not_begun(fleet: Any, bound: str, parts: int) -> None:
    ended, runs = fleet("site", "--batch", "10", "--max-failed", bound, bad=silent("n001", "n002", "n003"))
    assert len(runs.parts) == parts
    assert ended.exit_code == (3 if parts == 1 else 4)
    if parts == 1:
        assert "NOT TRIED n[011-040]" in ended.output
        assert fleet("site", "--retry")[1].parts == [[*NODES[:3], *NODES[10:]]]


def test_nothing_goes_on_without_the_controller(fleet: Any) -> None:
    ended, runs = fleet("site", "--batch", "20", bad=silent("ctl"))
    assert (ended.exit_code, len(runs.parts)) == (3, 1)
    assert "controller of Slurm" in ended.output


def test_a_part_of_the_nodes(fleet: Any) -> None:
    ended, runs = fleet(
        "site", "--limit", "n[002-003],@slurm_controller", "--tags", "slurm", "--check", "--diff"
    )
    assert ended.exit_code == 0
    assert sorted(runs.parts[0]) == ["ctl", "n002", "n003"]
    assert {"--tags=slurm", "--check", "--diff"} <= set(runs.extra[0])


def test_tags_that_no_role_has_are_refused_as_nothing_would_be_done(fleet: Any) -> None:
    ended, runs = fleet("site", "--tags", "slurm,slrum")
    assert "site.yml has no 'slrum'" in f"{ended.output}{ended.exception}" and runs.parts == []


def test_a_wrong_inventory_is_no_failure_of_nodes(fleet: Any) -> None:
    bad = [Failure("ctl", "Refuse a wrong inventory", "ERROR hosts.yml:3: variable apptainer_verison")]
    ended, _ = fleet("site", bad=bad)
    assert isinstance(ended.exception, FleetError)
    assert "apptainer_verison" in str(ended.exception)


def test_json(fleet: Any) -> None:
    ended, _ = fleet("site", "--json", "-l", "n[001-003]", bad=silent("n002"))
    assert json.loads(ended.stdout) == {
        "ok": ["n001", "n003"],
        "changed": [],
        "failed": {},
        "unreachable": ["n002"],
        "not_tried": [],
        "stopped": "",
        "events": [],
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-failed", "x"], "--max-failed x"),
        (["--max-failed", "101%"], "--max-failed 101%"),
        (["--limit", "n9"], "n9 not in the inventory"),
        (["--retry", "--limit", "n001"], "exclude each other"),
    ],
)
def test_refused_before_anything_runs(fleet: Any, arguments: list[str], said: str) -> None:
    ended, runs = fleet("site", *arguments)
    assert isinstance(ended.exception, FleetError)
    assert said in str(ended.exception)
    assert runs.parts == []


def difference(host: str, *what: str) -> Failure:
    one = dict(zip(("topic", "name", "was", "now"), what, strict=True))
    return Failure(host, "Compare", "not as the last converge left it", result={"differences": [one]})


def test_check_folds_by_what_differs(fleet: Any) -> None:
    digests = [f"sha256 {'a' * 64} mode 0644 owner 0:0", f"sha256 {'b' * 64} mode 0666 owner 0:0"]
    bad = [difference(host, "files", "/etc/apptainer/apptainer.conf", *digests) for host in NODES[:3]]
    bad += [difference("n009", "packages", "apptainer", "1.4.5", "1.4.4"), *silent("n010")]
    bad += [difference("n011", "record", "/var/lib/apptainer-fleet/record.json", "", "absent")]
    bad += [difference("n012", "files", "/etc/apptainer/ecl.toml", "absent", digests[0])]
    ended, _ = fleet("check", bad=[*bad, Failure("n013", "Compare", "out of memory")])
    assert ended.exit_code == 2
    assert ended.output.splitlines() == [
        "n[001-003]: file /etc/apptainer/apptainer.conf: content differs,"
        " mode 0644 owner 0:0 → mode 0666 owner 0:0",
        "n013: out of memory",
        "n012: file /etc/apptainer/ecl.toml: absent → a file",
        "n009: package apptainer: 1.4.5 → 1.4.4",
        "n011: /var/lib/apptainer-fleet/record.json is absent: fleet site writes it",
        "UNREACHABLE n010",
        "33 of 41 nodes are as their last converge left them",
    ]


def test_check_without_a_difference(fleet: Any) -> None:
    ended, runs = fleet("check", "--limit", "n[001-002]")
    assert (ended.exit_code, ended.output) == (0, "2 of 2 nodes are as their last converge left them\n")
    assert runs.parts == [["n001", "n002"]]
    assert fleet("check", bad=silent("n001"))[0].exit_code == 4


def test_a_task_that_was_rescued_is_no_failure() -> None:
    progress = Progress(None, Console(quiet=True))

    def failed(host: str, task: str) -> None:
        progress(
            {"event": "runner_on_failed", "event_data": {"host": host, "task": task, "res": {"msg": "no"}}}
        )

    failed("n1", "First try")
    failed("n2", "First try")
    failed("n2", "Second try")
    assert [failure.host for failure in progress.lost] == ["n1", "n2"]
    stats = {
        "failures": {"n2": 1},
        "dark": {"n3": 1},
        "changed": {},
        "processed": {"n1": 1, "n2": 1, "n3": 1},
    }
    progress({"event": "playbook_on_stats", "event_data": stats})
    assert [(f.host, f.task, f.unreachable) for f in progress.lost] == [
        ("n2", "Second try", False),
        ("n3", "", True),
    ]
    assert progress.hosts == {"n1", "n2", "n3"}


def test_batches_have_everybody_once_but_for_the_leading() -> None:
    assert list(converge.batches(["c", "1", "2", "3"], ["c"], 2)) == [["c", "1", "2"], ["c", "3"]]
    assert list(converge.batches(["c"], ["c", "d"], 2)) == [["c"]]


def test_plays_of_a_converge_say_whether_they_gather() -> None:
    # Facts are kept (fleet site), and a play that says nothing would gather all of them then.
    for name in ("node", "site", "pull", "record", "check", "validate", "images", "lint", "bootstrap"):
        for play in yaml.safe_load((PROJECT / f"playbooks/{name}.yml").read_text()):
            assert "gather_facts" in play or "ansible.builtin.import_playbook" in play, (name, play["name"])


def test_whoever_is_on_record_is_compared() -> None:
    for name in ("record", "check"):
        (play,) = yaml.safe_load((PROJECT / f"playbooks/{name}.yml").read_text())
        assert sorted(play["hosts"].split(":")) == sorted(check_command.recorded_groups())

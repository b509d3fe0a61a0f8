"""fleet site --on: parts for execution nodes, what becomes of those of a lost node, and what is sent."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from fleet import shards
from fleet import site as site_command
from fleet.errors import FleetError
from fleet.mesh import Mesh, MeshError
from fleet.playbook import Failure, PlaybookResult
from fleet.shards import Crew, Job, Lost

NODES = [f"n{number:02}" for number in range(1, 13)]


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "site/hosts.yml"
    path.parent.mkdir()
    groups = {"slurm_controller": {"hosts": {"ctl": {}}}, "slurm_compute": {"hosts": {"n[01-12]": {}}}}
    path.write_text(yaml.safe_dump(groups))
    return path


class Parts:
    """Stands for what an execution node does: some are lost with their first part, or after it."""

    def __init__(self, lost: Sequence[str] = (), bad: Sequence[str] = ()) -> None:
        self.lost, self.bad = set(lost), set(bad)
        self.done: list[tuple[str, list[str]]] = []
        # The first part of each of two nodes waits for the other's.
        self._together, self._begun = threading.Barrier(2), set[str]()

    def __call__(self, node: str, hosts: Sequence[str]) -> PlaybookResult:
        if "ctl" not in hosts and node not in self._begun:
            self._begun.add(node)
            self._together.wait(30)
        if node in self.lost and "ctl" not in hosts:
            raise Lost("lost in task Install")
        self.done.append((node, list(hosts)))
        failures = [Failure(host, "Install", "disk full") for host in hosts if host in self.bad]
        return PlaybookResult(2 if failures else 0, {}, [], "", lost=failures, hosts=frozenset(hosts))


@pytest.fixture
def fleet(inventory: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, Parts]]:
    def run(*arguments: str, **given: Any) -> tuple[Result, Parts]:
        parts = Parts(**given)
        monkeypatch.setattr(Crew, "_run_part", lambda _crew, node, hosts, _label: parts(node, hosts))
        monkeypatch.setattr(Mesh, "check", lambda *_: None)
        judged = PlaybookResult(0, {}, [], "", hosts=frozenset(["ctl"]))
        monkeypatch.setattr(site_command, "run_playbook", lambda *_, **__: judged)
        return CliRunner().invoke(site_command.site, ["-i", str(inventory), *arguments]), parts

    return run


def test_each_host_has_one_part_and_the_controller_comes_first(fleet):
    result, parts = fleet("--on", "e[1-2]", "--shards", "4")
    assert result.exit_code == 0, result.output
    assert parts.done[0][1] == ["ctl"]
    assert sorted(host for _, hosts in parts.done[1:] for host in hosts) == NODES
    assert "13 of 13 nodes converged" in result.stdout


def test_hosts_of_a_node_that_is_lost_are_done_elsewhere(fleet):
    result, parts = fleet("--on", "e[1-2]", lost=["e1"])
    assert result.exit_code == 0, result.output
    assert {node for node, hosts in parts.done if hosts != ["ctl"]} == {"e2"}
    assert sorted(host for _, hosts in parts.done[1:] for host in hosts) == NODES
    (said,) = [line for line in result.stdout.splitlines() if line.startswith("execution node")]
    assert said.startswith("execution node e1: lost in task Install; n[")
    assert said.endswith("done again on e2")
    assert "13 of 13 nodes converged" in result.stdout


def test_when_all_are_lost_every_host_without_a_result_is_named(fleet, tmp_path):
    result, parts = fleet("--on", "e[1-2]", "--shards", "3", lost=["e1", "e2"])
    assert result.exit_code == 3
    assert [hosts for _, hosts in parts.done] == [["ctl"]]
    assert "stopped: no execution node is left" in result.stdout
    assert "how far it got is not known: execution node e" in result.stdout
    assert "NOT TRIED n" in result.stdout
    (again,) = tmp_path.glob("state/apptainer-fleet/inventories/*/retry")
    assert again.read_text().split() == NODES


def test_a_failed_controller_stops_before_the_others(fleet):
    result, parts = fleet("--on", "e[1-2]", bad=["ctl"])
    assert result.exit_code == 3
    assert [hosts for _, hosts in parts.done] == [["ctl"]]
    assert "NOT TRIED n[01-12]" in result.stdout


def test_failures_are_merged(fleet):
    result, _ = fleet("--on", "e[1-2]", "--json", "--max-failed", "50%", bad=["n02", "n11"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["failed"] == {"n02": "disk full", "n11": "disk full"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shards", "2"], "name some with --on"),
        (["--on", "e[1-"], "--on: 'e[1-' is no hostlist"),
        (["--on", "@nobody"], "there is no group nobody"),
        (["--on", "e1", "--ssh-key", "/nowhere"], "--ssh-key /nowhere: no such file"),
    ],
)
def test_options_that_make_no_sense(fleet, arguments, said):
    result, parts = fleet(*arguments)
    assert isinstance(result.exception, FleetError)
    assert said in str(result.exception)
    assert parts.done == []


def test_what_is_sent_has_secrets_in_files_alone(inventory, tmp_path, monkeypatch):
    (inventory.parent / "group_vars").mkdir()
    (inventory.parent / "group_vars/all.yml").write_text("a: 1\n")
    key = tmp_path / "key"
    key.write_text("PRIVATE")
    ask = tmp_path / "ask"
    ask.write_text("#!/bin/sh\necho sesame\n")
    ask.chmod(0o700)
    monkeypatch.setenv(shards.VAULT, str(ask))
    kept: dict[str, Any] = {}

    def transmit(**arguments: Any) -> None:
        kept.update(arguments)
        private = Path(arguments["private_data_dir"])
        kept["files"] = {
            str(path.relative_to(private)): path for path in private.rglob("*") if path.is_file()
        }
        kept["texts"] = {name: kept["files"][name].read_text() for name in ("limit", "vault", "env/ssh_key")}
        kept["modes"] = {kept["files"][name].stat().st_mode & 0o777 for name in ("vault", "env/ssh_key")}

    monkeypatch.setattr(shards.ansible_runner.interface, "run", transmit)
    Job("playbooks/site.yml", [inventory], ["--check"], key).transmit(["n01", "n02"], tmp_path / "work")
    assert kept["texts"] == {"limit": "n01\nn02", "vault": "sesame\n", "env/ssh_key": "PRIVATE"}
    assert kept["modes"] == {0o600}
    assert {"sources/0/hosts.yml", "sources/0/group_vars/all.yml", "project/playbooks/site.yml"} <= set(
        kept["files"]
    )
    arguments = {name: value for name, value in kept.items() if name not in ("files", "texts", "modes")}
    assert "sesame" not in str(arguments)
    assert "PRIVATE" not in str(arguments)
    assert kept["cmdline"] == "--limit=@../limit --check -i ../sources/0/hosts.yml"
    # Nothing stays but the stream.
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["payload"]


class Receptor(threading.Thread):
    """Answers at a control socket: command → line; a submission takes a payload first."""

    def __init__(self, path: Path, answers: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self._answers, self.asked, self.payload = answers, list[dict[str, Any]](), b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()

    def run(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection, connection.makefile("rwb") as stream:
                stream.write(b"Receptor Control, node head\n")
                stream.flush()
                command = json.loads(stream.readline())
                self.asked.append(command)
                name = command.get("subcommand", command["command"])
                if name == "submit" and "refused" not in self._answers:
                    stream.write(b"Work unit created with ID u1. Send stdin data and EOF.\n")
                    stream.flush()
                    self.payload = stream.read()
                stream.write(self._answers[name].encode())
                stream.flush()


@pytest.fixture
def receptor(tmp_path: Path) -> Iterator[Callable[..., tuple[Receptor, Mesh]]]:
    def start(**answers: str) -> tuple[Receptor, Mesh]:
        thread = Receptor(tmp_path / "control", answers)
        thread.start()
        return thread, Mesh(tmp_path / "control")

    return start


def status(**offers: bool | None) -> str:
    """What Receptor says of a mesh: node → whether work is signed, None if it takes none."""
    advertisements = [
        {"NodeID": node, "WorkCommands": [{"WorkType": "ansible-runner", "Secure": secure}]}
        for node, secure in offers.items()
        if secure is not None
    ]
    return json.dumps({"RoutingTable": dict.fromkeys(offers, ""), "Advertisements": advertisements}) + "\n"


def test_work_is_signed_and_gets_its_payload(receptor, tmp_path):
    thread, mesh = receptor(submit='{"result": "Job Started", "unitid": "u1"}\n')
    (tmp_path / "payload").write_bytes(b"x" * 100_000)
    assert mesh.submit("e1", tmp_path / "payload") == "u1"
    (command,) = thread.asked
    assert (command["node"], command["worktype"], command["signwork"]) == ("e1", "ansible-runner", "true")
    assert len(thread.payload) == 100_000


def test_work_that_is_refused_after_its_payload_is_removed(receptor, tmp_path):
    thread, mesh = receptor(submit="ERROR: could not verify signature\n", release='{"released": "u1"}\n')
    (tmp_path / "payload").touch()
    with pytest.raises(MeshError, match="could not verify signature"):
        mesh.submit("e1", tmp_path / "payload")
    assert [command["subcommand"] for command in thread.asked] == ["submit", "release"]


@pytest.mark.parametrize(
    ("offers", "said"),
    [
        ({"e1": True}, "--on e2: not on the mesh, which has e1"),
        ({"e1": True, "e2": None}, "--on e2: has no work type ansible-runner"),
        ({"e1": True, "e2": False}, "--on e2: takes work that nobody has signed"),
    ],
)
def test_a_node_that_takes_no_signed_work_is_refused(receptor, offers, said, monkeypatch):
    monkeypatch.setattr("fleet.mesh._LOOKS", 1)
    _, mesh = receptor(status=status(**offers))
    with pytest.raises(FleetError, match=said):
        mesh.check(["e1", "e2"])


def test_a_mesh_as_it_has_to_be(receptor):
    _, mesh = receptor(status=status(e1=True, e2=True))
    mesh.check(["e1", "e2"])
    assert mesh.reaches("e2")
    assert not mesh.reaches("e3")


def test_no_mesh_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr("fleet.mesh._LOOKS", 1)
    with pytest.raises(FleetError, match="Receptor does not answer at"):
        Mesh(tmp_path / "control").check(["e1"])

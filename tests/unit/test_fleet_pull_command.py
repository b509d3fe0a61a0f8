"""fleet pull: how nodes are reached, how many at once, and what is made of what they answer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fleet import fanout
from fleet.errors import FleetError
from fleet.fanout import Reach
from fleet.hostlist import expand
from fleet.pull import lines, pull, read_result

GOOD = {
    "outcome": "converged",
    "commit": "a" * 40,
    "signer": "alice",
    "when": "2026-01-01T00:00:00",
    "message": "",
}
#: Stands for ssh: counts how many of it run at a time, and answers what is in the file of the node.
SSH = """\
#!/bin/sh
for last in "$@"; do :; done
node=; for word in "$@"; do [ "$word" = "$last" ] || node=$word; done
cd {folder}
echo "$*" >> arguments
mkdir running/$node && ls running | wc -l >> counts
{meanwhile}
rmdir running/$node
[ -e answers/$node ] && {{ cat answers/$node; exit 0; }}
echo "ssh: connect to host $node port 22: No route to host" >&2
exit 255
"""
#: Waits until so many run together, once; how fast this machine is has no part in it.
TOGETHER = """\
tries=0
while [ ! -e reached ] && [ $tries -lt 600 ]; do
    [ "$(ls running | wc -l)" -ge {many} ] && touch reached
    sleep 0.05; tries=$((tries + 1))
done"""


class Site:
    """An inventory of nodes that pull, and a program in the place of ssh."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        for name in ("bin", "running", "answers"):
            (folder / name).mkdir()
        self.inventory = folder / "hosts.yml"
        hosts = {"n[001-100]": {}}
        self.inventory.write_text(
            json.dumps(
                {"pull": {"hosts": hosts, "vars": {"ansible_user": "root"}}, "other": {"hosts": {"x": {}}}}
            )
        )
        self.ssh()
        monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")

    def ssh(self, meanwhile: str = "") -> None:
        path = self.folder / "bin/ssh"
        path.write_text(SSH.format(folder=self.folder, meanwhile=meanwhile))
        path.chmod(0o755)

    def answer(self, nodes: str, first: str = "0 new", **different: object) -> None:
        for node in expand(nodes):
            (self.folder / "answers" / node).write_text(f"{first}\n{json.dumps({**GOOD, **different})}\n")

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(pull, [arguments[0], "-i", str(self.inventory), *arguments[1:]])

    def most(self) -> int:
        """The most that ran at a time since the last look."""
        counts = self.folder / "counts"
        most = max(map(int, counts.read_text().split()))
        counts.unlink()
        return most


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_at_most_as_many_at_once_as_was_said(site: Site) -> None:
    site.answer("n[001-100]")
    site.ssh(TOGETHER.format(many=7))
    ended = site.run("trigger", "--at-once", "7")
    assert ended.exit_code == 0, ended.output
    assert site.most() == 7
    assert len((site.folder / "arguments").read_text().split("systemctl start")) == 101
    assert ended.output.splitlines() == [
        "CONVERGED n[001-100] at aaaaaaaaaaaa, signed by alice",
        "100 of 100 nodes have converged, 100 of them at aaaaaaaaaaaa",
    ]
    # It is the option that keeps them back.
    (site.folder / "reached").unlink()
    site.ssh(TOGETHER.format(many=8))
    site.run("trigger", "--at-once", "100")
    assert site.most() > 7


def test_what_nodes_answer_is_folded(site: Site) -> None:
    site.answer("n[001-090]")
    site.answer("n[091-092]", outcome="failed", message="Packages: no such version", commit="b" * 40)
    site.answer("n093", outcome="refused", message="it has no signature", commit="c" * 40)
    site.answer("n094", first="1 old")
    (site.folder / "answers/n095").write_text("Welcome!\n0 new\n")
    (site.folder / "answers/n096").write_text("0 new\n[]\n")
    (site.folder / "answers/n097").write_text("what?\n")
    ended = site.run("trigger")
    assert ended.exit_code == 2
    said = ended.output.splitlines()
    assert said[0] == "CONVERGED n[001-090] at aaaaaaaaaaaa, signed by alice"
    assert "FAILED    n[091-092] at bbbbbbbbbbbb: Packages: no such version" in said
    assert "REFUSED   n093 at cccccccccccc: it has no signature" in said
    assert any(line.startswith("ERROR     n094: systemctl start ended with status 1") for line in said)
    assert any(line.startswith("NEVER     n095: has no result") for line in said)
    assert "BROKEN    n096: its result is no JSON object" in said
    assert any(line.startswith("BROKEN    n097: answered 'what?'") for line in said)
    assert sum(line.startswith("SILENT    n") and "No route to host" in line for line in said) == 3
    assert said[-1] == "90 of 100 nodes have converged, 90 of them at aaaaaaaaaaaa"


def test_status_starts_nothing(site: Site) -> None:
    site.answer("n[001-003]")
    ended = site.run("status", "--limit", "n[001-004]", "--json")
    assert ended.exit_code == 4
    assert {name: state["outcome"] for name, state in json.loads(ended.stdout).items()} == {
        **dict.fromkeys(("n001", "n002", "n003"), "converged"),
        "n004": "silent",
    }
    assert "systemctl" not in (site.folder / "arguments").read_text()


def test_status_from_a_folder_asks_nobody(site: Site) -> None:
    results = site.folder / "results"
    results.mkdir()
    for node in ("n001", "n002"):
        (results / f"{node}.json").write_text(json.dumps({"node": node, **GOOD}))
    ended = site.run("status", "--limit", "n[001-003]", "--results", str(results))
    assert ended.exit_code == 2
    assert ended.output.splitlines()[1].startswith("NEVER     n003: has put no result into")
    assert not (site.folder / "arguments").exists()


@pytest.mark.parametrize(
    ("limit", "said"),
    [("x", "x not in group pull"), ("n[101-102]", "not in the inventory"), ("@no", "no group no")],
)
def test_nodes_that_do_not_pull_are_refused(site: Site, limit: str, said: str) -> None:
    ended = site.run("trigger", "--limit", limit)
    assert isinstance(ended.exception, FleetError)
    assert said in str(ended.exception)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"outcome": 3}', '{"outcome": ""}'])
def test_a_result_that_is_none(text: str) -> None:
    assert read_result(text).outcome == "broken"


def test_a_result_can_not_write_to_the_terminal() -> None:
    state = read_result(json.dumps({"outcome": "failed", "message": "a\x1b[2Jb\nc"}))
    assert state.message == "a [2Jb c"
    assert next(lines({"n1": state})) == "FAILED    n1: a [2Jb c"


def test_nodes_are_reached_as_ansible_reaches_them() -> None:
    reaches = {
        "n1": Reach(
            address="10.0.0.1", user="root", port="2222", key="/k", arguments="-F /lab/config -o A=b"
        ),
        "n2": Reach(user="root", port="2222", key="/k", arguments="-F /lab/config -o A=b"),
        "n3": Reach(address="n3"),
    }
    assert fanout.ssh_config(reaches).splitlines() == [
        *(
            "Host n1 n2",
            "  User root",
            "  Port 2222",
            '  IdentityFile "/k"',
            "Host n1",
            "  HostName 10.0.0.1",
        ),
        *("Match all", '  Include "/lab/config"'),
    ]
    assert fanout.options(reaches["n1"].arguments) == ["-o", "A=b"]


def test_a_command_that_takes_too_long_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path, monkeypatch)
    site.ssh("sleep 30")
    answers = fanout.run_on_nodes(["n1"], "true", seconds=1)
    assert (answers["n1"].status, answers["n1"].reached) == (None, False)

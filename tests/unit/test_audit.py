"""`fleet audit`: what nodes say becomes one audit, is kept, compared, and told to people and programs."""

from __future__ import annotations

import datetime
import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import audit_fleet
import pytest
import yaml
from click.testing import CliRunner, Result

from fleet.audit import cli, report, run
from fleet.audit.history import History, HistoryError
from fleet.audit.model import Audit, Finding, unreachable
from fleet.cli import cli as fleet
from fleet.playbook import Failure, PlaybookResult

BAD = Finding(
    "drift", "files", "error", "/etc/apptainer/apptainer.conf", "content differs", "run fleet site",
    "/etc/apptainer/apptainer.conf", 12, "now 'allow setuid = yes'",
)  # fmt: skip
WARN = Finding("rule", "L19", "warning", "mount slave", "empty folders", "set it", waived="")
WAIVED = Finding(
    "advisory", "CVE-1", "error", "CVE-1", "old", "upgrade", waived="waived until 2027-01-01: soon"
)
NOTE = Finding("audit", "setuid", "info", "setuid", "only a part", "longer")
SCHEMA = Path(__file__).parent / "data/sarif/sarif-2.1.0-rtm.5.json"
NODES = {f"c{number}" for number in range(1, 5)}


def audit(*found: tuple[Finding, set[str]], at: float = 1000.0, **more: Any) -> Audit:
    return Audit(at, set(NODES), dict(found), {node: {"apptainer": "1.4.5"} for node in NODES}, **more)


def result(nodes: dict[str, dict[str, Any]], *lost: Failure) -> PlaybookResult:
    hosts = frozenset([*nodes, *(one.host for one in lost)])
    return PlaybookResult(4 if lost else 0, {}, [], "", results=nodes, lost=list(lost), hosts=hosts)


# --- asking -------------------------------------------------------------------------------------------------


class Nodes:
    """Nodes that answer run_playbook: node → what the module returns, or a Failure."""

    def __init__(self, answers: dict[str, Any], shared: dict[str, Any] | None = None) -> None:
        self.answers, self.shared = answers, shared or {}
        self.asked: list[tuple[list[str], Any]] = []

    def __call__(self, *_: Any, limit: list[str], variables: Any = None, **__: Any) -> PlaybookResult:
        self.asked.append((list(limit), variables))
        answers = self.shared if variables else self.answers
        lost = [answers[node] for node in limit if isinstance(answers[node], Failure)]
        return result(
            {node: answers[node] for node in limit if not isinstance(answers[node], Failure)}, *lost
        )


def ask(monkeypatch: pytest.MonkeyPatch, nodes: Nodes, batch: int = 500) -> Audit:
    monkeypatch.setattr(run, "run_playbook", nodes)
    return run.audit([Path("i")], sorted(nodes.answers), batch, 5, cli.console)


def said(*findings: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"findings": list(findings), "facts": {"apptainer": "1.4.5"}, "stores": [], **more}


def row(**values: Any) -> dict[str, Any]:
    return {
        **dict.fromkeys(Finding._fields, ""), "line": 0, "severity": "error",
        "source": "drift", **values,
    }  # fmt: skip


def test_what_nodes_say_is_folded_and_who_is_silent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(
        {
            "c1": said(row(subject="x")),
            "c2": said(row(subject="x")),
            "c3": Failure("c3", "Audit", "ssh: no route to host c3", unreachable=True),
            "c4": Failure("c4", "Audit", "python is broken"),
        }
    )
    made = ask(monkeypatch, nodes, batch=3)
    assert [limit for limit, _ in nodes.asked] == [["c1", "c2", "c3"], ["c4"]]
    assert {finding.rule: hosts for finding, hosts in made.found.items()} == {
        "": {"c1", "c2"}, "unreachable": {"c3"}, "failed": {"c4"},
    }  # fmt: skip
    assert made.unreachable == {"c3"} and made.nodes == NODES
    assert "python is broken" in next(one for one in made.found if one.rule == "failed").message
    assert set(made.facts) == {"c1", "c2"}


SHARED = {"id": "nfs s:/x /", "path": "/x", "shared": True}


def test_a_shared_store_is_judged_by_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = row(source="image", subject="/x/bad.sif")
    nodes = Nodes(
        {
            node: said(stores=[SHARED, {"id": "/l", "path": "/l", "shared": False, "images": 1}])
            for node in NODES
        },
        {"c1": said(verdict, stores=[{**SHARED, "images": 7, "refused": 1}])},
    )
    made = ask(monkeypatch, nodes, batch=2)
    assert nodes.asked[-1] == (["c1"], {"audit_stores": {"c1": [SHARED["id"]]}})
    assert len(nodes.asked) == 3
    assert [hosts for finding, hosts in made.found.items() if finding.source == "image"] == [{"c1"}]
    local, shared = made.stores
    assert local["nodes"] == shared["nodes"] == sorted(NODES)
    assert (shared["judged_by"], shared["images"]) == ("c1", 7)


def test_if_one_node_can_not_judge_it_another_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Failure("c1", "Audit", "", unreachable=True)
    no = said(row(source="audit", subject="/x", message="no answer"), stores=[SHARED])
    nodes = Nodes(
        {node: said(stores=[SHARED]) for node in NODES},
        {"c1": lost, "c2": no, "c3": said(stores=[{**SHARED, "images": 0, "refused": 0}])},
    )
    made = ask(monkeypatch, nodes)
    assert made.stores[0]["judged_by"] == "c3" and not made.found
    nodes.shared["c3"] = no
    made = ask(monkeypatch, nodes)
    assert [finding.message for finding in made.found] == ["no answer"]
    nodes.shared = dict.fromkeys(NODES, lost)
    made = ask(monkeypatch, nodes)
    assert [finding.rule for finding in made.found] == ["images"]


def test_what_a_node_says_is_data_alone() -> None:
    odd = Finding.of({**row(severity="none of these"), "nodes": "x", "line": "3"})
    assert (odd.severity, odd.line) == ("error", 3)


def test_the_play_is_for_the_groups_that_are_asked() -> None:
    (play,) = yaml.safe_load(run.PLAYBOOK.read_text())
    assert sorted(play["hosts"].split(":")) == sorted(run.groups())
    assert play["tasks"][-1]["name"] == run.TASK and len(play["tasks"][-1]) == 2


# --- history ------------------------------------------------------------------------------------------------


def test_an_audit_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    history = History(tmp_path / "state")
    made = audit((BAD, {"c1", "c3"}), (WAIVED, {"c2"}), stores=[{"id": "x", "nodes": ["c1"]}])
    made.facts["c4"]["health"] = "unhealthy"
    assert history.add(made) == 1
    assert History(tmp_path / "state").read(1) == made
    assert stat.S_IMODE((tmp_path / "state/audit.sqlite").stat().st_mode) == 0o600


def test_names_that_are_no_hostlist_are_kept_too(tmp_path: Path) -> None:
    odd = Audit(1.0, {"a b", "c"}, {BAD: {"a b"}})
    history = History(tmp_path)
    assert history.read(history.add(odd)) == odd


def test_the_text_of_a_finding_stands_once(tmp_path: Path) -> None:
    history = History(tmp_path)
    for _ in range(3):
        history.add(audit((BAD, {"c1"})))
    assert history._db.execute("SELECT count(*) FROM finding").fetchone() == (1,)


def test_audits_are_found_by_number_and_by_time(tmp_path: Path) -> None:
    history = History(tmp_path)
    with pytest.raises(HistoryError, match="no audit yet"):
        history.find("-1")
    days = [datetime.datetime(2026, 11, day, 12).astimezone().timestamp() for day in (1, 2, 3)]
    for at in days:
        history.add(audit(at=at))
    found = {text: history.find(text) for text in ("2", "-1", "-3", "2026-11-02", "2026-11-02T11:00")}
    assert found == {"2": 2, "-1": 3, "-3": 1, "2026-11-02": 2, "2026-11-02T11:00": 1}
    for text in ("9", "-4", "2026-10-31", "soon"):
        with pytest.raises(HistoryError):
            history.find(text)


def test_a_history_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "audit.sqlite").write_text("no database, but long enough to be read as one" * 100)
    with pytest.raises(HistoryError, match="move the file away"):
        History(tmp_path)


def test_half_an_audit_is_not_kept(tmp_path: Path) -> None:
    history = History(tmp_path)
    broken = audit((BAD, {"c1"}))
    broken.facts["c1"] = {"odd": object()}  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        history.add(broken)
    assert history.audits() == []
    assert history._db.execute("SELECT count(*) FROM found").fetchone() == (0,)


# --- difference ---------------------------------------------------------------------------------------------


def test_what_is_new_what_is_gone_and_what_has_changed() -> None:
    before, after = audit((BAD, {"c1", "c2"}), (WARN, {"c4"})), audit((BAD, {"c2", "c3"}), at=2000.0)
    after.facts["c1"] = {"apptainer": "1.5.0"}
    after.nodes.add("c9")
    made = report.compare(before, after)
    assert made.new == {BAD: {"c3"}} and made.gone == {BAD: {"c1"}, WARN: {"c4"}}
    assert made.facts == {("apptainer", "1.4.5", "1.5.0"): {"c1"}} and made.joined == {"c9"}
    assert made.worse and not report.compare(before, audit()).worse
    text = "\n".join(report.difference_lines(made))
    assert "NEW  ERROR c3: content differs" in text and "GONE ERROR c1:" in text
    assert "c1: apptainer: 1.4.5 → 1.5.0" in text and "JOINED c9" in text


def test_other_figures_are_no_difference_and_a_waiver_is_one() -> None:
    other = BAD._replace(line=99, message="content differs more")
    assert not report.compare(audit((BAD, {"c1"})), audit((other, {"c1"}))).new
    waived = BAD._replace(waived="waived")
    made = report.compare(audit((BAD, {"c1"})), audit((waived, {"c1"})))
    assert (made.new, made.gone, made.worse) == ({waived: {"c1"}}, {BAD: {"c1"}}, False)
    assert "nothing has changed" in "\n".join(report.difference_lines(report.compare(audit(), audit())))


def test_findings_of_a_node_that_is_silent_are_neither_gone_nor_new() -> None:
    silent = audit((unreachable(), {"c1"}))
    made = report.compare(audit((BAD, {"c1", "c2"})), silent)
    assert made.gone == {BAD: {"c2"}} and made.new == {unreachable(): {"c1"}}
    assert report.compare(silent, audit((BAD, {"c1"}))).new == {}


# --- reports ------------------------------------------------------------------------------------------------

FULL = audit(
    (BAD, {"c1", "c2", "c3"}), (WARN, {"c1"}), (WAIVED, {"c2"}), (NOTE, {"c4"}), (unreachable(), {"c3"})
)


def test_text_names_nodes_file_line_and_mend() -> None:
    lines = list(report.lines(FULL))
    assert lines[0] == (
        "ERROR c[1-3]: content differs (now 'allow setuid = yes') [/etc/apptainer/apptainer.conf:12]"
    )
    assert lines[1] == "    mend: run fleet site"
    assert not [line for line in lines if "CVE-1" in line or "only a part" in line]
    assert [line for line in report.lines(FULL, verbose=True) if "CVE-1" in line or "only a part" in line]
    assert lines[-1].startswith(
        "1 of 4 nodes have nothing to mend; findings: 4 error, 1 warning, 1 info, 1 waived"
    )


def test_what_a_node_says_moves_no_cursor() -> None:
    odd = audit((Finding("rule", "x", "error", "x", "a\x1b[2Jb\nERROR c9: c", "m"), {"c1"}))
    assert len(list(report.lines(odd))) == 3 and "\x1b" not in "".join(report.lines(odd))


def test_json_has_everything() -> None:
    data = json.loads(report.as_json(FULL))
    assert data["findings"][0]["nodes"] == ["c1", "c2", "c3"] and data["findings"][0]["line"] == 12
    assert data["unreachable"] == ["c3"] and data["facts"]["c1"] == {"apptainer": "1.4.5"}


def test_junit() -> None:
    top = ElementTree.fromstring(report.as_junit(FULL))  # noqa: S314 - our own
    suites = {suite.get("name"): suite for suite in top}
    drift = suites["drift"]
    assert (drift.get("tests"), drift.get("failures"), drift.get("skipped")) == ("3", "3", "0")
    case = drift[0]
    assert case.get("classname") == "drift.c1" and "apptainer.conf:12" in (case[0].get("message") or "")
    assert suites["advisory"].get("skipped") == "1" and suites["audit"].get("failures") == "1"
    assert [case.get("classname") for case in suites["nodes"]] == ["nodes.c4"]


def test_sarif() -> None:
    data = json.loads(report.as_sarif(FULL, "1.2.3"))
    (run_,) = data["runs"]
    assert data["version"] == "2.1.0" and run_["tool"]["driver"]["version"] == "1.2.3"
    by_rule = {one["ruleId"]: one for one in run_["results"]}
    drift = by_rule["drift/files"]
    (location,) = drift["locations"]
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": "etc/apptainer/apptainer.conf", "uriBaseId": "NODE"},
        "region": {"startLine": 12},
    }
    assert [one["name"] for one in location["logicalLocations"]] == ["c1", "c2", "c3"]
    assert (drift["level"], by_rule["audit/setuid"]["level"]) == ("error", "note")
    assert by_rule["advisory/CVE-1"]["suppressions"][0]["justification"].startswith("waived until")
    rules = run_["tool"]["driver"]["rules"]
    assert all(rules[one["ruleIndex"]]["id"] == one["ruleId"] for one in run_["results"])


@pytest.mark.parametrize("made", [FULL, Audit(0.0, {"c1"}), audit_fleet.audit(60)])
def test_sarif_is_what_its_schema_says(made: Audit) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft4Validator(json.loads(SCHEMA.read_text()))
    data = json.loads(report.as_sarif(made, "1.2.3"))
    assert [error.message for error in validator.iter_errors(data)] == []
    for wrong in ({"level": "bad"}, {"ruleIndex": "1"}, {"messages": {}}):
        data["runs"][0]["results"] = [{"message": {"text": "x"}, **wrong}]
        assert not validator.is_valid(data)


#: Element → its children, attributes that have to be there, and others; as Ant and Jenkins have them.
JUNIT = {
    "testsuites": (["testsuite"], ["name"], []),
    "testsuite": (["testcase"], ["name", "tests", "failures", "errors", "skipped", "timestamp"], []),
    "testcase": (["skipped", "failure"], ["name", "classname"], []),
    "skipped": ([], [], ["message"]),
    "failure": ([], ["message", "type"], []),
}


@pytest.mark.parametrize("made", [FULL, Audit(0.0, {"c1"}), audit_fleet.audit(60)])
def test_junit_is_built_as_ci_servers_expect_it(made: Audit) -> None:
    top = ElementTree.fromstring(report.as_junit(made))  # noqa: S314 - our own
    assert top.tag == "testsuites"
    for element in top.iter():
        children, needed, optional = JUNIT[element.tag]
        assert {child.tag for child in element} <= set(children)
        assert set(needed) <= set(element.attrib) <= {*needed, *optional}
    for suite in top:
        counted = [len(suite), *(len(suite.findall(f"testcase/{what}")) for what in ("failure", "skipped"))]
        assert [int(suite.attrib[name]) for name in ("tests", "failures", "skipped")] == counted
        # Local time without an offset is what xs:dateTime of Ant's schema means by it.
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])


# --- command ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(
        "all: {children: {apptainer: {hosts: {c1: , c2: , c3: , c4: }}, other: {hosts: {x: }}}}\n"
    )

    def call(*arguments: str, answer: Audit | None = None) -> Result:
        monkeypatch.setattr(run, "audit", lambda _sources, hosts, *_: answer or Audit(5.0, set(hosts)))
        options = ["-i", str(inventory), "--state", str(tmp_path / "state")]
        at = 1 if arguments[:1] in (("show",), ("list",), ("diff",)) else 0
        return CliRunner().invoke(fleet, ["audit", *arguments[:at], *options, *arguments[at:]])

    return call


@pytest.mark.parametrize(
    ("found", "options", "status"),
    [
        ([], [], 0),
        ([BAD, unreachable(), WARN], [], 2),
        ([WARN, unreachable()], [], 4),
        ([WARN], [], 3),
        ([WARN], ["--fail-on=error"], 0),
        ([BAD], ["--fail-on=never"], 0),
        ([WAIVED, NOTE], [], 0),
    ],
)
def test_the_exit_status_says_how_bad_it_is(
    command: Callable[..., Result], found: list[Finding], options: list[str], status: int
) -> None:
    answer = audit(*((finding, {"c1"}) for finding in found))
    assert command(*options, answer=answer).exit_code == status


def test_audits_are_kept_shown_listed_and_compared(command: Callable[..., Result], tmp_path: Path) -> None:
    assert command().exit_code == 0
    assert command("--forget", answer=audit((BAD, {"c1"}))).exit_code == 2
    outputs = ["--junit", str(tmp_path / "j.xml"), "--sarif", str(tmp_path / "s.json")]
    assert command(*outputs, answer=audit((BAD, {"c1"}))).exit_code == 2
    assert (tmp_path / "j.xml").read_text() and json.loads((tmp_path / "s.json").read_text())
    listed = command("list").output.splitlines()
    assert [line.split()[0] for line in listed] == ["2", "1"]
    differs = command("diff")
    assert differs.exit_code == 2 and "NEW  ERROR c1" in differs.output
    assert command("diff", "2", "1").exit_code == 0
    assert [one["nodes"] for one in json.loads(command("diff", "--json").output)["new"]] == [["c1"]]
    assert command("show").exit_code == 2 and command("show", "1").exit_code == 0
    assert json.loads(command("show", "--json", "--fail-on=never").output)["audit"] == 2


def test_what_is_wrong_with_the_command_is_said_before_anything_is_asked(
    command: Callable[..., Result],
) -> None:
    assert "options stand behind the command" in CliRunner().invoke(fleet, ["audit", "-v", "list"]).output
    error = command("--limit=x").exception
    assert "none of these nodes is configured" in str(error)
    error = command("--junit", "/no/such/folder/x.xml").exception
    assert "/no/such/folder/x.xml" in str(error)

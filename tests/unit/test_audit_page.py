"""The page of an audit: everything is in it and in nothing else, and what nodes say stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import audit_fleet
import pytest

from fleet.audit import page
from fleet.audit.history import History
from fleet.audit.model import Audit, Finding, Summary
from fleet.runs import Run

NODES = 60


class Page(HTMLParser):
    """The elements of a page: name, attributes, and the text of each row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.rows:
            attributes, text = self.rows[-1]
            self.rows[-1] = attributes, f"{text} {data}"

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text() -> str:
    past = [Summary.of(audit_fleet.audit(NODES, number)) for number in range(20, 30)]
    parts = [("good", 40, "done"), ("v7", 20, "pending")]
    rollouts = [{"title": "apptainer 1.5.3", "said": "40 done, 20 pending", "parts": parts}]
    return page.render(audit_fleet.audit(NODES), "example", past, rollouts)


def test_it_needs_nothing_from_anywhere(text: str) -> None:
    made = Page(text)
    assert not [one for tag, one in made.elements if "src" in one or tag in ("link", "img", "iframe")]
    (policy,) = [one["content"] for one in made.of("meta") if one.get("http-equiv")]
    digest = re.search(r"script-src 'sha256-([^']+)'", policy or "")
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    assert digest and digest[1] == base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (policy or "").startswith("default-src 'none'") and "url(" not in text and "@import" not in text


def test_what_nodes_say_is_text(text: str) -> None:
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert len(Page(text).of("script")) == 2


def test_a_name_of_a_node_ends_no_script() -> None:
    made = page.render(Audit(1.0, {"</script><b>"}), "x")
    assert "</script><b>" not in made
    assert json.loads(re.search(r'id="names">(.*?)</script>', made)[1]) == ["</script><b>"]  # type: ignore[index]


def test_a_finding_has_its_nodes_place_and_mend(text: str) -> None:
    made = Page(text)
    (row,) = [row for row in made.rows if "allow setuid = yes" in row[1]]
    attributes, words = row
    assert attributes["data-n"] == str(NODES - 1)
    assert {"data-severity": "error", "data-source": "drift"}.items() <= attributes.items()
    assert "/etc/apptainer/apptainer.conf:31" in words and "run fleet site" in words and "r002n10" in words


def test_rows_have_the_numbers_of_their_nodes_among_all_names() -> None:
    order = {name: number for number, name in enumerate("abcdefg")}
    assert page._indices("abcf", order) == "0-2,5" and page._indices("bg", order) == "1,6"
    assert page._indices([], order) == ""


def test_alike_nodes_share_a_row_and_it_leads_to_their_findings(text: str) -> None:
    made = Page(text)
    groups = [row for row in made.rows if "data-n" in row[0] and "data-source" not in row[0]]
    assert 1 < len(groups) < NODES
    ids = {attributes.get("id") for attributes, _ in made.rows}
    links = {one["href"][1:] for one in made.of("a") if (one.get("href") or "").startswith("#f")}  # type: ignore[index]
    assert links - {"findings"} and links - {"findings"} <= ids


def test_what_screen_readers_and_keyboards_need(text: str) -> None:
    made = Page(text)
    labelled = {one["for"] for one in made.of("label")}
    fields = {one["id"] for tag in ("input", "select") for one in made.of(tag)}
    assert fields == labelled == {"search", "severity", "source"}
    assert all(one.get("scope") == "col" for one in made.of("th")) and made.of("html")[0]["lang"] == "en"
    assert all(one.get("aria-label") for one in made.of("svg") if one.get("role") == "img")
    assert made.of("a")[0]["class"] == "skip" and made.of("output")[0]["aria-live"] == "polite"


def test_plots_show_what_was_before(text: str) -> None:
    assert len(re.findall(r"nodes, 1\.5\.3-1", text)) == 11
    assert "40 done, 20 pending" in text and "security profile holds on" in text


def test_without_a_past_findings_or_nodes_that_answer() -> None:
    made = page.render(Audit(1.0, {"c1"}), "x")
    assert "Nothing was found." in made and "there was no rollout" in made


def test_what_is_too_much_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "FINDINGS", 5)
    monkeypatch.setattr(page, "GROUPS", 7)
    audit = audit_fleet.worst(NODES)
    made = page.render(audit, "x")
    assert f"{len(audit.found) - 5} more are not shown here" in made
    assert made.count("data-source=") == 5


def test_only_links_to_the_web_are_links() -> None:
    def link(reference: str) -> str:
        finding = Finding("rule", "x", "error", "x", "m", "m", reference=reference)
        return page.render(Audit(1.0, {"c"}, {finding: {"c"}}), "x")

    assert 'href="https://example.org/x"' in link("https://example.org/x")
    assert 'href="javascript' not in link("javascript:alert(1)")


def test_numbers_of_the_past_come_from_the_history(tmp_path: Path) -> None:
    history = History(tmp_path)
    made = [audit_fleet.audit(NODES, number) for number in (1, 2, 3)]
    for audit in made:
        history.add(audit)
    past = history.before(3, 60)
    assert [one.at for one in past] == [made[0].at, made[1].at]
    assert dict(past[0].versions) == dict(Summary.of(made[0]).versions)
    assert {name: n for name, n in Summary.of(made[0]).counts.items() if n} == dict(past[0].counts)
    assert len(history.before(0, 60)) == 3 and len(history.before(3, 1)) == 1


def test_runs_of_playbooks_are_there_with_who_and_how_hosts_ended() -> None:
    hosts = {f"n{number:02}": "ok" for number in range(40)} | {"n07": "failed", "n08": "unreachable"}
    many = [Run(1795478400.0 + number, "site.yml", "<b>ada</b>", 1795478640.0, hosts) for number in range(30)]
    many[0].ended = 0
    text = page.render(audit_fleet.audit(NODES), "example", runs=many)
    rows = [said for _, said in Page(text).rows if "site.yml" in said]
    assert len(rows) == page.RUNS and "<b>ada" not in text
    assert "it has not ended" in rows[0] and "4.0" in rows[1]
    assert "1 unreachable" in rows[0] and "n08" in rows[0] and "1 failed" in rows[0] and "38 ok" in rows[0]
    assert "Runs of playbooks" not in page.render(audit_fleet.audit(NODES), "example")

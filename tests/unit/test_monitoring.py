"""Metrics: what is written is what Prometheus reads, what docs name, and all that alerts ask for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import audit_fleet
import pytest
import yaml

from fleet.audit import metrics
from module_utils import image_scan, node_metrics, node_record, prometheus, pull
from module_utils.prometheus import Gauge

PROJECT = Path(__file__).parents[2]
MONITORING = PROJECT / "docs/examples/monitoring"
NAME = re.compile(r"apptainer_fleet_[a-z_]+")
LINE = re.compile(
    r'([a-z_]+)(\{[a-z_]+="(?:[^"\\\n]|\\["\\n])*"(?:,[a-z_]+="(?:[^"\\\n]|\\["\\n])*")*\})? (-?[\d.e+]+)'
)
CHECKS = {
    "disk": {"ok": True, "message": "", "seconds": 0.5},
    "clock": {"ok": False, "message": "x", "seconds": 1.0},
}
PULLED = {
    "outcome": "failed", "when": "2026-11-24T10:00:00+00:00", "duration": 12.5,
    "converged": {"commit": "0123", "when": "2026-11-23T10:00:00+00:00"},
}  # fmt: skip


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a node writes, which has everything."""
    (tmp_path / "pull.json").write_text(json.dumps(PULLED))
    state = {"files": {}, "packages": {"apptainer": "1.4.5-2"}}
    (tmp_path / "record.json").write_text(node_record.text(node_record.Watch(), state))
    monkeypatch.setattr(pull, "RESULT", str(tmp_path / "pull.json"))
    monkeypatch.setattr(node_record, "PATH", str(tmp_path / "record.json"))
    node_metrics.write(str(tmp_path / "deep/node.prom"), CHECKS, 1000.7)
    return tmp_path / "deep/node.prom"


def values(text: str) -> dict[str, float]:
    found = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            assert LINE.fullmatch(line), line
            key, _, value = line.rpartition(" ")
            assert key not in found
            found[key] = float(value)
    kinds = re.findall(r"^# TYPE (\S+) gauge$", text, re.MULTILINE)
    assert sorted(kinds) == sorted({key.partition("{")[0] for key in found})
    return found


def test_a_node_says_how_it_is(node: Path) -> None:
    found = values(node.read_text())
    assert found == {
        "apptainer_fleet_node_healthy": 0,
        'apptainer_fleet_node_health_check{check="disk"}': 1,
        'apptainer_fleet_node_health_check{check="clock"}': 0,
        'apptainer_fleet_node_health_check_seconds{check="disk"}': 0.5,
        'apptainer_fleet_node_health_check_seconds{check="clock"}': 1,
        "apptainer_fleet_node_health_timestamp_seconds": 1000,
        'apptainer_fleet_pull_outcome{outcome="failed"}': 1,
        "apptainer_fleet_pull_timestamp_seconds": 1795514400,
        "apptainer_fleet_pull_seconds": 12.5,
        "apptainer_fleet_pull_converged_timestamp_seconds": 1795428000,
        "apptainer_fleet_record_timestamp_seconds": found["apptainer_fleet_record_timestamp_seconds"],
        'apptainer_fleet_record_info{apptainer="1.4.5-2"}': 1,
    }
    assert node.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"outcome": "x", "when": "soon", "duration": 1}'])
def test_what_is_not_there_or_damaged_has_no_metric(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_text(content)
    assert node_metrics.last_pull(str(file)) == [] and node_metrics.last_converge(str(file)) == []


def test_an_audit_in_numbers() -> None:
    audit = audit_fleet.audit(60)
    found = values(metrics.render(audit, "site"))
    states = [
        found[f'apptainer_fleet_audit_nodes{{inventory="site",state="{state}"}}']
        for state in ("good", "bad", "unreachable")
    ]
    assert sum(states) == 60 and states[0] == 60 - len(audit.bad_nodes())
    assert found['apptainer_fleet_audit_findings{inventory="site",source="image",severity="error"}'] == 1
    assert found['apptainer_fleet_audit_waived{inventory="site",source="rule"}'] == 30
    versions = [value for key, value in found.items() if key.startswith("apptainer_fleet_audit_versions")]
    assert sum(versions) == len(audit.facts)


def test_labels_are_escaped() -> None:
    text = prometheus.text([Gauge("_x", "X.", [({"store": 'a"b\\c\nd'}, 1)])])
    assert text.splitlines()[2] == 'apptainer_fleet_x{store="a\\"b\\\\c\\nd"} 1' and values(text)
    assert prometheus.text([Gauge("_x", "X.", [])]) == ""


@pytest.fixture
def written(node: Path) -> set[str]:
    """Names of all metrics that anything writes."""
    summary = image_scan.Summary(images=1, findings={("labels", "error"): 1})
    texts = [
        node.read_text(),
        metrics.render(audit_fleet.audit(60), "x"),
        "\n".join(image_scan._metrics(summary, 1.0, 1.0)),
    ]
    return {name for text in texts for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)}


def documented() -> dict[str, set[str]]:
    """Metric → its labels, as the documentation has them."""
    rows = re.findall(
        r"^\| `(apptainer_fleet_\w+)` \| ([^|]*)\|",
        (PROJECT / "docs/monitoring.md").read_text(),
        re.MULTILINE,
    )
    return {name: set(re.findall(r"\w+", text)) for name, text in rows}


def selected(expression: str) -> dict[str, set[str]]:
    """Metric → the labels that *expression* selects by."""
    found = re.findall(r"(apptainer_fleet_[a-z_]+)(?:\{([^}]*)\})?", expression)
    return {name: set(re.findall(r"(\w+)\s*[=!]", labels)) for name, labels in found}


def shown(text: str, pattern: str) -> set[str]:
    """Labels that *text* puts in, but for those that Prometheus has by itself."""
    return set(re.findall(pattern, text)) - {"instance"}


def test_docs_name_all_metrics_with_their_labels_and_no_other(written: set[str], node: Path) -> None:
    labels = documented()
    assert set(labels) == written
    for key in [*values(node.read_text()), *values(metrics.render(audit_fleet.audit(60), "x"))]:
        name, _, pairs = key.partition("{")
        assert set(re.findall(r'(\w+)="', pairs)) - {"inventory"} == labels[name]


def test_alerts_ask_for_what_is_written(written: set[str]) -> None:
    rules: list[dict[str, Any]] = [
        rule
        for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
        for rule in group["rules"]
    ]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 10
    for rule in rules:
        assert set(NAME.findall(rule["expr"])) <= written and NAME.search(rule["expr"])
        for name, labels in selected(rule["expr"]).items():
            known = documented()[name] | ({"inventory"} if "_audit_" in name else set())
            told = shown(str(rule["annotations"]), r"\$labels\.(\w+)")
            assert labels <= known and told <= known, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"] and rule["annotations"]["description"]


def test_the_dashboard_asks_for_what_is_written(written: set[str]) -> None:
    board = json.loads((MONITORING / "dashboard.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert {name for text in asked for name in NAME.findall(text)} <= written
    assert all(NAME.search(text) for text in asked)
    for panel in board["panels"]:
        for target in panel["targets"]:
            for name, labels in selected(target["expr"]).items():
                known = documented()[name] | ({"inventory"} if "_audit_" in name else set())
                told = shown(target["legendFormat"], r"\{\{(\w+)\}\}")
                assert labels <= known and told <= known, panel["title"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [panel["gridPos"] for panel in board["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)

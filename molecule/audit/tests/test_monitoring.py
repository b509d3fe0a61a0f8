"""What nodes and the controller write for Prometheus, and the alert rules, are what its own program takes."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

testinfra_hosts = ["c2"]

SCENARIO = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
MONITORING = SCENARIO.parents[1] / "docs/examples/monitoring"
PROGRAM = "/usr/lib/apptainer-fleet/node-health.pyz"
FILE = "/var/lib/apptainer-fleet/node-health.prom"


def put(host, text, path):
    host.check_output(f"echo {base64.b64encode(text.encode()).decode()} | base64 --decode > {path}")


def test_promtool_takes_what_a_node_writes(host):
    host.run(f"python3 -I {PROGRAM}")
    text = host.check_output(f"cat {FILE}")
    assert "apptainer_fleet_node_healthy 1" in text
    assert 'apptainer_fleet_record_info{apptainer="' in text and 'check="container"' in text
    assert host.check_output(f"promtool check metrics < {FILE}") == ""


def test_promtool_takes_the_alert_rules(host):
    put(host, (MONITORING / "alerts.yml").read_text(), "/root/alerts.yml")
    assert "SUCCESS" in host.check_output("promtool check rules /root/alerts.yml")
    put(host, (MONITORING / "alerts_test.yml").read_text(), "/root/alerts_test.yml")
    assert "SUCCESS" in host.check_output("promtool test rules /root/alerts_test.yml")


def test_promtool_takes_what_the_dashboard_asks(host):
    board = json.loads((MONITORING / "dashboard.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = [{"record": f"x:{number}", "expr": text} for number, text in enumerate(asked)]
    put(host, json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), "/root/board.yml")
    said = host.check_output("promtool check rules /root/board.yml")
    assert f"SUCCESS: {len(asked)} rules found" in said


def test_promtool_takes_what_the_controller_writes(host, tmp_path):
    file = tmp_path / "audit.prom"
    fleet = str(Path(sys.executable).with_name("fleet"))
    where = ["-i", str(SCENARIO / "inventory"), "--state", str(tmp_path)]
    argv = [fleet, "audit", *where, "--metrics", str(file), "--fail-on=never"]
    subprocess.run(argv, check=True, capture_output=True)
    text = file.read_text()
    assert 'apptainer_fleet_audit_nodes{inventory="inventory",state="good"} 2' in text
    encoded = base64.b64encode(text.encode()).decode()
    assert host.check_output(f"echo {encoded} | base64 --decode | promtool check metrics") == ""

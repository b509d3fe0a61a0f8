"""Callback fleet_progress: few lines for many hosts, and every event that matters in its log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
INVENTORY = "all: {hosts: {'n[01:40]': {}}, vars: {ansible_connection: local}}\n"
PLAY = """
- name: Nodes are well
  hosts: all
  gather_facts: false
  tasks:
    - name: Look
      ansible.builtin.debug: {msg: fine}
    - name: Change
      ansible.builtin.debug: {msg: fine}
      changed_when: inventory_hostname < 'n04'
    - name: Space
      ansible.builtin.fail: {msg: disk full}
      when: inventory_hostname in ['n10', 'n11']
    - name: Password
      ansible.builtin.fail: {msg: s3cret}
      no_log: true
      ignore_errors: true
      when: inventory_hostname == 'n12'
- name: Nobody's
  hosts: no_such_group
  tasks: []
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[str], list[dict[str, Any]]]:
    """Exit status, lines and events of a run."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "hosts.yml").write_text(INVENTORY)
    (folder / "play.yml").write_text(PLAY)
    ended = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", folder / "hosts.yml", folder / "play.yml"],
        cwd=PROJECT,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_STDOUT_CALLBACK": "fleet_progress",
            "FLEET_PROGRESS_LOG": str(folder / "log"),
            # So often that every host gives a line.
            "FLEET_PROGRESS_SECONDS": "0",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    events = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    return ended.returncode, ended.stdout.splitlines(), events


def test_hosts_are_folded(ran: tuple[int, list[str], Any]) -> None:
    status, lines, _ = ran
    assert status == 2
    assert lines[0] == "Nodes are well (40): n[01-40]"
    assert "  changed n[01-03]" in lines
    assert "  failed n[10-11]: disk full" in lines
    assert lines[-4:] == [
        "n[04-09,13-40] (34): ok 2",
        "n[01-03] (3): ok 2, changed 1",
        "n12 (1): ok 3, ignored 1",
        "n[10-11] (2): ok 2, failed 1",
    ]


def test_progress_has_rate_and_time_left(ran: tuple[int, list[str], Any]) -> None:
    _, lines, _ = ran
    about = [line for line in lines if line.startswith("Look: ")]
    assert len(about) == 40
    assert "/40 hosts, " in about[0] and "/s, " in about[0] and about[0].endswith(" left")
    # A task in which all hosts were well has no line when it has ended.
    assert about[-1].startswith("Look: 40/40 hosts")
    # Hosts that failed are not waited for.
    assert any(line.startswith("Password: 38/38 hosts") for line in lines)


def test_events(ran: tuple[int, list[str], list[dict[str, Any]]]) -> None:
    _, _, events = ran
    assert [event["event"] for event in events[:2]] == ["playbook", "play"]
    tasks = {event["task"]: event for event in events if event["event"] == "task"}
    assert (tasks["Look"]["ok"], tasks["Change"]["changed"], tasks["Space"]["failed"]) == (40, 3, 2)
    failed = [event for event in events if event.get("state") == "failed"]
    assert [(event["host"], event["message"]) for event in failed] == [
        ("n10", "disk full"),
        ("n11", "disk full"),
    ]
    ends = {event["host"]: event for event in events if event["event"] == "end"}
    assert len(ends) == 40
    assert ends["n10"]["failed"] == 1


def test_secrets_are_in_neither(ran: tuple[int, list[str], Any]) -> None:
    _, lines, events = ran
    assert "s3cret" not in "\n".join(lines) + json.dumps(events)
    assert any(event.get("state") == "ignored" for event in events)

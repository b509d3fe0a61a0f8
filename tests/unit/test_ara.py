"""Recording with ARA, as docs/progress.md says to turn it on; skipped where it is not installed.

To run it: `pip install 'ara[server]' pytest pytest-testinfra --editable .` in an environment of its own, and
`pytest tests/unit/test_ara.py` there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
pytest.importorskip("ara")

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Change
      ansible.builtin.debug: {msg: fine}
      changed_when: inventory_hostname == 'n1'
"""


def documented() -> str:
    """The commands of the documentation that set it up, but for the installation."""
    text = (PROJECT / "docs/progress.md").read_text().partition("## ARA")[2]
    (block,) = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line.removeprefix("$ ") for line in block.splitlines()]
    return "\n".join(line for line in lines if line.startswith("export "))


def test_ara_records_beside_fleet_progress(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("all: {hosts: {n1: , n2: }, vars: {ansible_connection: local}}\n")
    (tmp_path / "play.yml").write_text(PLAY)
    folder = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_STDOUT_CALLBACK": "fleet_progress",
        "FLEET_PROGRESS_LOG": str(tmp_path / "log"),
        "ARA_BASE_DIR": str(tmp_path / "ara"),
    }
    script = (
        f"set -e\n{documented()}\nansible-playbook -i {tmp_path}/hosts.yml {tmp_path}/play.yml\n"
        "ara playbook list -f json >$ARA_BASE_DIR/playbooks.json\n"
        "ara host list -f json >$ARA_BASE_DIR/hosts.json\n"
    )
    ended = subprocess.run(
        ["bash", "-c", script], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (playbook,) = json.loads((tmp_path / "ara/playbooks.json").read_text())
    assert playbook["status"] == "completed" and playbook["path"].endswith("play.yml")
    hosts = {host["name"]: host["changed"] for host in json.loads((tmp_path / "ara/hosts.json").read_text())}
    assert hosts == {"n1": 1, "n2": 0}
    # Ours is there as well, and sees the same.
    assert "n1 (1): ok 1, changed 1" in ended.stdout
    ends = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {one["host"]: one["changed"] for one in ends if one["event"] == "end"} == hosts

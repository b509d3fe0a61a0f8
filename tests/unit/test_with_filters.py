"""Filters are read once, in Ansible's main process, and not by each of its workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
# Says in which process its module was read.
FILTER = """
import os
READ = os.getpid()
class FilterModule:
    def filters(self):
        return {"reader": lambda _value: READ, "with_filters": lambda value: value}
"""


@pytest.mark.parametrize(("hosts", "processes"), [("'all'", 2), ("'all' | with_filters", 1)])
def test_what_hosts_reads_is_read_once(tmp_path: Path, hosts: str, processes: int) -> None:
    (tmp_path / "filters").mkdir()
    (tmp_path / "filters/one.py").write_text(FILTER)
    tasks = [{"ansible.builtin.debug": {"msg": "read by {{ 1 | reader }}"}}]
    play = {"hosts": "{{ %s }}" % hosts, "gather_facts": False, "tasks": tasks}  # noqa: UP031
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    ended = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "a,b,", str(tmp_path / "play.yml")],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(tmp_path / "none.cfg"),
            "ANSIBLE_FILTER_PLUGINS": str(tmp_path / "filters"),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    read = {line.split()[-1] for line in ended.stdout.splitlines() if "read by" in line}
    assert len(read) == processes, ended.stdout + ended.stderr


def test_the_first_play_of_a_converge_does() -> None:
    first = yaml.safe_load((PROJECT / "playbooks/node.yml").read_text())[0]
    assert "with_filters" in first["hosts"]

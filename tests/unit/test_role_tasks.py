"""What a run that changes nothing costs: tasks for each node, counted as Ansible lists them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
#: Of the roles apptainer and user_namespaces together. A skipped task counts: it costs the controller, too.
BUDGET = 4
#: Runs once, however many nodes there are.
ONCE = "apptainer : Show what packages have left"


def tasks(playbook):
    """The tasks of both roles in a playbook."""
    arguments = ["--list-tasks", "--tags", "apptainer,user_namespaces"]
    listed = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", *arguments, str(playbook)],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return re.findall(r"^      ((?:apptainer|user_namespaces) : .*?)\tTAGS", listed, re.MULTILINE)


def test_both_roles_together_keep_to_the_budget():
    found = tasks(PROJECT / "playbooks/node.yml")
    assert ONCE in found
    found.remove(ONCE)
    assert len(found) <= BUDGET, found


def test_a_task_more_would_be_noticed(tmp_path):
    """The arguments validated for each node, as Ansible does it of its own accord, are two more."""
    text = (PROJECT / "playbooks/node.yml").read_text()
    (tmp_path / "node.yml").write_text(text.replace("rolespec_validate: false", "rolespec_validate: true"))
    assert len(tasks(tmp_path / "node.yml")) == BUDGET + 3


@pytest.mark.parametrize("playbook", ["site.yml", "pull.yml"])
def test_no_playbook_has_them_another_way(playbook):
    assert "node.yml" in (PROJECT / "playbooks" / playbook).read_text()

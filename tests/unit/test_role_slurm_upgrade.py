"""An upgrade of Slurm goes from slurmdbd to slurmctld to all others, and stops where one of these fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
TASKS = PROJECT / "roles/slurm/tasks"
# In this order in the inventory, where slurmdbd is not the first.
GROUPS = {"slurm_controller": ["ctl1", "ctl2"], "slurm_accounting": ["db"], "slurm_compute": ["c1", "c2"]}
#: In place of what a stage does: two tasks, as a stage is over when both are.
STAGE = """\
- name: Begin, or fail
  ansible.builtin.shell: |
    echo {{ inventory_hostname }} >> {{ log }}
    test {{ inventory_hostname }} != {{ bad }}
- name: End
  ansible.builtin.shell: echo {{ inventory_hostname }} >> {{ log }}
"""


@pytest.fixture
def upgraded(tmp_path):
    """Run the stages of the upgrade for hosts that are this machine; return who took part, in order."""
    stages = yaml.safe_load((TASKS / "upgrade.yml").read_text())
    names = [task["name"] for task in stages]
    (tmp_path / "stages.yml").write_text(yaml.safe_dump(stages[names.index("Upgrade slurmdbd") :]))
    (tmp_path / "upgrade_stage.yml").write_text(STAGE)
    shutil.copy(TASKS / "masters.yml", tmp_path)
    hosts = {group: {"hosts": dict.fromkeys(members)} for group, members in GROUPS.items()}
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": hosts, "vars": local}}))
    play = {"hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.import_tasks": "stages.yml"}]}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))

    def run(bad="none"):
        log = tmp_path / "log"
        log.write_text("")
        argv = [*(sys.executable, "-m", "ansible", "playbook"), "-i", str(tmp_path / "hosts.yml")]
        subprocess.run(
            [*argv, "-e", f"log={log} bad={bad}", str(tmp_path / "play.yml")],
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
            capture_output=True,
            check=bad == "none",
        )
        return log.read_text().split()

    return run


def test_the_order_is_slurms(upgraded):
    took_part = upgraded()
    assert took_part[:2] == ["db"] * 2
    assert sorted(took_part[2:6]) == ["ctl1", "ctl1", "ctl2", "ctl2"]
    assert sorted(took_part[6:]) == ["c1", "c1", "c2", "c2"]


@pytest.mark.parametrize(("bad", "last"), [("db", {"db"}), ("ctl2", {"db", "ctl1", "ctl2"})])
def test_nothing_goes_on_without_what_comes_first(upgraded, bad, last):
    assert set(upgraded(bad)) == last

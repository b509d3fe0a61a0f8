"""fleet site on nodes that answer from records: tasks of a node, and nodes that are silent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
PLUGINS = PROJECT / "tests/bench/scale_plugins"
#: Tasks of a compute node with nothing to change, skipped ones too; docs/scale.md says what one costs.
BUDGET = 12
NODES = 6
SILENT = "n2"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, dict[str, list[str]]]]:
    """A run with a silent node, one with all, and a check: status, output, tasks."""
    folder = tmp_path_factory.mktemp("scale")
    variables = {
        "ansible_connection": "recorded",
        "ansible_python_interpreter": "/usr/bin/python3",
        "apptainer_version": "1.4.5",
        "slurm_cluster_name": "test",
        "slurm_partitions": [{"name": "all", "nodes": "@slurm_compute"}],
    }
    nodes = {f"n[1-{NODES}]": None}
    groups = {
        "slurm_controller": {"hosts": {"ctl": None}},
        "slurm_compute": {"hosts": nodes},
        "apptainer": {"hosts": nodes},
        "image_policy": {"hosts": nodes},
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": variables, "children": groups}}))
    environment = {
        **os.environ,
        "XDG_STATE_HOME": str(folder / "state"),
        "ANSIBLE_CONNECTION_PLUGINS": str(PLUGINS / "connection"),
        "RECORDED_ANSWERS": str(PLUGINS / "answers.json"),
        "ANSIBLE_CALLBACK_PLUGINS": str(PROJECT / "plugins/callback"),
        "ANSIBLE_CALLBACKS_ENABLED": "host_tasks",
        "HOST_TASKS": str(folder / "tasks.json"),
    }

    def fleet(command: str, **more: str) -> tuple[int, str, dict[str, list[str]]]:
        argv = [sys.executable, "-m", "fleet", command, "-i", str(folder / "hosts.yml"), "--forks=5"]
        ended = subprocess.run(
            argv, env={**environment, **more}, capture_output=True, text=True, check=False, cwd=PROJECT
        )
        assert (folder / "tasks.json").exists(), ended.stdout + ended.stderr
        return ended.returncode, ended.stdout, json.loads((folder / "tasks.json").read_text())

    return {
        "first": fleet("site", RECORDED_SILENT=SILENT),
        "second": fleet("site"),
        "check": fleet("check"),
    }


def test_a_silent_node_is_named_and_holds_up_nobody(runs):
    code, output, tasks = runs["first"]
    assert code == 4, output
    assert f"UNREACHABLE {SILENT}\n{NODES} of {NODES + 1} nodes converged" in output
    others = [f"n{number}" for number in range(1, NODES + 1) if f"n{number}" != SILENT]
    # They got to the last task, and the silent one not past the first.
    assert {tasks[name][-1] for name in others} == {"node_record : Record what the converge left"}
    assert len(tasks[SILENT]) == 1


def test_a_compute_node_keeps_to_its_budget(runs):
    code, output, tasks = runs["second"]
    assert code == 0, output
    node = tasks[f"n{NODES}"]
    assert len(node) <= BUDGET, node
    # All roles were there; facts are remembered from the run before.
    for role in ("user_namespaces", "apptainer", "image_policy", "slurm", "node_record"):
        assert any(name.startswith(f"{role} : ") for name in node), (role, node)
    assert "Gathering Facts" not in node
    assert "Gathering Facts" in tasks[SILENT]


def test_a_check_is_one_task(runs):
    code, output, tasks = runs["check"]
    assert (code, {len(names) for names in tasks.values()}, len(tasks)) == (0, {1}, NODES + 1), output

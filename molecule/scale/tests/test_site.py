"""fleet site and fleet check: what a converge costs, what differs is found, who is silent is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from testinfra.host import Host

PROJECT = Path(__file__).parents[3]
INVENTORY = PROJECT / "molecule/scale/inventory"
testinfra_hosts = ["ssh://c1"]

#: Tasks of a compute node with nothing to change, skipped ones too: each costs the controller 20 to 60 ms.
BUDGET = 12
CONF = "/etc/apptainer/apptainer.conf"


def fleet(*arguments: str, tasks: Path | None = None) -> tuple[int, str, dict[str, list[str]]]:
    """Run the command: exit status, output, and the tasks of each host if `tasks` is a file for them."""
    environment = {**os.environ, "COLUMNS": "200"}
    if tasks:
        environment |= {
            "ANSIBLE_CALLBACK_PLUGINS": str(PROJECT / "plugins/callback"),
            "ANSIBLE_CALLBACKS_ENABLED": "host_tasks",
            "HOST_TASKS": str(tasks),
        }
    ended = subprocess.run(
        [sys.executable, "-m", "fleet", arguments[0], "-i", str(INVENTORY), *arguments[1:]],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(ended.stdout)
    return ended.returncode, ended.stdout, json.loads(tasks.read_text()) if tasks else {}


def test_1_a_converge_without_a_change_keeps_to_its_budget(tmp_path: Path) -> None:
    fleet("site", "--fresh-facts")
    code, output, tasks = fleet("site", tasks=tmp_path / "tasks.json")
    assert code == 0
    assert "3 of 3 nodes converged, 0 of them changed" in output
    assert len(tasks["c1"]) <= BUDGET, tasks["c1"]
    # Facts are remembered, so nobody is asked again.
    assert "Gathering Facts" not in tasks["c1"]


def test_2_a_check_is_one_task(tmp_path: Path) -> None:
    code, output, tasks = fleet("check", tasks=tmp_path / "tasks.json")
    assert (code, {host: len(names) for host, names in tasks.items()}) == (0, {"head": 1, "c1": 1, "c2": 1})
    assert output.endswith("3 of 3 nodes are as their last converge left them\n")


def test_3_each_kind_of_difference_is_found_and_mended(host: Host) -> None:
    host.run_expect([0], f"chmod 0666 {CONF}")
    host.run_expect([0], "systemctl stop munge && touch /etc/apptainer/stray")
    host.run_expect([0], "install -m 4755 /bin/true /usr/local/bin/strange")
    code, output, _ = fleet("check")
    assert code == 2
    assert f"c1: file {CONF}: mode 0644 owner 0:0 → mode 0666 owner 0:0" in output
    assert "c1: file /etc/apptainer/stray: absent → a file" in output
    assert "c1: unit munge.service: enabled active → enabled inactive" in output
    assert "c1: setuid /usr/local/bin/strange: absent → mode 4755 owner 0:0" in output
    assert "2 of 3 nodes are as their last converge left them" in output
    host.run_expect([0], "rm /usr/local/bin/strange /etc/apptainer/stray")
    assert fleet("site")[0] == 0
    assert host.file(CONF).mode == 0o644
    assert host.service("munge").is_running
    assert fleet("check")[0] == 0


def test_4_a_node_without_a_record(host: Host) -> None:
    host.run_expect([0], "rm /var/lib/apptainer-fleet/record.json")
    code, output, _ = fleet("check", "--limit", "c[1-2]")
    assert code == 2
    assert "c1: /var/lib/apptainer-fleet/record.json is absent: fleet site writes it" in output
    assert "1 of 2 nodes" in output


def test_5_a_silent_node_stops_nothing_and_is_named(tmp_path: Path, host: Host) -> None:
    silent = {"c9": {"lab_address": "10.77.91.99"}}
    extra = tmp_path / "extra.yml"
    # Not one of Slurm's: slurmctld can't resolve the name of a node that the lab has not got.
    groups = {name: {"hosts": silent} for name in ("apptainer", "scenario")}
    extra.write_text(yaml.safe_dump(groups))
    code, output, _ = fleet("site", "-i", str(extra), "--max-failed", "1")
    assert code == 4
    assert "UNREACHABLE c9\n3 of 4 nodes converged" in output
    # c1 has a record again: the others got to their end.
    assert host.file("/var/lib/apptainer-fleet/record.json").exists
    (again,) = [line for line in output.splitlines() if line.startswith("again")]
    assert Path(again.rpartition("@")[2].rstrip(")")).read_text() == "c9\n"
    assert fleet("check", "-i", str(extra))[0] == 4

#!/usr/bin/env python3
"""What a run with nothing to change costs the controller per node, and how that grows with their number.

Compares the twin, which are roles written task by task, `fleet site` and `fleet check`, on nodes for which a
connection plugin answers from recorded results, so that nothing but the controller is measured. Prints for
each, and each number of nodes: tasks of a node, processor milliseconds of the controller per node, wall
seconds, memory of all its processes together, and ratios. Asserts nothing, except that runs end well.

Usage: tests/bench/scale.py [--parts twin,site,check] [NODES ...]        without numbers: 200
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

PROJECT = Path(__file__).resolve().parents[2]
HERE = PROJECT / "tests/bench"
PLUGINS = HERE / "scale_plugins"
PARTS = ("twin", "site", "check")
TITLES = {
    "twin": "twin: task by task, ansible-playbook",
    "site": "site.yml, fleet site",
    "check": "fleet check",
}
#: How far apart samples of memory are, in seconds: reading them costs, too.
SAMPLE = 3


@dataclass(frozen=True)
class Cost:
    """Tasks of a node, processor seconds and wall seconds in all, MiB."""

    nodes: int
    tasks: int
    processor: float
    wall: float
    memory: float

    @property
    def per_node(self) -> float:
        """Milliseconds of the processor for a node."""
        return self.processor / self.nodes * 1000


def inventory(folder: Path, nodes: int) -> Path:
    """A site of one class of nodes and one controller, with the variables that one has."""
    variables = {
        "ansible_connection": "recorded",
        "ansible_python_interpreter": "/usr/bin/python3",
        "apptainer_version": "1.4.5",
        "apptainer_config": {
            "bind path": ["/etc/localtime", "/etc/hosts", "/scratch"],
            "max loop devices": 256,
        },
        "slurm_cluster_name": "bench",
        "slurm_partitions": [{"name": "thin", "nodes": "@slurm_compute"}],
        "slurm_node_class": "thin",
    }
    groups = {
        "slurm_controller": {"hosts": {"ctl": None}},
        "slurm_compute": {"hosts": {f"n[0001-{nodes:04}]": None}},
        "apptainer": {"children": {"slurm_compute": None}},
    }
    path = folder / "hosts.yml"
    path.write_text(yaml.safe_dump({"all": {"vars": variables, "children": groups}}))
    return path


def command(part: str, hosts: Path, forks: int) -> list[str]:
    """What is measured."""
    program = Path(sys.executable).with_name
    if part == "twin":
        playbook = HERE / "scale_twin/site.yml"
        return [str(program("ansible-playbook")), "-i", str(hosts), f"--forks={forks}", str(playbook)]
    return [sys.executable, "-m", "fleet", part, "-i", str(hosts), f"--forks={forks}"]


def measure(part: str, nodes: int, forks: int) -> Cost:
    """Run it twice where facts are remembered, and measure the second run."""
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as name:
        folder = Path(name)
        hosts, counts = inventory(folder, nodes), folder / "tasks.json"
        environment = {
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "XDG_STATE_HOME": str(folder / "state"),
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_CONNECTION_PLUGINS": str(PLUGINS / "connection"),
            "RECORDED_ANSWERS": str(PLUGINS / "answers.json"),
        }
        counting = {
            "ANSIBLE_CALLBACK_PLUGINS": str(PROJECT / "plugins/callback"),
            "ANSIBLE_CALLBACKS_ENABLED": "host_tasks",
            "HOST_TASKS": str(counts),
        }
        if part == "twin":
            # Whoever writes it has not our filters, which Ansible would read for each task.
            environment["ANSIBLE_FILTER_PLUGINS"] = str(folder)
        if part == "site":
            # It remembers facts, as it does from one day to the next.
            run(command(part, hosts, forks), environment)
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        memory = run(command(part, hosts, forks), environment | counting)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        tasks = json.loads(counts.read_text())
        return Cost(nodes, len(tasks[f"n{nodes:04}"]), processor, time.monotonic() - started, memory)


def run(argv: list[str], environment: dict[str, str]) -> float:
    """Run a command, which has to end well, and return the most memory that its processes had, MiB."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            argv,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=PROJECT,
            start_new_session=True,
        )
        most, ended = [0.0], threading.Event()
        sampler = threading.Thread(target=sample, args=(process.pid, most, ended))
        sampler.start()
        code = process.wait()
        ended.set()
        sampler.join()
        output.seek(0)
        said = output.read()
    if code != 0:
        sys.exit(f"{' '.join(argv)} ended with status {code}:\n{said[-4000:]}")
    return most[0]


def sample(leader: int, most: list[float], ended: threading.Event) -> None:
    """Keep the most memory of a process and all that it started, shared pages counted once."""
    while not ended.wait(SAMPLE):
        total = 0.0
        for pid in family(leader):
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
            except (OSError, StopIteration):
                continue
        most[0] = max(most[0], total)


def family(leader: int) -> Iterator[int]:
    """The process and its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    pending = [leader]
    while pending:
        pid = pending.pop()
        yield pid
        pending += parents.get(pid, [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="which of " + ", ".join(PARTS))
    parser.add_argument("--forks", type=int, default=25)
    parser.add_argument("nodes", nargs="*", type=int, default=[200])
    options = parser.parse_args()
    chosen = [part for part in PARTS if part in options.parts.split(",")]
    print(
        f"{os.cpu_count()} processors, {options.forks} forks, load {os.getloadavg()[0]:.1f} at the beginning"
    )
    print(f"{'':40} {'nodes':>6} {'tasks':>6} {'CPU ms/node':>12} {'wall s':>8} {'MiB':>6}  ratios")
    first: dict[str, Cost] = {}
    for nodes in options.nodes:
        twin: Cost | None = None
        for part in chosen:
            cost = measure(part, nodes, options.forks)
            twin = cost if part == "twin" else twin
            ratios = []
            if twin and part != "twin":
                ratios.append(f"1/{twin.per_node / cost.per_node:.1f} of the twin")
            if part in first:
                ratios.append(
                    f"{cost.per_node / first[part].per_node:.2f} times that of {first[part].nodes} nodes"
                )
            first.setdefault(part, cost)
            print(
                f"{TITLES[part]:40} {nodes:6} {cost.tasks:6} {cost.per_node:12.1f} {cost.wall:8.1f}"
                f" {cost.memory:6.0f}  {', '.join(ratios)}",
                flush=True,
            )


if __name__ == "__main__":
    main()

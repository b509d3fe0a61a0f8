"""Inventory plugins: hostlists in YAML inventories, nodes from Slurm."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fleet.errors import FleetError
from fleet.inventory import read_groups
from fleet.nodes import nodes

PROJECT = Path(__file__).parents[2]
SLURM_CONF = """\
NodeName=DEFAULT CPUs=64
NodeName=n[1-3] Feature=intel,ib
NodeName=f[1-2] Features=amd NodeAddr=10.0.0.[1-2]
NodeName=g[1-2] Gres=gpu:h100:8(S:0,1),nvme:1 Feature=amd
NodeSet=amd Feature=amd
PartitionName=thin Nodes=n[1-2],n3
PartitionName=fast.queue Nodes=amd,n1
PartitionName=every Nodes=ALL
"""


def slurm(folder: Path, conf: str = SLURM_CONF, options: str = "") -> Path:
    (folder / "slurm.conf").write_text(conf)
    path = folder / "site.slurm.yml"
    path.write_text(f"plugin: slurm\nslurm_conf: slurm.conf\n{options}")
    return path


def test_hostlists_of_a_yaml_inventory(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yml"
    path.write_text("gpu: {hosts: {'r[1-2]g[01-02]': {}, 'x[1:2]': {}, single: {}}}")
    assert read_groups([path])["gpu"] == [
        *("r1g01", "r1g02", "r2g01", "r2g02", "x1", "x2", "single"),
    ]


def test_a_wrong_hostlist_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yml"
    path.write_text("gpu: {hosts: {'g[4-1,x]': {}}}")
    with pytest.raises(FleetError):
        read_groups([path])


def test_groups_of_slurm(tmp_path: Path) -> None:
    groups = read_groups([slurm(tmp_path)])
    assert {name: set(members) for name, members in groups.items() if name not in ("all", "ungrouped")} == {
        "slurm_compute": {"n1", "n2", "n3", "f1", "f2", "g1", "g2"},
        "partition_thin": {"n1", "n2", "n3"},
        "partition_fast_queue": {"f1", "f2", "g1", "g2", "n1"},
        "partition_every": {"n1", "n2", "n3", "f1", "f2", "g1", "g2"},
        "feature_intel": {"n1", "n2", "n3"},
        "feature_ib": {"n1", "n2", "n3"},
        "feature_amd": {"f1", "f2", "g1", "g2"},
        "gres_gpu": {"g1", "g2"},
        "gres_gpu_h100": {"g1", "g2"},
        "gres_nvme": {"g1", "g2"},
    }


def known(name: str, **different: object) -> dict[str, object]:
    return {
        "name": name,
        "address": name,
        "partitions": ["main"],
        "state": ["IDLE"],
        "features": [],
        "gres": "",
    } | (different)


def slurmctld(folder: Path, monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, object]) -> Path:
    """An inventory that asks a scontrol which knows these nodes."""
    (folder / "nodes.json").write_text(json.dumps({"nodes": nodes}))
    (folder / "bin").mkdir()
    program = folder / "bin/scontrol"
    program.write_text(f'#!/bin/sh\necho "$*" >> {folder}/asked; cat {folder}/nodes.json\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    path = folder / "site.slurm.yml"
    path.write_text("plugin: slurm\n")
    return path


def test_groups_of_slurmctld(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = slurmctld(
        tmp_path,
        monkeypatch,
        known("n1", features=["ib", "amd"], gres="gpu:h100:8(S:0,1),nvme:1"),
        known("n2", state=["DOWN", "DRAIN", "NOT_RESPONDING"], features="ib"),
    )
    groups = read_groups([path])
    assert (tmp_path / "asked").read_text() == "show node --json\n"
    assert groups["feature_ib"] == ["n1", "n2"]
    assert groups["gres_gpu_h100"] == groups["gres_nvme"] == groups["state_idle"] == ["n1"]
    assert groups["state_down"] == groups["state_drain"] == groups["state_not_responding"] == ["n2"]
    assert groups["partition_main"] == groups["slurm_compute"] == ["n1", "n2"]


def test_slurmctld_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = slurmctld(tmp_path, monkeypatch, known("n1"))
    path.write_text("plugin: slurm\nthrough: [sh, -c]\n")
    assert read_groups([path])["slurm_compute"] == ["n1"]


@pytest.mark.parametrize("sample", sorted((PROJECT / "tests/unit/data/slurm").glob("*.json")), ids=str)
def test_what_releases_of_slurm_printed(tmp_path: Path, sample: Path) -> None:
    path = tmp_path / "site.slurm.yml"
    path.write_text(f"plugin: slurm\nnodes_json: {sample}\n")
    groups = read_groups([path])
    assert "n1" in groups["slurm_compute"]
    assert "n1" in groups["gres_gpu"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("through: [/nowhere/ssh]", "/nowhere/ssh is not installed here"),
        ("nodes_json: gone.json", "gone.json: No such file"),
        ("nodes_json: site.slurm.yml", "can't be read"),
        ("nodes_json: a\nslurm_conf: b", "exclude each other"),
    ],
)
def test_slurm_that_can_not_be_had_is_refused(tmp_path: Path, options: str, said: str) -> None:
    path = tmp_path / "site.slurm.yml"
    path.write_text(f"plugin: slurm\n{options}\n")
    with pytest.raises(FleetError, match=said):
        read_groups([path])


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ("NodeName=n[1- CPUs=1\n", "is no hostlist"),
        ("NodeName=n1\nPartitionName=p Nodes=n[1-2]\n", "a partition has n2, which no NodeName line names"),
        ("Include gone.conf\n", "gone.conf: No such file"),
    ],
)
def test_a_wrong_slurm_conf_is_refused(tmp_path: Path, conf: str, said: str) -> None:
    with pytest.raises(FleetError, match=said.replace("[", r"\[")):
        read_groups([slurm(tmp_path, conf)])


def test_a_cache_spares_reading(tmp_path: Path) -> None:
    cache = f"cache: true\ncache_plugin: ansible.builtin.jsonfile\ncache_connection: {tmp_path}/cache\n"
    path = slurm(tmp_path, options=cache)
    before = read_groups([path])
    (tmp_path / "slurm.conf").unlink()
    assert read_groups([path]) == before


def test_plugins_import_nothing_that_a_node_lacks() -> None:
    there = {*sys.stdlib_module_names, "ansible", "ClusterShell", "yaml", "module_utils", "fleet"}
    files = [*(PROJECT / "plugins/inventory").glob("*.py"), PROJECT / "fleet/hostlist.py"]
    imported: set[str] = set()
    for path in [*files, PROJECT / "fleet/errors.py", PROJECT / "fleet/__init__.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                assert not module.startswith("fleet") or module in ("fleet", "fleet.errors"), path
                imported.add(module.split(".")[0])
    assert len(files) > 2
    assert imported <= there


def run(*arguments: str) -> tuple[int, str]:
    ended = CliRunner().invoke(nodes, ["-i", str(PROJECT / "inventories/example"), *arguments])
    return ended.exit_code, ended.output.rstrip("\n")


def test_fleet_nodes_of_the_example() -> None:
    assert run() == (0, "ctl1,f[001-380],login[01-19],n[0001-4000],r[01-25]g[01-24]")
    assert run("--count") == (0, "5000")
    assert run("--expand", "login[01-03]!login02") == (0, "login01\nlogin03")
    assert json.loads(run("--json", "@gpu&r[01-02]g01")[1]) == ["r01g01", "r02g01"]
    lines = dict(line.split(None, 1) for line in run("--groups", "n0001,f001")[1].splitlines())
    assert lines["thin"].split() == ["1", "n0001"]
    assert lines["slurm_compute"].split() == ["2", "f001,n0001"]
    assert "gpu" not in lines


def test_fleet_nodes_without_a_node() -> None:
    ended = CliRunner().invoke(nodes, ["-i", str(PROJECT / "inventories/example"), "@gpu&@thin"])
    assert isinstance(ended.exception, FleetError)

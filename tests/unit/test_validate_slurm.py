"""What an inventory says of a cluster of Slurm, held against the real role."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fleet.validate import Finding, check_inventory

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def findings(tmp_path: Path):
    """Return the findings of an inventory: groups of hosts with variables, and variables of all."""

    def check(groups: dict[str, dict[str, object]], **variables: object) -> list[Finding]:
        content = {"all": {"vars": variables}, **{name: {"hosts": hosts} for name, hosts in groups.items()}}
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump(content, sort_keys=False))
        return check_inventory([tmp_path / "hosts.yml"], PROJECT)

    return check


SMALL = {"slurm_controller": {"head": None}, "slurm_compute": {"c[1:4]": None}}
WHOLE = {
    **SMALL,
    "slurm_controller": {"head[1:2]": None},
    "slurm_accounting": {"db": None},
    "slurm_login": {"login[1:2]": None},
}


def test_a_whole_cluster_has_no_findings(findings):
    assert findings(WHOLE, slurm_state_folder="/shared/state", slurm_version="24.11.5") == []


@pytest.mark.parametrize(
    ("variables", "rule", "what", "mend"),
    [
        ({}, "controllers", "all but the first are backups", "set slurm_state_folder"),
        ({"slurm_version": "24.11; true"}, "value", "is no version of Slurm", ""),
        ({"slurm_version": "19.05"}, "value", "not known which releases work with 19.05", ""),
        ({"slurm_accounting_database": "a b"}, "value", "use letters, digits and _", ""),
        ({"slurm_accounting_password": "hush#"}, "value", "no # ", ""),
        ({"slurm_accounting_parameters": {"StoragePass": "x"}}, "value", "set slurm_accounting_password", ""),
        ({"slurm_extra_files": [{"name": "a"}]}, "value", "needs one of content and src", ""),
        ({"slurm_extra_files": [{"name": "slurm.conf", "src": "/x"}]}, "value", "role slurm makes", ""),
        ({"slurm_gres": [{"name": "gpu", "count": 2}]}, "value", "gpu needs the device files", ""),
        (
            {"slurm_gres": [{"name": "gpu", "count": 2, "file": "/dev/nvidia[0-2]"}]},
            "value",
            "names 3: make them equal",
            "",
        ),
        (
            {"slurm_accounting_database_host": "mysql.example.org"},
            "accounting",
            "is not set, and the database is on another host",
            "from a vault",
        ),
    ],
)
def test_what_is_wrong_has_a_place(findings, variables, rule, what, mend):
    given = {"slurm_state_folder": "/shared/state", **variables} if variables else {}
    found = findings(WHOLE, **given)
    assert [finding.rule for finding in found] == [rule], [str(finding) for finding in found]
    assert what in found[0].what and mend in found[0].mend and found[0].line
    assert "hush" not in str(found[0])


def test_two_hosts_for_slurmdbd(findings):
    found = findings({**SMALL, "slurm_accounting": {"db[1:2]": None}})
    assert [(f.rule, f.where) for f in found] == [("accounting", "group slurm_accounting")]


@pytest.mark.parametrize(
    ("group", "kind"), [("slurm_accounting", "slurmdbd"), ("slurm_login", "login nodes")]
)
def test_nothing_without_a_controller(findings, group, kind):
    found = findings({group: {"x1": None}})
    assert [f.rule for f in found] == ["no-controller"] and found[0].what.startswith(kind)


def test_what_the_cluster_has_one_of(findings):
    groups = {**SMALL, "slurm_compute": {"c1": None, "c2": {"slurm_cluster_name": "other"}}}
    (found,) = findings(groups, slurm_cluster_name="one")
    assert (found.rule, found.variable) == ("slurm-agree", "slurm_cluster_name")
    assert "group_vars/all" in found.mend and found.line


def test_switches_of_some_nodes_only(findings):
    groups = {**SMALL, "slurm_compute": {"c1": {"slurm_switch": "s1"}, "c2": None}}
    (found,) = findings(groups)
    assert (found.rule, found.variable, found.where) == ("topology", "slurm_switch", "host c2")


def test_switches_that_are_no_tree(findings):
    groups = {**SMALL, "slurm_compute": {"c1": {"slurm_switch": "s1"}, "c2": {"slurm_switch": "s2"}}}
    (found,) = findings(groups, slurm_switches=[{"name": "core", "switches": ["s1"]}])
    assert (found.rule, found.variable) == ("topology", "slurm_switches")
    assert "nothing connects s2, core" in found.what
    assert findings(groups, slurm_switches=[{"name": "core", "switches": ["s1", "s2"]}]) == []

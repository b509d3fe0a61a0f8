"""fleet.validate with the rules of Apptainer, over this project's own roles."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet.validate import Finding, Severity, check_inventory

PROJECT = Path(__file__).parents[2]
YEAR = datetime.date.today() + datetime.timedelta(days=365)
FILE = {"url": "https://x/apptainer.deb", "sha256": "0" * 64}
LIMITS = {"limit container paths": ["/opt/containers"]}
KEY = "5994BE54C31CF1B5E1994F987C52CF6D055F072B"
GROUP = {"name": "site", "dirpath": "/opt/containers", "fingerprints": [KEY]}
ENFORCED = {
    "apptainer_profile": "enforced",
    "apptainer_ecl": {"execgroups": [GROUP]},
    "user_namespaces_enabled": False,
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An inventory of two kinds of nodes, with nothing but defaults."""
    thin, gpu = {"hosts": {"n[1:200]": None}}, {"hosts": {"g1": None}}
    groups = {
        "slurm_controller": {"hosts": {"ctl": None}},
        "slurm_compute": {"children": {"thin": thin, "gpu": gpu}},
        "apptainer": {"children": {"slurm_compute": None}},
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
    (tmp_path / "group_vars").mkdir()
    return tmp_path


def write(site: Path, group: str, /, **variables: Any) -> None:
    (site / "group_vars" / f"{group}.yml").write_text(yaml.safe_dump(variables))


def check(site: Path, **variables: Any) -> list[Finding]:
    """Check the inventory with variables for all hosts; once in a test, as Ansible remembers files."""
    if variables:
        write(site, "all", **variables)
    return check_inventory([site], PROJECT)


def waive(rule: str, **change: Any) -> dict[str, Any]:
    return {"apptainer_waivers": [{"rule": rule, "reason": "decided so", "expires": YEAR, **change}]}


def test_defaults_have_no_findings(site: Path) -> None:
    assert check(site) == []


@pytest.mark.parametrize(
    ("variables", "rule", "variable", "words"),
    [
        ({"apptainer_config": {"allow setuids": False}}, "L01", "config", "did you mean 'allow setuid'?"),
        ({"apptainer_config": {"mount dev": "all"}}, "L02", "config", "must be exactly one of"),
        ({"apptainer_config": {"mount dev": "yes,no"}}, "L04", "config", "must be exactly one of"),
        ({"apptainer_config": {"bind path": ["/a:/b:ro"]}}, "L18", "config", "writable"),
        (
            {"apptainer_version": "1.1.7", "apptainer_config": {"allow setuid-mount extfs": False}},
            "L15",
            "config",
            "but of 1.1.8 and later",
        ),
        ({"apptainer_version": "1.4.4"}, "L30", "version", "CVE-2025-65105 is open"),
        ({"apptainer_version": "1.9.0"}, "release", "version", "are not known"),
        ({"apptainer_config": LIMITS}, "L08", "config", "no setuid starter is in use"),
        (
            {**ENFORCED, "apptainer_version": "1.5.0", "apptainer_config": LIMITS},
            "L30",
            "version",
            "CVE-2026-48785 is open",
        ),
        (
            {"apptainer_config": {"allow setuid": True}},
            "contradiction",
            "config",
            "but apptainer_profile is 'rootless'",
        ),
        ({"apptainer_repository": {"url": "http://x/"}}, "contradiction", "repository", "has no key"),
        ({"apptainer_package_files": [FILE, FILE]}, "contradiction", "package_files", "is there twice"),
        (
            {"apptainer_package_files": [{**FILE, "url": "https://x/a.zip"}]},
            "contradiction",
            "package_files",
            "is no package by its name",
        ),
        (
            {"apptainer_tree": {"path": "/sw/apptainer"}},
            "contradiction",
            "tree",
            "which has no value: give them",
        ),
        (
            {**ENFORCED, "apptainer_package_files": [FILE], "apptainer_tree": {"path": "/sw/apptainer"}},
            "contradiction",
            "tree",
            "which needs the setuid starter, and a tree has none",
        ),
        ({"user_namespaces_enabled": False}, "L07", None, "no container starts"),
        ({**ENFORCED, "apptainer_ecl": None}, "contradiction", "ecl", "the list is not set, but"),
        ({**ENFORCED, "apptainer_ecl": {"enabled": False}}, "contradiction", "ecl", "the list is off, but"),
        ({**ENFORCED, "user_namespaces_enabled": True}, "L08", None, "users can create user namespaces"),
        ({**ENFORCED, "apptainer_keys": []}, "L10", "ecl", "it has no key"),
        (
            {
                "apptainer_profile": "compatible",
                "apptainer_ecl": {"execgroups": [{**GROUP, "mode": "blacklist"}]},
            },
            "L10",
            "ecl",
            "unknown keys pass",
        ),
        (
            {"apptainer_capabilities": {"groups": {"hpc": ["CAP_SYS_ADMIN"]}}},
            "L27",
            "capabilities",
            "group hpc may have CAP_SYS_ADMIN",
        ),
        (
            {"apptainer_remotes": [{"name": "x", "uri": "x:y:z"}]},
            "contradiction",
            "remotes",
            "[1].uri: must be",
        ),
        (waive("L012"), "waiver", "waivers", "did you mean L12?"),
        (waive("L12", expires="2026-01-01"), "waiver", "waivers", "expired on 2026-01-01"),
    ],
)
def test_error(site: Path, variables: dict[str, Any], rule: str, variable: str | None, words: str) -> None:
    found = [finding for finding in check(site, **variables) if finding.rule == rule]
    assert [finding.severity for finding in found] == [Severity.ERROR]
    assert found[0].variable == (f"apptainer_{variable}" if variable else "user_namespaces_enabled")
    assert words in found[0].what
    assert (found[0].file, found[0].where) == (site / "group_vars" / "all.yml", "host g1,n[1-200]")


@pytest.mark.parametrize("helpers", [["squashfuse", "fuse2fs:amd64"], "squashfuse,fuse2fs:amd64"])
def test_helpers_are_names_of_packages(site: Path, helpers: Any) -> None:
    (finding,) = check(site, apptainer_helper_packages=helpers)
    assert (finding.rule, finding.variable) == ("value", "apptainer_helper_packages")
    assert finding.what.startswith("'fuse2fs:amd64' is no name of a package")


def test_an_enforced_cluster_is_possible(site: Path) -> None:
    assert check(site, **ENFORCED, apptainer_version="1.5.1", apptainer_config=LIMITS) == []


def test_a_list_that_is_not_known_yet_is_no_missing_list(site: Path) -> None:
    text = "{{ lookup('ansible.builtin.file', '/nonexistent/ecl.json') | from_json }}"
    found = check(site, **{**ENFORCED, "apptainer_ecl": text})
    assert {finding.rule for finding in found} == {"not-known-yet"}


def test_what_is_waived_is_a_warning_with_its_reason(site: Path) -> None:
    (finding,) = check(site, apptainer_version="1.4.4", **waive("CVE-2025-65105"))
    assert finding.severity is Severity.WARNING
    assert f"(waived until {YEAR}: decided so)" in finding.what


def test_one_finding_names_the_nodes_it_is_for(site: Path) -> None:
    write(site, "thin", slurm_gres=[])
    write(site, "gpu", slurm_gres=[{"name": "gpu", "count": 1, "file": "/dev/nvidia0"}])
    (finding,) = check(site, apptainer_config={"always use nv": True})
    assert (finding.rule, finding.severity, finding.where) == ("L21", Severity.WARNING, "host n[1-200]")


def test_a_group_that_has_another_value_is_judged_by_it(site: Path) -> None:
    write(site, "gpu", apptainer_version="1.4.4")
    (finding,) = check(site, apptainer_version="1.4.5")
    assert (finding.where, finding.file) == ("host g1", site / "group_vars" / "gpu.yml")


def test_what_is_not_known_yet_is_not_judged(site: Path) -> None:
    text = "{{ (lookup('ansible.builtin.file', '/nonexistent/x.json') | from_json).version }}"
    found = check(site, apptainer_version=text, apptainer_config=LIMITS)
    assert {finding.rule for finding in found} == {"not-known-yet"}


def test_nodes_are_judged_in_kinds_and_not_one_by_one(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []
    from fleet.validate import apptainer  # noqa: PLC0415

    monkeypatch.setattr(apptainer, "judge", lambda values, _: judged.append(values) or iter(()))
    check(site)
    assert len(judged) == 2

"""fleet.validate: encrypted values are never a mistake, and what is said is short and helps."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet.validate import Finding, Severity, apptainer, check_inventory, report

PROJECT = Path(__file__).parents[2]
HOSTS: dict[str, Any] = {
    "slurm_controller": {"hosts": {"ctl": None}},
    "slurm_compute": {"hosts": {"n[1:3]": None}},
    "apptainer": {"children": {"slurm_compute": None}},
}
VAULT = "!vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  3061\n"
ENCRYPTED = "$ANSIBLE_VAULT;1.1;AES256\n3061\n"
REPOSITORY = {"url": "http://x/", "suite": "a", "component": "main", "key": "/etc/hostname"}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An inventory with nothing but hosts."""
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(HOSTS), encoding="utf-8")
    (tmp_path / "group_vars").mkdir()
    return tmp_path


def check(site: Path, text: str = "", **variables: Any) -> list[Finding]:
    """Check the inventory with variables for all hosts, as YAML text or as values."""
    if text or variables:
        written = text or yaml.safe_dump(variables)
        (site / "group_vars" / "all.yml").write_text(written, encoding="utf-8")
    return check_inventory([site], PROJECT)


# --- encrypted values ---------------------------------------------------------------------------------------

ENCRYPTED_VALUES = {
    "itself": f"slurm_cluster_name: {VAULT}",
    "alias": f"site_a: {VAULT}slurm_cluster_name: '{{{{ site_a }}}}'\n",
    "part": f"site_a: {VAULT}slurm_cluster_name: 'x{{{{ site_a }}}}'\n",
    "through-another": f"site_a: {VAULT}site_b: '{{{{ site_a }}}}'\nslurm_cluster_name: '{{{{ site_b }}}}'\n",
    "for-a-mapping": f"site_a: {VAULT}apptainer_config: '{{{{ site_a }}}}'\n",
    "for-a-list": f"site_a: {VAULT}apptainer_waivers: '{{{{ site_a }}}}'\n",
    "for-a-bool": f"site_a: {VAULT}user_namespaces_enabled: '{{{{ site_a }}}}'\n",
    "inside-a-mapping": f"site_a: {VAULT}apptainer_repository: {{url: '{{{{ site_a }}}}', suite: a}}\n",
    "for-the-lab": f"site_a: {VAULT}lab_name: '{{{{ site_a }}}}'\nlab_users: ['{{{{ site_a }}}}']\n",
    "json": 'site_a: {__ansible_vault: "x"}\nslurm_cluster_name: {__ansible_vault: "x"}\n',
}


@pytest.mark.parametrize("text", ENCRYPTED_VALUES.values(), ids=ENCRYPTED_VALUES)
def test_what_depends_on_an_encrypted_value_is_not_judged(site: Path, text: str) -> None:
    if "lab_name" in text:
        text += "lab_network: 10.1.0.0/24\nlab_address: !vault x\n"
    assert check(site, text) == []


def test_the_name_of_an_encrypted_variable_is_judged(site: Path) -> None:
    assert [finding.rule for finding in check(site, f"slurm_cluster_nam: {VAULT}")] == ["unknown-variable"]


@pytest.mark.parametrize("value", ["hostvars['ctl'].site_a", "hostvars['ctl']['site_b'].a"])
def test_an_encrypted_value_of_another_host(site: Path, value: str) -> None:
    variables = f"site_a: {VAULT}site_b: {{a: !vault x}}\n"
    (site / "host_vars").mkdir()
    (site / "host_vars" / "ctl.yml").write_text(variables, encoding="utf-8")
    assert (
        check(site, f'slurm_cluster_name: "{{{{ {value} }}}}"\napptainer_config: "{{{{ {value} }}}}"\n') == []
    )


def test_a_finding_on_an_encrypted_value(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To say where a variable is written, values are compared, which cannot be done with these."""
    judgement = apptainer.Judgement(Severity.WARNING, "L00", "apptainer_config", "is odd")
    monkeypatch.setattr(apptainer, "judge", lambda _values, _unknown: [judgement])
    found = check(site, f"site_a: 1\napptainer_config:\n  bind path:\n    - {VAULT.replace('  ', '       ')}")
    assert [(f.rule, f.line) for f in found] == [("L00", 2)]


def test_a_variable_that_may_stand_in_an_encrypted_file(site: Path) -> None:
    folder = site / "group_vars" / "all"
    folder.mkdir()
    (folder / "main.yml").write_text("slurm_cluster_name: '{{ vault_name }}'\n", encoding="utf-8")
    assert [finding.rule for finding in check(site)] == ["undefined"]


def test_a_variable_that_stands_in_an_encrypted_file(site: Path) -> None:
    folder = site / "group_vars" / "all"
    folder.mkdir()
    (folder / "main.yml").write_text("slurm_cluster_name: '{{ vault_name }}'\n", encoding="utf-8")
    (folder / "vault.yml").write_text(ENCRYPTED, encoding="utf-8")
    assert check(site) == []


@pytest.mark.parametrize("name", ["hosts.yml", "hosts", "hosts.ini"])
def test_encrypted_hosts_are_one_finding(site: Path, name: str) -> None:
    (site / "hosts.yml").unlink()
    (site / name).write_text(ENCRYPTED, encoding="utf-8")
    line = "slurm_cluster_name: '{{ site_a }}'\n"
    (site / "group_vars" / "gpu.yml").write_text(line, encoding="utf-8")
    (finding,) = check_inventory([site / name], PROJECT)
    assert (finding.rule, finding.file) == ("vaulted-inventory", site / name)
    assert "Ansible Vault" in finding.what
    assert "group_vars" in finding.mend


# --- what is missing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "all:\n", "slurm_compute: {hosts: {}}\n"])
def test_no_hosts(site: Path, text: str) -> None:
    (site / "hosts.yml").write_text(text, encoding="utf-8")
    (finding,) = check(site)
    assert (finding.severity, finding.rule, finding.file) == (Severity.ERROR, "no-hosts", site)
    assert "slurm_compute" in finding.mend


@pytest.mark.parametrize("version", ["9.9.9", "1.9.9"])
def test_a_release_that_is_not_known(site: Path, version: str) -> None:
    (finding,) = check(site, apptainer_version=version)
    assert (finding.severity, finding.variable) == (Severity.ERROR, "apptainer_version")
    assert "choose one of these, or update apptainer-fleet" in finding.what


def test_an_unknown_key_of_the_repository_is_one_finding(site: Path) -> None:
    repository = {("suit" if key == "suite" else key): value for key, value in REPOSITORY.items()}
    (finding,) = check(site, apptainer_repository=repository)
    assert finding.what == "unknown key apptainer_repository.suit, did you mean suite?"


@pytest.mark.parametrize("key", ["/nonexistent/key.asc", "nowhere/key.asc", "~/nonexistent-key.asc"])
def test_a_key_that_is_not_there_is_a_warning(site: Path, key: str) -> None:
    (finding,) = check(site, apptainer_repository={**REPOSITORY, "key": key})
    assert (finding.severity, finding.rule) == (Severity.WARNING, "no-such-file")
    assert key in finding.what


def test_a_signer_s_key_that_is_not_there_is_a_warning(site: Path) -> None:
    keys = [{"fingerprint": "A" * 40, "file": file} for file in ("/nonexistent/key.asc", "/etc/hostname")]
    (finding,) = check(site, apptainer_keys=keys)
    assert "/nonexistent/key.asc" in finding.what


def test_a_key_that_is_there(site: Path) -> None:
    assert check(site, apptainer_repository=REPOSITORY) == []


def test_a_package_file_that_is_not_there_is_a_warning(site: Path) -> None:
    files = [{"file": "/nonexistent/apptainer.deb", "sha256": "0" * 64}]
    (finding,) = check(site, apptainer_repository={}, apptainer_package_files=files)
    assert (finding.severity, finding.rule) == (Severity.WARNING, "no-such-file")
    assert "/nonexistent/apptainer.deb" in finding.what


def test_a_package_file_with_another_digest_is_an_error(site: Path, tmp_path: Path) -> None:
    file = tmp_path / "apptainer.deb"
    file.write_text("x")
    files = [{"file": str(file), "sha256": digest} for digest in ("0" * 64, hashlib.sha256(b"x").hexdigest())]
    found = check(site, apptainer_repository={}, apptainer_package_files=files)
    (finding,) = [finding for finding in found if finding.rule == "wrong-digest"]
    assert finding.severity == Severity.ERROR
    assert f"and {'0' * 64} was promised" in finding.what and finding.file is not None


def test_two_hosts_of_one_name_for_slurm(site: Path) -> None:
    groups = {**HOSTS, "slurm_compute": {"hosts": {"c1.example.org": None, "c1.other.org": None}}}
    (site / "hosts.yml").write_text(yaml.safe_dump(groups), encoding="utf-8")
    (finding,) = check(site)
    assert (finding.severity, finding.rule) == (Severity.ERROR, "slurm-name")
    assert finding.where == "host c1.example.org,c1.other.org"
    assert "all are c1 for Slurm" in finding.what


def test_two_hosts_of_one_name_where_the_site_runs_slurm_itself(site: Path) -> None:
    groups = {**HOSTS, "slurm_compute": {"hosts": {"c1.example.org": None, "c1.other.org": None}}}
    (site / "hosts.yml").write_text(yaml.safe_dump(groups), encoding="utf-8")
    assert check(site, slurm_manage=False) == []


def lab(site: Path, name: str = "ctl", **variables: Any) -> list[Finding]:
    """Check a lab of one node, which is good but for ``variables``."""
    hosts = {"slurm_controller": {"hosts": {name: {"lab_address": "10.1.0.2"}}}}
    (site / "hosts.yml").write_text(yaml.safe_dump(hosts), encoding="utf-8")
    return check(site, **{"lab_name": "x", "lab_network": "10.1.0.0/24", **variables})


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("lab_network", "10.1.0.0/30", "not a private network of /29 or larger"),
        ("lab_users", ["alice", "root"], "'root' is a user or group of the system"),
        ("lab_users", ["Alice"], "no valid name"),
        ("lab_packages", ["$(id)"], "no valid name"),
        ("lab_release", "a b", "no release"),
        ("lab_cpus", 0, "whole number"),
        ("lab_memory", "2048", "is no int"),
        ("lab_devices", [{"path": "/etc/x", "major": 1, "minor": 1}], "is no device"),
    ],
)
def test_what_the_lab_would_refuse(site: Path, variable: str, value: object, words: str) -> None:
    (finding,) = lab(site, **{variable: value})
    assert (finding.severity, finding.variable) == (Severity.ERROR, variable)
    assert words in finding.what


def test_a_public_network(site: Path) -> None:
    assert "8.8.8.0/24 is not a private network" in report(lab(site, lab_network="8.8.8.0/24"))


def test_a_lab_of_the_smallest_network_and_ordinary_users(site: Path) -> None:
    assert lab(site, lab_network="10.1.0.0/29", lab_users=["alice", "w"], lab_cpus=4) == []


def test_a_host_name_that_the_lab_cannot_have(site: Path) -> None:
    assert [(f.rule, f.where) for f in lab(site, "c1.example.org")] == [
        ("lab-host-name", "host c1.example.org")
    ]


def test_hosts_of_two_labs(site: Path) -> None:
    (site / "host_vars").mkdir()
    (site / "host_vars" / "n2.yml").write_text("lab_name: y\n", encoding="utf-8")
    nodes = {f"n{n}": {"lab_address": f"10.1.0.{n + 1}"} for n in (1, 2)}
    (site / "hosts.yml").write_text(yaml.safe_dump({"apptainer": {"hosts": nodes}}), encoding="utf-8")
    (finding,) = check(site, lab_name="x", lab_network="10.1.0.0/24")
    assert (finding.rule, finding.variable) == ("lab-shared", "lab_name")
    assert finding.what == "'x' on n1 but 'y' on n2"
    assert finding.file == site / "host_vars" / "n2.yml"


def test_two_servers_of_the_lab_s_repository(site: Path) -> None:
    nodes = {f"n{n}": {"lab_address": f"10.1.0.{n + 1}"} for n in (1, 2)}
    groups = {"apptainer": {"hosts": nodes}, "lab_repository": {"hosts": dict.fromkeys(nodes)}}
    (site / "hosts.yml").write_text(yaml.safe_dump(groups), encoding="utf-8")
    found = check(site, lab_name="x", lab_network="10.1.0.0/24")
    assert [(f.rule, f.where) for f in found] == [("lab-repository", "group lab_repository")]


# --- words --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "what"),
    [
        ("apptainer_config", ["a"], "is of type list, not dict"),
        ("apptainer_keys", {"a": "b"}, "is of type dict, not list"),
        ("apptainer_waivers", ["a"], "an element is of type str, not dict"),
        ("slurm_manage", "maybe", "'maybe' is of type str, not bool"),
        ("slurm_gres", [{"name": "gpu", "count": "x"}], "count is of type str, not int"),
        (
            "slurm_partitions",
            [{"name": "a", "nodes": "ALL", "nods": "x"}],
            "unknown key slurm_partitions.nods, did you mean nodes?",
        ),
    ],
)
def test_a_wrong_type_is_said_in_few_words(site: Path, variable: str, value: object, what: str) -> None:
    (finding,) = check(site, **{variable: value})
    assert finding.what == what


def test_documentation_markup_stays_out_of_findings(site: Path) -> None:
    mend = check(site, apptainer_version="v1", apptainer_profile="x")
    assert len(mend) == 2
    assert not any(mark in report(mend) for mark in ("V(", "O(", "C("))


def test_the_state_of_a_lab_that_is_not_up(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(site / "state"))
    file = site / "state" / "apptainer-fleet" / "labs" / "x" / "repository.json"
    found = lab(site, lab_repository_facts=f"{{{{ lookup('ansible.builtin.file', '{file}') | from_json }}}}")
    assert [(f.severity, f.rule) for f in found] == [(Severity.WARNING, "not-known-yet")]
    assert f"fleet lab up -i {site}" in found[0].mend


INI = """[slurm_controller]
ctl
[slurm_compute]
c[1:40]:22 slurm_manage=maybe lab_adress=4  # a range
d1 slurm_manage=perhaps
d2 slurm_manage=perhaps
[slurm_compute:vars]
slurm_node_parameters=5
"""


def test_a_range_of_an_ini_file_is_one_finding_a_line(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(INI, encoding="utf-8")
    assert [(f.variable, f.line, f.where) for f in check_inventory([file], PROJECT)] == [
        ("lab_adress", 4, "host c[1:40]"),
        ("slurm_manage", 4, "host c[1:40]"),
        ("slurm_manage", 5, "host d1"),
        ("slurm_manage", 6, "host d2"),
        ("slurm_node_parameters", 8, "group slurm_compute"),
    ]

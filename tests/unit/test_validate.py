"""fleet.validate: one mistake for each rule, the same inventory without it, and the real playbook."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.validate import Finding, Severity, check_inventory, report
from fleet.validate.cli import validate
from fleet.validate.vocabulary import near, slips

PROJECT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data" / "validate"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A copy of a good inventory, to put a mistake into."""
    return Path(shutil.copytree(DATA / "site", tmp_path / "site"))


def check(*sources: Path) -> list[Finding]:
    return check_inventory(sources, DATA)


def append(file: Path, text: str) -> int:
    """Add lines to a file and return the number of the first of them."""
    before = file.read_text(encoding="utf-8") if file.exists() else "---\n"
    file.write_text(before + text, encoding="utf-8")
    return before.count("\n") + 1


def test_good_inventory_has_no_findings(site: Path) -> None:
    assert check(site) == []
    assert check(site / "hosts.yml") == []


def test_files_that_variables_name_may_stand_beside_the_inventory(site: Path) -> None:
    (site / "files").mkdir()
    (site / "files/repository.asc").write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    assert check(site) == []
    # In a folder of another name, Ansible takes it for a part of the inventory.
    (site / "files").rename(site / "keys")
    assert check(site) != []


# --- variables ----------------------------------------------------------------------------------------------

ALL = "group_vars/all.yml"
LAB = "lab_name: demo\nlab_network: 10.1.0.0/16\nlab_address: '{{ ansible_host }}'\n"

MISTAKES = {
    # what is added to which file; rule, variable, and words of what is wrong and how to mend it
    "unknown": (
        ALL,
        "apptainer_verison: '1'\n",
        "unknown-variable",
        "role apptainer",
        "mean apptainer_version?",
    ),
    "unknown-long-prefix": (
        ALL,
        "slurm_containers_prolg: yes\n",
        "unknown-variable",
        "slurm_containers",
        "_prolog?",
    ),
    "prefix-swapped": (
        ALL,
        "appatiner_version: '1'\n",
        "misspelt-variable",
        "nothing reads",
        "apptainer_version?",
    ),
    "prefix-dash": (
        ALL,
        "apptainer-version: '1'\n",
        "misspelt-variable",
        "nothing reads",
        "apptainer_version?",
    ),
    "prefix-only": (ALL, "slrum_weight: 1\n", "misspelt-variable", "role slurm", "did you mean slurm_"),
    "internal": (ALL, "__apptainer_packages: []\n", "internal-variable", "role apptainer", "remove it"),
    "lab-unknown": (ALL, "lab_adress: 10.1.0.4\n", "unknown-variable", "the lab", "mean lab_address?"),
    "no-identifier": (ALL, "2fast: 1\n", "variable-name", "no name", "letters"),
    "type": (
        ALL,
        "slurm_node_weight: heavy\n",
        "value",
        "'heavy' is of type str, not int",
        "Weight of a node",
    ),
    "type-in-host-vars": ("host_vars/m1.yml", "slurm_node_weight: x\n", "value", "not int", "Weight"),
    "list-for-text": (ALL, "slurm_node_class: [a]\n", "value", "is a list", "Class"),
    "choice": (ALL, "apptainer_profile: rootles\n", "value", "rootless, enforced, compatible", "profile"),
    "template-choice": (ALL, "apptainer_profile: \"{{ 'x' ~ 'y' }}\"\n", "value", "got: xy", "profile"),
    "version-number": (
        "group_vars/apptainer.yml",
        "apptainer_version: 1.4\n",
        "value",
        "1.4 is no",
        "Upstream",
    ),
    "version-text": (
        "group_vars/apptainer.yml",
        "apptainer_version: v1.4.5\n",
        "value",
        "v1.4.5",
        "Upstream",
    ),
    "nested-unknown": (
        "group_vars/apptainer.yml",
        "apptainer_repository: {url: x, prioritty: 1}\n",
        "value",
        "apptainer_repository.prioritty",
        "Where",
    ),
    "nested-required": (
        "group_vars/apptainer.yml",
        "apptainer_repository: {priority: 1}\n",
        "value",
        "url",
        "",
    ),
    "nested-type": (
        "group_vars/apptainer.yml",
        "apptainer_repository: {url: x, priority: high}\n",
        "value",
        "priority",
        "",
    ),
    "nested-list": (
        "group_vars/apptainer.yml",
        "apptainer_repository: {url: x, mirrors: [{uri: y}]}\n",
        "value",
        "uri",
        "",
    ),
    "undefined": (
        ALL,
        "slurm_node_class: '{{ site_clas }}'\nsite_class: a\n",
        "undefined",
        "site_clas",
        "site_class?",
    ),
    "undefined-in-mapping": (
        ALL,
        "apptainer_config: {a: '{{ nothing_here }}'}\n",
        "undefined",
        "nothing_here",
        "",
    ),
    "broken-template": (ALL, "slurm_node_class: '{{ a'\n", "template", "broken template", "braces"),
    "lab-type": (ALL, "lab_packages: {a: b}\n", "value", "is no list", "Debian"),
    "lab-device": (ALL, "lab_devices: [{path: /dev/fuse, major: ten, minor: 1}]\n", "value", "major", ""),
    "lab-backend": (ALL, "lab_backend: docker\n", "value", "nspawn", ""),
    "lab-network": (ALL, "lab_network: 10.1.0.1/16\n", "value", "host bits", "network"),
    "lab-network-small": (ALL, "lab_network: 10.1.0.0/30\n", "value", "/29 or larger", "network"),
    "lab-name": (ALL, "lab_name: Über\n", "value", "no name for a lab", "Name"),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_mistake_in_a_variable(site: Path, mistake: tuple[str, str, str, str, str]) -> None:
    file, text, rule, what, mend = mistake
    line = append(site / file, text)
    found = [finding for finding in check(site) if finding.rule == rule]
    assert len(found) == 1
    finding = found[0]
    assert finding.severity is Severity.ERROR
    assert finding.variable == text.partition(":")[0]
    assert (finding.file, finding.line) == (site / file, line)
    assert what in finding.what
    assert mend in finding.mend


GOOD = {
    "own": "site_contact: root@example\nmy_apptainer_version: any\n",
    "default": "slurm_node_class: \"{{ site_class | default('compute') }}\"\n",
    "choice": "apptainer_profile: enforced\n",
    "revision": "apptainer_version: '1.4.5-2'\n",
    "converts": "slurm_node_weight: '5'\napptainer_smoke_test: 'yes'\n",
    "nested": "apptainer_repository: {url: x, mirrors: [{url: y}]}\n",
    "role-default": "apptainer_smoke_test: \"{{ apptainer_profile == 'rootless' }}\"\n",
    "facts": "slurm_node_weight: \"{{ ansible_facts['processor_vcpus'] }}\"\n",
    "facts-deep": "site_a: '{{ ansible_facts.x.y }}'\nslurm_node_class: '{{ site_a }}'\n",
    "vault": "apptainer_token: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  3061\n",
    "vault-nested": "apptainer_config: {a: !vault 'x'}\nslurm_node_class: '{{ apptainer_config.a }}'\n",
    "unsafe": "slurm_node_class: !unsafe '{{ not_a_template }}'\n",
    "null": "slurm_node_weight:\n",
    "other-hosts": "slurm_node_class: \"{{ hostvars['head'].ansible_host }}\"\n",
    "groups": "slurm_node_weight: \"{{ groups['slurm_compute'] | length }}\"\n",
    "filter": "apptainer_config: \"{{ '{}' | from_json | combine({}) }}\"\n",
    "merge-key": "apptainer_config: &base {a: b}\nsite_config: {<<: *base, c: d}\n",
    "lab": LAB + "lab_devices: [{path: /dev/x, major: 10, minor: 229, mode: '0666'}]\n",
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_correct_variable(site: Path, text: str) -> None:
    if "lab_address" in text:  # the lab wants an address for every node
        hosts = yaml.safe_load((site / "hosts.yml").read_text(encoding="utf-8"))
        hosts["all"]["children"]["slurm_compute"]["hosts"] = {"c1": {"ansible_host": "10.1.0.141"}}
        (site / "hosts.yml").write_text(yaml.safe_dump(hosts), encoding="utf-8")
    append(site / "group_vars" / "apptainer.yml", text)
    assert check(site) == []


def test_every_finding_is_reported_at_once(site: Path) -> None:
    append(site / ALL, "apptainer_verison: '1'\napptainer_profile: none\nslurm_node_weight: x\n")
    (site / "group_vars" / "nobody.yml").write_text("a: 1\n", encoding="utf-8")
    assert {finding.rule for finding in check(site)} == {"unknown-variable", "value", "orphan-file"}
    assert len(check(site)) == 4


def test_value_that_is_overridden_is_judged_too(site: Path) -> None:
    append(site / ALL, "slurm_node_class: [a]\n")
    append(site / "group_vars" / "slurm_compute.yml", "slurm_node_class: a\n")
    assert [finding.file for finding in check(site)] == [site / ALL]


def test_template_is_judged_for_every_group_that_sees_another_value(site: Path) -> None:
    append(site / ALL, "site_weight: 1\nslurm_node_weight: '{{ site_weight }}'\n")
    append(site / "group_vars" / "big_memory.yml", "site_weight: heavy\n")
    assert [finding.what for finding in check(site) if "heavy" in finding.what]


def test_template_is_judged_for_every_host_with_a_value_of_its_own(site: Path) -> None:
    append(site / ALL, "site_weight: 1\nslurm_node_weight: '{{ site_weight }}'\n")
    append(site / "host_vars" / "c007.yml", "site_weight: heavy\n")
    assert [finding.what for finding in check(site) if "heavy" in finding.what]


def test_secret_is_not_repeated(site: Path) -> None:
    append(site / ALL, "apptainer_token: hunter2\n")
    assert "hunter2" not in report(check(site))
    assert [finding.variable for finding in check(site)] == ["apptainer_token"]


def test_required_variable_without_value(site: Path) -> None:
    file = site / ALL
    file.write_text(
        file.read_text(encoding="utf-8").replace("apptainer_version:", "site_version:"), encoding="utf-8"
    )
    finding = check(site)[0]
    assert (finding.rule, finding.variable) == ("required", "apptainer_version")
    assert "c[001-040]" in finding.where
    assert "group_vars/apptainer.yml" in finding.mend


def test_required_variable_may_be_in_a_vaulted_file(site: Path) -> None:
    (site / ALL).write_text("$ANSIBLE_VAULT;1.1;AES256\n3061\n", encoding="utf-8")
    assert check(site) == []


def test_lookup_of_a_file_that_is_not_there_yet_is_a_warning(site: Path) -> None:
    text = "{{ lookup('ansible.builtin.file', '/nonexistent/repository.json') | from_json }}"
    line = append(
        site / ALL, f'lab_repository_facts: "{text}"\nslurm_node_class: "{{{{ lab_repository_facts.x }}}}"\n'
    )
    (finding,) = check(site)
    assert (finding.severity, finding.rule, finding.line) == (Severity.WARNING, "not-known-yet", line)
    assert "/nonexistent/repository.json" in finding.what


def test_lookup_that_does_something_is_never_called(site: Path, tmp_path: Path) -> None:
    mark = tmp_path / "called"
    append(
        site / ALL,
        f"site_x: \"{{{{ lookup('pipe', 'touch {mark}') }}}}\"\nslurm_node_class: '{{{{ site_x }}}}'\n",
    )
    append(site / ALL, f"apptainer_token: \"{{{{ query('ansible.builtin.password', '{mark}') }}}}\"\n")
    append(
        site / ALL, f"slurm_node_weight: \"{{{{ lookup(site_which, 'touch {mark}') }}}}\"\nsite_which: pipe\n"
    )
    assert check(site) == []
    assert not mark.exists()


# --- groups, hosts, addresses -------------------------------------------------------------------------------


def hosts_file(path: Path, **groups: object) -> Path:
    """An inventory of one file; each group is a dict of hosts, or a list of child groups."""
    content = {
        name: {"children": dict.fromkeys(body)} if isinstance(body, list) else {"hosts": body}
        for name, body in groups.items()
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def rules(*sources: Path) -> set[str]:
    return {finding.rule for finding in check(*sources)}


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    return tmp_path / "hosts.yml"


def test_group_misspelt(hosts: Path) -> None:
    hosts_file(hosts, slurm_controller={"head": None}, slurm_computes={"c1": None})
    finding = next(finding for finding in check(hosts) if finding.rule == "misspelt-group")
    assert (finding.where, finding.line) == ("group slurm_computes", 4)
    assert "slurm_compute?" in finding.mend
    hosts_file(hosts, slurm_controller={"head": None}, slurm_compute={"c1": None})
    assert check(hosts) == []


def test_group_in_another_spelling(hosts: Path) -> None:
    hosts_file(hosts, slurm_controller={"head": None}, **{"Slurm-Compute": {"c1": None}})
    assert "misspelt-group" in rules(hosts)


def test_group_below_its_namesake_is_not_misspelt(hosts: Path) -> None:
    hosts_file(
        hosts, slurm_controller={"head": None}, slurm_compute=["slurm_compute2"], slurm_compute2={"c1": None}
    )
    assert check(hosts) == []


@pytest.mark.parametrize("group", ["lab_repository", "ungrouped"])
def test_node_in_no_functional_group(hosts: Path, group: str) -> None:
    hosts_file(hosts, slurm_controller={"head": None}, **{group: {"lost[1:3]": None, "head": None}})
    finding = check(hosts)[0]
    assert (finding.rule, finding.where, finding.severity) == ("no-group", "host lost[1-3]", Severity.ERROR)


def test_node_in_groups_of_the_site_only_is_a_warning(hosts: Path) -> None:
    hosts_file(hosts, slurm_controller={"head": None}, storage={"oss1": None})
    assert [(f.rule, f.severity) for f in check(hosts)] == [("no-role", Severity.WARNING)]


def test_controller_machine_needs_no_group(hosts: Path) -> None:
    hosts_file(hosts, ungrouped={"localhost": None, "here": {"ansible_connection": "local"}})
    assert check(hosts) == []


@pytest.mark.parametrize(
    ("name", "mend"),
    [("c_1", "RFC 1123"), ("c[1-3", "c[1-3,7]"), ("c[1+3]", "c[1-3,7]"), ("-c1", "RFC"), ("a..b", "RFC")],
)
def test_invalid_host_name(hosts: Path, name: str, mend: str) -> None:
    hosts_file(hosts, apptainer={name: None})
    finding = next(finding for finding in check(hosts) if finding.rule == "host-name")
    assert name in finding.where
    assert finding.line == 3
    assert mend in finding.mend


@pytest.mark.parametrize(
    "name", ["c1", "C-1", "c1.cluster.example", "10.0.0.1", "c[01:20]", "c[01-20,30]", "r[1-2]c[1-3]"]
)
def test_valid_host_name(hosts: Path, name: str) -> None:
    hosts_file(hosts, apptainer={name: None}, slurm_compute={}, slurm_controller={})
    append(hosts, "all: {vars: {apptainer_version: 1.4.5}}\n")
    assert check(hosts) == []


def test_more_than_one_controller(hosts: Path) -> None:
    hosts_file(hosts, slurm_controller={"h[1:2]": None})
    assert [(f.rule, f.line) for f in check(hosts)] == [("controllers", 1)]


def test_compute_nodes_without_controller(hosts: Path) -> None:
    hosts_file(hosts, slurm_compute={"c[1:2]": None})
    assert [(f.rule, f.where) for f in check(hosts)] == [("no-controller", "host c[1-2]")]


def test_site_runs_slurm_itself(hosts: Path) -> None:
    hosts_file(hosts, slurm_compute={"c[1:2]": {"slurm_manage": False}})
    assert check(hosts) == []


def test_node_without_a_name_for_slurm(hosts: Path) -> None:
    hosts_file(hosts, slurm_controller={"head": None}, slurm_compute={"10.1.0.7": None})
    assert [(f.rule, f.where) for f in check(hosts)] == [("slurm-name", "host 10.1.0.7")]


@pytest.mark.parametrize(
    ("nodes", "what"),
    [
        ("c[001-", "no hostlist"),
        ("c[001-041],x1", "x1 is not in"),
        ("@nobody", "nobody"),
        ("head", "head is not"),
        ("@apptainer,c001", None),
        ("@big_memory", None),
        ("c[001-041],m1", None),
        ("ALL", None),
    ],
)
def test_hostlist_of_a_partition(site: Path, nodes: str, what: str | None) -> None:
    line = append(site / ALL, f"slurm_partitions: [{{name: main, nodes: '{nodes}'}}]\n")
    findings = [(f.rule, f.line, what in f.what) for f in check(site)] if what else check(site)
    assert findings == ([("hostlist", line, True)] if what else [])


def test_all_compute_nodes_have_a_health_program_or_none(hosts: Path) -> None:
    groups = {"slurm_controller": {"head": None}, "slurm_compute": {"c1": None, "c2": None}}
    hosts_file(hosts, **groups, node_health={"c1": None, "c2": None})
    assert check(hosts) == []
    hosts_file(hosts, **groups, node_health={"c1": None})
    assert [(f.rule, f.where) for f in check(hosts)] == [("node_health", "host c2")]


def test_a_controller_can_not_pull(hosts: Path) -> None:
    groups = {"slurm_controller": {"head": None}, "slurm_compute": {"c1": None}}
    hosts_file(hosts, **groups, pull={"c1": None})
    assert check(hosts) == []
    hosts_file(hosts, **groups, pull={"c1": None, "head": None})
    assert [(f.rule, f.where) for f in check(hosts)] == [("pull", "host head")]


def test_a_node_that_would_pull_for_nothing(hosts: Path) -> None:
    groups = {"slurm_controller": {"head": None}, "slurm_compute": {"c1": None}}
    hosts_file(hosts, **groups, pull={"c1": None, "x1": None})
    assert [(f.rule, f.where) for f in check(hosts)] == [("pull", "host x1")]


@pytest.mark.parametrize("variable", ["ansible_host", "lab_address"])
def test_duplicate_address(hosts: Path, variable: str) -> None:
    lab = {"lab_name": "x", "lab_network": "10.1.0.0/24"} if variable == "lab_address" else {}
    given = {name: {variable: "10.1.0.4", **lab} for name in ("c1", "c2")} | {
        "c3": {variable: "10.1.0.5", **lab}
    }
    hosts_file(hosts, slurm_controller={"head": {variable: "10.1.0.2", **lab}}, slurm_compute=given)
    (finding,) = check(hosts)
    assert (finding.rule, finding.variable, finding.where) == ("duplicate-address", variable, "host c[1-2]")
    assert "10.1.0.4" in finding.what
    given["c2"][variable] = "10.1.0.6"
    hosts_file(hosts, slurm_controller={"head": {variable: "10.1.0.2", **lab}}, slurm_compute=given)
    assert check(hosts) == []


def test_duplicate_address_through_a_template(site: Path) -> None:
    append(site / "group_vars" / "slurm_compute.yml", "ansible_host: '10.9.0.{{ 3 + 4 }}'\n")
    findings = [finding for finding in check(site) if finding.rule == "duplicate-address"]
    assert ["c[001-040]" in finding.where for finding in findings] == [True]


def test_two_ports_at_one_address(hosts: Path) -> None:
    nodes = {f"c{n}": {"ansible_host": "10.0.0.1", "ansible_port": 2200 + n} for n in (1, 2)}
    hosts_file(hosts, slurm_controller={"head": None}, slurm_compute=nodes)
    assert check(hosts) == []


def test_address_template_that_nothing_defines(site: Path) -> None:
    line = append(site / ALL, 'ansible_host: "{{ lab_address }}"\n')
    finding = next(finding for finding in check(site) if finding.rule == "undefined")
    assert (finding.variable, finding.line) == ("ansible_host", line)
    assert "lab_address" in finding.what


@pytest.mark.parametrize(
    ("address", "word"),
    [("10.2.0.4", "outside"), ("10.1.0.1", "bridge"), ("10.1.0.0", "network"), ("10.1.0.255", "broadcast")],
)
def test_lab_address(hosts: Path, address: str, word: str) -> None:
    node = {"lab_name": "x", "lab_network": "10.1.0.0/24", "lab_address": address}
    hosts_file(hosts, slurm_controller={"head": node})
    (finding,) = check(hosts)
    assert (finding.rule, finding.variable, finding.line) == ("lab-address", "lab_address", 6)
    assert word in finding.what
    hosts_file(hosts, slurm_controller={"head": node | {"lab_address": "10.1.0.9"}})
    assert check(hosts) == []


def test_lab_node_without_address(hosts: Path) -> None:
    hosts_file(hosts, slurm_controller={"head": {"lab_name": "x", "lab_network": "10.1.0.0/24"}})
    assert [(f.rule, f.variable) for f in check(hosts)] == [("lab-incomplete", "lab_address")]


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["group", "host"])
def test_variable_file_for_nobody(site: Path, kind: str) -> None:
    owner = {"group": "big_memry", "host": "m11"}[kind]
    (site / f"{kind}_vars" / f"{owner}.yml").write_text("site_a: 1\n", encoding="utf-8")
    (finding,) = check(site)
    assert finding.rule == "orphan-file"
    assert finding.file == site / f"{kind}_vars" / f"{owner}.yml"
    assert {"group": "big_memory?", "host": "m1?"}[kind] in finding.mend


def test_variable_file_beside_a_folder_of_its_name(site: Path) -> None:
    (site / "group_vars" / "all").mkdir()
    append(site / "group_vars" / "all" / "main.yml", "apptainer_version: '1.4.5'\n")
    assert [(f.rule, f.file) for f in check(site)] == [("shadowed-file", site / ALL)]


@pytest.mark.parametrize("file", [ALL, "host_vars/m1.yml", "hosts.yml"])
@pytest.mark.parametrize("text", ["a: b: c\n", "a: [\n", "\tb: 1\n", "a: *nothing\n", "? [a]\n: b\n"])
def test_yaml_syntax_error(site: Path, file: str, text: str) -> None:
    line = append(site / file, text)
    found = [finding for finding in check(site) if finding.rule == "yaml"]
    assert [finding.file for finding in found] == [site / file]
    assert found[0].line is not None
    assert found[0].line >= line - 1


def test_other_findings_are_not_hidden_by_a_syntax_error(site: Path) -> None:
    append(site / "host_vars" / "m1.yml", "a: [\n")
    append(site / ALL, "apptainer_profile: none\n")
    assert rules(site) == {"yaml", "value"}


def test_key_written_twice(site: Path) -> None:
    line = append(site / ALL, "site_release: '1.4.6'\n")
    (finding,) = (finding for finding in check(site) if finding.rule == "duplicate-key")
    assert (finding.file, finding.line) == (site / ALL, line)
    assert "line 3" in finding.what


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n"])
def test_variable_file_that_is_no_mapping(site: Path, text: str) -> None:
    (site / "host_vars" / "m1.yml").write_text(text, encoding="utf-8")
    assert rules(site) == {"not-a-mapping"}


def test_empty_variable_file(site: Path) -> None:
    (site / "host_vars" / "m1.yml").write_text("---\n# nothing yet\n", encoding="utf-8")
    assert check(site) == []


def test_alias_to_itself(site: Path) -> None:
    append(site / ALL, "site_loop: &a\n  b: *a\n")
    assert rules(site) == {"yaml"}


def test_group_key_that_ansible_skips(hosts: Path) -> None:
    hosts_file(hosts, slurm_controller={"head": None})
    append(hosts, "slurm_compute: {host: {c1: }}\n")
    assert "group-key" in rules(hosts)


def test_no_such_inventory(tmp_path: Path) -> None:
    (finding,) = check(tmp_path / "none")
    assert (finding.rule, finding.file) == ("source", tmp_path / "none")


def test_inventory_that_ansible_refuses(hosts: Path) -> None:
    hosts.write_text("all: {hosts: [c1, c2]}\n", encoding="utf-8")
    (finding,) = check(hosts)
    assert finding.rule == "refused"
    assert "dictionary" in finding.what


INI = """[slurm_controller]
head ansible_host=10.1.0.2

[slurm_compute]
c[1:3]
c4 slurm_node_weight=heavy

[apptainer:children]
slurm_controller
slurm_compute

[apptainer:vars]
apptainer_version=1.4.5
"""


def test_ini_file(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(INI, encoding="utf-8")
    assert [(f.rule, f.file, f.line) for f in check(file)] == [("value", file, 6)]
    file.write_text(INI.replace("heavy", "5"), encoding="utf-8")
    assert check(file) == []
    assert check(tmp_path) == []


def test_several_sources(site: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.yml"
    hosts_file(more, slurm_compute={"x1": {"ansible_host": "10.1.0.2"}})
    assert [(f.rule, f.where) for f in check(site, more)] == [("duplicate-address", "host head,x1")]


# --- what comes out -----------------------------------------------------------------------------------------


def test_report_reads_like_a_compiler(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site.parent)
    line = append(site / ALL, "apptainer_verison: '1'\n")
    assert report(check(site)).splitlines() == [
        f"ERROR site/{ALL}:{line}: variable apptainer_verison (group all): not a variable of role apptainer",
        "  did you mean apptainer_version?",
        "Inventory: 1 error.",
    ]
    assert report([]) == "Inventory: nothing to mend."


def test_command(site: Path) -> None:
    def run(*options: str) -> Result:
        return CliRunner().invoke(validate, ["--project", str(DATA), "-i", str(site), *options])

    assert run().exit_code == 0
    append(site / ALL, "apptainer_verison: '1'\n")
    assert run().exit_code == 1
    assert "apptainer_version?" in run().output
    assert run("--json").exit_code == 1
    assert json.loads(run("--json").stdout)[0]["variable"] == "apptainer_verison"


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("abc", "abc", 0),
        ("abc", "acb", 1),
        ("abc", "ab", 1),
        ("abc", "xbcd", 2),
        ("abc", "xyz", 3),
        ("", "abcd", 3),
    ],
)
def test_slips(a: str, b: str, distance: int) -> None:
    assert slips(a, b, 2) == distance == slips(b, a, 2)


def test_near_is_never_the_name_itself_nor_far() -> None:
    assert near("slurm", ["slurm", "slurp"]) == "slurp"
    assert near("slurm", ["storage"]) is None


# --- inventories nobody thought of --------------------------------------------------------------------------

GROUPS = ("all", "vars", "hosts", "children", "slurm_compute", "apptainer", "plugin", "<<")
NAMES = ("apptainer_version", "lab_address", "lab_network", "ansible_host", "__apptainer_x", "é")
HOSTS = ("c1", "c[1:2]", "c[1:", "c[b:a]", "@all", " ")
SCALARS = (
    "{{ lab_address }}",
    "{{ a",
    "{% if %}",
    "{{ lookup('file', '/x') }}",
    "{{ hostvars }}",
    "10.0.0.1",
)
LOOPS = (
    "{{ 1/0 }}",
    "{{ slurm_compute }}",
    "{{ lab_network }}",
    "{{ groups.all | map('extract', hostvars) }}",
)
_names = st.sampled_from([*GROUPS, *NAMES, *HOSTS]) | st.text(max_size=6)
_numbers = st.none() | st.booleans() | st.integers() | st.floats()
_scalars = _numbers | st.text(max_size=12) | st.sampled_from([*SCALARS, *LOOPS])
_trees = st.recursive(
    _scalars,
    lambda tree: st.lists(tree, max_size=3) | st.dictionaries(_names, tree, max_size=4),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hosts=_trees, variables=_trees, owner=st.sampled_from(["all", "apptainer", "c1"]))
def test_random_inventory_never_raises(
    hosts: object, variables: object, owner: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("inventory")
    (folder / "group_vars").mkdir()
    (folder / "hosts.yml").write_text(yaml.safe_dump(hosts, allow_unicode=True), encoding="utf-8")
    (folder / "group_vars" / f"{owner}.yml").write_text(yaml.safe_dump(variables), encoding="utf-8")
    assert isinstance(report(check(folder)), str)


def test_a_group_that_all_is_in_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"vars": {"children": {"all": None}}}))
    assert "recursive dependency loop" in report(check(tmp_path / "hosts.yml"))


@settings(max_examples=100, deadline=None)
@given(
    content=st.binary(max_size=60)
    | st.text(alphabet="ab: [c]{}&*!|>-#'\"\n\t%@`", max_size=60).map(str.encode)
)
def test_random_bytes_never_raise(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "hosts.yml").write_bytes(content)
    (folder / "hosts").write_bytes(content)
    (folder / "group_vars").mkdir()
    (folder / "group_vars" / "all").write_bytes(content)
    assert isinstance(report(check(folder)), str)


def test_thousands_of_hosts(tmp_path: Path) -> None:
    nodes = {f"c{n:04}": {"lab_address": f"10.7.{n // 250 + 1}.{n % 250 + 1}"} for n in range(5000)}
    nodes["c4999"]["lab_address"] = nodes["c0000"]["lab_address"]
    inventory = hosts_file(tmp_path / "hosts.yml", slurm_controller={"head": {"lab_address": "10.7.0.2"}})
    append(inventory, yaml.safe_dump({"slurm_compute": {"hosts": nodes}}))
    (tmp_path / "group_vars").mkdir()
    lab = "lab_name: big\nlab_network: 10.7.0.0/16\nansible_host: '{{ lab_address }}'\n"
    append(tmp_path / "group_vars" / "all.yml", lab + "apptainer_profile: none\n")
    assert {(f.rule, f.where) for f in check(tmp_path)} == {
        ("duplicate-address", "host c[0000,4999]"),
        ("value", "group all"),
    }


# --- the playbook -------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the real playbook, module and package, and the roles made for these tests."""
    project = tmp_path / "project"
    (project / "playbooks").mkdir(parents=True)
    shutil.copy(PROJECT / "playbooks" / "validate.yml", project / "playbooks")
    for name in ("library", "module_utils", "fleet", "plugins"):
        (project / name).symlink_to(PROJECT / name)
    (project / "roles").symlink_to(DATA / "roles")
    settings = "library = ./library\nfilter_plugins = ./plugins/filter\ndisplay_ok_hosts = false\n"
    (project / "ansible.cfg").write_text(f"[defaults]\n{settings}", encoding="utf-8")
    return project


@pytest.fixture
def play(checkout: Path, site: Path, tmp_path: Path):
    """Run the playbook, and say what it printed and whether a node was contacted."""
    calls = tmp_path / "calls"
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexit 255\n', encoding="utf-8")
    ssh.chmod(0o755)
    # Settings of an inventory that would break a task on the controller if they reached it.
    append(
        site / ALL,
        f"ansible_ssh_executable: {ssh}\nansible_become: true\nansible_python_interpreter: /nowhere\n",
    )

    def run(playbook: str = "validate.yml", *arguments: str) -> tuple[int, str, bool]:
        program = Path(sys.executable).with_name("ansible-playbook")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
            "ANSIBLE_CONFIG": str(checkout / "ansible.cfg"),
            "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
            "ANSIBLE_HOME": str(tmp_path / "home"),
            "ANSIBLE_NOCOLOR": "1",
        }
        argv = [str(program), str(checkout / "playbooks" / playbook), "-i", str(site), *arguments]
        done = subprocess.run(
            argv, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
        )
        return done.returncode, done.stdout + done.stderr, calls.exists()

    return run


SITE = """- import_playbook: validate.yml
- name: Contact the nodes
  hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.ping:
"""


def test_playbook_passes_a_good_inventory(play) -> None:
    code, output, contacted = play("validate.yml")
    assert code == 0, output
    assert not contacted
    assert "changed=0" in output


@pytest.mark.parametrize("arguments", [[], ["--check", "--diff"], ["--limit", "m1"], ["--tags", "apptainer"]])
def test_playbook_stops_a_site_run_before_any_node(
    play, checkout: Path, site: Path, arguments: list[str]
) -> None:
    (checkout / "playbooks" / "site.yml").write_text(SITE, encoding="utf-8")
    line = append(site / ALL, "apptainer_verison: '1'\n")
    append(site / "host_vars" / "m1.yml", "apptainer_profile: none\n")
    code, output, contacted = play("site.yml", *arguments)
    assert code != 0
    assert not contacted
    assert f"{site}/{ALL}:{line}: variable apptainer_verison" in output
    assert "did you mean apptainer_version?" in output
    assert "apptainer_profile" in output


def test_stub_sees_a_run_that_contacts_nodes(play, checkout: Path) -> None:
    """The test above can fail: the same site run with a good inventory calls ssh."""
    (checkout / "playbooks" / "site.yml").write_text(SITE, encoding="utf-8")
    code, _, contacted = play("site.yml", "--limit", "m1")
    assert code != 0
    assert contacted


def test_playbook_shows_warnings(play, site: Path) -> None:
    append(site / ALL, "lab_state: \"{{ lookup('file', '/nonexistent') }}\"\n")
    code, output, _ = play("validate.yml")
    assert code == 0, output
    assert "cannot be known yet" in output

"""What is done to nodes by hand is found by an audit, with node, file, line and mend; site.yml mends it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

SCENARIO = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
CONF = "/etc/apptainer/apptainer.conf"
COPY = "/usr/local/libexec/apptainer/bin/starter-suid"
#: One that the site answers for.
ALLOWED = "/opt/site/bin/starter-suid"
LOCAL, SHARED = "/scratch/local/images", "/scratch/shared/images"
#: Everything of a node's own file system, by what changes with anything that is done to it; but what others
#: write meanwhile, and where Ansible has its modules.
LEFT_OUT = ("/run", "/var/log", "/var/lib/systemd", "/var/lib/prometheus", "/tmp", "/var/tmp", "/root")
TREE = (
    f"find / -xdev \\( -path {' -o -path '.join(LEFT_OUT)} \\) -prune"
    # No change time of folders: systemd-tmpfiles sets the mode of some, such as /home, to what it is.
    " -o -printf '%p %i %m %U %G %s %T@' \\( -type d -printf '\\n' -o -printf ' %C@ %l\\n' \\) | sort"
)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the history."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def fleet(state: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """What runs `fleet audit`, with the command, if any, first."""

    def call(
        command: str = "", *options: str, inventory: str = "inventory"
    ) -> subprocess.CompletedProcess[str]:
        argv = [str(Path(sys.executable).with_name("fleet")), "audit", *command.split()]
        where = ["-i", str(SCENARIO / inventory), "--state", str(state)]
        return subprocess.run([*argv, *where, *options], capture_output=True, text=True, check=False)

    return call


def findings(output: str) -> list[dict[str, Any]]:
    return [one for one in json.loads(output)["findings"] if one["severity"] != "info" and not one["waived"]]


@pytest.fixture(scope="module")
def clean(fleet, node) -> dict[str, Any]:
    """The first audit, of nodes as site.yml left them, with what is on their disks before and after it."""
    before = {name: node(name).check_output(TREE) for name in ("c1", "c2")}
    # Connections and Python's own caches are there from the first one on.
    ended = fleet("", "--json")
    after = {name: node(name).check_output(TREE) for name in ("c1", "c2")}
    return {"ended": ended, "before": before, "after": after}


def test_nodes_as_site_yml_left_them_have_nothing_to_mend(clean):
    ended = clean["ended"]
    assert findings(ended.stdout) == [] and ended.returncode == 0, ended.stdout + ended.stderr
    data = json.loads(ended.stdout)
    assert data["facts"]["c1"]["profile_holds"] == "yes" and data["facts"]["c1"]["health"] == "healthy"
    shared = next(store for store in data["stores"] if store["shared"])
    assert (shared["nodes"], shared["images"]) == (["c1", "c2"], 0)


def test_an_audit_changes_nothing_on_nodes(clean):
    for name in ("c1", "c2"):
        before, after = (set(clean[word][name].splitlines()) for word in ("before", "after"))
        assert before ^ after == set()
        assert len(before) > 1000


@pytest.fixture(scope="module")
def drifted(clean, fleet, node, repository, state) -> dict[str, Any]:
    """The second audit, after five things were done by hand."""
    c1, c2 = node("c1"), node("c2")
    c1.check_output(f"sed -i 's/^mount home = yes/mount home = no/' {CONF}")
    starter = c1.check_output("find /usr/lib* -name starter -path '*apptainer/bin*' | head -1")
    for copy in (COPY, ALLOWED):
        c1.check_output(f"install -D --owner=root --mode=4755 {starter} {copy}")
    c1.check_output("mkdir -p /root/r/bin && cp /bin/busybox /root/r/bin/sh")
    c1.check_output("apptainer --quiet build --force /root/x.sif /root/r")
    for folder in (LOCAL, SHARED):
        c1.check_output(f"install --mode=0644 /root/x.sif {folder}/unsigned.sif")
    c2.check_output("umount /scratch/shared")
    old = repository["packages"][repository["versions"][0]]
    c2.check_output(
        f"apt-get install --yes --quiet --allow-downgrades --allow-change-held-packages apptainer={old}"
    )
    c2.check_output("apt-mark hold apptainer")
    outputs = [
        "--junit",
        str(state / "a.xml"),
        "--sarif",
        str(state / "a.sarif"),
        "--html",
        str(state / "a.html"),
    ]
    return {
        "ended": fleet("", "--json", *outputs),
        "old": old,
        "line": c1.check_output(f"grep -n '^mount home' {CONF}"),
    }


def one(drifted: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    found = [
        finding for finding in findings(drifted["ended"].stdout)
        if all(finding[name] == value for name, value in wanted.items())
    ]  # fmt: skip
    assert len(found) == 1, drifted["ended"].stdout + drifted["ended"].stderr
    assert found[0]["mend"]
    return found[0]


def test_an_edited_apptainer_conf_is_found_with_its_line(drifted):
    assert drifted["ended"].returncode == 2
    found = one(drifted, source="drift", file=CONF, nodes=["c1"])
    assert found["line"] == int(drifted["line"].split(":")[0])
    assert found["evidence"] == "now 'mount home = no'" and "fleet site" in found["mend"]


def test_a_setuid_copy_is_found_though_no_record_knows_its_folder(drifted):
    found = one(drifted, source="setuid", nodes=["c1"])
    assert found["file"] == COPY and found["mend"].startswith("if nobody knows") and COPY in found["mend"]


def test_a_mount_that_is_gone_is_found(drifted):
    found = one(drifted, source="drift", rule="mounts")
    assert found["nodes"] == ["c2"] and found["subject"] == "/scratch/shared" and "mount" in found["mend"]


def test_unsigned_images_are_found_and_a_shared_store_is_judged_by_one_node(drifted):
    images = [one for one in findings(drifted["ended"].stdout) if one["source"] == "image"]
    unsigned = {one["file"]: one["nodes"] for one in images if one["rule"] == "signatures"}
    assert unsigned == {f"{LOCAL}/unsigned.sif": ["c1"], f"{SHARED}/unsigned.sif": ["c1"]}
    stores = json.loads(drifted["ended"].stdout)["stores"]
    shared = [store for store in stores if store["shared"]]
    assert [(store["judged_by"], store["images"], store["refused"]) for store in shared] == [("c1", 1, 1)]


def test_an_old_version_that_is_held_is_found(drifted):
    found = one(drifted, source="version")
    assert found["nodes"] == ["c2"] and f"Apptainer {drifted['old']} is installed" in found["message"]
    assert "hold" in found["mend"]


def test_the_difference_and_reports_for_other_programs_say_the_same(drifted, fleet, state):
    differs = fleet("diff", "--json")
    assert differs.returncode == 2
    assert {one["source"] for one in json.loads(differs.stdout)["new"]} >= {
        "drift",
        "setuid",
        "image",
        "version",
    }
    text = fleet("show").stdout
    line = drifted["line"].split(":")[0]
    assert f"ERROR c1: file {CONF}: content differs" in text and f"[{CONF}:{line}]" in text
    junit = ElementTree.parse(state / "a.xml").getroot()  # noqa: S314 - our own
    failed = {case.get("classname") for case in junit.iter("testcase") if case.find("failure") is not None}
    assert {"drift.c1", "drift.c2", "setuid.c1", "version.c2", "image.c1"} <= failed
    results = json.loads((state / "a.sarif").read_text())["runs"][0]["results"]
    physical = [result["locations"][0].get("physicalLocation", {}) for result in results]
    assert {"startLine": int(line)} in [place.get("region") for place in physical]
    assert CONF in (state / "a.html").read_text()


def test_who_does_not_answer_is_named(drifted, fleet):
    (SCENARIO / "silent").mkdir(exist_ok=True)
    try:
        (SCENARIO / "silent/hosts.yml").write_text(
            "all: {children: {apptainer: {hosts: {c9: {ansible_host: 127.0.0.9, ansible_port: 9}}}}}\n"
        )
        ended = fleet("", "--forget", inventory="silent")
    finally:
        (SCENARIO / "silent/hosts.yml").unlink()
        (SCENARIO / "silent").rmdir()
    assert ended.returncode == 4 and "ERROR c9: could not be reached" in ended.stdout


def test_it_is_gone_after_site_yml(drifted, fleet, node, playbook, state):
    c1, c2 = node("c1"), node("c2")
    site = str(SCENARIO.parents[1] / "playbooks/site.yml")
    ended = playbook(site)
    assert ended.code == 0, ended.output
    again = fleet("", "--json")
    assert findings(again.stdout) == [] and again.returncode == 0, again.stdout + again.stderr
    differs = fleet("diff", "--json")
    gone = {one["source"] for one in json.loads(differs.stdout)["gone"]}
    assert differs.returncode == 0 and gone >= {"drift", "setuid", "image", "version"}
    rows = sqlite3.connect(state / "audit.sqlite").execute("SELECT count(*) FROM audit").fetchone()
    assert rows == (3,)
    # Nothing is lost: the copy is there without its bit, the images are in quarantine with a record.
    assert c1.check_output(f"stat --format=%a {COPY} {ALLOWED}").split() == ["755", "4755"]
    for folder in (LOCAL, SHARED):
        assert not c1.file(f"{folder}/unsigned.sif").exists
        assert "signatures" in c1.check_output(f"cat {folder}/.quarantine/*.json")
    assert c2.check_output("apt-mark showhold") == "" and c2.mount_point("/scratch/shared").exists
    again = playbook(site)
    assert again.code == 0 and set(again.changed.values()) == {0}, again.output

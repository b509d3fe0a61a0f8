"""Module node_audit: what is wrong with a node is a finding with its place and its mend; nothing changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from module_utils import apptainer_ecl, node_audit, node_record, setuid_audit
from module_utils.apptainer_rules import Node
from module_utils.node_audit import Finding, Store
from module_utils.node_record import Watch

CONF = "/etc/apptainer/apptainer.conf"
TEXT = "# head\nallow setuid = no\nmount home = yes\nmount tmp = yes\n"


def nothing(_argv: list[str]) -> tuple[int, str]:
    return 127, ""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text, mode in (
        (CONF, TEXT, 0o644),
        ("/etc/munge/munge.key", "secret", 0o400),
        ("/usr/bin/su", "", 0o4755),
    ):
        path = tmp_path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
    return tmp_path


@pytest.fixture
def record(root: Path) -> str:
    watch = Watch(files=["/etc/apptainer/*", "/etc/munge/*"], setuid=["/usr/bin/*"])
    state = node_record.look(watch, nothing, str(root))
    return node_record.text(watch, state, node_record.lines(state, str(root)))


def drift(record: str, root: Path) -> list[Finding]:
    return node_audit.drift(record, nothing, str(root))[0]


def test_a_node_that_is_as_it_was_left_has_no_drift(root: Path, record: str) -> None:
    assert node_audit.drift(record, nothing, str(root)) == ([], ["/usr/bin/su"])


@pytest.mark.parametrize(
    ("text", "line", "evidence"),
    [
        (TEXT.replace("setuid = no", "setuid = yes"), 2, "now 'allow setuid = yes'"),
        (TEXT + "bind path = /x\n", 5, "now 'bind path = /x'"),
        (TEXT.replace("mount home = yes\n", ""), 3, "lines are gone"),
        ("first\n" + TEXT, 1, "now 'first'"),
        (TEXT.replace("\n", "\n\0"), 0, ""),
        (TEXT + "x\n" * node_record.LINED, 0, ""),
    ],
    ids=["changed", "added", "removed", "first", "no text", "large"],
)
def test_drift_has_the_first_line_that_differs(
    root: Path, record: str, text: str, line: int, evidence: str
) -> None:
    (root / CONF.lstrip("/")).write_text(text)
    (found,) = drift(record, root)
    assert (found.file, found.line, found.evidence) == (CONF, line, evidence)
    assert (found.source, found.severity) == ("drift", "error")
    assert "content differs" in found.message and "fleet site" in found.mend


def test_what_is_secret_is_neither_on_record_by_line_nor_shown(root: Path, record: str) -> None:
    assert list(node_record.read_lines(record)) == [CONF]
    key = root / "etc/munge/munge.key"
    key.chmod(0o600)
    key.write_text("other secret")
    key.chmod(0o644)
    (found,) = drift(record, root)
    assert (found.line, found.evidence) == (0, "") and "secret" not in str(found)
    assert "mode 0400" in found.message and "mode 0644" in found.message


def test_what_is_not_a_file_any_more_and_a_record_without_lines(root: Path, record: str) -> None:
    old = json.loads(record)
    del old["lines"]
    (root / CONF.lstrip("/")).write_text("other")
    assert [one.line for one in drift(json.dumps(old), root)] == [0]
    (root / CONF.lstrip("/")).unlink()
    assert "a file → absent" in drift(record, root)[0].message


@pytest.mark.parametrize("content", ["", "{", '{"version": 0}', '{"version": 1}'])
def test_a_node_without_a_record_is_told_of(content: str) -> None:
    (found,) = node_audit.drift(content, nothing)[0]
    assert (found.rule, found.severity, found.file) == ("record", "warning", node_record.PATH)


# --- Apptainer ----------------------------------------------------------------------------------------------

GOOD = {"allow setuid": "no", "allow user ns": "yes"}
ROOTLESS = Node(
    version="1.4.5", package_version="1.4.5-2", profile="rootless", suid=False, user_namespaces=True,
    directives=GOOD,
)  # fmt: skip
LISTED = {
    "allow setuid": "yes", "allow user ns": "no", "allow container sif": "yes", "allow container dir": "no",
    "allow container squashfs": "no", "allow container extfs": "no",
    "allow setuid-mount squashfs": "iflimited",
    "allow setuid-mount extfs": "no",
}  # fmt: skip
ENFORCED = Node(
    version="1.4.5", package_version="1.4.5-2", suid_version="1.4.5-2", profile="enforced", suid=True,
    user_namespaces=False, directives=LISTED, ecl=apptainer_ecl.Ecl(True, ()),
)  # fmt: skip


def sources(node: Node, wanted: str = "1.4.5", **more: Any) -> list[tuple[str, str]]:
    found = node_audit.apptainer(node, wanted, {}, **more)
    return [(one.source, one.message) for one in found if one.source in ("version", "profile")]


def test_profiles_that_hold() -> None:
    assert sources(ROOTLESS) == []
    assert sources(ENFORCED) == []


@pytest.mark.parametrize(
    ("node", "change", "why"),
    [
        (ROOTLESS, {"suid": True}, "there is a setuid starter"),
        (ROOTLESS, {"user_namespaces": False}, "users can't create user namespaces"),
        (ROOTLESS, {"directives": {**GOOD, "allow setuid": "yes"}}, "allow setuid = yes"),
        (ENFORCED, {"suid": False}, "there is no setuid starter"),
        (ENFORCED, {"user_namespaces": True}, "users can create user namespaces"),
        (ENFORCED, {"ecl": None}, "the list of images (ecl.toml) is not on"),
        (ENFORCED, {"directives": {**LISTED, "allow container dir": "yes"}}, "allow container dir = yes"),
    ],
)
def test_profiles_that_only_stand_in_the_inventory(node: Node, change: dict[str, Any], why: str) -> None:
    ((source, message),) = sources(replace(node, **change))
    assert source == "profile" and why in message


@pytest.mark.parametrize(
    ("wanted", "installed", "expected"),
    [
        ("1.4.5", "1.4.5-2", ""),
        ("1.4.5-2", "1.4.5-2", ""),
        ("1.4.5-3", "1.4.5-2", "Apptainer 1.4.5-2 is installed, wanted is 1.4.5-3"),
        ("1.5.0", "1.4.5-2", "Apptainer 1.4.5-2 is installed, wanted is 1.5.0"),
        ("1.5.0", None, "Apptainer is not there, wanted is 1.5.0"),
        ("", None, ""),
    ],
)
def test_versions(wanted: str, installed: str | None, expected: str) -> None:
    found = node_audit.apptainer(Node(package_version=installed), wanted, {})
    assert [one.message for one in found if one.source == "version"] == [expected] * bool(expected)


def test_findings_of_rules_have_the_line_of_their_directive_and_advisories_their_own_name() -> None:
    node = Node(version="1.4.0", directives={"mount hostfs": "yes"}, suid=True)
    text = "\n# mount hostfs = no\nmount hostfs = yes\n"
    found = node_audit.apptainer(node, "", {}, ["waiver 1: expired"], (CONF, text))
    by_source = {one.source: one for one in found}
    assert {"rule", "advisory", "waiver"} <= by_source.keys()
    hostfs = next(one for one in found if one.subject == "mount hostfs")
    assert (hostfs.rule, hostfs.file, hostfs.line) == ("L17", CONF, 3)
    assert by_source["advisory"].rule.startswith(("CVE-", "GHSA-"))


# --- setuid -------------------------------------------------------------------------------------------------


def stray(found: list[str], **arguments: Any) -> list[str]:
    leftovers = [setuid_audit.Finding(path, "setuid", 0, 0, 0o4755, False) for path in found]
    values: dict[str, Any] = {"recorded": [], "allowed": [], "owners": lambda _: {}, **arguments}
    return [one.file for one in node_audit.setuid(setuid_audit.Audit(leftovers), **values)]


def test_setuid_programs_of_no_package_are_stray_wherever_they_were_seen() -> None:
    assert stray(["/opt/x/starter-suid"], recorded=["/usr/bin/odd"]) == [
        "/opt/x/starter-suid",
        "/usr/bin/odd",
    ]


def test_setuid_programs_that_somebody_knows_are_not() -> None:
    assert (
        stray(["/a/starter-suid", "/b"], owners=lambda _: {"/a/starter-suid": "apptainer"}, allowed=["/b"])
        == []
    )
    # Nobody can say.
    assert stray(["/a/starter-suid"], owners=lambda _: None) == []


def test_a_search_that_ended_early_says_so() -> None:
    (found,) = node_audit.setuid(setuid_audit.Audit(stopped_at="/big"), [], [], lambda _: {})
    assert (found.severity, found.source) == ("info", "audit") and "/big" in found.message


def test_packages_of_before_folders_were_merged_are_asked_for_too() -> None:
    def run(argv: list[str]) -> tuple[int, str]:
        return (1, "login: /bin/su\nsudo: /usr/bin/sudo\n") if argv[0] == "dpkg-query" else (127, "")

    known = setuid_audit.packages(run, ["/usr/bin/su", "/usr/bin/sudo", "/usr/bin/odd"])
    assert known == {"/usr/bin/su": "login", "/usr/bin/sudo": "sudo"}
    assert setuid_audit.packages(nothing, ["/usr/bin/su"]) is None


# --- stores, health, pull -----------------------------------------------------------------------------------

MOUNTS = """\
1 1 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:40 / /shared rw - nfs4 server:/export rw
3 1 0:41 /sub /lustre rw - lustre mgs@o2ib:/fs rw
4 1 8:2 / /scratch rw - xfs /dev/sdb rw
"""


def test_a_store_has_the_same_name_wherever_it_is_mounted() -> None:
    here = node_audit.stores(["/shared/images"], MOUNTS)
    there = node_audit.stores(["/mnt/images"], MOUNTS.replace(" /shared ", " /mnt "))
    assert here[0].shared and here[0].id == there[0].id == "nfs4 server:/export /images"
    assert node_audit.stores(["/shared"], MOUNTS)[0].id != here[0].id


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/scratch/*/images", Store("/scratch/*/images", "/scratch/*/images", False)),
        ("/lustre/*/images", Store("lustre mgs@o2ib:/fs /sub/*/images", "/lustre/*/images", True)),
        ("/sharedx", Store("/sharedx", "/sharedx", False)),
    ],
)
def test_stores_are_told_from_mounts_alone(path: str, expected: Store) -> None:
    assert node_audit.stores([path], MOUNTS) == [expected]


def test_health(tmp_path: Path) -> None:
    assert node_audit.health(str(tmp_path / "none")) == ([], "")
    settings = tmp_path / "settings.json"
    settings.write_text("{")
    (found,), state = node_audit.health(str(settings))
    assert (found.rule, state) == ("settings", "unknown")
    settings.write_text(json.dumps({"node": "c1", "checks": {"files": [{"path": str(tmp_path / "gone")}]}}))
    found_, state = node_audit.health(str(settings))
    assert state in ("unhealthy", "unknown") and found_


def test_health_checks_that_do_something_are_not_made_but_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, state, made = tmp_path / "settings", tmp_path / "state", tmp_path / "made"
    monkeypatch.setattr(node_audit.node_health, "STATE", str(state))
    checks = {"commands": [{"name": "own", "argv": ["/usr/bin/touch", str(made)]}]}
    settings.write_text(json.dumps({"node": "c1", "checks": checks}))
    assert node_audit.health(str(settings)) == ([], "healthy")
    said = {"ok": False, "message": "own is unwell", "seconds": 1}
    state.write_text(json.dumps({"acted": {"commands": said, "container": said}}))
    (found,), word = node_audit.health(str(settings))
    assert (found.rule, word) == ("commands", "unhealthy") and "own is unwell" in found.message
    assert not made.exists()
    # The health program makes it, and remembers what it said.
    assert node_audit.node_health.main(["--settings", str(settings)]) == 0
    assert made.exists() and node_audit.health(str(settings)) == ([], "healthy")


@pytest.mark.parametrize(
    ("result", "rules", "state"),
    [
        ({"outcome": "converged", "commit": "0123456789abcdef"}, [], "converged at 0123456789ab"),
        ({"outcome": "refused", "message": "bad signature"}, ["refused"], "refused"),
        (None, ["never"], "never"),
        ([], ["result"], "unknown"),
    ],
)
def test_pull(tmp_path: Path, result: Any, rules: list[str], state: str) -> None:
    settings, file = tmp_path / "settings", tmp_path / "result"
    assert node_audit.pull(str(settings), str(file)) == ([], "")
    settings.touch()
    if result is not None:
        file.write_text(json.dumps(result) if result != [] else "[1]")
    found, said = node_audit.pull(str(settings), str(file))
    assert ([one.rule for one in found], said) == (rules, state)


# --- the module ---------------------------------------------------------------------------------------------


@pytest.fixture
def module(
    ansible_module: Callable[[str], Any], root: Path, record: str, monkeypatch: pytest.MonkeyPatch
) -> Any:
    runner = ansible_module("node_audit")
    path = root / "record.json"
    path.write_text(record)
    plugin = runner.plugin
    monkeypatch.setattr(plugin.node_record, "PATH", str(path))
    monkeypatch.setattr(plugin.setuid_audit, "audit", lambda *_: setuid_audit.Audit())
    monkeypatch.setattr(plugin, "CACHE", str(root / "none.sqlite"))
    monkeypatch.setattr(plugin.node_audit, "SCANNER", str(root / "SCANNER"))
    return runner


IMAGES = {"policy": {"rules": {"max_size_mib": 1}}, "lock": {"images": []}}


def tree(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.lstat().st_ino, path.lstat().st_mtime_ns) for path in folder.rglob("*"))


def test_the_module_judges_images_and_changes_nothing(module: Any, root: Path) -> None:
    store = root / "store"
    store.mkdir()
    (store / "bad.sif").write_text("no image")
    before = tree(root)
    result = module(images={"paths": [str(store)], **IMAGES})
    assert tree(root) == before
    assert not result["changed"] and not result.get("failed")
    assert result["stores"] == [
        {"id": str(store), "path": str(store), "shared": False, "images": 1, "refused": 1}
    ]
    found = [one for one in result["findings"] if one["source"] == "image"]
    assert found[0]["file"] == str(store / "bad.sif") and found[0]["mend"]
    assert {"os", "kernel"} <= result["facts"].keys()


def test_a_shared_store_is_only_named_until_a_node_is_asked_for_it(
    module: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = root / "shared"
    store.mkdir()
    (store / "bad.sif").write_text("no image")
    mounted = root / "mountinfo"
    mounted.write_text(f"1 1 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:40 / {store} rw - nfs4 server:/x rw\n")
    monkeypatch.setattr(module.plugin.mounts, "MOUNTINFO", str(mounted))
    images = {"paths": [str(store)], **IMAGES}
    first = module(images=images)
    assert first["stores"] == [{"id": "nfs4 server:/x /", "path": str(store), "shared": True}]
    assert not [one for one in first["findings"] if one["source"] == "image"]
    second = module(images=images, shared_stores=["nfs4 server:/x /"])
    assert second["stores"][0]["refused"] == 1 and second["facts"] == {}
    assert {one["source"] for one in second["findings"]} == {"image"}


def test_the_scanners_own_settings_are_compared(module: Any, root: Path) -> None:
    (root / "SCANNER").write_text(json.dumps({"policy": {}, "lock": IMAGES["lock"], "keyrings": []}))
    result = module(images={"paths": [str(root / "none")], **IMAGES})
    (found,) = [one for one in result["findings"] if one["rule"] == "scanner"]
    assert "another policy than" in found["message"]


def test_wrong_arguments_are_refused(module: Any) -> None:
    assert "deadline" in module(deadline=0)["msg"]
    assert "policy" in module(images={"paths": ["/x"], "policy": {"rule": 1}, "lock": {"images": []}})["msg"]

"""What is found on a node, in a folder that has a node's files, and the module that says it."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from module_utils import apptainer_facts, openpgp
from module_utils.apptainer_facts import Root, look, mounted
from module_utils.apptainer_rules import Mount, Node, PathFact, judge
from module_utils.kernel_parameters import user_namespaces

as_root = pytest.mark.skipif(os.getuid() != 0, reason="files of root are needed")
MOUNTINFO = (
    "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
    "40 22 0:35 / /net/a\\040b rw shared:2 master:1 - nfs4 server:/x rw,addr=10.0.0.1\n"
    "41 22 0:36 / /auto rw - autofs systemd-1 rw\n"
    "nonsense\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    write(tmp_path, "/proc/self/mountinfo", MOUNTINFO)
    write(tmp_path, "/etc/apptainer/apptainer.conf", "bind path = /etc/localtime\n")
    write(tmp_path, "/etc/apptainer/ecl.toml", "activated = false\n")
    write(tmp_path, "/etc/apptainer/capability.json", "")
    write(tmp_path, "/etc/apptainer/global-pgp-public", "")
    write(tmp_path, "/etc/localtime", "")
    return Root(str(tmp_path))


def write(root: Root | Path, path: str, text: str, mode: int = 0o644) -> None:
    file = root.real(path) if isinstance(root, Root) else root / path.lstrip("/")
    for folder in reversed(file.parents):
        if not folder.exists():
            folder.mkdir(mode=0o755)
    file.write_text(text)
    file.chmod(mode)


def found(root: Root, **facts: Any) -> dict[str, list[str]]:
    """Rule → subjects, of a node with the files in *root*."""
    node = apptainer_facts.describe(
        Node(**{"version": "1.5.1", "suid": False, **facts}), "/etc/apptainer", root
    )
    rules: dict[str, list[str]] = {}
    for finding in judge(node):
        rules.setdefault(finding.id, []).append(finding.subject)
    return rules


@as_root
def test_a_node_in_order_has_no_findings(root: Root) -> None:
    assert found(root) == {}
    assert found(root, suid=True, user_namespaces=False) == {}


@as_root
def test_everything_that_is_wrong_is_found(root: Root) -> None:
    write(
        root,
        "/etc/apptainer/apptainer.conf",
        "allow setuids = no\nmount tmp = no\nmount tmp = yes\nlimit container paths = /images\n"
        "bind path = /nowhere, /net/a b/x\nbinary path = /opt/bin\nalways use nv = yes\n",
        mode=0o666,
    )
    write(root, "/etc/apptainer/ecl.toml", "activated = yes\n")
    write(root, "/etc/apptainer/capability.json", '{"users": {"eve": ["CAP_SYS_ADMIN"]}}')
    write(root, "/etc/apptainer/nvliblist.conf", "# what\nnvidia-smi\nlibcuda.so\n")
    write(root, "/usr/bin/nvidia-smi", "", mode=0o777)
    write(root, "/opt/bin/x", "")
    root.real("/opt/bin").chmod(0o1777)
    root.real("/net").mkdir()
    root.real("/images").mkdir(mode=0o755)
    os.chown(root.real("/images"), 1000, 0)
    root.real("/etc/singularity").mkdir()
    assert found(root) == {
        "L01": ["line 1"],
        "L03": ["line 3"],
        "L08": ["'limit container paths'"],
        "L11": ["ecl.toml"],
        "L16": ["/images"],
        "L18": ["/nowhere", "/net/a b/x"],
        "L21": ["always use nv"],
        "L23": ["/opt/bin", "/usr/bin/nvidia-smi"],
        "L26": ["/etc/apptainer/apptainer.conf"],
        "L27": ["user eve"],
        "L29": ["/etc/singularity"],
    }


@as_root
def test_setuid_mode_misses_its_files(root: Root) -> None:
    root.real("/etc/apptainer/ecl.toml").unlink()
    assert found(root) == {}
    assert found(root, suid=True) == {"L26": ["/etc/apptainer/ecl.toml"]}


@as_root
def test_links_are_not_taken_for_files(root: Root) -> None:
    root.real("/etc/apptainer/ecl.toml").rename(root.real("/etc/ecl.toml"))
    root.real("/etc/apptainer/ecl.toml").symlink_to("/etc/ecl.toml")
    assert found(root) == {"L26": ["/etc/apptainer/ecl.toml"]}


def test_the_keyring_is_read(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    group = f'activated = true\n[[execgroup]]\nmode = "whitelist"\nkeyfp = ["{"A" * 40}"]\n'
    write(root, "/etc/apptainer/ecl.toml", group)
    assert found(root)["L10"] == ["the global keyring"]
    write(root, "/etc/apptainer/global-pgp-public", "-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    assert found(root)["L10"] == ["global keyring"]
    write(root, "/etc/apptainer/global-pgp-public", "garbage")
    assert found(root)["L10"] == ["global keyring"]
    key = openpgp.PublicKey("A" * 40, (), "rsa", 0, b"")
    monkeypatch.setattr(openpgp, "public_keys", lambda content: (key,))
    assert "L10" not in found(root)


def test_a_release_without_data_is_not_judged_by_its_settings(root: Root) -> None:
    write(root, "/etc/apptainer/apptainer.conf", "nonsense")
    assert not found(root, version="9.0.0").keys() & {"L01", "L02"}
    assert found(root)["L01"] == ["line 1"]


def test_mounts_are_read() -> None:
    assert mounted(MOUNTINFO) == [Mount("/", "ext4"), Mount("/net/a b", "nfs4"), Mount("/auto", "autofs")]


@pytest.mark.parametrize(
    ("files", "open_to_users", "why"),
    [
        ({"user/max_user_namespaces": "0"}, False, "user.max_user_namespaces = 0"),
        ({"user/max_user_namespaces": "15000"}, True, "user.max_user_namespaces = 15000"),
        (
            {"user/max_user_namespaces": "9", "kernel/unprivileged_userns_clone": "0"},
            False,
            "kernel.unprivileged_userns_clone = 0",
        ),
        (
            {"user/max_user_namespaces": "9", "kernel/apparmor_restrict_unprivileged_userns": "1"},
            False,
            "kernel.apparmor_restrict_unprivileged_userns = 1, and there is no /etc/apparmor.d/apptainer",
        ),
        ({}, None, ""),
    ],
)
def test_user_namespaces(tmp_path: Path, files: dict[str, str], open_to_users: bool | None, why: str) -> None:
    for name, value in files.items():
        write(tmp_path, f"/proc/sys/{name}", value + "\n")
    assert user_namespaces(str(tmp_path)) == (open_to_users, why)


def test_a_profile_excepts_apptainer_from_the_restriction(tmp_path: Path) -> None:
    write(tmp_path, "/proc/sys/user/max_user_namespaces", "9")
    write(tmp_path, "/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1")
    write(tmp_path, "/etc/apparmor.d/apptainer", "")
    assert user_namespaces(str(tmp_path))[0] is True


# --- paths --------------------------------------------------------------------------------------------------


def test_what_is_on_the_network_is_never_touched(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[str] = []
    real = os.lstat

    def lstat(path: Path, **options: Any) -> os.stat_result:
        touched.append(str(path))
        return real(path, **options)

    write(root, "/net/a b/x/y", "")
    write(root, "/auto/z", "")
    root.real("/link").symlink_to("/srv/../net/a b/x")
    root.real("/srv").mkdir()
    monkeypatch.setattr(os, "lstat", lstat)
    mounts = mounted(MOUNTINFO)
    assert look("/net/a b/x/y", mounts, root) == PathFact()
    assert look("/net/a b", mounts, root) == PathFact(exists=True)
    assert look("/auto/z", mounts, root) == PathFact()
    assert look("/link/y", mounts, root) == PathFact()
    assert touched
    assert not [path for path in touched if "a b" in path or "auto" in path]


@as_root
def test_who_can_write_where(root: Root) -> None:
    write(root, "/a/b/c", "")
    assert look("/a/b/c", [], root) == PathFact(True, False, (), "/a/b/c")
    root.real("/a/b").chmod(0o777)
    assert look("/a/b/c", [], root).writable
    root.real("/a/b").chmod(0o1777)
    assert not look("/a/b/c", [], root).writable
    assert look("/a/b", [], root).writable
    os.chown(root.real("/a/b/c"), 1000, 0)
    assert look("/a/b/c", [], root).writable
    os.chown(root.real("/a/b/c"), 0, 50)
    assert not look("/a/b/c", [], root).writable
    root.real("/a/b/c").chmod(0o664)
    assert look("/a/b/c", [], root).writable


def test_links_are_followed_within_the_node(root: Root) -> None:
    write(root, "/real/images/x", "")
    root.real("/images").symlink_to("/real/images")
    root.real("/real/up").symlink_to("../images")
    root.real("/loop").symlink_to("loop")
    assert look("/images", [], root).resolved == "/real/images"
    assert look("/real/up/./x", [], root).resolved == "/real/images/x"
    assert look("/loop", [], root) == look("/images/none", [], root) == PathFact(exists=False)
    assert look("/real/images/x/deeper", [], root).exists is False


def test_siblings(root: Root) -> None:
    for name in ("containers", "containers-old", "containers2", "other"):
        root.real(f"/{name}").mkdir()
    assert look("/containers", [], root).siblings == ("containers-old", "containers2")


# --- the module ---------------------------------------------------------------------------------------------


@pytest.fixture
def lint(ansible_module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, on a node that has Apptainer 1.4.4 and shows its file systems to containers."""
    runner = ansible_module("apptainer_lint")
    node = Node(version="1.4.4", directives={"mount hostfs": "yes"})
    rules = runner.plugin.apptainer_rules
    known = rules.Node(version=node.version, directives=node.directives)
    monkeypatch.setattr(runner.plugin.apptainer_facts, "gather", lambda run, profile: known)
    return runner


def waiver(**change: Any) -> dict[str, Any]:
    tomorrow = datetime.date.today() + datetime.timedelta(days=1)
    return {"rule": "CVE-2025-65105", "reason": "mended by us", "expires": tomorrow.isoformat(), **change}


@pytest.mark.parametrize("check", [False, True])
def test_an_error_fails_and_says_how_to_mend_it(lint: Any, check: bool) -> None:
    result = lint(check=check)
    assert result["failed"]
    assert "L30 error: CVE-2025-65105 is open" in result["msg"]
    assert "bring apptainer_version to 1.4.5 or later" in result["msg"]
    assert "mount hostfs" not in result["msg"]
    assert [finding["id"] for finding in result["findings"]] == ["L17", "L30"]


def test_a_report_does_not_fail(lint: Any) -> None:
    result = lint(report_only=True)
    assert not result.get("failed")
    assert not result["changed"]
    assert result["version"] == "1.4.4"
    assert {"id", "severity", "subject", "message", "mend", "reference", "evidence", "waived"} == set(
        result["findings"][0]
    )


def test_what_is_waived_does_not_fail_and_is_shown(lint: Any) -> None:
    result = lint(waivers=[waiver()])
    assert not result.get("failed")
    assert [finding["waived"][-12:] for finding in result["findings"]] == ["", "mended by us"]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"expires": "2026-01-01"}, "expired on 2026-01-01"), ({"rule": "L99"}, "there is no rule L99")],
)
def test_a_waiver_that_does_not_count_fails(lint: Any, change: dict[str, str], words: str) -> None:
    result = lint(waivers=[waiver(**change)])
    assert result["failed"]
    assert words in result["msg"]


def test_a_waiver_needs_all_that_it_has(lint: Any) -> None:
    result = lint(waivers=[{"rule": "L12"}])
    assert "missing required arguments: expires, reason" in result["msg"]


def test_a_node_without_apptainer_has_no_findings(
    ansible_module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = ansible_module("apptainer_lint")
    monkeypatch.setattr(runner.plugin.apptainer_packages, "find", lambda run: None)
    result = runner()
    assert (result["version"], result["findings"], result["changed"]) == (None, [], False)

"""Module node_check: what a converge left is recorded, and whatever differs later is found."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from module_utils import node_record
from module_utils.node_record import Watch

CONF = "etc/apptainer/apptainer.conf"
PACKAGES = "apptainer installed 1.4.5\nslurmd config-files 24.11\n"
UNITS = """\
Id=slurmd.service
LoadState=loaded
UnitFileState=enabled
ActiveState=active

Id=gone.service
LoadState=not-found
UnitFileState=
ActiveState=inactive
"""
WATCH = Watch(
    files=["/etc/apptainer/**", "/etc/pin"],
    exclude=["*.bak"],
    packages=["apptainer", "slurmd"],
    sysctl_files=["/etc/sysctl.d/60-*.conf"],
    units=["slurmd.service", "gone.service"],
    mount_types=["lustre", "nfs4"],
    setuid=["/usr/bin/*"],
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        "etc/apptainer/apptainer.conf": "a",
        "etc/apptainer/deep/er.toml": "b",
        "etc/apptainer/old.bak": "c",
        "etc/sysctl.d/60-user-namespaces.conf": "# note\nuser.max_user_namespaces = 5\n-kernel.none = 1\n",
        "proc/sys/user/max_user_namespaces": "5\n",
        "proc/self/mounts": "mgs@o2ib:/s /scratch lustre rw,flock,lazystatfs 0 0\n"
        "systemd-1 /home autofs rw 0 0\nhome:/home /home nfs4 rw,addr=10.0.0.1 0 0\nproc /proc proc rw 0 0\n",
        "usr/bin/su": "x",
        "usr/bin/ls": "x",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o644)
    (tmp_path / "usr/bin/su").chmod(0o4755)
    return tmp_path


def run(argv: list[str]) -> tuple[int, str]:
    return {"dpkg-query": (1, PACKAGES), "systemctl": (0, UNITS)}.get(argv[0], (127, ""))


def look(root: Path, run: node_record.Run = run) -> node_record.State:
    return node_record.look(WATCH, run, str(root))


def test_what_is_looked_at(root: Path) -> None:
    state = look(root)
    assert sorted(state["files"]) == [
        *("/etc/apptainer/", "/etc/apptainer/apptainer.conf", "/etc/apptainer/deep"),
        "/etc/apptainer/deep/er.toml",
    ]
    assert state["files"]["/etc/apptainer/deep"].startswith("folder mode 0755 owner ")
    assert state["packages"] == {"apptainer": "1.4.5"}
    assert state["sysctls"] == {"user.max_user_namespaces": "5"}
    assert state["units"] == {"slurmd.service": "enabled active"}
    assert state["mounts"] == {"/scratch": "mgs@o2ib:/s type lustre (rw,flock)"}
    assert list(state["setuid"]) == ["/usr/bin/su"]


def test_nothing_differs_from_itself(root: Path) -> None:
    watch, state = node_record.read(node_record.text(WATCH, look(root)))
    assert watch._replace(**{k: list(v) for k, v in watch._asdict().items()}) == WATCH
    assert node_record.differences(state, look(root)) == []


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(content)


@pytest.mark.parametrize(
    ("change", "topic", "name"),
    [
        (write("etc/apptainer/apptainer.conf", "A"), "files", "/etc/apptainer/apptainer.conf"),
        (lambda root: (root / CONF).chmod(0o666), "files", f"/{CONF}"),
        (lambda root: (root / CONF).unlink(), "files", f"/{CONF}"),
        (write("etc/apptainer/ecl.toml", "new"), "files", "/etc/apptainer/ecl.toml"),
        (lambda root: (root / "etc/pin").symlink_to("/dev/null"), "files", "/etc/pin"),
        (lambda root: os.mkfifo(root / "etc/pin"), "files", "/etc/pin"),
        (write("proc/sys/user/max_user_namespaces", "0"), "sysctls", "user.max_user_namespaces"),
        (write("proc/self/mounts", ""), "mounts", "/scratch"),
        (lambda root: (root / "usr/bin/ls").chmod(0o2755), "setuid", "/usr/bin/ls"),
        (lambda root: (root / "usr/bin/su").chmod(0o755), "setuid", "/usr/bin/su"),
    ],
)  # fmt: skip
def test_each_difference_is_found(root: Path, change: Callable[[Path], Any], topic: str, name: str) -> None:
    before = look(root)
    change(root)
    assert [found[:2] for found in node_record.differences(before, look(root))] == [(topic, name)]


@pytest.mark.parametrize(
    ("program", "said", "expected"),
    [
        ("dpkg-query", "apptainer installed 1.4.4\n", ("packages", "apptainer", "1.4.5", "1.4.4")),
        ("dpkg-query", "", ("packages", "apptainer", "1.4.5", "absent")),
        ("systemctl", UNITS.replace("=active", "=failed"),
         ("units", "slurmd.service", "enabled active", "enabled failed")),
        ("systemctl", UNITS.replace("=enabled", "=masked"),
         ("units", "slurmd.service", "enabled active", "masked active")),
    ],
)  # fmt: skip
def test_packages_and_units(root: Path, program: str, said: str, expected: tuple[str, ...]) -> None:
    before = look(root)
    after = look(root, lambda argv: (0, said) if argv[0] == program else run(argv))
    assert node_record.differences(before, after) == [expected]


def test_rpm_where_there_is_no_dpkg() -> None:
    watch = Watch(packages=["apptainer"])
    said = {"rpm": (0, "apptainer installed 1.4.5-1.el9\npackage x is not installed\n")}
    state = node_record.look(watch, lambda argv: said.get(argv[0], (127, "")))
    assert state["packages"] == {"apptainer": "1.4.5-1.el9"}


@pytest.mark.parametrize("content", ["", "[]", '{"version": 0}', '{"version": 1, "watch": {"file": []}}'])
def test_a_record_that_is_none(content: str) -> None:
    with pytest.raises(ValueError):
        node_record.read(content)


@pytest.fixture
def node_check(ansible_module: Callable[[str], Any], root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    runner = ansible_module("node_check")
    monkeypatch.setattr(runner.plugin.node_record, "PATH", str(root / "var/record.json"))
    return runner


def test_recorded_then_compared_then_changed(node_check: Any, root: Path) -> None:
    watch = {"files": [f"{root}/etc/apptainer/**"]}
    assert node_check(check=True, state="recorded", watch=watch)["changed"]
    assert not (root / "var/record.json").exists()
    assert node_check(state="recorded", watch=watch)["changed"]
    assert (root / "var/record.json").stat().st_mode & 0o777 == 0o600
    again = node_check(state="recorded", watch=watch)
    assert (again["changed"], again["diff"]) == (False, [])
    assert node_check()["differences"] == []
    for name in "123":
        (root / f"etc/apptainer/{name}").write_text("stray")
    (root / "etc/apptainer/apptainer.conf").write_text("other")
    failed = node_check()
    assert failed["failed"]
    assert failed["msg"].endswith("and 1 more")
    assert [found["name"].rpartition("/")[2] for found in failed["differences"]] == [
        *("1", "2", "3", "apptainer.conf"),
    ]


def test_setuid_programs_are_disarmed_before_they_are_on_record(
    node_check: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starter = root / "opt/old/starter-suid"
    starter.parent.mkdir(parents=True)
    starter.touch()
    starter.chmod(0o4755)
    setuid_audit = node_check.plugin.setuid_audit
    audit = setuid_audit.audit
    # Not of this machine.
    monkeypatch.setattr(setuid_audit, "audit", lambda seconds, mounts: audit(seconds, mounts, [str(root)]))
    monkeypatch.setattr(setuid_audit, "ROOT", os.geteuid())
    monkeypatch.setattr(setuid_audit, "packages", lambda run, paths: {})
    wanted = {"state": "recorded", "watch": {"setuid": [f"{root}/opt/**/*-suid"]}}
    assert node_check(**wanted)["disarmed"] == [] and starter.stat().st_mode & 0o4000
    kept = node_check(**wanted, disarm=True, setuid_allowed=[str(starter)])
    assert kept["disarmed"] == [] and starter.stat().st_mode & 0o4000
    predicted = node_check(check=True, **wanted, disarm=True)
    assert predicted["disarmed"] == [str(starter)] and starter.stat().st_mode & 0o4000
    done = node_check(**wanted, disarm=True)
    assert done["changed"] and done["diff"] == predicted["diff"]
    assert (
        starter.stat().st_mode & 0o7777 == 0o755
        and str(starter) not in (root / "var/record.json").read_text()
    )
    assert not node_check(**wanted, disarm=True)["changed"]


def test_without_a_record_or_with_half_a_one(node_check: Any, root: Path) -> None:
    assert "no record" in node_check()["msg"]
    (root / "var").mkdir()
    (root / "var/record.json").write_text(json.dumps({"version": 1})[:-3])
    failed = node_check()
    assert (failed["failed"], failed["differences"][0]["topic"]) == (True, "record")


def test_recorded_needs_to_know_what(node_check: Any) -> None:
    assert "watch" in node_check(state="recorded")["msg"]


def test_what_is_enabled_is_on_record_as_it_is_once_it_has_started() -> None:
    units = {
        "slurmd.service": "enabled inactive",
        "munge.service": "enabled failed",
        "ssh.service": "disabled inactive",
    }
    assert node_record.started({"units": units})["units"] == {**units, "slurmd.service": "enabled active"}

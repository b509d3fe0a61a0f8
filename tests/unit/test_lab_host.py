"""What this machine lacks is said at once, each lack with its mend."""

from __future__ import annotations

import ipaddress
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from fleet.errors import FleetError
from fleet.lab import host, lab
from fleet.lab.model import Lab, Node

NSPAWN = lab.BACKENDS["nspawn"].programs
ANY = Lab("t", ipaddress.IPv4Network("10.77.90.0/24"), (Node("a", "10.77.90.2"),))


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    monkeypatch.setattr(host, "DEBIAN_KEYRING", keyring)
    monkeypatch.setattr(host.os, "geteuid", lambda: 0)
    monkeypatch.setattr(host.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(host, "_missing_kernel_features", list)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return monkeypatch


def test_a_complete_machine_lacks_nothing(complete: pytest.MonkeyPatch) -> None:
    assert host.check_host(NSPAWN) == []


def test_not_root(complete: pytest.MonkeyPatch) -> None:
    complete.setattr(host.os, "geteuid", lambda: 1000)
    (lack,) = host.check_host(NSPAWN)
    assert lack.startswith("not root")
    assert "sudo" in lack


def test_missing_programs_are_named_as_packages(complete: pytest.MonkeyPatch) -> None:
    absent = {"nft", "systemd-nspawn"}
    complete.setattr(host.shutil, "which", lambda name: None if name in absent else name)
    (lack,) = host.check_host(NSPAWN)
    assert "nftables systemd-container" in lack
    assert "--install-host-packages" in lack


def test_missing_keyring_is_a_missing_package(complete: pytest.MonkeyPatch) -> None:
    complete.setattr(host, "DEBIAN_KEYRING", Path("/nonexistent"))
    assert host.missing_packages(NSPAWN) == ["debian-archive-keyring"]


def test_missing_kernel_feature(complete: pytest.MonkeyPatch) -> None:
    complete.undo()
    complete.setattr(Path, "read_text", lambda self, *_a, **_k: "nodev\tproc\n\text4\n")
    lacks = host._missing_kernel_features()
    assert [lack.split(";")[0] for lack in lacks] == [
        "kernel: no overlay file system",
        "kernel: no fuse file system",
    ]
    assert all("mend: " in lack for lack in lacks)


def test_inotify_instances_that_other_labs_have_are_said_before_anything_boots(
    complete: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limit = tmp_path / "max_user_instances"
    limit.write_text("128\n")
    complete.setattr(host, "INOTIFY_LIMIT", limit)
    complete.setattr(host, "_free_inotify", lambda wanted: min(wanted, 12))
    assert host.check_host(NSPAWN, 2) == []
    (lack,) = host.check_host(NSPAWN, 3)
    assert lack == (
        "fs.inotify.max_user_instances is 128, of which 12 are left: 3 nodes to boot need 15; "
        "mend: take another lab down, or sysctl fs.inotify.max_user_instances=131"
    )


def test_inotify_instances_are_counted_by_making_them_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    assert host._free_inotify(3) == 3
    made = iter([os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY), -1])
    monkeypatch.setattr(
        host.ctypes, "CDLL", lambda _name: SimpleNamespace(inotify_init1=lambda _flags: next(made))
    )
    assert host._free_inotify(10_000) == 2
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_running_nodes_and_machines_need_no_more_of_them(complete: pytest.MonkeyPatch) -> None:
    nodes = [Node("a", "10.77.90.2"), Node("b", "10.77.90.3"), Node("c", "10.77.90.4", backend="qemu")]
    complete.setattr(lab, "_is_running", lambda _lab, name: name == "a")
    asked: list[int] = []
    complete.setattr(lab, "check_host", lambda _programs, containers: asked.append(containers) or [])
    lab.lacks_for(Lab("t", ipaddress.IPv4Network("10.77.90.0/24"), tuple(nodes)))
    assert asked == [1]


def test_all_lacks_come_in_one_error_and_nothing_is_planned(complete: pytest.MonkeyPatch) -> None:
    complete.setattr(host.os, "geteuid", lambda: 1000)
    complete.setattr(host.shutil, "which", lambda _name: None)
    complete.setattr(lab, "plan_up", lambda _lab: pytest.fail("planned all the same"))
    with pytest.raises(FleetError) as refused:
        lab.bring_up(ANY, lambda *_: None)
    assert "not root" in str(refused.value)
    assert "mmdebstrap" in str(refused.value)


def test_no_apt_is_said_before_anything_is_tried(complete: pytest.MonkeyPatch) -> None:
    complete.setattr(host.shutil, "which", lambda _name: None)
    with pytest.raises(FleetError, match="Debian and Ubuntu only"):
        host.install_packages(["nftables"])


def mirror_from(complete: pytest.MonkeyPatch, answer: str) -> list[list[str]]:
    asked: list[list[str]] = []

    def run(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(argv)
        return subprocess.CompletedProcess(argv, 0, stdout=answer)

    host._mirror_of_this_machine.cache_clear()
    complete.setattr(host.subprocess, "run", run)
    return asked


def test_mirror_is_the_first_debian_archive_and_remembered(complete: pytest.MonkeyPatch) -> None:
    answer = "Debian|Debian-Security|http://a.example/security/\nDebian|Debian|http://b.example/debian/\n"
    asked = mirror_from(complete, answer)
    assert host.debian_mirror("").url == "http://b.example/debian"
    host._mirror_of_this_machine.cache_clear()
    assert host.debian_mirror("").url == "http://b.example/debian"
    assert len(asked) == 1


def test_configured_mirror_wins(complete: pytest.MonkeyPatch) -> None:
    asked = mirror_from(complete, "")
    assert host.debian_mirror("http://c.example/debian/").url == "http://c.example/debian"
    assert asked == []


def test_no_debian_mirror(complete: pytest.MonkeyPatch) -> None:
    mirror_from(complete, "Ubuntu|Ubuntu|http://d.example/ubuntu/\n")
    with pytest.raises(FleetError, match="lab_mirror"):
        host.debian_mirror("")

"""Leftovers of old installations, in folders of this machine with real setuid bits."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from module_utils import setuid_audit
from module_utils.mounts import PSEUDO_TYPES, parse
from module_utils.setuid_audit import audit

ROOT = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"


def mount(number, path, kind, device="0:99", root="/", *, parent=1, options="rw"):
    return f"{number} {parent} {device} {root} {path} {options} shared:1 - {kind} source rw\n"


def put(path, mode):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/true\n")
    path.chmod(mode)
    return path


@pytest.fixture
def tree(tmp_path):
    """A node with every leftover there is, and things that only look like one."""
    put(tmp_path / "opt/old/libexec/singularity/bin/starter-suid", 0o4755)
    put(tmp_path / "usr/local/libexec/singularity/bin/action-suid", 0o4755)
    put(tmp_path / "usr/local/bin/singularity", 0o755)
    (tmp_path / "etc/singularity").mkdir(parents=True)
    put(tmp_path / "home/a/starter-suid", 0o755)
    put(tmp_path / "srv/singularity", 0o755)
    put(tmp_path / "usr/share/bin/singularity", 0o644)
    put(tmp_path / "usr/bin/sudo", 0o4755)
    (tmp_path / "usr/bin/singularity").symlink_to("apptainer")
    (tmp_path / "usr/bin/starter-suid").symlink_to(tmp_path / "opt/old/libexec/singularity/bin/starter-suid")
    return tmp_path


def paths(result, tree):
    return sorted(str(Path(finding.path).relative_to(tree)) for finding in result.findings)


LEFTOVERS = [
    "etc/singularity",
    "opt/old/libexec/singularity/bin/starter-suid",
    "usr/local/bin/singularity",
    "usr/local/libexec/singularity/bin/action-suid",
]


def test_everything_is_found_and_nothing_else(tree):
    result = audit(60, ROOT, [str(tree)])
    assert paths(result, tree) == LEFTOVERS
    assert {finding.kind for finding in result.findings} == {"setuid", "program", "configuration"}
    starter = next(f for f in result.findings if f.path.endswith("starter-suid"))
    assert (starter.mode, starter.uid, starter.nosuid) == (0o4755, os.geteuid(), False)
    assert result.stopped_at is None and result.unreadable_count == 0


@pytest.mark.parametrize("name", sorted(setuid_audit.SETUID_NAMES))
def test_every_setuid_program_of_old_is_known(tmp_path, name):
    put(tmp_path / name, 0o4711)
    assert [f.kind for f in audit(60, ROOT, [str(tmp_path)]).findings] == ["setuid"]


def test_a_setuid_singularity_is_setuid(tmp_path):
    put(tmp_path / "bin/singularity", 0o4755)
    assert [f.kind for f in audit(60, ROOT, [str(tmp_path)]).findings] == ["setuid"]


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "gpfs", "fuse.sshfs", "cvmfs", "autofs", "proc", "new"])
def test_other_file_systems_are_not_entered(tree, kind):
    table = ROOT + mount(2, tree / "opt", kind)
    result = audit(60, table, [str(tree)])
    assert "opt/old/libexec/singularity/bin/starter-suid" not in paths(result, tree)
    assert bool(result.not_entered) is (kind not in PSEUDO_TYPES)


def test_a_local_one_is_entered_once_wherever_it_is_shown(tree):
    table = ROOT + mount(2, tree / "opt", "xfs", "8:2", options="rw,nosuid")
    result = audit(60, table, [str(tree)])
    assert paths(result, tree) == LEFTOVERS and str(tree / "opt") in result.walked
    assert [f.nosuid for f in result.findings if f.path.endswith("starter-suid")] == [True]
    again = table + mount(3, tree / "usr", "ext4", "8:1", "/other")
    assert str(tree / "usr") not in audit(60, again, [str(tree)]).walked


def test_a_local_one_below_a_network_one_is_not_entered(tree):
    table = ROOT + mount(2, tree / "opt", "nfs4") + mount(3, tree / "opt/old", "xfs", "8:2", parent=2)
    assert str(tree / "opt/old") not in audit(60, table, [str(tree)]).walked


def test_a_hidden_mount_is_none():
    mounts = parse(
        ROOT
        + mount(2, "/a", "xfs", "8:2")
        + mount(3, "/a/b", "xfs", "8:3", parent=2)
        + mount(4, "/a", "nfs4", parent=2)
        + mount(5, "/x\\040y", "xfs", "8:4")
    )
    shown = setuid_audit.visible(mounts)
    assert set(shown) == {"/", "/a", "/x y"} and shown["/a"].type == "nfs4"
    assert [point.path for point in setuid_audit.starting_points(shown)] == ["/", "/x y"]


@pytest.mark.parametrize("text", ["", "garbage\n", "1 0 8:1 / /\n", ROOT])
def test_a_strange_mountinfo_is_no_crash(text, tmp_path):
    assert audit(60, text, [str(tmp_path)]).findings == []


def test_a_loop_of_links_ends(tree):
    (tree / "opt/old/loop").symlink_to(tree)
    (tree / "etc/a").symlink_to("b")
    (tree / "etc/b").symlink_to("a")
    assert paths(audit(60, ROOT, [str(tree)]), tree) == LEFTOVERS


def test_a_folder_that_vanishes_or_becomes_a_link_is_passed_by(tree, monkeypatch):
    real = os.open

    def gone(path, *arguments):
        for folder in (tree / "opt", tree / "usr/local"):
            if path == str(folder):
                folder.rename(tree.parent / f"{tree.name}.{folder.name}")
        if path == str(tree / "usr/local"):
            Path(path).symlink_to(tree.parent / f"{tree.name}.local")
        return real(path, *arguments)

    monkeypatch.setattr(setuid_audit.os, "open", gone)
    result = audit(60, ROOT, [str(tree)])
    assert paths(result, tree) == ["etc/singularity"] and result.unreadable_count == 0


def test_a_mount_that_came_later_is_not_entered(tree, monkeypatch):
    real, opt = os.fstat, os.stat(tree / "opt").st_ino  # noqa: PTH116

    def other_device(descriptor):
        status = real(descriptor)
        if status.st_ino != opt:
            return status
        return os.stat_result([*status[:2], status.st_dev + 1, *status[3:10]])

    monkeypatch.setattr(setuid_audit.os, "fstat", other_device)
    assert paths(audit(60, ROOT, [str(tree)]), tree) == [p for p in LEFTOVERS if not p.startswith("opt")]


def test_an_unreadable_folder_is_reported(tree, monkeypatch):
    real = os.open

    def refuse(path, *arguments):
        if path == str(tree / "opt"):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments)

    monkeypatch.setattr(setuid_audit.os, "open", refuse)
    result = audit(60, ROOT, [str(tree)])
    assert result.unreadable == [f"{tree / 'opt'} (Permission denied)"]
    assert paths(result, tree) == [p for p in LEFTOVERS if not p.startswith("opt")]


def test_the_deadline_ends_it_and_is_told(tree):
    ticks = iter(range(1000))
    result = audit(3, ROOT, [str(tree)], clock=lambda: next(ticks))
    assert result.stopped_at and result.stopped_at.startswith(str(tree))


def test_likely_folders_come_first():
    result = audit(0.5, ROOT, ["/"], clock=iter([0, 1]).__next__)
    assert result.stopped_at == setuid_audit.LIKELY[0]


def test_owners_of_both_package_managers():
    files = ["/a b", "/c", "/d"]
    dpkg = "apptainer-suid:amd64, other: /c\ndiversion by x from: /d\ndpkg-query: no path found matching /d\n"
    assert setuid_audit.owners(dpkg, "", files) == {"/c": "apptainer-suid"}
    rpm = "singularity\nfile /c is not owned by any package\napptainer\n"
    assert setuid_audit.owners("", rpm, files) == {"/a b": "singularity", "/d": "apptainer"}


# The module


@pytest.fixture
def module(ansible_module, monkeypatch, tmp_path):
    runner = ansible_module("setuid_audit")
    table = tmp_path.parent / f"{tmp_path.name}.mountinfo"
    table.write_text(ROOT)
    monkeypatch.setattr(runner.plugin.mounts, "MOUNTINFO", str(table))
    return runner


@pytest.mark.parametrize("check", [True, False])
def test_module_reports_and_changes_nothing(module, tree, check):
    starter = str(tree / LEFTOVERS[1])
    result = module(check=check, roots=[str(tree)], allowed=[starter])
    assert not result["changed"] and result["complete"]
    assert [str(tree / path) for path in LEFTOVERS if path != LEFTOVERS[1]] == result["stray"]
    found = {finding["path"]: finding for finding in result["findings"]}
    assert found[starter]["allowed"] and found[starter]["mode"] == "4755"
    assert found[starter]["package"] == ""
    assert (tree / LEFTOVERS[1]).stat().st_mode & 0o7777 == 0o4755


def test_module_asks_the_package_manager_once(module, tree, monkeypatch):
    calls = []

    def run(_self, argv, **_):
        calls.append(argv)
        return 1, f"old-singularity: {tree / LEFTOVERS[1]}\n", "no path found matching ..."

    monkeypatch.setattr(
        module.plugin.AnsibleModule, "get_bin_path", lambda _s, name: name if name == "dpkg-query" else None
    )
    monkeypatch.setattr(module.plugin.AnsibleModule, "run_command", run)
    result = module(roots=[str(tree)])
    assert len(calls) == 1 and calls[0][:2] == ["dpkg-query", "-S"]
    assert [finding["package"] for finding in result["findings"]] == ["", "old-singularity", "", ""]


def test_module_of_a_clean_node_asks_nobody(module, tmp_path, monkeypatch):
    monkeypatch.setattr(module.plugin.AnsibleModule, "run_command", lambda *_: pytest.fail("ran a program"))
    assert module(roots=[str(tmp_path)])["stray"] == []


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="mounts need root")
def test_a_real_mount_is_not_entered_when_it_is_no_local_one(tree):
    """With a mount of its own, and this machine's own mountinfo: devpts is no local file system."""
    script = (
        "import sys; from module_utils import setuid_audit as a; "
        "r = a.audit(60, open('/proc/self/mountinfo').read(), [sys.argv[1]]); "
        "print(*sorted(f.path for f in r.findings), sep='\\n')"
    )
    opt, usr = tree / "opt", tree / "usr/local"
    ended = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c"),
            'mount -t devpts none "$1" && mount -t tmpfs none "$2" && mkdir "$2/bin" && '
            'install -m 4755 /bin/true "$2/bin/sexec" && exec "$3" -c "$4" "$5"',
            *("sh", str(opt), str(usr), sys.executable, script, str(tree)),
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    if "mount:" in ended.stderr:
        pytest.skip("this machine allows no mounts")
    assert ended.stdout.split() == [str(tree / "etc/singularity"), str(usr / "bin/sexec")], ended.stderr


OLD = "opt/old/libexec/singularity/bin/starter-suid"
OTHER = "usr/local/libexec/singularity/bin/action-suid"


@pytest.fixture
def found(tree, monkeypatch):
    """An audit of the tree, whose files count as root's."""
    monkeypatch.setattr(setuid_audit, "ROOT", os.geteuid())
    return audit(60, ROOT, [str(tree)])


def mode(path):
    return path.stat().st_mode & 0o7777


def test_disarming_takes_the_bit_from_what_nobody_answers_for(found, tree):
    expected = [str(tree / OLD), str(tree / OTHER)]
    assert setuid_audit.disarm(found, [], lambda _: {}, dry_run=True) == (expected, {})
    assert mode(tree / OLD) == 0o4755
    assert setuid_audit.disarm(found, [], lambda _: {}) == (expected, {})
    assert (mode(tree / OLD), mode(tree / OTHER), mode(tree / "usr/bin/sudo")) == (0o755, 0o755, 0o4755)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: os.link(path, path.with_name("another")), "another name"),
        (lambda path: path.chmod(0o755), "another file by now"),
        (lambda path: (path.unlink(), os.mkfifo(path, 0o755)), "another file by now"),
        (lambda path: (path.unlink(), path.symlink_to("/bin/sh")), "Too many levels"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_what_is_not_sure_keeps_its_bit(found, tree, change, reason):
    change(tree / OLD)
    done, kept = setuid_audit.disarm(found, [], lambda _: {})
    assert done == [str(tree / OTHER)] and list(kept) == [str(tree / OLD)]
    assert reason in kept[str(tree / OLD)]


def test_what_somebody_answers_for_keeps_its_bit(found, tree, monkeypatch):
    owned = {str(tree / OLD): "singularity-ce"}
    assert setuid_audit.disarm(found, [str(tree / OTHER)], lambda _: owned) == ([], {})
    done, kept = setuid_audit.disarm(found, [], lambda _: None)
    assert done == [] and "no package manager" in kept[str(tree / OLD)]
    monkeypatch.setattr(setuid_audit, "ROOT", os.geteuid() + 1)
    done, kept = setuid_audit.disarm(found, [], lambda _: {})
    assert done == [] and "not root's" in kept[str(tree / OLD)]
    assert mode(tree / OLD) == mode(tree / OTHER) == 0o4755

"""File systems of the network: what an inventory may say, their units, and what containers see of them."""

import os
import subprocess
import sys
import time

import pytest

from module_utils import file_systems, mounts

SCRATCH = {"path": "/lustre/scratch", "source": "10.0.0.1@tcp:/scratch", "options": ["flock"], "bind": True}
HOME = {"path": "/nfs/home", "source": "server:/home", "options": ["vers=4.2", "hard"]}


def read(entry, owner="lustre"):
    return file_systems.read([entry], owner)[0]


@pytest.mark.parametrize(
    ("owner", "change", "message"),
    [
        ("lustre", {"source": "server/export"}, "nothing that Lustre mounts"),
        ("lustre", {"source": None}, r"\[1\].source: is missing"),
        ("lustre", {"path": "lustre"}, "absolute path"),
        ("lustre", {"path": "/lustre/a b"}, "absolute path"),
        ("lustre", {"path": "/lustre/../etc"}, "a folder of its own"),
        ("lustre", {"path": "/usr"}, "a folder of its own"),
        ("lustre", {"path": "/dev/shm"}, "a folder of its own"),
        ("lustre", {"options": ["flock,nosuid"]}, "without a comma"),
        ("lustre", {"options": ["x-systemd.automount"]}, "the unit says that"),
        ("lustre", {"options": ["noauto"]}, "set automount"),
        ("lustre", {"options": ["flock", "localflock"]}, "one of flock and localflock"),
        ("lustre", {"options": ["suid", "nosuid"]}, "one of nosuid and suid"),
        ("lustre", {"type": "lustre"}, "no such key"),
        ("lustre", {"timeout": 0}, "from 1 to 3600"),
        ("lustre", {"requires": ["lnet"]}, "a unit of systemd"),
        ("lustre", {"automounts": True}, "did you mean automount"),
        ("lustre", {"path": "/scratch", "bind": True}, "such as /fs/scratch"),
        ("nfs_mounts", {"source": "server/home"}, "SERVER:/FOLDER"),
        ("nfs_mounts", {"source": "fe80::1:/home"}, "SERVER:/FOLDER"),
        ("nfs_mounts", {"source": "server:/home", "type": "nfs3"}, "one of nfs, nfs4"),
        ("other_mounts", {}, r"\[1\].type: is missing"),
        ("other_mounts", {"type": "gpfs", "source": None}, "mean nothing"),
    ],
)
def test_what_is_wrong_is_refused_by_name(owner, change, message):
    with pytest.raises(ValueError, match=message):
        read({**SCRATCH, **change}, owner)


def test_two_at_one_place_are_refused():
    with pytest.raises(ValueError, match="/lustre/scratch is there twice"):
        file_systems.read([SCRATCH, {**SCRATCH, "source": "10.0.0.1@tcp:/other"}], "lustre")


def test_containers_get_the_folder_above_a_mount_point_and_never_the_mount_point():
    home = {"path": "/lustre/home", "source": "10.0.0.1@tcp:/home", "bind": True}
    unseen = {"path": "/lustre2/archive", "source": "10.0.0.1@tcp:/archive"}
    assert file_systems.binds(file_systems.read([SCRATCH, home, unseen], "lustre")) == ["/lustre"]
    inner = {**SCRATCH, "path": "/lustre2/archive/deep"}
    with pytest.raises(ValueError, match="it is in /lustre2/archive, which may be away"):
        file_systems.read([unseen, inner], "lustre")


@pytest.mark.parametrize(
    ("config", "binds"),
    [
        ({}, ["/etc/localtime", "/etc/hosts", "/lustre"]),
        ({"bind path": []}, ["/lustre"]),
        ({"bind path": "/opt"}, ["/opt", "/lustre"]),
        ({"bind path": ["/lustre", "/opt"]}, ["/lustre", "/opt"]),
    ],
)
def test_binds_stand_beside_those_that_there_are(config, binds):
    assert file_systems.with_binds(config, ["/lustre"])["bind path"] == binds
    assert file_systems.with_binds(config, []) == config


def test_a_lustre_mount_comes_after_lnet_and_an_automount_asks_no_server():
    units = file_systems.units(read(SCRATCH), "lustre")
    mount, automount = units["lustre-scratch.mount"], units["lustre-scratch.automount"]
    assert "Requires=lnet.service\nAfter=lnet.service\n" in mount
    # Users who look again and again while the server is away don't end the automount.
    assert "StartLimitIntervalSec=0" in mount.partition("[Mount]")[0]
    assert "Options=_netdev,nosuid,nodev,flock\n" in mount and "TimeoutSec=30\n" in mount
    # The server is asked when somebody looks, so nothing but the automount belongs to the boot.
    assert "[Install]" not in mount and "WantedBy=remote-fs.target" in automount and "lnet" not in automount


def test_without_an_automount_the_mount_belongs_to_the_boot_which_does_not_depend_on_it():
    (name, text), *others = file_systems.units(read({**SCRATCH, "automount": False}), "lustre").items()
    assert name == "lustre-scratch.mount" and not others
    assert "WantedBy=remote-fs.target" in text and "RequiredBy" not in text


def test_other_file_systems_need_no_lnet_and_those_of_others_have_no_unit():
    assert "lnet" not in str(file_systems.units(read(HOME, "nfs_mounts"), "nfs_mounts"))
    gpfs = {"path": "/gpfs/fs1", "type": "gpfs", "bind": True}
    assert file_systems.units(read(gpfs, "other_mounts"), "other_mounts") == {}
    assert file_systems.binds([read(gpfs, "other_mounts")]) == ["/gpfs"]


def test_setuid_programs_and_devices_are_there_only_where_that_is_said():
    assert file_systems.options(read({**SCRATCH, "options": ["suid", "ro"]})) == "_netdev,nodev,ro"
    assert file_systems.options(read({**SCRATCH, "options": ["nodev"]})) == "_netdev,nosuid,nodev"


MOUNTINFO = """\
30 1 0:30 / /lustre/scratch rw,relatime - autofs systemd-1 rw
31 30 0:31 / /lustre/scratch rw,nosuid,nodev,relatime - lustre 10.0.0.1@tcp:/scratch rw,flock
32 1 0:32 / /nfs/home rw,relatime - nfs4 server:/home rw,vers=4.2
33 1 0:33 / /watched rw - autofs systemd-1 rw
"""


def test_what_is_mounted_is_told_from_what_only_watches():
    listed = mounts.parse(MOUNTINFO)
    there = file_systems.mounted("/lustre/scratch", listed)
    assert there.watched and there.mount.type == "lustre"
    assert file_systems.mounted("/watched", listed) == (None, True)
    assert file_systems.mounted("/nowhere", listed) == (None, False)
    assert file_systems.same_mount(read(SCRATCH), there.mount) == ""
    other = read({**SCRATCH, "source": "10.0.0.2@tcp:/scratch"})
    assert "is to be from 10.0.0.2@tcp:/scratch" in file_systems.same_mount(other, there.mount)
    home = file_systems.mounted("/nfs/home", listed).mount
    assert file_systems.same_mount(read(HOME, "nfs_mounts"), home) == "it is mounted without nosuid"


def test_who_uses_a_file_system_is_found_by_folder_and_by_open_file(tmp_path):
    (tmp_path / "file").touch()
    for argv, folder in (([sys.executable, "-c", "input()"], tmp_path), (["sleep", "60"], "/")):
        with (
            (tmp_path / "file").open() as file,
            subprocess.Popen(argv, cwd=folder, stdin=subprocess.PIPE, pass_fds=[file.fileno()]) as process,
        ):
            file.close()
            deadline = time.monotonic() + 10
            while not any(user.startswith(f"{process.pid} ") for user in file_systems.users(str(tmp_path))):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.kill()
    assert file_systems.users(str(tmp_path)) == []


def test_lines_of_fstab_are_found_by_their_mount_point():
    text = "# a /nfs/home nfs\nserver:/home /nfs/home/ nfs4 defaults 0 0\nx /with\\040blank nfs\nbroken\n"
    assert file_systems.in_fstab(text, ["/nfs/home", "/with blank"]) == [
        "/nfs/home (line 2)",
        "/with blank (line 3)",
    ]


def test_units_of_another_owner_are_not_ours():
    units = file_systems.units(read(HOME, "nfs_mounts"), "nfs_mounts")
    assert file_systems.owned({**units, "site.mount": "[Mount]\n"}, "nfs_mounts") == units
    assert file_systems.owned(units, "lustre") == {} and os.sep not in "".join(units)

"""Module file_systems on a model of systemd: what is mounted stays, unless it may go and nobody uses it."""

import pytest

SCRATCH = {"path": "/lustre/scratch", "source": "10.0.0.1@tcp:/scratch"}
AUTOFS = "30 1 0:30 / /lustre/scratch rw - autofs systemd-1 rw\n"
MOUNTED = "31 30 0:31 / /lustre/scratch rw,nosuid,nodev - lustre 10.0.0.1@tcp:/scratch rw\n"


class Node:
    """A node: its units in a folder, what systemctl was told, and the kernel's list of mounts."""

    def __init__(self, runner, tmp_path, monkeypatch):
        self.runner, self.units, self.info = runner, tmp_path / "units", tmp_path / "mountinfo"
        self.units.mkdir()
        self.info.touch()
        self.told, self.enabled, self.users, self.unmounts = [], set(), [], True
        plugin = runner.plugin
        fs = plugin.file_systems
        monkeypatch.setattr(fs, "UNITS", str(self.units))
        monkeypatch.setattr(fs, "FSTAB", str(tmp_path / "fstab"))
        monkeypatch.setattr(plugin.mounts, "MOUNTINFO", str(self.info))
        monkeypatch.setattr(plugin.mounts, "probe", lambda paths, _: dict.fromkeys(paths, self.answer))
        monkeypatch.setattr(fs, "users", lambda *_: self.users)
        monkeypatch.setattr(plugin.unmounting, "systemctl", self.systemctl)
        monkeypatch.setattr(plugin.AnsibleModule, "run_command", self.asked)
        monkeypatch.setattr(plugin.atomic_file.os, "fchown", lambda *_: None)
        monkeypatch.setattr(plugin.Path, "mkdir", lambda *_, **__: None)
        self.answer = ""
        self.fstab = tmp_path / "fstab"

    def systemctl(self, words, _):
        self.told.append(" ".join(words))
        text = self.info.read_text()
        if words[0] == "enable":
            self.enabled.add(words[1])
        if words[0] == "start":
            self.info.write_text(AUTOFS if words[1].endswith(".automount") else MOUNTED)
        if words[0] == "stop" and words[1].endswith(".automount"):
            self.info.write_text("")
        elif words[0] == "stop" and self.unmounts:
            self.info.write_text(text.replace(MOUNTED, ""))
        return ""

    def asked(self, argv, **_):
        return (0 if argv[-1] in self.enabled else 1), "", ""

    def __call__(self, *entries, **options):
        self.told.clear()
        return self.runner(owner="lustre", file_systems=list(entries), **options)

    def look(self):
        """Somebody looks at the mount point."""
        self.info.write_text(AUTOFS + MOUNTED)


@pytest.fixture
def node(ansible_module, tmp_path, monkeypatch):
    return Node(ansible_module("file_systems"), tmp_path, monkeypatch)


def test_units_are_written_and_the_automount_started_once(node):
    result = node(SCRATCH)
    assert result["changed"] and sorted(result["units"]) == [
        "lustre-scratch.automount",
        "lustre-scratch.mount",
    ]
    assert node.told == ["daemon-reload", "enable lustre-scratch.automount", "start lustre-scratch.automount"]
    again = node(SCRATCH)
    assert not again["changed"] and node.told == []
    node.look()
    assert not node(SCRATCH)["changed"] and node.told == []


def test_check_mode_predicts_and_touches_nothing(node):
    predicted = node(SCRATCH, check=True)
    assert list(node.units.iterdir()) == [] and node.told == []
    done = node(SCRATCH)
    assert predicted["actions"] == done["actions"] and predicted["diff"] == done["diff"]


def test_an_automount_that_has_stopped_is_started_again(node):
    node(SCRATCH)
    node.info.write_text("")
    assert node(SCRATCH)["actions"][-1] == "start lustre-scratch.automount"


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([{**SCRATCH, "source": "10.0.0.2@tcp:/scratch"}], "is to be from 10.0.0.2"),
        ([{**SCRATCH, "options": ["flock"]}], "its options are others"),
        ([{**SCRATCH, "options": ["ro"]}], "mounted without ro"),
        ([{**SCRATCH, "automount": False}], "its automount is to be another"),
        ([{**SCRATCH, "idle": 60}], "its automount is to be another"),
        ([], "not wanted any more"),
    ],
)
def test_what_is_mounted_is_changed_only_if_it_may_be_and_only_if_nobody_uses_it(node, entries, why):
    node(SCRATCH)
    node.look()
    before = {file.name: file.read_text() for file in node.units.iterdir()}
    for check in (True, False):
        refused = node(*entries, check=check)
        assert refused["failed"] and why in refused["msg"] and "change_file_systems.yml" in refused["msg"]
    node.users = ["4711 python3"]
    for check in (True, False):
        refused = node(*entries, change="unmount", check=check)
        assert refused["failed"] and "in use by process 4711 python3" in refused["msg"]
    assert node.told == [] and {file.name: file.read_text() for file in node.units.iterdir()} == before
    node.users = []
    assert node(*entries, change="unmount")["changed"]
    # The automount takes away what is mounted on it without asking, so it comes second.
    assert node.told[:2] == ["stop lustre-scratch.mount", "stop lustre-scratch.automount"]
    assert not node(*entries)["changed"]


def test_what_systemd_could_not_unmount_is_not_changed(node):
    node(SCRATCH)
    node.look()
    node.unmounts = False
    refused = node(change="unmount")
    assert "could not be unmounted" in refused["msg"] and node.told == ["stop lustre-scratch.mount"]
    assert len(list(node.units.iterdir())) == 2


def test_what_nobody_has_mounted_may_change_at_once(node):
    node(SCRATCH)
    assert node({**SCRATCH, "idle": 60})["actions"][:2] == ["stop lustre-scratch.automount", "daemon-reload"]
    node()
    assert list(node.units.iterdir()) == [] and node.info.read_text() == ""


def test_a_deadline_is_for_the_next_mount(node):
    node(SCRATCH)
    node.look()
    assert node({**SCRATCH, "timeout": 99})["units"] == ["lustre-scratch.mount"]
    assert node.told == ["daemon-reload"]


def test_what_was_mounted_by_hand_is_taken_over_where_it_is_the_same(node):
    node.info.write_text(MOUNTED)
    assert node(SCRATCH)["changed"]
    assert (
        "start lustre-scratch.automount" not in node.told and "enable lustre-scratch.automount" in node.told
    )
    node.info.write_text(MOUNTED.replace("nosuid,", ""))
    assert "mounted without nosuid" in node(SCRATCH)["msg"]


def test_a_server_that_does_not_answer_fails_the_task_with_its_unit(node):
    node.answer = "/lustre/scratch did not answer within 35 s"
    result = node(SCRATCH)
    assert result["failed"] and "journalctl -u lustre-scratch.mount" in result["msg"]


def test_what_others_mount_at_the_same_place_is_refused(node):
    node.fstab.write_text("x /lustre/scratch lustre defaults 0 0\n")
    assert "/lustre/scratch (line 1)" in node(SCRATCH)["msg"]
    node.fstab.unlink()
    (node.units / "lustre-scratch.mount").write_text("[Mount]\n")
    assert "a unit of the site or of another role" in node(SCRATCH)["msg"]
    assert node.told == []


def test_a_wrong_entry_is_named(node):
    assert "file_systems[1].path: must be" in node({**SCRATCH, "path": "x"})["msg"]

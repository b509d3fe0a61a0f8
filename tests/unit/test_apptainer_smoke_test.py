"""The smoke test: when it runs, what it runs, what it says when no container does."""

import os
import pwd
import stat
from pathlib import Path

import pytest

from module_utils import apptainer_smoke_test

LDD = """\
\tlinux-vdso.so.1 (0x00007ffd2b5f0000)
\tlibselinux.so.1 => /lib/x86_64-linux-gnu/libselinux.so.1 (0x00007f0000000000)
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f0000000000)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f0000000000)
"""


def test_the_libraries_of_a_program():
    assert apptainer_smoke_test.libraries(LDD) == [
        "/lib/x86_64-linux-gnu/libselinux.so.1",
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib64/ld-linux-x86-64.so.2",
    ]
    assert apptainer_smoke_test.libraries("\tnot a dynamic executable\n") == []


# The tests may run as root, who proves nothing; a user is only looked up, nothing runs as him.
USER, UID = "alice", 2000


class FakeNode:
    """A node with Apptainer; `ran` are the commands that ran as the user."""

    def __init__(self):
        self.version = "1.4.5"
        self.uid_inside = str(UID)
        self.complaint = ""
        self.ran = []

    def run(self, argv, **_):
        if "runuser" in argv[0]:
            self.ran.append(argv)
            return (255, "", self.complaint) if self.complaint else (0, f"{self.uid_inside}\n", "")
        if argv[0] == "ldd":
            return 0, "\tnot a dynamic executable\n", ""
        if "build" in argv:
            Path(argv[argv.index("build") + 1]).touch()
            return 0, "", ""
        return 0, f"apptainer version {self.version}\n" if "--version" in argv else "/usr/libexec\n", ""


@pytest.fixture
def node():
    return FakeNode()


@pytest.fixture
def smoke_test(ansible_module, node, tmp_path, monkeypatch):
    """The module on that node, with its files below tmp_path."""
    runner = ansible_module("apptainer_smoke_test")
    logic = runner.plugin.apptainer_smoke_test
    configuration = tmp_path / "apptainer.conf"
    configuration.write_text("allow setuid = no\n")
    parameter = tmp_path / "max_user_namespaces"
    parameter.write_text("1000\n")
    monkeypatch.setattr(logic, "CONFIGURATION", str(configuration))
    monkeypatch.setattr(logic, "PARAMETERS", (str(parameter), str(tmp_path / "unknown to this kernel")))
    users = {USER: UID, "root": 0}
    monkeypatch.setattr(
        logic.pwd, "getpwnam", lambda name: pwd.struct_passwd((name, "", users[name], 0, "", "", ""))
    )
    monkeypatch.setattr(logic.shutil, "chown", lambda *_: None)
    which = lambda name, **_: f"/usr/bin/{name}" if node.version else None  # noqa: E731
    monkeypatch.setattr(runner.plugin.apptainer_packages.shutil, "which", which)
    monkeypatch.setattr(runner.plugin.atomic_file.os, "fchown", lambda *_: None)
    monkeypatch.setattr(runner.plugin.AnsibleModule, "run_command", lambda _, argv, **options: node.run(argv))

    def call(check=False, **arguments):
        return runner(check=check, **{"user": USER, "proof": str(tmp_path / "proof.json"), **arguments})

    call.configuration, call.parameter, call.proof = configuration, parameter, tmp_path / "proof.json"
    return call


def test_it_runs_a_container_as_the_user_and_not_again(smoke_test, node):
    first = smoke_test()
    assert first["changed"] and first["ran"]
    assert node.ran[0][:4] == ["runuser", "-u", USER, "--"] and "exec" in node.ran[0]
    again = smoke_test()
    assert not again["changed"] and not again["ran"] and len(node.ran) == 1


@pytest.mark.parametrize("what", ["version", "configuration", "parameter", "stale"])
def test_it_runs_again_when_something_has_changed_that_matters(smoke_test, node, what):
    smoke_test()
    if what == "version":
        node.version = "1.4.6"
    elif what != "stale":
        getattr(smoke_test, what).write_text("other\n")
    assert smoke_test(stale=what == "stale")["changed"] and len(node.ran) == 2


def test_check_mode_predicts_and_runs_nothing(smoke_test, node):
    assert smoke_test(check=True)["changed"] and not node.ran and not smoke_test.proof.exists()
    smoke_test()
    assert not smoke_test(check=True)["changed"]
    predicted = smoke_test(check=True, stale=True)
    assert predicted["changed"] and len(node.ran) == 1
    # What is on the node now is not what will have been proved.
    assert "1.4.5" not in predicted["diff"]["after"] and "1.4.5" in predicted["diff"]["before"]


def test_check_mode_predicts_on_a_node_without_apptainer(smoke_test, node):
    node.version = ""
    assert smoke_test(check=True)["changed"]
    assert smoke_test()["msg"] == "there is no apptainer on this node"


def test_a_failure_is_told_and_tried_again_also_after_a_success(smoke_test, node):
    smoke_test()
    node.complaint = "FATAL: could not open image: no FUSE"
    failed = smoke_test(stale=True)
    assert failed["failed"] and node.complaint in failed["msg"] and "apptainer exec" in failed["msg"]
    assert not smoke_test.proof.exists()
    node.complaint = ""
    assert smoke_test()["ran"]


def test_a_failure_for_want_of_user_namespaces_names_the_role(smoke_test, node):
    node.complaint = "ERROR: Failed to create user namespace: not allowed"
    assert "role user_namespaces" in smoke_test()["msg"]


def test_an_image_that_the_ecl_refuses_is_no_broken_apptainer(smoke_test, node):
    node.complaint = (
        "FATAL:   while checking container image with ECL: image signature not valid: integrity: signature"
        " not found for object group 1"
    )
    message = smoke_test()["msg"]
    assert "no container runs" not in message and "ecl.toml" in message and node.complaint in message
    assert "empty apptainer_smoke_test_user" in message and not smoke_test.proof.exists()
    node.complaint = "FATAL:   while validating ECL configuration: mode must be one of"
    assert "no container runs" in smoke_test()["msg"]


def test_the_folder_of_the_proof_is_open_to_all_under_any_umask(smoke_test, tmp_path):
    before = os.umask(0o077)
    try:
        assert smoke_test(proof=str(tmp_path / "made" / "proof.json"))["ran"]
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o755


def test_a_folder_that_is_there_keeps_its_mode(smoke_test, tmp_path):
    (tmp_path / "there").mkdir(mode=0o700)
    assert smoke_test(proof=str(tmp_path / "there" / "proof.json"))["ran"]
    assert stat.S_IMODE((tmp_path / "there").stat().st_mode) == 0o700


def test_another_user_inside_is_a_failure(smoke_test, node):
    node.uid_inside = "0"
    assert "in a container" in smoke_test()["msg"]


@pytest.mark.parametrize("user", ["no-such-user", "root"])
def test_a_user_who_is_none_is_refused_by_the_variable(smoke_test, node, user):
    result = smoke_test(user=user)
    assert result["failed"] and "apptainer_smoke_test_user" in result["msg"] and not node.ran

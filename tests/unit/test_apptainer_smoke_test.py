"""The smoke test: when it runs, what it runs, what it says when no container does."""

import os
import pwd
import stat
from pathlib import Path

import pytest

from module_utils import apptainer_smoke_test
from module_utils.apptainer_ecl import REFUSED

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
        self.user_namespaces = True
        self.warnings = []
        # What is refused by a list that is on: images by their path, None for the test's own.
        self.unlisted = {None}

    def run(self, argv, **_):
        if "runuser" in argv[0] and "unshare" in argv:
            return (0, "", "") if self.user_namespaces else (1, "", "unshare: Operation not permitted")
        if "runuser" in argv[0]:
            self.ran.append(argv)
            image = argv[argv.index("--no-home") + 1]
            listed = b"activated = true" in (Path(apptainer_smoke_test.FOLDER) / "ecl.toml").read_bytes()
            if listed and (None if image.endswith("/id.sif") else image) in self.unlisted:
                return 255, "", f"FATAL:   {REFUSED}: image signature not valid"
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
    configuration, ecl = tmp_path / "apptainer.conf", tmp_path / "ecl.toml"
    configuration.write_text("allow setuid = no\n")
    ecl.write_text("activated = false\n")
    parameter = tmp_path / "max_user_namespaces"
    parameter.write_text("1000\n")
    monkeypatch.setattr(logic, "FOLDER", str(tmp_path))
    monkeypatch.setattr(apptainer_smoke_test, "FOLDER", str(tmp_path))
    monkeypatch.setattr(logic, "PARAMETERS", (str(parameter), str(tmp_path / "unknown to this kernel")))
    users = {USER: UID, "root": 0}
    monkeypatch.setattr(
        logic.pwd, "getpwnam", lambda name: pwd.struct_passwd((name, "", users[name], 0, "", "", ""))
    )
    monkeypatch.setattr(logic.shutil, "chown", lambda *_: None)
    which = lambda name, **_: f"/usr/bin/{name}" if node.version else None  # noqa: E731
    monkeypatch.setattr(runner.plugin.apptainer_packages.shutil, "which", which)
    monkeypatch.setattr(runner.plugin.AnsibleModule, "warn", lambda _, text: node.warnings.append(text))
    monkeypatch.setattr(runner.plugin.atomic_file.os, "fchown", lambda *_: None)
    monkeypatch.setattr(runner.plugin.AnsibleModule, "run_command", lambda _, argv, **options: node.run(argv))

    def call(check=False, **arguments):
        return runner(check=check, **{"user": USER, "proof": str(tmp_path / "proof.json"), **arguments})

    call.configuration, call.parameter, call.proof = configuration, parameter, tmp_path / "proof.json"
    call.ecl = ecl
    return call


def test_it_runs_a_container_as_the_user_and_not_again(smoke_test, node):
    first = smoke_test()
    assert first["changed"] and first["ran"]
    assert node.ran[0][:4] == ["runuser", "-u", USER, "--"] and "exec" in node.ran[0]
    again = smoke_test()
    assert not again["changed"] and not again["ran"] and len(node.ran) == 1


@pytest.mark.parametrize("what", ["version", "configuration", "ecl", "parameter", "stale"])
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


@pytest.fixture
def listed(smoke_test):
    """A node whose execution control list is on, and the image that may run there."""
    smoke_test.ecl.write_text("activated = true\n")
    return "/opt/containers/site.sif"


def test_with_a_list_the_site_s_image_runs_and_an_unsigned_one_is_refused(smoke_test, node, listed):
    result = smoke_test(image=listed)
    assert result["ran"] and not node.warnings and [listed in argv for argv in node.ran] == [False, True]
    assert not smoke_test(image=listed)["changed"]
    assert smoke_test()["changed"]


def test_with_a_list_and_no_image_it_says_what_it_has_not_proved(smoke_test, node, listed):
    result = smoke_test()
    assert result["ran"] and "not proved" in node.warnings[0]


def test_a_list_that_lets_unsigned_images_run_is_an_error(smoke_test, node, listed):
    node.unlisted = set()
    message = smoke_test(image=listed)["msg"]
    assert "an image that nobody has signed runs" in message and not smoke_test.proof.exists()


def test_an_image_that_the_list_refuses_is_no_broken_apptainer(smoke_test, node, listed):
    node.unlisted = {None, listed}
    message = smoke_test(image=listed)["msg"]
    assert "no container runs" not in message and "refuses apptainer_smoke_test_image" in message


def test_a_list_that_is_of_no_use_is_told_in_apptainer_s_words(smoke_test, node, listed):
    node.unlisted = set()
    node.complaint = "FATAL:   while validating ECL configuration: mode must be one of"
    assert "no container runs" in smoke_test(image=listed)["msg"]


def test_enforced_is_refused_where_users_have_user_namespaces(smoke_test, node, listed):
    message = smoke_test(image=listed, enforced=True)["msg"]
    assert "bound by no list" in message and not node.ran
    node.user_namespaces = False
    assert smoke_test(image=listed, enforced=True)["ran"]


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

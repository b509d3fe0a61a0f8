"""A daemon and its files; programs are small scripts that behave as scontrol(1) and systemctl(1) do."""

import os
import socket

import pytest

PROGRAMS = {
    # Broken files can be read, but not used; `elsewhere` is a slurmctld that listens at another port.
    "scontrol": """
case "$1" in
show) ! grep unreadable "$SLURM_CONF";;
ping) test ! -e "$DIR/elsewhere";;
reconfigure)
    echo reconfigure >>"$DIR/log"
    if rm "$DIR/slow" 2>/dev/null; then
        echo "slurm_reconfigure error: Socket timed out on send/recv operation" >&2; exit 1
    fi
    test ! -e "$DIR/elsewhere" && ! grep --quiet broken "$DIR/slurm.conf";;
esac""",
    "systemctl": """
case "$*" in
*is-active*) test ! -e "$DIR/starting" || echo activating; test -e "$DIR/active";;
*is-enabled*) test -e "$DIR/enabled";;
enable*) touch "$DIR/enabled";;
*) echo "$1" >>"$DIR/log"; rm -f "$DIR/elsewhere" "$DIR/active"
   ! grep --quiet broken "$DIR/slurm.conf" && touch "$DIR/active";;
esac""",
    "journalctl": """
echo 'slurmctld: fatal: it is broken'; echo 'slurmctld: hello'
test ! -e "$DIR/refused" || echo "error: Access denied for user 'slurm'"
""",
}


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A node on which the daemon is off and has no file."""
    for name, script in PROGRAMS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def daemon(ansible_module, node, monkeypatch):
    """Run the module with a text for slurm.conf; the result has what was done to the daemon as `log`."""
    runner = ansible_module("slurm_daemon")
    monkeypatch.setattr(runner.plugin, "RECORDS", str(node / "records"))
    monkeypatch.setattr(runner.plugin, "OWNER", (os.geteuid(), os.getegid()))

    def run(text, name="slurmctld", check=False, beside=(), **more):
        (node / "log").write_text("")
        files = [
            *({**file, "path": str(node / file["path"])} for file in beside),
            {"path": str(node / "slurm.conf"), "content": f"{text}\n"},
        ]
        result = runner(check=check, name=name, files=files, **more)
        return {**result, "log": (node / "log").read_text().split()}

    return run


def conf(node):
    return (node / "slurm.conf").read_text()


def test_the_first_run_starts_and_enables_it(daemon, node):
    predicted = daemon("a=1", check=True)
    assert predicted["changed"] and not predicted["log"] and not (node / "slurm.conf").exists()
    result = daemon("a=1")
    assert result["changed"] and result["log"] == ["start", "reconfigure"]
    assert conf(node) == "a=1\n" and (node / "slurm.conf").stat().st_mode & 0o7777 == 0o644
    assert (node / "enabled").exists()


def test_one_that_was_starting_without_its_files_starts_anew(daemon, node):
    """A package was in the image of the node, so systemd has started its daemon before there was a file."""
    (node / "starting").touch()
    assert daemon("a=1", "sackd", check=True)["actions"] == ["restart"]
    assert daemon("a=1", "sackd")["log"] == ["restart"]


def test_one_that_is_starting_with_its_files_is_waited_for(daemon, node):
    daemon("a=1", "sackd")
    (node / "active").unlink()
    (node / "starting").touch()
    assert daemon("a=1", "sackd")["log"] == ["start"]


@pytest.mark.parametrize("name", ["slurmctld", "slurmd"])
def test_the_second_run_does_nothing(daemon, name):
    daemon("a=1", name)
    for check in (True, False):
        result = daemon("a=1", name, check)
        assert not result["changed"] and not result["log"] and not result["diff"]


def test_slurmctld_is_reconfigured_and_slurmd_restarted(daemon):
    for name, action in (("slurmctld", "reconfigure"), ("slurmd", "restart")):
        daemon("a=1", name)
        predicted = daemon("a=2", name, check=True)
        assert predicted["changed"] and not predicted["log"]
        result = daemon("a=2", name)
        assert result["log"] == [action] == predicted["actions"]
        assert result["diff"][0]["before"] == "a=1\n" and result["diff"][0]["after"] == "a=2\n"


@pytest.mark.parametrize("name", ["slurmctld", "slurmd"])
def test_what_an_interrupted_run_wrote_is_applied_by_the_next(daemon, node, name):
    daemon("a=1", name)
    (node / "slurm.conf").write_text("a=2\n")
    assert daemon("a=2", name, check=True)["changed"]
    assert daemon("a=2", name)["log"]
    assert not daemon("a=2", name)["changed"]


def test_what_slurmctld_can_not_use_is_taken_back_each_time(daemon, node):
    daemon("a=1")
    for _ in range(2):
        result = daemon("a=broken")
        assert result["failed"] and "it is broken" in result["msg"] and "hello" not in result["msg"]
        assert conf(node) == "a=1\n" and result["log"] == ["reconfigure"]
    assert not daemon("a=1")["changed"]


def test_a_broken_file_of_an_interrupted_run_is_taken_back_too(daemon, node):
    daemon("a=1")
    (node / "slurm.conf").write_text("a=broken\n")
    assert daemon("a=broken")["failed"]
    assert conf(node) == "a=1\n"


def test_a_restart_that_fails_is_taken_back_and_the_daemon_runs(daemon, node):
    daemon("a=1")
    result = daemon("SlurmctldPort=broken")
    assert result["failed"] and result["log"] == ["restart", "restart"]
    assert conf(node) == "a=1\n" and (node / "active").exists()


def test_without_a_file_that_worked_none_is_left(daemon, node):
    assert daemon("a=broken")["failed"]
    assert not (node / "slurm.conf").exists()
    assert daemon("a=broken")["failed"]


def test_a_slurmd_that_does_not_start_is_tried_again(daemon, node):
    daemon("a=1", "slurmd")
    assert daemon("a=broken", "slurmd")["failed"] and daemon("a=broken", "slurmd")["failed"]
    assert conf(node) == "a=broken\n"


@pytest.mark.parametrize("text", ["SlurmctldPort=6900", "slurmdport=6900", "AuthType=auth/slurm"])
def test_ports_and_authentication_need_a_restart(daemon, text):
    daemon("a=1")
    assert daemon(text)["log"] == ["restart", "reconfigure"]


def test_a_slurmctld_that_listens_elsewhere_is_restarted(daemon, node):
    daemon("SlurmctldPort=6900")
    (node / "elsewhere").touch()
    assert daemon("SlurmctldPort=6900\na=2")["log"] == ["restart", "reconfigure"]


def test_a_file_that_scontrol_can_not_read_does_not_get_there(daemon, node):
    daemon("a=1")
    for check in (True, False):
        result = daemon("a=unreadable", check=check)
        assert result["failed"] and "scontrol can't read the new" in result["msg"] and not result["log"]
    assert conf(node) == "a=1\n"


def test_another_mode_is_mended(daemon, node):
    daemon("a=1")
    (node / "slurm.conf").chmod(0o600)
    assert daemon("a=1")["changed"]
    assert (node / "slurm.conf").stat().st_mode & 0o7777 == 0o644


def test_a_record_that_can_not_be_read_is_none(daemon, node):
    daemon("a=1")
    (node / "records" / "slurmctld.json").write_text("[1")
    result = daemon("a=1")
    assert result["changed"] and result["log"] == ["reconfigure"]


@pytest.mark.parametrize("name", ["slurmctld", "slurmd"])
def test_a_daemon_that_others_start_is_enabled_and_left_alone(daemon, node, name):
    for check in (True, False):
        result = daemon("a=1", name, check, start=False)
        assert result["changed"] and not result["log"] and not result["actions"]
    assert conf(node) == "a=1\n" and (node / "enabled").exists() and not (node / "active").exists()
    assert not daemon("a=1", name, start=False)["changed"]


def test_a_daemon_that_others_have_started_gets_its_files(daemon, node):
    daemon("a=1", "slurmd")
    assert daemon("a=2", "slurmd", start=False)["log"] == ["restart"]


PROLOG = {"path": "prolog", "content": "#!/bin/sh\n", "mode": "0755"}


def test_a_script_beside_slurm_conf_comes_and_goes(daemon, node):
    daemon("a=1")
    result = daemon("Prolog=prolog", beside=[PROLOG])
    assert result["log"] == ["reconfigure"] and len(result["diff"]) == 2
    assert (node / "prolog").stat().st_mode & 0o7777 == 0o755
    assert not daemon("Prolog=prolog", beside=[PROLOG])["changed"]
    predicted = daemon("a=1", check=True)
    assert predicted["changed"] and (node / "prolog").exists()
    assert [entry["after"] for entry in predicted["diff"]] == ["a=1\n", ""]
    assert daemon("a=1")["log"] == ["reconfigure"] and not (node / "prolog").exists()
    assert not daemon("a=1")["changed"]


def test_a_script_alone_that_changes_is_handed_on(daemon, node):
    daemon("Prolog=prolog", beside=[PROLOG])
    result = daemon("Prolog=prolog", beside=[{**PROLOG, "content": "#!/bin/bash\n"}])
    assert result["log"] == ["reconfigure"] and (node / "prolog").read_text() == "#!/bin/bash\n"


def test_a_script_that_went_with_what_slurmctld_can_not_use_is_back(daemon, node):
    daemon("Prolog=prolog", beside=[PROLOG])
    assert daemon("a=broken")["failed"]
    assert conf(node) == "Prolog=prolog\n" and (node / "prolog").stat().st_mode & 0o7777 == 0o755


def test_a_script_that_came_with_what_slurmctld_can_not_use_is_gone(daemon, node):
    daemon("a=1")
    assert daemon("SlurmctldPort=broken", beside=[PROLOG])["failed"]
    assert not (node / "prolog").exists() and (node / "active").exists()


def test_a_file_of_somebody_else_is_left_alone(daemon, node):
    (node / "plugstack.conf").write_text("theirs")
    daemon("a=1")
    assert not daemon("a=1")["changed"] and (node / "plugstack.conf").read_text() == "theirs"


@pytest.mark.parametrize(("wait", "log"), [(300, ["reconfigure"] * 2), (0, ["reconfigure"])])
def test_a_slurmctld_that_takes_longer_than_scontrol_waits_is_asked_again(daemon, node, wait, log):
    daemon("a=1")
    (node / "slow").touch()
    result = daemon("a=2", wait=wait)
    assert result["log"] == log and ("failed" in result) == (wait == 0)
    assert conf(node) == ("a=1\n" if wait == 0 else "a=2\n")


def test_a_file_that_took_the_place_of_another_gives_it_back(daemon, node):
    (node / "plugstack.conf").write_text("of the package")
    ours = [{"path": "plugstack.conf", "content": "ours"}]
    daemon("a=1", beside=ours)
    assert not daemon("a=1", beside=ours)["changed"] and (node / "plugstack.conf").read_text() == "ours"
    assert daemon("a=1", check=True)["changed"] and (node / "plugstack.conf").read_text() == "ours"
    result = daemon("a=1")
    assert result["log"] == ["reconfigure"] and (node / "plugstack.conf").read_text() == "of the package"
    assert not daemon("a=1")["changed"]
    # Whoever owns it may change it meanwhile.
    (node / "plugstack.conf").write_text("newer")
    daemon("a=1", beside=ours)
    daemon("a=1")
    assert (node / "plugstack.conf").read_text() == "newer"


def test_what_an_interrupted_run_wrote_is_nobody_elses(daemon, node):
    ours = [{"path": "plugstack.conf", "content": "ours"}]
    daemon("a=1")
    assert daemon("a=broken", beside=ours)["failed"] and not (node / "plugstack.conf").exists()
    (node / "plugstack.conf").write_text("ours")
    daemon("a=1", beside=ours)
    daemon("a=1")
    assert not (node / "plugstack.conf").exists()


def test_a_secret_is_in_no_diff_and_no_record(daemon, node):
    secret = {"path": "slurmdbd.conf", "content": "StoragePass=hush\n", "mode": "0600"}
    results = [daemon("a=1", "slurmdbd", check, [secret]) for check in (True, False)]
    assert all(result["changed"] and "hush" not in str(result["diff"]) for result in results)
    assert (node / "slurmdbd.conf").stat().st_mode & 0o7777 == 0o600
    assert "hush" not in (node / "records" / "slurmdbd.json").read_text()
    assert not daemon("a=1", "slurmdbd", beside=[secret])["changed"]
    result = daemon("a=1", "slurmdbd", beside=[{**secret, "content": "StoragePass=other\n"}])
    assert result["log"] == ["restart"] and "hush" not in str(result["diff"])


def test_a_user_that_is_not_there_is_an_error_but_in_check_mode(daemon):
    file = {"path": "slurmdbd.conf", "content": "", "owner": "no-such-user"}
    assert daemon("a=1", check=True, beside=[file])["changed"]
    assert "there is no user no-such-user" in daemon("a=1", beside=[file])["msg"]


def test_a_standby_is_restarted_and_never_reconfigured(daemon):
    assert daemon("a=1", standby=True)["log"] == ["start"]
    assert daemon("a=2", standby=True)["log"] == ["restart"]
    assert not daemon("a=2", standby=True)["changed"]


def test_a_daemon_is_waited_for_where_it_listens(daemon, node):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert "failed" not in daemon("a=1", "slurmdbd", port=port)
    result = daemon("a=2", "slurmdbd", port=port, wait=0)
    assert f"slurmdbd does not listen on port {port} after 0 s" in result["msg"]
    (node / "refused").touch()
    result = daemon("a=2", "slurmdbd", port=port)
    assert "not let into its database: error: Access denied for user 'slurm'" in result["msg"]


def test_a_cluster_that_gets_accounting_takes_the_number_that_slurmdbd_gives(daemon, node):
    (node / "clustername").write_text("cluster|1")
    where = f"StateSaveLocation={node}"
    daemon(where)
    assert (node / "clustername").exists()
    predicted = daemon(f"{where}\nAccountingStorageHost=db", check=True)
    result = daemon(f"{where}\nAccountingStorageHost=db")
    assert result["actions"] == predicted["actions"] == ["identify", "reconfigure"]
    assert result["log"] == ["stop", "start", "reconfigure"] and not (node / "clustername").exists()
    assert not daemon(f"{where}\nAccountingStorageHost=db")["changed"]
    assert daemon(f"{where}\nAccountingStorageHost=db2")["log"] == ["reconfigure"]


def test_the_number_is_back_if_that_fails(daemon, node):
    (node / "clustername").write_text("cluster|1")
    daemon(f"StateSaveLocation={node}")
    assert daemon(f"StateSaveLocation={node}\nAccountingStorageHost=broken")["failed"]
    assert (node / "clustername").read_text() == "cluster|1" and (node / "active").exists()
    assert conf(node) == f"StateSaveLocation={node}\n"

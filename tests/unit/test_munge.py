"""MUNGE on a node; programs are small scripts that behave as munge(1), unmunge(1) and systemctl(1) do."""

import base64
import os
import re

import pytest

from module_utils import munge

KEY = bytes(range(64))
BASE64 = base64.b64encode(KEY).decode()

PROGRAMS = {
    "munge": 'echo "munge $*" >>"$LOG"; echo "MUNGE:$$:"',
    "unmunge": 'read text; echo "unmunge $* <$text" >>"$LOG"; '
    'if [ -e "$LOG.broken" ]; then echo "STATUS: $(cat "$LOG.text")"; exit "$(cat "$LOG.broken")"; fi; '
    'if grep -q "$text" "$LOG.seen"; then echo "STATUS: Replayed credential"; exit 17; fi; '
    'echo "$text" >>"$LOG.seen"',
    "systemctl": 'echo "systemctl $*" >>"$LOG"; case "$1" in --quiet) [ -e "$LOG.on" ];; '
    'enable) touch "$LOG.on";; restart) rm -f "$LOG.broken";; esac',
}


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A node without key, with the service off. Files beside `log` switch what the programs do."""
    for name, script in PROGRAMS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    (tmp_path / "log.seen").touch()
    return tmp_path


def log(node):
    file = node / "log"
    text = file.read_text() if file.exists() else ""
    file.unlink(missing_ok=True)
    return text


def breaks(node, status, text):
    (node / "log.broken").write_text(str(status))
    (node / "log.text").write_text(text)


@pytest.fixture
def module(ansible_module, node, monkeypatch):
    runner = ansible_module("munge")
    monkeypatch.setattr(runner.plugin, "KEY_FILE", str(node / "munge.key"))
    monkeypatch.setattr(munge, "NEXT_KEY_FILE", str(node / "munge.key.next"))
    monkeypatch.setattr(runner.plugin.munge, "NEXT_KEY_FILE", str(node / "munge.key.next"))
    monkeypatch.setattr(runner.plugin, "munge_user", lambda: (os.geteuid(), os.getegid()))
    return runner


def test_without_a_key_one_is_made_and_returned(module, node):
    result = module()
    key = (node / "munge.key").read_bytes()
    assert result["changed"] and base64.b64decode(result["key"]) == key and len(key) == 1024
    assert (node / "munge.key").stat().st_mode & 0o7777 == 0o400
    assert result["credential"].startswith("MUNGE:")


def test_the_second_time_the_key_is_kept_and_nothing_is_restarted(module, node):
    first = module()
    log(node)
    second = module()
    assert not second["changed"] and second["key"] == first["key"]
    assert "restart" not in log(node)


def test_a_given_key_is_written_and_proven_with_the_credential_of_the_other_node(module, node):
    result = module(key=BASE64, credential="MUNGE:other:")
    assert result["changed"] and (node / "munge.key").read_bytes() == KEY
    assert "<MUNGE:other:" in log(node)
    assert not module(key=BASE64, credential="MUNGE:another:")["changed"]


def test_a_service_that_runs_decodes_once_as_munged_takes_no_credential_twice(module, node):
    credential = module()["credential"]
    result = module(key=base64.b64encode((node / "munge.key").read_bytes()).decode(), credential=credential)
    assert not result.get("failed") and not result["changed"]


def test_neither_key_nor_credential_is_in_results_or_arguments(module, node):
    result = module(key=BASE64, credential="MUNGE:other:")
    assert BASE64 not in str(result) and "key" not in result and "credential" not in result
    arguments = [line.split("<")[0] for line in log(node).splitlines()]
    assert not any(BASE64 in line or "MUNGE:" in line for line in arguments)


def test_another_key_restarts_a_running_service(module, node):
    module()
    result = module(key=BASE64)
    assert result["changed"] and result["restarted"]
    assert "systemctl restart munge" in log(node)


def test_a_key_that_others_can_read_is_mended(module, node):
    module(key=BASE64)
    (node / "munge.key").chmod(0o444)
    assert module(key=BASE64)["changed"]
    assert (node / "munge.key").stat().st_mode & 0o7777 == 0o400


def test_a_service_that_runs_with_an_old_key_is_restarted(module, node):
    module(key=BASE64)
    breaks(node, 14, "Invalid credential")
    result = module(key=BASE64, credential="MUNGE:other:")
    assert result["changed"] and result["restarted"]


def test_different_clocks_are_an_error_that_no_restart_hides(module, node):
    module(key=BASE64)
    log(node)
    breaks(node, 15, "Expired credential")
    result = module(key=BASE64, credential="MUNGE:other:")
    assert result["failed"] and "Expired credential: the clocks" in result["msg"]
    assert "restart" not in log(node)


def test_check_mode_writes_nothing_and_predicts(module, node):
    result = module(check=True)
    assert result["changed"] and not (node / "munge.key").exists()
    assert not re.search("systemctl (enable|restart)", log(node))
    module(key=BASE64)
    assert not module(check=True, key=BASE64)["changed"]
    assert module(check=True, key=base64.b64encode(KEY[::-1]).decode())["restarted"]
    assert (node / "munge.key").read_bytes() == KEY


def test_a_node_without_munge_is_an_error_but_in_check_mode(module, monkeypatch):
    monkeypatch.setattr(module.plugin, "munge_user", lambda: None)
    assert module(check=True, key=BASE64)["changed"]
    assert "install the package munge" in module(key=BASE64)["msg"]


def test_a_node_that_is_to_have_its_key_already_uses_it_and_tells_nobody(module, node):
    (node / "munge.key").write_bytes(KEY)
    (node / "munge.key").chmod(0o444)
    result = module(create=False)
    assert result["changed"] and BASE64 not in str(result)
    assert not {"key", "credential"} & set(result)
    assert (node / "munge.key").read_bytes() == KEY
    assert (node / "munge.key").stat().st_mode & 0o7777 == 0o400
    assert not module(create=False)["changed"]


@pytest.mark.parametrize("check", [True, False])
def test_without_that_key_none_is_made(module, node, monkeypatch, check):
    monkeypatch.setattr(module.plugin, "munge_user", lambda: None)
    result = module(check=check, create=False)
    assert result["failed"] and "put the key of the cluster there" in result["msg"]
    assert not (node / "munge.key").exists() and "systemctl enable" not in log(node)


@pytest.mark.parametrize("key", ["AAAA", base64.b64encode(bytes(1025)).decode(), "no base64!"])
def test_a_bad_key_is_refused_before_anything_is_written(module, node, key):
    result = module(key=key)
    assert result["failed"] and key not in result["msg"]
    assert not (node / "munge.key").exists()


def test_a_missing_program_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(munge.MungeError, match="munge is not installed"):
        munge.encode()


def test_a_key_is_changed_in_two_steps(module, node):
    module(key=BASE64)
    log(node)
    predicted = module(rotation="prepare", check=True)
    assert predicted["changed"] and not (node / "munge.key.next").exists()
    made = module(rotation="prepare")
    assert made["changed"] and len(base64.b64decode(made["key"])) == munge.LONGEST_KEY
    assert (node / "munge.key.next").stat().st_mode & 0o7777 == munge.KEY_MODE
    assert (node / "munge.key").read_bytes() == KEY and "restart" not in log(node)

    assert module(rotation="commit", check=True)["changed"] and (node / "munge.key").read_bytes() == KEY
    assert module(rotation="commit")["changed"] and "systemctl restart munge" in log(node)
    assert (node / "munge.key").read_bytes() == base64.b64decode(made["key"])
    assert not (node / "munge.key.next").exists()
    assert not module(rotation="commit")["changed"] and "restart" not in log(node)


def test_an_interrupted_change_of_the_key_goes_on_with_the_same(module, node):
    module(key=BASE64)
    made = module(rotation="prepare")
    again = module(rotation="prepare")
    assert not again["changed"] and again["key"] == made["key"]


def test_another_node_prepares_the_key_that_it_is_given(module, node):
    module(key=BASE64)
    other = base64.b64encode(bytes(range(100))).decode()
    result = module(rotation="prepare", key=other)
    assert result["changed"] and "key" not in result
    assert not module(rotation="prepare", key=other)["changed"]
    short = base64.b64encode(b"short").decode()
    assert "has 32 to 1024 bytes" in module(rotation="prepare", key=short)["msg"]

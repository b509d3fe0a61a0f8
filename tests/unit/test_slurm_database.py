"""The database of slurmdbd; the client is a small script that behaves as mariadb(1) does."""

import os

import pytest

CLIENT = """
text=$(cat)
printf '%s\\n' "argv $*" "stdin $text" >>"$DIR/log"
case "$*" in
*--execute*) test -e "$DIR/made";;
*) test ! -e "$DIR/refuses" && touch "$DIR/made";;
esac
"""


@pytest.fixture
def database(ansible_module, tmp_path, monkeypatch):
    for name, script in (("mariadb", CLIENT), ("runuser", 'shift 3; exec "$@"')):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("DIR", str(tmp_path))
    runner = ansible_module("slurm_database")
    monkeypatch.setattr(runner.plugin.pwd, "getpwnam", lambda name: name)
    return runner


def lines(tmp_path, kind):
    return [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith(kind)]


def test_it_is_made_once_and_needs_no_password(database, tmp_path):
    assert database(check=True)["changed"] and not (tmp_path / "made").exists()
    assert database()["changed"]
    assert "IDENTIFIED VIA unix_socket" in (tmp_path / "log").read_text()
    for check in (True, False):
        assert not database(check=check)["changed"]


def test_a_password_is_in_no_argument(database, tmp_path):
    word = "Kx7-Kx7"
    result = database(password=word)
    assert result["changed"] and word not in str(lines(tmp_path, "argv"))
    assert f"IDENTIFIED BY '{word}'" in (tmp_path / "log").read_text()


def test_a_server_that_refuses_is_an_error(database, tmp_path):
    (tmp_path / "refuses").touch()
    assert "MariaDB refuses root" in database()["msg"]


@pytest.mark.parametrize("argument", [{"database": "a; DROP"}, {"password": "x'; DROP"}])
def test_no_sql_comes_in_by_a_variable(database, tmp_path, argument):
    assert database(**argument)["failed"] and not (tmp_path / "log").exists()

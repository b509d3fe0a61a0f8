"""What the lab does to files of the host: exactly its own, and back again."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from fleet.lab import network
from fleet.lab.cache import cached
from fleet.lab.model import Lab, Node

BEFORE = "127.0.0.1 localhost\n# a comment\n\n::1 ip6-localhost"


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "hosts"
    path.write_text(BEFORE + "\n")
    path.chmod(0o640)
    monkeypatch.setattr(network, "HOSTS_FILE", path)
    return path


def lab(name: str) -> Lab:
    return Lab(name, ipaddress.IPv4Network("10.77.90.0/24"), (Node("c1", "10.77.90.11"),))


def test_names_come_and_go_and_every_other_byte_stays(hosts: Path) -> None:
    before = hosts.read_bytes()
    network.write_hosts_block(lab("one"))
    network.write_hosts_block(lab("two"))
    network.write_hosts_block(lab("one"))
    assert hosts.read_text().count("10.77.90.11 c1.one.internal") == 1
    assert network.hosts_block_complete(lab("one"))
    assert hosts.stat().st_mode & 0o777 == 0o640
    network.remove_hosts_block("one")
    assert not network.hosts_block_exists("one")
    assert network.hosts_block_exists("two")
    network.remove_hosts_block("two")
    assert hosts.read_bytes() == before


def test_a_file_without_last_newline_keeps_its_last_line(hosts: Path) -> None:
    hosts.write_text(BEFORE)
    network.write_hosts_block(lab("one"))
    assert "::1 ip6-localhost\n" in hosts.read_text()
    network.remove_hosts_block("one")
    assert hosts.read_text().rstrip("\n") == BEFORE


def test_a_cached_folder_is_made_once(tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        cached(tmp_path / "thing-1", made.append)
    assert len(made) == 1
    assert (tmp_path / "thing-1").is_dir()


def test_a_folder_whose_making_failed_is_not_there_and_its_part_is_thrown_away(tmp_path: Path) -> None:
    def fail(part: Path) -> None:
        (part / "half").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cached(tmp_path / "thing-1", fail)
    assert not (tmp_path / "thing-1").exists()
    cached(tmp_path / "thing-1", lambda part: (part / "whole").touch())
    assert [p.name for p in (tmp_path / "thing-1").iterdir()] == ["whole"]

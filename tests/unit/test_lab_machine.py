"""Virtual machines of the lab: what of a snapshot and of a node is whole, and what is said without QEMU."""

from __future__ import annotations

import errno
import io
import ipaddress
import json
import shutil
import time
from pathlib import Path

import pytest

from fleet import cli
from fleet.errors import FleetError
from fleet.lab import machine as machine_module
from fleet.lab.cache import cached, made
from fleet.lab.host import Mirror
from fleet.lab.lab import BACKENDS
from fleet.lab.machine import PARTS, SIZES, Machine, read_line
from fleet.lab.model import Lab, Node, node_home
from fleet.lab.qmp import connected

QEMU = BACKENDS["qemu"]
MIRROR = "http://mirror.example/debian"
NODE = Node("v1", "10.77.90.2", backend="qemu")
LAB = Lab("t", ipaddress.IPv4Network("10.77.90.0/24"), (NODE,), mirror=MIRROR)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def snapshot() -> Path:
    """A snapshot whose files are there, if nothing else."""
    folder = QEMU.image_folder(LAB, NODE)
    folder.mkdir(parents=True)
    for name in PARTS:
        (folder / name).write_text(name)
    (folder / SIZES).write_text(json.dumps(machine_module._sizes(folder)))
    return folder


@pytest.mark.parametrize("name", PARTS)
def test_a_snapshot_with_a_file_cut_short_or_gone_is_none(snapshot: Path, name: str) -> None:
    assert QEMU.has_image(LAB, NODE)
    with (snapshot / name).open("r+") as file:
        file.truncate(1)
    assert not QEMU.has_image(LAB, NODE)
    (snapshot / name).unlink()
    assert not QEMU.has_image(LAB, NODE)


def test_a_broken_snapshot_is_made_anew(snapshot: Path) -> None:
    before = made(snapshot)
    cached(snapshot, lambda part: (part / "anew").touch(), lambda folder: (folder / "anew").exists())
    assert [path.name for path in snapshot.iterdir()] == ["anew"]
    assert made(snapshot) != before


def test_a_node_does_not_outlive_the_snapshot_that_its_disk_lies_over(snapshot: Path) -> None:
    home = node_home(LAB.name, NODE.name)
    home.mkdir(parents=True)
    (home / "node.json").write_text(QEMU._recipe(LAB, NODE))  # type: ignore[attr-defined]
    assert QEMU.is_whole(LAB, NODE)
    shutil.rmtree(snapshot)
    assert not QEMU.is_whole(LAB, NODE)
    snapshot.mkdir()
    assert not QEMU.is_whole(LAB, NODE)


@pytest.mark.parametrize(("notes", "whole"), [([], True), (["started"], False), (["started", "named"], True)])
def test_a_node_whose_first_start_was_cut_short_is_made_anew(
    snapshot: Path, notes: list[str], whole: bool
) -> None:
    home = node_home(LAB.name, NODE.name)
    home.mkdir(parents=True)
    (home / "node.json").write_text(QEMU._recipe(LAB, NODE))  # type: ignore[attr-defined]
    for note in notes:
        (home / note).touch()
    assert QEMU.is_whole(LAB, NODE) is whole


def test_a_snapshot_is_another_one_when_the_hardware_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine.of(NODE, Mirror(MIRROR))
    before = machine.folder
    assert Machine.of(NODE, Mirror(MIRROR)).folder == before
    hardware = Machine._hardware
    monkeypatch.setattr(
        Machine, "_hardware", lambda self, *a, **k: [*hardware(self, *a, **k), "-device", "x"]
    )
    assert machine.folder != before


def test_too_little_space_is_said_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 100 << 20))  # type: ignore[attr-defined]
    with pytest.raises(FleetError, match="100 MiB are free") as error:
        Machine.of(NODE, Mirror(MIRROR))._make(tmp_path, tmp_path, LAB.name)
    assert "XDG_CACHE_HOME" in error.value.mend


def test_a_qemu_that_has_ended_is_not_waited_for_and_has_the_last_word(tmp_path: Path) -> None:
    (tmp_path / "qemu.log").write_text("could not configure /dev/net/tun\n")
    with (
        pytest.raises(FleetError, match="could not configure"),
        connected(tmp_path / "qmp.sock", time.monotonic() + 60, lambda: True),
    ):
        pass


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 1), (errno.EROFS, 1), (errno.EISDIR, None)])
def test_a_full_disk_is_an_error_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, code: int | None
) -> None:
    def fail() -> None:
        raise OSError(number, "words", "/a/file")

    monkeypatch.setattr(cli, "cli", fail)
    with pytest.raises(SystemExit if code else OSError) as ended:
        cli.main()
    if code:
        assert ended.value.code == code  # type: ignore[attr-defined]
        assert "/a/file" in capsys.readouterr().err


def test_an_agent_is_read_line_by_line_until_its_machine_ends() -> None:
    data = io.BytesIO(b"waiting\nready\n")
    assert [read_line(data.read), read_line(data.read)] == [b"waiting\n", b"ready\n"]
    with pytest.raises(FleetError, match="ended"):
        read_line(data.read)

"""What is mounted, and file systems that do not answer."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from module_utils import mounts

NFS = "40 22 0:35 /export /net/a\\040b rw,nosuid shared:2 master:1 - nfs4 server:/x\\011y rw,addr=10.0.0.1"


def test_a_mount_has_its_path_type_source_and_options():
    (mount,) = mounts.parse(NFS)
    assert mount == mounts.Mount(
        40, 22, "0:35", "/export", "/net/a b", ("rw", "nosuid"), "nfs4", "server:/x\ty"
    )


@pytest.mark.parametrize(
    "line", ["", "x y z", "1 2", "1 2 0:1 / /a rw", "a b 0:1 / /a rw - ext4 x rw", "1 2 0:1 / /a rw - "]
)
def test_lines_that_are_none_are_left_out(line):
    assert len(mounts.parse(f"{line}\n{NFS}\n")) == 1


def test_what_answers_has_nothing_wrong(tmp_path):
    assert mounts.probe([str(tmp_path), str(tmp_path), "/proc"], 5) == {str(tmp_path): "", "/proc": ""}


def test_what_is_not_there_is_named(tmp_path):
    path = str(tmp_path / "none")
    assert mounts.probe([path], 5) == {path: f"{path}: No such file or directory"}


def hang(path: str) -> None:
    if "hung" in str(path):
        time.sleep(60)


def test_nothing_waits_for_what_does_not_answer(monkeypatch, tmp_path):
    monkeypatch.setattr(mounts.os, "statvfs", hang)
    paths = [f"/hung/{number}" for number in range(20)]
    started = time.monotonic()
    answers = mounts.probe([*paths, str(tmp_path)], 0.3)
    assert time.monotonic() - started < 10  # and not 20 times 60
    assert answers.pop(str(tmp_path)) == ""
    assert answers == {path: f"{path} did not answer within 0.3 s" for path in paths}


def test_a_reader_of_the_output_does_not_wait_either(tmp_path):
    """The child that hangs has the pipe of this program's output no longer."""
    program = (
        "import time; from module_utils import mounts; mounts.os.statvfs = lambda path: time.sleep(60);"
        "mounts.os.kill = lambda *_: None; print(mounts.probe(['/hung'], 0.2))"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert "did not answer" in done.stdout and time.monotonic() - started < 50


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="mounts a file system")
def test_a_real_file_system_without_a_server_is_bounded(tmp_path):
    """A FUSE mount whose program never answers, as a Lustre or NFS mount whose server is away."""
    program = f"""
import ctypes, os, time
from module_utils import mounts
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x00020000) == 0
assert libc.mount(None, b"/", None, 0x44000, None) == 0
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={{fuse}},rootmode=40000,user_id=0,group_id=0".encode()
assert libc.mount(b"nobody", {str(tmp_path).encode()!r}, b"fuse", 0, options) == 0
assert {str(tmp_path)!r} in [mount.path for mount in mounts.parse(open(mounts.MOUNTINFO).read())]
started = time.monotonic()
print(mounts.probe([{str(tmp_path)!r}, "/"], 0.5), time.monotonic() - started < 30)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == f"{{'{tmp_path}': '{tmp_path} did not answer within 0.5 s', '/': ''}} True\n", (
        done.stderr
    )

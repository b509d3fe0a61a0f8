"""What Apptainer would bring into containers of a GPU's driver, looked up as it does."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from module_utils import gpu_libraries

FOLDER = "/etc/apptainer"
LIST = "# comment\nnvidia-smi\nlibcuda.so\nlibnvidia-ml.so\n/opt/lib/libextra.so.1\n"


def cache(libraries: dict[str, str], before: bytes = b"") -> bytes:
    """An ld.so.cache as glibc's ldconfig writes it: path → name."""
    head = 48 + 24 * len(libraries)
    texts, entries = b"", b""
    for path, name in libraries.items():
        key = head + len(texts)
        texts += name.encode() + b"\0"
        value = head + len(texts)
        texts += path.encode() + b"\0"
        entries += struct.pack("=i2IIQ", 0x0303, key, value, 0, 0)
    header = struct.pack("=20s2I20x", b"glibc-ld.so.cache1.1", len(libraries), len(texts))
    return before + header + entries + texts


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node with the driver 550.163.01 and Apptainer's list."""
    folder = tmp_path / "usr/lib"
    folder.mkdir(parents=True)
    for name in ("libcuda.so", "libnvidia-ml.so"):
        (folder / f"{name}.550.163.01").touch()
        (folder / f"{name}.1").symlink_to(f"{name}.550.163.01")
    program = tmp_path / "usr/bin/nvidia-smi"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    (tmp_path / "etc/apptainer").mkdir(parents=True)
    (tmp_path / "etc/apptainer/nvliblist.conf").write_text(LIST)
    (tmp_path / "etc/ld.so.cache").write_bytes(
        cache({f"/usr/lib/{name}.1": f"{name}.1" for name in ("libcuda.so", "libnvidia-ml.so")})
    )
    return tmp_path


def lacking(node: Path, driver: str = "550.163.01", vendor: str = "nvidia") -> list[str]:
    return gpu_libraries.lacking(vendor, FOLDER, driver, str(node))


def test_a_node_with_the_driver_lacks_nothing(node):
    assert lacking(node) == [] and lacking(node, driver="") == []
    assert gpu_libraries.resolve(gpu_libraries.lines(LIST), str(node)) == {
        "nvidia-smi": [f"{node}/usr/bin/nvidia-smi"],
        "libcuda.so": ["/usr/lib/libcuda.so.1"],
        "libnvidia-ml.so": ["/usr/lib/libnvidia-ml.so.1"],
        "/opt/lib/libextra.so.1": [],
    }


def test_a_library_that_is_gone_is_named(node):
    (node / "usr/lib/libcuda.so.550.163.01").unlink()
    assert lacking(node) == ["libcuda.so.1 is not on this node: --nv brings it into no container"]


def test_a_list_without_the_library_is_named(node):
    (node / "etc/apptainer/nvliblist.conf").write_text("libnvidia-ml.so\n")
    assert lacking(node) == [
        "/etc/apptainer/nvliblist.conf does not have libcuda.so.1: --nv brings it into no container"
    ]


def test_libraries_of_another_driver_than_the_loaded_one_are_named(node):
    assert lacking(node, driver="535.54.03") == [
        f"{name} is of driver 550.163.01, the loaded module of 535.54.03: boot the node"
        for name in ("libcuda.so.1", "libnvidia-ml.so.1")
    ]


@pytest.mark.parametrize("data", [b"", b"nonsense", cache({"/a": "b"})[:60]])
def test_a_cache_that_cant_be_read_is_named(node, data):
    (node / "etc/ld.so.cache").write_bytes(data)
    (said,) = lacking(node)
    assert said.startswith("/etc/ld.so.cache ") and said.endswith(": run ldconfig")


def test_a_list_that_is_not_there_is_named(node):
    (node / "etc/apptainer/nvliblist.conf").unlink()
    assert lacking(node) == [
        "/etc/apptainer/nvliblist.conf: No such file or directory: --nv brings nothing into containers"
    ]
    assert "rocmliblist.conf" in lacking(node, vendor="amd")[0]
    assert lacking(node, vendor="habana") == []


def test_the_cache_is_read_as_ldconfig_prints_it():
    printed = subprocess.run(
        ["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True, env={"LC_ALL": "C"}
    ).stdout
    found = re.findall(r"(?m)^\s*(\S+) \(.*\) => (.*)$", printed)
    assert found
    assert gpu_libraries.cached(Path("/etc/ld.so.cache").read_bytes()) == {path: name for name, path in found}


@given(st.binary(max_size=300))
def test_no_cache_is_an_error_of_another_kind(data):
    for text in (data, b"glibc-ld.so.cache1.1" + data):
        with contextlib.suppress(ValueError):
            gpu_libraries.cached(text)


def test_a_format_of_before_may_stand_before_it():
    assert gpu_libraries.cached(cache({"/a/libx.so.1": "libx.so.1"}, before=b"ld.so-1.7.0" + bytes(53))) == {
        "/a/libx.so.1": "libx.so.1"
    }


def test_the_container_cli_has_to_be_roots_alone(node):
    def wrong(owner: int = os.getuid()) -> str:
        return "; ".join(gpu_libraries.container_cli(str(node), owner))

    for name in ("nvidia-container-cli", "ldconfig"):
        (node / "usr/bin" / name).touch(mode=0o755)
    assert wrong() == ""
    assert "/usr/bin/ldconfig is not root's alone" in wrong(os.getuid() + 1)
    (node / "usr/bin/nvidia-container-cli").chmod(0o775)
    assert wrong().startswith("/usr/bin/nvidia-container-cli is not root's alone")
    (node / "usr/bin/nvidia-container-cli").unlink()
    assert wrong().startswith("nvidia-container-cli, which apptainer.conf asks for, is not on this node")

"""The hardware of nodes, as their kernels show it; and what a node lacks of its class."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from module_utils import hardware

GPU_INFORMATION = """Model: \t\t NVIDIA H100 80GB HBM3
IRQ:   \t\t 170
GPU UUID: \t GPU-c3b2
Device Minor: \t 0
"""


@pytest.fixture
def put(tmp_path: Path):
    def write(path: str, text: str = "") -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return write


@pytest.fixture
def gpu_node(tmp_path: Path, put):
    """Two H100 with their driver, a third card that it has not taken, and one InfiniBand port of two up."""
    for number, driver in enumerate(["nvidia", "nvidia", None]):
        folder = f"sys/bus/pci/devices/0000:{number + 1}b:00.0"
        put(f"{folder}/class", "0x030200\n")
        put(f"{folder}/vendor", "0x10de\n")
        put(f"{folder}/device", "0x2330\n")
        put(f"{folder}/numa_node", "1\n")
        if driver:
            (tmp_path / folder / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
            put(f"proc/driver/nvidia/gpus/0000:{number + 1}b:00.0/information", GPU_INFORMATION)
    put("sys/bus/pci/devices/0000:00:1f.0/class", "0x060100\n")  # a bridge is nobody's accelerator
    put("sys/module/nvidia/version", "550.54.15\n")
    (tmp_path / "sys/module/ib_core").mkdir(parents=True)
    for port, state, rate in (
        ("1", "4: ACTIVE", "400 Gb/sec (4X NDR)"),
        ("2", "1: DOWN", "10 Gb/sec (4X SDR)"),
    ):
        folder = f"sys/class/infiniband/mlx5_0/ports/{port}"
        put(f"{folder}/state", f"{state}\n")
        put(f"{folder}/phys_state", "5: LinkUp\n")
        put(f"{folder}/rate", f"{rate}\n")
        put(f"{folder}/link_layer", "InfiniBand\n")
    put("sys/class/infiniband/mlx5_0/fw_ver", "28.39.1002\n")
    put("sys/class/net/ib0/type", "32\n")
    put("sys/class/net/ib0/operstate", "up\n")
    put("sys/class/net/ib0/mtu", "4092\n")
    put("sys/class/net/lo/type", "772\n")
    put("proc/sys/user/max_user_namespaces", "1000\n")
    put(
        "proc/self/mountinfo",
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:5 / /proc rw - proc proc rw\n"
        "3 1 0:40 / /scratch rw,nosuid - lustre 10.0.0.1@o2ib:/scratch rw\n",
    )
    starter = tmp_path / "usr/lib/x86_64-linux-gnu/apptainer/bin/starter-suid"
    put(str(starter.relative_to(tmp_path)))
    starter.chmod(0o4755)
    return hardware.read(str(tmp_path))


def test_what_the_kernel_shows_is_read(gpu_node):
    assert gpu_node["gpus"] == {
        "nvidia": {"count": 2, "models": ["NVIDIA H100 80GB HBM3"], "driver": "550.54.15"}
    }
    assert [(card["vendor"], card["kind"], card["driver"]) for card in gpu_node["pci"]] == [
        ("nvidia", "gpu", "nvidia"),
        ("nvidia", "gpu", "nvidia"),
        ("nvidia", "gpu", ""),
    ]
    (device,) = gpu_node["infiniband"]
    assert device["firmware"] == "28.39.1002"
    assert [(port["state"], port["gigabits"]) for port in device["ports"]] == [
        ("ACTIVE", 400.0),
        ("DOWN", 10.0),
    ]
    assert gpu_node["networks"] == [
        {"name": "ib0", "type": "infiniband", "state": "up", "megabits": 0, "mtu": 4092, "driver": ""}
    ]
    assert gpu_node["modules"] == {"nvidia": "550.54.15", "ib_core": ""}
    assert [mount["path"] for mount in gpu_node["mounts"]] == ["/", "/scratch"]
    assert gpu_node["user_namespaces"] is True and gpu_node["setuid"] is True


def test_a_node_with_nothing_is_read_too(tmp_path):
    facts = hardware.read(str(tmp_path))
    assert not any(facts[key] for key in ("pci", "gpus", "device_nodes", "modules", "infiniband", "mounts"))
    assert facts["user_namespaces"] is None and facts["setuid"] is False


def test_this_machine_is_read():
    assert "/" in {mount["path"] for mount in hardware.read()["mounts"]}


@pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes")
def test_device_nodes_have_modes_and_numbers_and_links_are_none(tmp_path):
    (tmp_path / "dev/dri").mkdir(parents=True)
    os.mknod(tmp_path / "dev/nvidia0", 0o666 | stat.S_IFCHR, os.makedev(195, 0))
    (tmp_path / "dev/nvidia0").chmod(0o660)
    os.mknod(tmp_path / "dev/dri/renderD128", 0o600 | stat.S_IFCHR, os.makedev(226, 128))
    (tmp_path / "dev/nvidia7").symlink_to("/dev/null")
    found = hardware.device_nodes(hardware.Kernel(str(tmp_path)))
    assert found == {
        "/dev/nvidia0": {"mode": "0660", "uid": 0, "gid": 0, "major": 195, "minor": 0},
        "/dev/dri/renderD128": {"mode": "0600", "uid": 0, "gid": 0, "major": 226, "minor": 128},
    }


def test_amd_intel_gaudi_and_tpus_are_counted_by_their_drivers(tmp_path, put):
    put("sys/class/kfd/kfd/topology/nodes/0/properties", "cpu_cores_count 64\nsimd_count 0\n")
    for node in ("1", "2"):
        put(f"sys/class/kfd/kfd/topology/nodes/{node}/properties", "simd_count 304\n")
        put(f"sys/class/kfd/kfd/topology/nodes/{node}/name", "gfx942\n")
    put("sys/module/amdgpu/version", "6.8.5\n")
    for folder, vendor in (
        ("sys/class/drm/renderD128", "0x8086"),
        ("sys/class/drm/renderD129", "0x1002"),
        ("sys/class/accel/accel0", "0x1da3"),
        ("sys/class/accel/accel1", "0x1ae0"),
    ):
        put(f"{folder}/device/vendor", f"{vendor}\n")
    gpus = hardware.read(str(tmp_path))["gpus"]
    assert {vendor: found["count"] for vendor, found in gpus.items()} == {
        "amd": 2,
        "intel": 1,
        "habana": 1,
        "google": 1,
    }
    assert gpus["amd"] == {"count": 2, "models": ["gfx942"], "driver": "6.8.5"}


@pytest.mark.parametrize(
    "version, minimum, answer",
    [
        ("550.54.15", "550.54", True),
        ("550.54.15", "550.54.15", True),
        ("535.183", "550", False),
        ("1000.1", "999", True),
        ("", "1", False),
    ],
)
def test_versions_are_compared_as_numbers(version, minimum, answer):
    assert hardware.at_least(version, minimum) is answer


@pytest.mark.parametrize(
    "expected",
    [
        {},
        {"gpus": {"vendor": "nvidia", "count": 2, "model": "h100", "driver": "550.54"}},
        {"infiniband": {"ports": 1, "gigabits": 400}},
        {"mounts": ["/scratch"], "modules": ["nvidia"]},
    ],
)
def test_a_node_of_its_class_lacks_nothing(gpu_node, expected):
    assert hardware.mismatches(expected, gpu_node) == []


@pytest.mark.parametrize(
    "expected, words",
    [
        (
            {"gpus": {"vendor": "nvidia", "count": 8, "model": "H100"}},
            "8 x nvidia H100 in its class, 2 there",
        ),
        ({"gpus": {"vendor": "nvidia", "count": 3}}, "3 on the PCI bus: its driver has not taken them all"),
        ({"gpus": {"vendor": "nvidia", "count": 1}}, "1 x nvidia in its class, 2 there"),
        ({"gpus": {"vendor": "amd", "count": 2}}, "2 x amd in its class, 0 there"),
        ({"gpus": {"vendor": "nvidia", "count": 2, "model": "A100"}}, "there is NVIDIA H100 80GB HBM3"),
        ({"gpus": {"vendor": "nvidia", "count": 2, "driver": "560"}}, "is 550.54.15, older than 560"),
        (
            {"infiniband": {"ports": 2}},
            "2 active RDMA ports in its class, 1 there: mlx5_0/1 is ACTIVE, mlx5_0/2",
        ),
        ({"infiniband": {"ports": 1, "gigabits": 800}}, "mlx5_0/1 runs at 400 Gb/sec (4X NDR), not at 800"),
        ({"device_nodes": ["/dev/kfd"]}, "the device node /dev/kfd is not there"),
        ({"modules": ["lustre"]}, "the kernel module lustre is not there"),
        ({"mounts": ["/home"]}, "nothing is mounted at /home"),
    ],
)
def test_what_a_node_lacks_is_said(gpu_node, expected, words):
    (sentence,) = hardware.mismatches(expected, gpu_node)
    assert words in sentence


def test_without_any_port_that_is_said(tmp_path):
    assert hardware.mismatches({"infiniband": {"ports": 1}}, hardware.read(str(tmp_path))) == [
        "1 active RDMA ports in its class, 0 there: there is none"
    ]

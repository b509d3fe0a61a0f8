"""What a node says of itself."""

from pathlib import Path

import pytest

from module_utils import slurm_hardware

SLURMD_C = (
    "NodeName=c1 CPUs=64 Boards=1 SocketsPerBoard=2 CoresPerSocket=16 ThreadsPerCore=2 RealMemory=515000\n"
    "UpTime=3-04:05:06\n"
)
HARDWARE = {
    "CPUs": 64,
    "Boards": 1,
    "SocketsPerBoard": 2,
    "CoresPerSocket": 16,
    "ThreadsPerCore": 2,
    "RealMemory": 515000,
}


def machine(root: Path, sockets: int, cores: int, threads: int, kibibytes: int) -> str:
    """Make /sys and /proc of a machine; the ids of cores begin anew in every socket, as they do."""
    for cpu in range(sockets * cores * threads):
        core = cpu // threads
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{core // cores}\n")
        (topology / "core_id").write_text(f"{core % cores}\n")
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal:       {kibibytes} kB\nMemFree: 1 kB\n")
    (root / "proc/self/mounts").write_text("proc /proc proc rw 0 0\n")
    return str(root)


def test_slurmd_is_understood():
    assert slurm_hardware.parse_slurmd(SLURMD_C) == HARDWARE


def test_gres_lines_of_a_library_do_not_disturb():
    found = "Found gpu:tesla_t4:1 with Autodetect=nvml (Substring of gpu name may be used instead)\n"
    more = SLURMD_C.replace("RealMemory=515000", "RealMemory=515000 Gres=gpu:tesla_t4:1")
    assert slurm_hardware.parse_slurmd(found + more) == HARDWARE


@pytest.mark.parametrize(
    "text", ["", "NodeName=c1 CPUs=4\n", "NodeName=c1 CPUs=0 RealMemory=1\n", "CPUs=x RealMemory=1"]
)
def test_half_an_answer_is_an_error(text):
    with pytest.raises(slurm_hardware.HardwareError, match="slurmd -C"):
        slurm_hardware.parse_slurmd(text)


def test_the_kernel_gives_the_same_counts(tmp_path):
    root = machine(tmp_path, sockets=2, cores=16, threads=2, kibibytes=515000 * 1024 + 1023)
    assert slurm_hardware.read_kernel(root) == HARDWARE


def test_a_machine_without_processors_is_an_error(tmp_path):
    with pytest.raises(slurm_hardware.HardwareError, match="no processors"):
        slurm_hardware.read_kernel(machine(tmp_path, 0, 0, 0, 1))


@pytest.mark.parametrize(
    ("controllers", "expected"),
    [
        (
            "cpuset cpu io memory pids\n",
            {"version": 2, "controllers": ["cpu", "cpuset", "io", "memory", "pids"]},
        ),
        ("\n", {"version": 0, "controllers": []}),
    ],
)
def test_unified_hierarchy(tmp_path, controllers, expected):
    file = Path(machine(tmp_path, 1, 1, 1, 1), "sys/fs/cgroup/cgroup.controllers")
    file.parent.mkdir(parents=True)
    file.write_text(controllers)
    assert slurm_hardware.read_cgroup(str(tmp_path)) == expected


def test_separate_hierarchies_are_found_among_the_mounts(tmp_path):
    Path(machine(tmp_path, 1, 1, 1, 1), "proc/self/mounts").write_text(
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
        "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n"
        "cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,name=systemd 0 0\n"
        "/dev/memory /mnt ext4 rw,memory 0 0\n"
    )
    assert slurm_hardware.read_cgroup(str(tmp_path)) == {"version": 1, "controllers": ["cpu", "cpuacct"]}


def test_nothing_mounted(tmp_path):
    assert slurm_hardware.read_cgroup(machine(tmp_path, 1, 1, 1, 1)) == {"version": 0, "controllers": []}


# The module


@pytest.fixture
def module(ansible_module, tmp_path, monkeypatch):
    runner = ansible_module("slurm_hardware_facts")
    program = tmp_path / "slurmd"
    program.write_text(f"#!/bin/sh\n[ $1 = -C ] && printf '{SLURMD_C}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(runner.plugin.AnsibleModule, "get_bin_path", lambda *_, **__: str(program))
    return runner


def test_module_returns_what_slurmd_says(module):
    result = module()
    assert not result["changed"]
    assert result["hardware"] == HARDWARE
    assert set(result["cgroup"]) == {"version", "controllers"}


def test_without_slurmd_only_check_mode_has_an_answer(module, monkeypatch):
    monkeypatch.setattr(module.plugin.AnsibleModule, "get_bin_path", lambda *_, **__: None)
    assert module(check=True)["hardware"]["CPUs"] >= 1
    assert "slurmd is not installed" in module()["msg"]


def make(root, *paths, text=""):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def test_devices_are_found_by_their_maker(tmp_path):
    make(tmp_path, *(f"dev/nvidia{i}" for i in (0, 10, 2)), "dev/nvidiactl", "dev/nvidia-uvm", "dev/accel0")
    make(tmp_path, "sys/class/drm/renderD128/device/vendor", text="0x1002\n")
    make(tmp_path, "sys/class/drm/renderD129/device/vendor", text="0x8086\n")
    make(tmp_path, "sys/class/drm/renderD130/device/vendor", text="0x1a03\n")
    assert slurm_hardware.read_devices(str(tmp_path)) == {
        "nvidia": ["/dev/nvidia0", "/dev/nvidia2", "/dev/nvidia10"],
        "amd": ["/dev/dri/renderD128"],
        "intel": ["/dev/dri/renderD129"],
        "accel": ["/dev/accel0"],
    }


def test_a_node_without_devices_has_none(tmp_path):
    assert not any(slurm_hardware.read_devices(str(tmp_path)).values())


def test_pmix_needs_the_plugin_and_the_library(tmp_path):
    make(tmp_path, "usr/lib/x86_64-linux-gnu/slurm-wlm/mpi_pmix.so")
    assert not slurm_hardware.has_pmix(str(tmp_path))
    make(tmp_path, "usr/lib/x86_64-linux-gnu/libpmix.so.2")
    assert slurm_hardware.has_pmix(str(tmp_path))

# SPDX-License-Identifier: Apache-2.0
"""What Slurm has to know of a node: processors, memory, and the cgroup controllers it can use.

Sources: slurmd(8) (option -C), slurm.conf(5) (NodeName), cgroups(7) (mount options of v1), and of the kernel
Documentation/admin-guide/cgroup-v2.rst (cgroup.controllers) and ABI/stable/sysfs-devices-system-cpu.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List, Union

Hardware = Dict[str, int]

COUNTS = ("CPUs", "Boards", "SocketsPerBoard", "CoresPerSocket", "ThreadsPerCore", "RealMemory")


# PCI vendors, as in pci.ids.
_PCI_VENDORS = {"0x1002": "amd", "0x8086": "intel"}
# Debian and Ubuntu; RPM packages.
_PMIX_PLUGINS = ("usr/lib/*/slurm-wlm/mpi_pmix.so", "usr/lib*/slurm/mpi_pmix.so")
_PMIX_LIBRARIES = ("usr/lib/*/libpmix.so.2", "usr/lib/*/pmix2/lib/libpmix.so.2", "usr/lib64/libpmix.so.2")


class HardwareError(Exception):
    """What a node says of its hardware can't be understood."""


def parse_slurmd(text: str) -> Hardware:
    """Return the counts in the output of ``slurmd -C``; RealMemory is in MiB.

    Other fields (the node's name, up-time, GRES found by a library) are left out.
    Raises HardwareError if the processors or the memory are missing.
    """
    fields = dict(re.findall(r"(?:^|\s)(\w+)=(\S+)", text))
    try:
        hardware = {name: int(fields[name]) for name in COUNTS if name in fields}
    except ValueError as error:
        raise HardwareError(f"slurmd -C printed something else than a number: {error}") from error
    for name in ("CPUs", "RealMemory"):
        if hardware.get(name, 0) < 1:
            raise HardwareError(f"slurmd -C did not print {name}, only: {text.strip() or 'nothing'}")
    return hardware


def read_kernel(root: str = "/") -> Hardware:
    """Return the same counts from /sys and /proc, for a node without slurmd; *root* is for tests.

    Equal to ``slurmd -C`` wherever all sockets have equally many cores, and all cores equally many threads.
    Raises HardwareError.
    """
    cpus = sorted(Path(root, "sys/devices/system/cpu").glob("cpu[0-9]*/topology"))
    packages, cores = set(), set()
    for topology in cpus:
        package = (topology / "physical_package_id").read_text().strip()
        packages.add(package)
        cores.add((package, (topology / "core_id").read_text().strip()))
    memory = re.search(r"^MemTotal:\s+(\d+) kB$", Path(root, "proc/meminfo").read_text(), re.MULTILINE)
    if not cpus or memory is None:
        raise HardwareError(
            f"{root} has no processors in sys/devices/system/cpu or no MemTotal in proc/meminfo"
        )
    return {
        "CPUs": len(cpus),
        "Boards": 1,
        "SocketsPerBoard": len(packages),
        "CoresPerSocket": len(cores) // len(packages),
        "ThreadsPerCore": len(cpus) // len(cores),
        "RealMemory": int(memory.group(1)) // 1024,
    }


def read_devices(root: str = "/") -> Dict[str, List[str]]:
    """Return the device files of accelerators by maker: nvidia, amd, intel, accel. *root* is for tests.

    NVIDIA's are in the order of their minor numbers; graphics devices of AMD and Intel are render nodes whose
    PCI vendor says so; accel is what the kernel's subsystem of that name has, TPUs for example.
    """
    found: Dict[str, List[str]] = {name: [] for name in ("nvidia", "amd", "intel", "accel")}
    for entry in sorted(Path(root, "dev").glob("nvidia*"), key=_number):
        if re.fullmatch(r"nvidia[0-9]+", entry.name):
            found["nvidia"].append(f"/dev/{entry.name}")
    for entry in sorted(Path(root, "sys/class/drm").glob("renderD*"), key=_number):
        vendor = entry / "device/vendor"
        maker = _PCI_VENDORS.get(vendor.read_text().strip()) if vendor.is_file() else None
        if maker:
            found[maker].append(f"/dev/dri/{entry.name}")
    for folder, pattern in (("dev", "accel*"), ("dev/accel", "accel*")):
        for entry in sorted(Path(root, folder).glob(pattern), key=_number):
            if re.fullmatch(r"accel[0-9]+", entry.name):
                found["accel"].append(f"/{folder}/{entry.name}")
    return found


def _number(path: Path) -> int:
    digits = re.search(r"[0-9]+$", path.name)
    return int(digits.group()) if digits else -1


def has_pmix(root: str = "/") -> bool:
    """Whether Slurm's plugin for PMIx is here, and the library that it loads. *root* is for tests."""
    plugin = any(next(Path(root).glob(pattern), None) for pattern in _PMIX_PLUGINS)
    return plugin and any(next(Path(root).glob(pattern), None) for pattern in _PMIX_LIBRARIES)


def read_cgroup(root: str = "/") -> Dict[str, Union[int, List[str]]]:
    """Return ``{"version": 2, 1 or 0, "controllers": [...]}``: the hierarchy with controllers, 0 for none.

    A machine with both hierarchies binds its controllers to one; that one counts. *root* is for tests.
    """
    unified = Path(root, "sys/fs/cgroup/cgroup.controllers")
    if unified.is_file():
        controllers = unified.read_text().split()
        return {"version": 2 if controllers else 0, "controllers": sorted(controllers)}
    known = {"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids"}
    found = set()
    for mount in Path(root, "proc/self/mounts").read_text().splitlines():
        fields = mount.split()
        if fields[2] == "cgroup":
            found.update(known.intersection(fields[3].split(",")))
    return {"version": 1 if found else 0, "controllers": sorted(found)}

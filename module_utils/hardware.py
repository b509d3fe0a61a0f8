# SPDX-License-Identifier: Apache-2.0
"""The hardware of a node that containers use, as the kernel shows it: accelerators, fabrics, file systems.

Everything is read from /proc, /sys and /dev; no program is run and no mount is looked into, so that nothing
can hang. Of a driver that is not loaded nothing but its PCI device is there.
Sources: of the kernel, Documentation/ABI/testing/sysfs-bus-pci, ABI/stable/sysfs-class-infiniband and
accel/introduction.rst; of NVIDIA's driver, README, "The /proc Filesystem Interface"; vendors from pci.ids.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping

from . import gpu_libraries, kernel_parameters, mounts

#: PCI class → what such a device is; the first two octets of the three.
PCI_CLASSES = {
    0x0200: "ethernet",
    0x0207: "infiniband",
    0x0300: "gpu",
    0x0302: "gpu",
    0x0380: "gpu",
    0x1200: "accelerator",
}
VENDORS = {
    0x1002: "amd",
    0x10DE: "nvidia",
    0x10EE: "xilinx",
    0x14E4: "broadcom",
    0x15B3: "mellanox",
    0x1AE0: "google",
    0x1DA3: "habana",
    0x8086: "intel",
}
#: Modules of the kernel that say which stack a node has.
MODULES = (
    *("amdgpu", "i915", "xe", "habanalabs", "nvidia", "nvidia_uvm", "nvidia_drm", "nvidia_peermem"),
    *("ib_core", "ib_ipoib", "ib_umad", "ib_uverbs", "rdma_cm", "rdma_ucm", "rdma_rxe", "siw"),
    *("mlx4_ib", "mlx5_ib", "irdma", "hfi1", "bnxt_re", "efa"),
    *("lustre", "lnet", "ko2iblnd", "ksocklnd", "nfs", "nfsv4", "rpcrdma", "fuse", "overlay", "squashfs"),
)
#: Device nodes that programs open, as patterns below /dev.
DEVICE_PATTERNS = (
    *("nvidia[0-9]*", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps/*"),
    *("kfd", "dri/renderD*", "accel[0-9]*", "accel/accel*", "vfio/*", "infiniband/*", "fuse"),
)

#: Where Apptainer's setuid starter is: Enterprise Linux and SUSE, Debian and Ubuntu, `make install`.
STARTERS = (
    "usr/libexec/apptainer/bin/starter-suid",
    "usr/lib/*/apptainer/bin/starter-suid",
    "usr/local/libexec/apptainer/bin/starter-suid",
)

Facts = Dict[str, Any]


class Kernel:
    """The files in which the kernel says what there is; *root* is another folder in tests."""

    def __init__(self, root: str = "/") -> None:
        self.root = Path(root)

    def text(self, path: str) -> str:
        """Return what a file says, stripped; empty if there is none, or if the driver refuses to say it."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return ""

    def number(self, path: str) -> int:
        """Return the number in a file, -1 if there is none."""
        try:
            return int(self.text(path), 0)
        except ValueError:
            return -1

    def names(self, folder: str) -> List[str]:
        try:
            return sorted(os.listdir(self.root / folder))  # noqa: PTH208 - also where a name is no text
        except OSError:
            return []

    def link(self, path: str) -> str:
        """Return the last part of what a link leads to, empty if it is none."""
        try:
            return os.path.basename(os.readlink(self.root / path))  # noqa: PTH115, PTH119
        except OSError:
            return ""


def read(root: str = "/") -> Facts:
    """Return all that is known of the hardware; *root* is for tests. Never raises for what is missing."""
    kernel = Kernel(root)
    return {
        "pci": list(pci(kernel)),
        "gpus": gpus(kernel),
        "device_nodes": device_nodes(kernel),
        "modules": {
            name: kernel.text(f"sys/module/{name}/version")
            for name in MODULES
            if (kernel.root / "sys/module" / name).exists()
        },
        "infiniband": list(infiniband(kernel)),
        "networks": list(networks(kernel)),
        "mounts": [
            {"path": mount.path, "type": mount.type, "source": mount.source, "options": list(mount.options)}
            for mount in mounts.parse(kernel.text("proc/self/mountinfo"))
            if mount.type not in mounts.PSEUDO_TYPES or mount.type == "autofs"
        ],
        "user_namespaces": kernel_parameters.user_namespaces(root)[0],
        "setuid": setuid(kernel),
    }


def setuid(kernel: Kernel) -> bool:
    """Return whether the node has a setuid starter of Apptainer, where packages put it."""
    starters = [path for pattern in STARTERS for path in kernel.root.glob(pattern)]
    return any(path.lstat().st_mode & stat.S_ISUID for path in starters)


def pci(kernel: Kernel) -> Iterator[Facts]:
    """Yield the PCI devices of the classes that matter here: their address, kind, vendor, ids and driver."""
    for address in kernel.names("sys/bus/pci/devices"):
        folder = f"sys/bus/pci/devices/{address}"
        kind = PCI_CLASSES.get(kernel.number(f"{folder}/class") >> 8)
        if kind:
            vendor, device = kernel.number(f"{folder}/vendor"), kernel.number(f"{folder}/device")
            yield {
                "address": address,
                "kind": kind,
                "vendor": VENDORS.get(vendor, f"{vendor:#06x}"),
                "id": f"{vendor:04x}:{device:04x}",
                "driver": kernel.link(f"{folder}/driver"),
                "numa_node": kernel.number(f"{folder}/numa_node"),
            }


def gpus(kernel: Kernel) -> Dict[str, Facts]:
    """Return vendor → count, models and driver version of the GPUs and accelerators that a driver has taken.

    What no driver has taken stands in ``pci`` alone.
    """
    found: Dict[str, Facts] = {}
    # A container sees the device nodes that it was given, and not what the driver says of them.
    nvidia = kernel.names("proc/driver/nvidia/gpus") or [
        name for name in kernel.names("dev") if re.fullmatch(r"nvidia\d+", name)
    ]
    if nvidia:
        about = [kernel.text(f"proc/driver/nvidia/gpus/{address}/information") for address in nvidia]
        models = [re.search(r"(?m)^Model:\s*(.+?)\s*$", text) for text in about]
        found["nvidia"] = {
            "count": len(nvidia),
            "models": sorted({model.group(1) for model in models if model}),
            "driver": kernel.text("sys/module/nvidia/version"),
        }
    nodes = "sys/class/kfd/kfd/topology/nodes"
    amd = [n for n in kernel.names(nodes) if _property(kernel.text(f"{nodes}/{n}/properties"), "simd_count")]
    if amd:
        names = {kernel.text(f"{nodes}/{node}/name") for node in amd}
        version = kernel.text("sys/module/amdgpu/version")
        found["amd"] = {"count": len(amd), "models": sorted(names - {""}), "driver": version}
    # Cards of one kind of driver: the render nodes of Intel's GPUs, the accel nodes of Gaudi and TPUs.
    for vendor, folder, pattern in (
        ("intel", "sys/class/drm", r"renderD\d+"),
        ("habana", "sys/class/accel", r"accel\d+"),
        ("google", "sys/class/accel", r"accel\d+"),
    ):
        cards = [name for name in kernel.names(folder) if re.fullmatch(pattern, name)]
        taken = [
            name for name in cards if VENDORS.get(kernel.number(f"{folder}/{name}/device/vendor")) == vendor
        ]
        if taken:
            driver = kernel.link(f"{folder}/{taken[0]}/device/driver")
            version = kernel.text(f"sys/module/{driver}/version") if driver else ""
            found[vendor] = {"count": len(taken), "models": [], "driver": version}
    return found


def _property(text: str, name: str) -> int:
    match = re.search(rf"(?m)^{name}\s+(\d+)$", text)
    return int(match.group(1)) if match else 0


def device_nodes(kernel: Kernel, patterns: Iterable[str] = DEVICE_PATTERNS) -> Dict[str, Facts]:
    """Return path → mode, owner, group and numbers of the device nodes that match; paths begin with /dev."""
    found: Dict[str, Facts] = {}
    for pattern in patterns:
        for path in sorted((kernel.root / "dev").glob(pattern)):
            try:
                status = path.lstat()
            except OSError:
                continue
            if stat.S_ISCHR(status.st_mode):
                found[f"/{path.relative_to(kernel.root)}"] = {
                    "mode": f"{stat.S_IMODE(status.st_mode):04o}",
                    "uid": status.st_uid,
                    "gid": status.st_gid,
                    "major": os.major(status.st_rdev),
                    "minor": os.minor(status.st_rdev),
                }
    return found


def infiniband(kernel: Kernel) -> Iterator[Facts]:
    """Yield the RDMA devices with their ports: InfiniBand, RoCE, iWARP, and software ones."""
    for name in kernel.names("sys/class/infiniband"):
        folder = f"sys/class/infiniband/{name}"
        yield {
            "name": name,
            "firmware": kernel.text(f"{folder}/fw_ver"),
            "board": kernel.text(f"{folder}/board_id"),
            # A software device (rxe) has a network interface above which it is.
            "parent": kernel.text(f"{folder}/parent"),
            "interfaces": kernel.names(f"{folder}/device/net"),
            "ports": [
                _port(kernel, f"{folder}/ports/{port}", port) for port in kernel.names(f"{folder}/ports")
            ],
        }


def _port(kernel: Kernel, folder: str, port: str) -> Facts:
    rate = kernel.text(f"{folder}/rate")
    gigabits = re.match(r"[\d.]+", rate)
    return {
        "port": int(port) if port.isdigit() else 0,
        # "4: ACTIVE" and "5: LinkUp"
        "state": kernel.text(f"{folder}/state").rpartition(" ")[2],
        "physical_state": kernel.text(f"{folder}/phys_state").rpartition(" ")[2],
        "link_layer": kernel.text(f"{folder}/link_layer"),
        "rate": rate,
        "gigabits": float(gigabits.group()) if gigabits else 0.0,
    }


def networks(kernel: Kernel) -> Iterator[Facts]:
    """Yield the network interfaces that are backed by a device, and those of IPoIB."""
    for name in kernel.names("sys/class/net"):
        folder = f"sys/class/net/{name}"
        infiniband_link = kernel.number(f"{folder}/type") == 32  # noqa: PLR2004 - ARPHRD_INFINIBAND
        if infiniband_link or (kernel.root / folder / "device").exists():
            yield {
                "name": name,
                "type": "infiniband" if infiniband_link else "ethernet",
                "state": kernel.text(f"{folder}/operstate"),
                # Without a link the driver refuses to say it.
                "megabits": max(0, kernel.number(f"{folder}/speed")),
                "mtu": kernel.number(f"{folder}/mtu"),
                "driver": kernel.link(f"{folder}/device/driver"),
            }


def at_least(version: str, minimum: str) -> bool:
    """Return whether a driver's *version*, dotted numbers, is *minimum* or newer. What has none is not."""

    def parts(text: str) -> List[int]:
        return [int(number) for number in re.findall(r"\d+", text)]

    return bool(parts(version)) and parts(version) >= parts(minimum)


def mismatches(expected: Mapping[str, Any], facts: Facts, root: str = "/") -> List[str]:
    """Return what a node lacks of what its class has, as sentences; empty if it is all there.

    *expected* has any of: ``gpus`` (vendor, count, and optionally model: a part of the name, driver: the
    oldest, apptainer: the folder of its configuration, whose lists have to find what containers need,
    container_cli: whether apptainer.conf asks for nvidia-container-cli),
    ``infiniband`` (ports: how many are active, gigabits: the least rate of each of them),
    ``device_nodes`` (paths), ``modules`` (names), ``mounts`` (paths).
    """
    return (
        [*_gpus_lacking(expected.get("gpus") or {}, facts, root), *_ports_lacking(expected, facts)]
        + [
            f"{what} {name} is not there"
            for what, key in (("the device node", "device_nodes"), ("the kernel module", "modules"))
            for name in expected.get(key) or ()
            if name not in facts[key]
        ]
        + [
            f"nothing is mounted at {path}"
            for path in expected.get("mounts") or ()
            if path not in {mount["path"] for mount in facts["mounts"]}
        ]
    )


def _gpus_lacking(gpu: Mapping[str, Any], facts: Facts, root: str) -> Iterator[str]:
    if not gpu:
        return
    vendor, count = gpu["vendor"], gpu["count"]
    has = facts["gpus"].get(vendor, {"count": 0, "models": [], "driver": ""})
    name = f"{vendor} {gpu['model']}" if gpu.get("model") else vendor
    if has["count"] != count:
        plugged = sum(
            device["vendor"] == vendor and device["kind"] in ("gpu", "accelerator") for device in facts["pci"]
        )
        hint = (
            f", and {plugged} on the PCI bus: its driver has not taken them all"
            if plugged > has["count"]
            else ""
        )
        yield f"{count} x {name} in its class, {has['count']} there{hint}"
    elif gpu.get("model"):
        others = [model for model in has["models"] if gpu["model"].lower() not in model.lower()]
        if others:
            yield f"{count} x {name} in its class, but there is {', '.join(others)}"
    if gpu.get("driver") and has["count"] and not at_least(has["driver"], gpu["driver"]):
        yield f"the driver of {vendor} is {has['driver'] or 'of no version'}, older than {gpu['driver']}"
    if gpu.get("apptainer"):
        yield from gpu_libraries.lacking(vendor, gpu["apptainer"], has["driver"], root)
    if gpu.get("container_cli"):
        yield from gpu_libraries.container_cli(root)


def _ports_lacking(expected: Mapping[str, Any], facts: Facts) -> Iterator[str]:
    wanted = expected.get("infiniband") or {}
    if not wanted:
        return
    ports = [
        (f"{device['name']}/{port['port']}", port)
        for device in facts["infiniband"]
        for port in device["ports"]
    ]
    active = [(name, port) for name, port in ports if port["state"] == "ACTIVE"]
    if len(active) < wanted.get("ports", 1):
        seen = ", ".join(f"{name} is {port['state'] or 'silent'}" for name, port in ports) or "there is none"
        yield f"{wanted.get('ports', 1)} active RDMA ports in its class, {len(active)} there: {seen}"
    for name, port in active:
        if port["gigabits"] < wanted.get("gigabits", 0):
            yield f"RDMA port {name} runs at {port['rate'] or 'no rate'}, not at {wanted['gigabits']} Gb/s"

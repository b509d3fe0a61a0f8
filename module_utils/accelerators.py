# SPDX-License-Identifier: Apache-2.0
"""What a class of nodes with accelerators is made of: modules, files, GRES, what it has to have.

Everything here is from the variables of the role gpu; a node is not asked. Sources: of NVIDIA's driver,
README, "Frequently Asked Questions" (NVreg_DeviceFileMode), and nvidia-modprobe(1); udev(7); gres.conf(5).
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import hardware

HEAD = "# Ansible writes this file (apptainer-fleet): what is changed here is lost.\n"
UNIT = "apptainer-fleet-gpu.service"
UDEV = "/etc/udev/rules.d/70-apptainer-fleet-gpu.rules"
MODULES = "/etc/modules-load.d/apptainer-fleet-gpu.conf"
OPTIONS = "/etc/modprobe.d/apptainer-fleet-gpu.conf"
CDI = "/run/cdi/nvidia.yaml"

_MODE = re.compile(r"0?[0-7]{3}")
_GROUP = re.compile(r"[a-z_][a-z0-9_-]{0,31}|[0-9]+")
_PATTERN = re.compile(r"[A-Za-z0-9_*?\[\]!-]+")
_WORD = re.compile(r"[a-z0-9_-]+")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_FILE = re.compile(r"/dev/[A-Za-z0-9_/.-]*[A-Za-z0-9_.-](\[[0-9,-]+\])?")
_RANGE = re.compile(r"\[([0-9,-]+)\]$")


class AcceleratorError(ValueError):
    """What is wrong with a variable; the message goes on after its name."""


class Vendor(NamedTuple):
    """A maker of accelerators.

    :param modules: what its driver is.
    :param gres: the resource of Slurm that its cards are, and *flags* of gres.conf.
    :param file: the device files of n cards, as a hostlist: a path and the first number.
    :param rules: udev's match of its device nodes; NVIDIA's driver makes them without udev.
    """

    modules: Tuple[str, ...]
    gres: str
    flags: str
    file: Tuple[str, int]
    rules: Tuple[str, ...] = ()


_RENDER = 'SUBSYSTEM=="drm", KERNEL=="renderD*"'
_ACCEL = 'SUBSYSTEM=="accel", KERNEL=="accel[0-9]*"'
VENDORS: Mapping[str, Vendor] = {
    "nvidia": Vendor(("nvidia", "nvidia_uvm"), "gpu", "nvidia_gpu_env", ("/dev/nvidia", 0)),
    "amd": Vendor(
        ("amdgpu",), "gpu", "amd_gpu_env", ("/dev/dri/renderD", 128), ('SUBSYSTEM=="kfd"', _RENDER)
    ),
    "intel": Vendor((), "gpu", "intel_gpu_env", ("/dev/dri/renderD", 128), (_RENDER,)),
    "habana": Vendor(("habanalabs",), "hpu", "", ("/dev/accel/accel", 0), (_ACCEL,)),
    "google": Vendor((), "tpu", "", ("/dev/accel", 0), (_ACCEL,)),
}


#: Variables of the role gpu, without its name, that say what a class is.
NAMES = ("accelerators", "count", "driver_minimum", "gres_type", "model", "modules", "vendor")
#: The directive of apptainer.conf that needs a program on the node.
CONTAINER_CLI = "use nvidia-container-cli"


def of_class(variables: Mapping[str, Any]) -> Dict[str, Any]:
    """Return settings, for `gres` and `checks`, from the *variables* of a host as the inventory has them."""
    settings = {name: variables[f"gpu_{name}"] for name in NAMES if f"gpu_{name}" in variables}
    config = variables.get("apptainer_config") or {}
    return {**settings, "container_cli": bool(config.get(CONTAINER_CLI))}


def hostlist(path: str, first: int, count: int) -> str:
    """Return the device files of *count* cards: ``/dev/nvidia[0-7]``."""
    return f"{path}{first}" if count == 1 else f"{path}[{first}-{first + count - 1}]"


def expand(files: str) -> List[str]:
    """Return the paths that a hostlist with at most one range at its end names."""
    found = _RANGE.search(files)
    if not found:
        return [files]
    result = []
    for part in found.group(1).split(","):
        first, _, last = part.partition("-")
        result += [f"{files[: found.start()]}{n}" for n in range(int(first), int(last or first) + 1)]
    return result


def check_accelerators(entries: Sequence[Mapping[str, Any]]) -> None:
    """Raise AcceleratorError for what gpu_accelerators can't have."""
    names = set()
    for entry in entries:
        name = str(entry.get("name"))
        if not _NAME.fullmatch(name):
            raise AcceleratorError(f"{name!r} is no name of a resource, such as tpu or fpga")
        if name in names:
            raise AcceleratorError(f"{name} is there twice")
        names.add(name)
        if not _FILE.fullmatch(str(entry.get("file"))):
            raise AcceleratorError(f"file of {name} must be device files such as /dev/accel[0-3]")
        if not re.fullmatch(_WORD, str(entry.get("subsystem") or "x")):
            raise AcceleratorError(f"subsystem of {name} must be a word such as accel or vfio")
        if not _PATTERN.fullmatch(str(entry.get("kernel") or "x")):
            raise AcceleratorError(f"kernel of {name} must be a pattern of udev such as accel[0-9]*")
        check_mode(entry.get("mode"))
        check_group(entry.get("group"))
        if (entry.get("mode") or entry.get("group")) and not entry.get("subsystem"):
            raise AcceleratorError(f"{name} has a mode or a group, so udev needs its subsystem")


def check_mode(value: object) -> None:
    """Raise AcceleratorError unless it is empty or octal digits."""
    if value and not _MODE.fullmatch(str(value)):
        raise AcceleratorError(f"{value!r} is no mode: write octal digits in quotes, such as '0660'")


def check_group(value: object) -> None:
    """Raise AcceleratorError unless it is empty, or a group's name or number."""
    if value and not _GROUP.fullmatch(str(value)):
        raise AcceleratorError(f"{value!r} is no group: write its name or its number")


def modules(settings: Mapping[str, Any]) -> List[str]:
    """Return the kernel modules that the driver of a class is."""
    if settings.get("modules") is not None:
        return list(settings["modules"])
    vendor = VENDORS.get(str(settings.get("vendor")))
    return list(vendor.modules) if vendor else []


def gres(settings: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """Return the class as entries of slurm_gres: its cards, and accelerators unless they say otherwise."""
    result: List[Dict[str, Any]] = []
    vendor, count = VENDORS.get(str(settings.get("vendor"))), int(settings.get("count") or 0)
    if vendor and count:
        kind = settings.get("gres_type") or ""
        result.append(
            {
                "name": vendor.gres,
                **({"type": kind} if kind else {}),
                "count": count,
                "file": hostlist(*vendor.file, count),
                **({"flags": vendor.flags} if vendor.flags else {}),
            }
        )
    for entry in settings.get("accelerators") or ():
        if entry.get("gres", True):
            kind = {"type": entry["type"]} if entry.get("type") else {}
            count = len(expand(entry["file"]))
            result.append({"name": entry["name"], **kind, "count": count, "file": entry["file"]})
    return result


def checks(settings: Mapping[str, Any], folder: str) -> Dict[str, Any]:
    """Return what a node of the class has to have, as entries of node_health: ``hardware`` and ``devices``.

    *folder* is where Apptainer's configuration is, empty where there is none.
    """
    result: Dict[str, Any] = {}
    vendor, count = str(settings.get("vendor")), int(settings.get("count") or 0)
    if vendor in VENDORS and count:
        gpus: Dict[str, Any] = {"vendor": vendor, "count": count}
        for key, name in (("model", "model"), ("driver", "driver_minimum")):
            if settings.get(name):
                gpus[key] = settings[name]
        if folder:
            gpus["apptainer"] = folder
            if settings.get("container_cli"):
                gpus["container_cli"] = True
        result["hardware"] = {"gpus": gpus}
    loaded = [name for name in modules(settings) if name in hardware.MODULES]
    if loaded:
        result.setdefault("hardware", {})["modules"] = loaded
    # Loaded is not enough: the first CUDA call in a container opens it, and nobody there can make it.
    if vendor == "nvidia" and "nvidia_uvm" in loaded:
        result["hardware"]["device_nodes"] = ["/dev/nvidia-uvm"]
    devices = [
        {"path": path, "count": 1}
        for entry in settings.get("accelerators") or ()
        for path in expand(entry["file"])
    ]
    if devices:
        result["devices"] = devices
    return result


def files(settings: Mapping[str, Any]) -> List[Dict[str, str]]:
    """Return the files of a node, for module managed_files."""
    vendor = VENDORS.get(str(settings.get("vendor")))
    result = [{"path": f"/etc/systemd/system/{UNIT}", "content": unit(settings)}]
    loaded = modules(settings)
    if loaded:
        text = "".join(f"{name}\n" for name in loaded)
        result.append({"path": MODULES, "content": HEAD + text})
    mode, group = settings.get("device_mode") or "", settings.get("device_group") or ""
    if settings.get("vendor") == "nvidia" and (mode or group):
        result.append({"path": OPTIONS, "content": HEAD + nvidia_options(mode, group)})
    rules = [udev_rule(match, mode, group) for match in (vendor.rules if vendor else ()) if mode or group]
    for entry in settings.get("accelerators") or ():
        if entry.get("mode") or entry.get("group"):
            match = f'SUBSYSTEM=="{entry["subsystem"]}"'
            match += f', KERNEL=="{entry["kernel"]}"' if entry.get("kernel") else ""
            rules.append(udev_rule(match, entry.get("mode") or "", entry.get("group") or ""))
    if rules:
        result.append({"path": UDEV, "content": HEAD + "".join(f"{rule}\n" for rule in rules)})
    return result


def udev_rule(match: str, mode: str, group: str) -> str:
    """Return a rule that gives device nodes a mode and a group; either may be empty."""
    return ", ".join([match, *([f'MODE="{mode}"'] if mode else []), *([f'GROUP="{group}"'] if group else [])])


def nvidia_options(mode: str, group: str) -> str:
    """Return what NVIDIA's driver makes its device nodes with: it has them made without udev."""
    words = [f"NVreg_DeviceFileMode=0{mode.lstrip('0') or '0'}"] if mode else []
    words += [f"NVreg_DeviceFileGID={group}"] if group else []
    return f"options nvidia NVreg_ModifyDeviceFiles=1 {' '.join(words)}\n"


def unit(settings: Mapping[str, Any]) -> str:
    """Return the unit that has device nodes made before users need them, and what CDI says of them."""
    commands = []
    if settings.get("vendor") == "nvidia":
        nodes = "".join(f" -c={number}" for number in range(int(settings.get("count") or 1)))
        # Without /dev/nvidia-uvm the first CUDA call in a container fails, as nobody there may load it.
        if "nvidia_uvm" in modules(settings):
            commands.append(f"-/usr/bin/nvidia-modprobe -u{nodes}")
        if settings.get("cdi"):
            commands.append(f"/usr/bin/nvidia-ctk cdi generate --output={CDI}")
    text = "".join(f"ExecStart={command}\n" for command in commands) or "ExecStart=/bin/true\n"
    return (
        f"{HEAD}[Unit]\nDescription=Device nodes of accelerators, before users need them\n"
        "After=systemd-modules-load.service systemd-udev-settle.service\nBefore=slurmd.service\n\n"
        f"[Service]\nType=oneshot\nRemainAfterExit=yes\nTimeoutStartSec=120\n{text}\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


def units(settings: Mapping[str, Any]) -> List[Dict[str, Optional[str]]]:
    """Return the units, in order; one with ``needs`` runs only where this kernel module is loaded."""
    result: List[Dict[str, Optional[str]]] = [{"name": UNIT, "needs": None}]
    if settings.get("vendor") == "nvidia" and settings.get("persistenced"):
        result.append({"name": "nvidia-persistenced.service", "needs": "nvidia"})
    return result


def memberships(settings: Mapping[str, Any]) -> Dict[str, List[str]]:
    """Return group → users: what AMD's and Intel's device nodes belong to."""
    users = list(settings.get("users") or ())
    return {"render": users, "video": users} if users else {}

# SPDX-License-Identifier: Apache-2.0
"""InfiniBand, RoCE and Soft-RoCE on a node: modules, the interface for IP, units, and what it has to have.

Everything here is from the variables of the role infiniband. Sources: of the kernel,
Documentation/infiniband/ipoib.rst; rdma-link(8); systemd.network(5), section IPoIB; nm-settings-keyfile(5);
tmpfiles.d(5).
"""

from __future__ import annotations

import ipaddress
import re
import uuid
from typing import Any, Dict, List, Mapping, Optional, Sequence

HEAD = "# Ansible writes this file (apptainer-fleet): what is changed here is lost.\n"
UNIT = "apptainer-fleet-rdma.service"
MODULES = "/etc/modules-load.d/apptainer-fleet-rdma.conf"
FOLDER = "/etc/tmpfiles.d/apptainer-fleet-rdma.conf"
NETWORKD = "/etc/systemd/network/60-apptainer-fleet-{}.network"
NETWORK_MANAGER = "/etc/NetworkManager/system-connections/apptainer-fleet-{}.nmconnection"
#: Files of interfaces that are not wanted any more go by these.
LEFT = (NETWORKD.format("*"), NETWORK_MANAGER.format("*"))

#: What every user of verbs opens: uverbs, and rdma_cm for addresses of IP.
BASE_MODULES = ("ib_uverbs", "rdma_ucm")
#: The largest packet of each mode: of datagrams with the largest MTU of a fabric, 4096 - 4.
MTU = {"datagram": 4092, "connected": 65520}

# IFNAMSIZ leaves fifteen letters.
_INTERFACE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,14}")
_SPACE = uuid.UUID("5b0a3c1e-6f0e-4b57-9d39-54f9d1f6a7f4")


class InfinibandError(ValueError):
    """What is wrong with a variable; the message goes on after its name."""


def check_soft_roce(entries: Sequence[Mapping[str, Any]]) -> None:
    """Raise InfinibandError for what infiniband_soft_roce can't have."""
    names = [str(entry.get("name")) for entry in entries]
    for entry in entries:
        for key in ("name", "interface"):
            if not _INTERFACE.fullmatch(str(entry.get(key))):
                raise InfinibandError(f"{key} must be a name of at most 15 letters, not {entry.get(key)!r}")
    for one in names:
        if names.count(one) > 1:
            raise InfinibandError(f"{one} is there twice")
    under = [str(entry.get("interface")) for entry in entries]
    for one in under:
        if under.count(one) > 1:
            raise InfinibandError(f"{one} carries two devices: the kernel allows one")


def check_ipoib(entries: Sequence[Mapping[str, Any]]) -> None:
    """Raise InfinibandError for what infiniband_ipoib can't have."""
    names = [str(entry.get("interface")) for entry in entries]
    for entry in entries:
        name = str(entry.get("interface"))
        if not _INTERFACE.fullmatch(name):
            raise InfinibandError(f"interface must be a name of at most 15 letters, not {name!r}")
        if names.count(name) > 1:
            raise InfinibandError(f"{name} is there twice")
        address = str(entry.get("address"))
        try:
            ipaddress.ip_interface(address)
        except ValueError:
            raise InfinibandError(f"address of {name} is {address!r}: write such as 10.1.0.17/16") from None
        if "/" not in address:
            raise InfinibandError(f"address of {name} has no length of its network: write {address}/16")
        mode, mtu = str(entry.get("mode") or "datagram"), entry.get("mtu")
        if mode in MTU and mtu and int(mtu) > MTU[mode]:
            raise InfinibandError(f"mtu of {name} is {mtu}, and {mode} has {MTU[mode]} at most")


def modules(settings: Mapping[str, Any]) -> List[str]:
    """Return the kernel modules to load; drivers of cards are loaded by the kernel itself."""
    if settings.get("modules") is not None:
        return list(settings["modules"])
    return [
        *BASE_MODULES,
        *(["ib_ipoib"] if settings.get("ipoib") else []),
        *(["ib_umad"] if settings.get("opensm") else []),
        *(["rdma_rxe"] if settings.get("soft_roce") else []),
    ]


def files(settings: Mapping[str, Any]) -> List[Dict[str, str]]:
    """Return the files of a node, for module managed_files."""
    result = [
        {"path": f"/etc/systemd/system/{UNIT}", "content": unit(settings.get("soft_roce") or ())},
        # Where it is a bind path of Apptainer, and no card is there, no container would start without it.
        {"path": FOLDER, "content": f"{HEAD}d /dev/infiniband 0755 root root\n"},
    ]
    loaded = modules(settings)
    if loaded:
        text = "".join(f"{name}\n" for name in loaded)
        result.append({"path": MODULES, "content": HEAD + text})
    for entry in settings.get("ipoib") or ():
        name = entry["interface"]
        if settings.get("network") == "networkmanager":
            path, content, mode = NETWORK_MANAGER.format(name), network_manager(entry), "0600"
        else:
            path, content, mode = NETWORKD.format(name), networkd(entry), "0644"
        result.append({"path": path, "content": content, "mode": mode})
    return result


def networkd(entry: Mapping[str, Any]) -> str:
    """Return the interface for IP as systemd-networkd reads it."""
    mtu = f"[Link]\nMTUBytes={entry['mtu']}\n\n" if entry.get("mtu") else ""
    return (
        f"{HEAD}[Match]\nName={entry['interface']}\n\n{mtu}"
        f"[Network]\nAddress={entry['address']}\n\n"
        f"[IPoIB]\nMode={entry.get('mode') or 'datagram'}\n"
    )


def network_manager(entry: Mapping[str, Any]) -> str:
    """Return the interface for IP as NetworkManager reads it."""
    name, family = entry["interface"], ipaddress.ip_interface(str(entry["address"])).version
    other = 4 if family == 6 else 6  # noqa: PLR2004 - of IP
    mtu = f"mtu={entry['mtu']}\n" if entry.get("mtu") else ""
    return (
        f"{HEAD}[connection]\nid={name}\nuuid={uuid.uuid5(_SPACE, name)}\ntype=infiniband\n"
        f"interface-name={name}\n\n"
        f"[infiniband]\ntransport-mode={entry.get('mode') or 'datagram'}\n{mtu}\n"
        f"[ipv{family}]\nmethod=manual\naddress1={entry['address']}\nnever-default=true\n\n"
        f"[ipv{other}]\nmethod=disabled\n"
    )


def unit(soft: Sequence[Mapping[str, Any]]) -> str:
    """Return the unit that makes the software devices, once their interfaces are there."""
    under = [f"sys-subsystem-net-devices-{_escaped(entry['interface'])}.device" for entry in soft]
    wants = f"Wants={' '.join(under)}\n" if under else ""
    after = " ".join(["systemd-modules-load.service", "rdma-hw.target", *under])
    text = "".join(
        f"ExecStart=/bin/sh -c 'test -e /sys/class/infiniband/{entry['name']}"
        f" || exec rdma link add {entry['name']} type rxe netdev {entry['interface']}'\n"
        for entry in soft
    )
    return (
        f"{HEAD}[Unit]\nDescription=Devices for RDMA, before users need them\n{wants}"
        f"After={after}\nBefore=slurmd.service lnet.service\n\n"
        f"[Service]\nType=oneshot\nRemainAfterExit=yes\nTimeoutStartSec=90\n{text or 'ExecStart=/bin/true'}\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


def _escaped(name: str) -> str:
    """Return *name* as systemd-escape(1) writes it in names of units."""
    return name.replace("-", "\\x2d")


def units(settings: Mapping[str, Any]) -> List[Dict[str, Optional[str]]]:
    """Return the units that run, in this order."""
    result: List[Dict[str, Optional[str]]] = [{"name": UNIT, "needs": None}]
    if settings.get("opensm"):
        result.append({"name": "opensm.service", "needs": "ib_umad"})
    return result


def checks(settings: Mapping[str, Any]) -> Dict[str, Any]:
    """Return what a node of the class has to have, as entries of node_health: ``hardware``."""
    if not settings.get("ports"):
        return {}
    gigabits = {"gigabits": settings["gigabits"]} if settings.get("gigabits") else {}
    return {"hardware": {"infiniband": {"ports": settings["ports"], **gigabits}}}


def of_class(variables: Mapping[str, Any]) -> Dict[str, Any]:
    """Return settings, for `checks`, from the *variables* of a host as the inventory has them."""
    return {name: variables.get(f"infiniband_{name}") for name in ("gigabits", "ports")}

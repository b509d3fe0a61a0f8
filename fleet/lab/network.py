"""A lab's private network on this machine: a bridge, NAT to the outside, names in /etc/hosts."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

from fleet.errors import FleetError
from fleet.lab.cache import locked
from fleet.lab.model import Lab, bridge_name, lab_home
from fleet.lab.run import run

HOSTS_FILE = Path("/etc/hosts")
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
#: Shared by the labs of all state folders of this machine, and gone with a boot, as what it describes.
MACHINE = Path("/run/apptainer-fleet-lab")


def machine_lock() -> AbstractContextManager[None]:
    """Held while changing what all labs of this machine share: /etc/hosts, forwarding, networks."""
    return locked(MACHINE / "lock")


def bridge_exists(lab_name: str) -> bool:
    """Whether the lab's bridge is there."""
    return Path("/sys/class/net", bridge_name(lab_name)).exists()


def check_bridge_is_ours(lab_name: str) -> None:
    """Refuse to touch a lab of this name that was made from another state folder; nothing here says how.

    :raises FleetError: its bridge is labelled with another folder, or has no label and cannot be a bridge
        that was half made here.
    """
    label = bridge_label(bridge_name(lab_name))
    if label and label != str(lab_home(lab_name)):
        raise FleetError(
            f"lab_name {lab_name}: a lab of that name is up from another state folder, {label}",
            "set another lab_name and lab_network, or take that one down with its XDG_STATE_HOME",
        )
    if bridge_exists(lab_name) and not label and not lab_home(lab_name).exists():
        raise FleetError(
            f"lab_name {lab_name}: this machine has a link {bridge_name(lab_name)} that no lab made",
            "set another lab_name, or remove the link",
        )


def bridge_label(bridge: str) -> str:
    """The folder of the lab that a bridge belongs to; empty if there is none, or it was half made."""
    alias = Path("/sys/class/net", bridge, "ifalias")
    return alias.read_text().strip() if alias.exists() else ""


def bridge_complete(lab: Lab) -> bool:
    """Whether the lab's bridge is there, up, and has the lab's address."""
    if not bridge_exists(lab.name):
        return False
    links = json.loads(
        subprocess.check_output(["ip", "-json", "address", "show", "dev", lab.bridge], text=True)
    )
    addresses = {f"{a['local']}/{a['prefixlen']}" for link in links for a in link.get("addr_info", ())}
    has_address = f"{lab.gateway}/{lab.network.prefixlen}" in addresses
    return has_address and "UP" in links[0]["flags"] and bridge_label(lab.bridge) == str(lab.home)


def check_network_is_free(lab: Lab) -> None:
    """Refuse a network that this machine already reaches some other way.

    :raises FleetError: another link has an address or a route in it.
    """
    routes = json.loads(subprocess.check_output(["ip", "-4", "-json", "route", "show"], text=True) or "[]")
    for route in routes:
        if route.get("dst") in (None, "default") or route.get("dev") == lab.bridge:
            continue
        if ipaddress.IPv4Network(route["dst"]).overlaps(lab.network):
            raise FleetError(
                f"lab_network {lab.network}: {route['dst']} is on {route.get('dev')} already",
                "set another lab_network, or take that lab down",
            )


def create_bridge(lab: Lab) -> None:
    """Make the bridge anew, with the host's address on it."""
    remove_bridge(lab.name)
    ip = ("ip",)
    run([*ip, "link", "add", lab.bridge, "type", "bridge"], lab_name=lab.name)
    run([*ip, "link", "set", lab.bridge, "alias", str(lab.home)], lab_name=lab.name)
    run(
        [*ip, "address", "add", f"{lab.gateway}/{lab.network.prefixlen}", "dev", lab.bridge],
        lab_name=lab.name,
    )
    run([*ip, "link", "set", lab.bridge, "up"], lab_name=lab.name)


def remove_bridge(lab_name: str) -> None:
    """Remove the bridge if it is there, when the ends of dead nodes on it are gone.

    The kernel takes a network namespace down some time after its last process.
    """
    ports = Path("/sys/class/net", bridge_name(lab_name), "brif")
    deadline = time.monotonic() + 10
    while ports.exists() and any(ports.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    if bridge_exists(lab_name):
        run(["ip", "link", "delete", bridge_name(lab_name), "type", "bridge"], lab_name=lab_name)


def nat_table(lab_name: str) -> str:
    """Name of the lab's nft table (family ip)."""
    return f"fleet_lab_{lab_name.replace('-', '_')}"


def nat_exists(lab_name: str) -> bool:
    """Whether the lab's nft table is there, for whatever network."""
    result = subprocess.run(
        ["nft", "list", "table", "ip", nat_table(lab_name)], capture_output=True, text=True, check=False
    )
    return result.returncode == 0


def nat_complete(lab: Lab) -> bool:
    """Whether the lab's nft table is there and masquerades the network that the lab has now."""
    result = subprocess.run(
        ["nft", "list", "table", "ip", nat_table(lab.name)], capture_output=True, text=True, check=False
    )
    return result.returncode == 0 and f"saddr {lab.network} oifname" in result.stdout


def create_nat(lab: Lab) -> None:
    """Let the nodes reach what this machine reaches, in place of an older table; one transaction."""
    table = nat_table(lab.name)
    rules = f"""
        table ip {table} {{}}
        delete table ip {table}
        table ip {table} {{
            chain postrouting {{
                type nat hook postrouting priority srcnat
                ip saddr {lab.network} oifname != "{lab.bridge}" masquerade
            }}
        }}
    """
    run(["nft", "-f", "-"], stdin=rules, lab_name=lab.name)


def remove_nat(lab_name: str) -> None:
    """Remove the lab's nft table if it is there."""
    if nat_exists(lab_name):
        run(["nft", "delete", "table", "ip", nat_table(lab_name)], lab_name=lab_name)


def forwarding_is_on() -> bool:
    """Whether this machine forwards IPv4 packets."""
    return IP_FORWARD.read_text().strip() == "1"


def switch_forwarding_on() -> None:
    """Forward IPv4 packets, remembering what was before, first of all on disk."""
    with machine_lock():
        if not forwarding_is_on():
            _before().write_text(IP_FORWARD.read_text())
            IP_FORWARD.write_text("1\n")


def forwarding_must_be_restored(leaving: str) -> bool:
    """Whether a lab switched forwarding on and no other lab than the one that leaves needs it."""
    return _before().exists() and not _other_labs(leaving)


def restore_forwarding(leaving: str) -> None:
    """Set IPv4 forwarding back to what it was before the first lab, unless another lab has come meanwhile."""
    with machine_lock():
        if forwarding_must_be_restored(leaving):
            IP_FORWARD.write_text(_before().read_text())
            _before().unlink()


def _before() -> Path:
    """What net.ipv4.ip_forward was before the first lab; it exists as long as a lab has it switched on."""
    return MACHINE / "ip_forward.before"


def _other_labs(leaving: str) -> list[str]:
    bridges = (path.name for path in Path("/sys/class/net").glob("lab-*"))
    return [bridge for bridge in bridges if bridge != bridge_name(leaving) and bridge_label(bridge)]


def hosts_lines(lab: Lab) -> str:
    """The lab's names in the form of hosts(5): ``ADDRESS NODE.LAB.internal NODE`` a line."""
    return "".join(f"{node.address} {node.name}.{lab.name}.internal {node.name}\n" for node in lab.nodes)


def host_block(lab: Lab) -> str:
    """What this machine's /etc/hosts gets: full names only, since two labs may have a node of one name."""
    names = "".join(f"{node.address} {node.name}.{lab.name}.internal\n" for node in lab.nodes)
    return f"{_begin(lab.name)}\n{names}{_end(lab.name)}\n"


def hosts_block_exists(lab_name: str) -> bool:
    """Whether /etc/hosts has a block of that lab."""
    return _begin(lab_name) in HOSTS_FILE.read_text().splitlines()


def hosts_block_complete(lab: Lab) -> bool:
    """Whether /etc/hosts has exactly the block that this lab wants."""
    return host_block(lab) in HOSTS_FILE.read_text()


def write_hosts_block(lab: Lab) -> None:
    """Put the lab's names into /etc/hosts, in place of an older block."""
    with machine_lock():
        others = _without_block(HOSTS_FILE.read_text(), lab.name)
        newline = "\n" if others and not others.endswith("\n") else ""
        _replace_hosts(others + newline + host_block(lab))


def remove_hosts_block(lab_name: str) -> None:
    """Take the lab's names out of /etc/hosts; every other byte stays."""
    with machine_lock():
        _replace_hosts(_without_block(HOSTS_FILE.read_text(), lab_name))


def _begin(lab_name: str) -> str:
    return f"# BEGIN fleet lab {lab_name}"


def _end(lab_name: str) -> str:
    return f"# END fleet lab {lab_name}"


def _without_block(text: str, lab_name: str) -> str:
    return re.sub(rf"(?ms)^{re.escape(_begin(lab_name))}\n.*?^{re.escape(_end(lab_name))}\n", "", text)


def _replace_hosts(text: str) -> None:
    """Atomically; its mode and owner stay."""
    before = HOSTS_FILE.stat()
    part = HOSTS_FILE.with_name(".hosts.fleet-lab")
    with part.open("w") as file:
        os.fchmod(file.fileno(), before.st_mode & 0o7777)
        os.fchown(file.fileno(), before.st_uid, before.st_gid)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.rename(HOSTS_FILE)

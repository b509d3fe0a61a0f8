"""What a lab is: nodes and a network, read from an Ansible inventory."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fleet.errors import FleetError
from fleet.lab.distribution_sim import DISTRIBUTION_SIMS
from fleet.paths import PROJECT, cache_home, state_home

#: At most eleven characters, because ``lab-NAME`` is the bridge and IFNAMSIZ leaves fifteen for it.
LAB_NAME = re.compile(r"[a-z][a-z0-9-]{0,10}")
NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
USER_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]+")
SHARED_FOLDER = re.compile(r"(/[A-Za-z0-9_.-]+)+")
RELEASE_NAME = re.compile(r"[a-z][a-z0-9-]*")

#: Users and groups of any Debian system (package base-passwd, users-and-groups.txt), and those of a node's
#: packages. Groups, too, because every user gets one of his name.
SYSTEM_NAMES = frozenset(
    (
        *("adm", "audio", "backup", "bin", "cdrom", "crontab", "daemon", "dialout", "dip", "disk"),
        *("fax", "floppy", "games", "input", "irc", "kmem", "kvm", "list", "lp", "mail", "man"),
        *("messagebus", "munge", "news", "nobody", "nogroup", "operator", "plugdev", "polkitd"),
        *("proxy", "render", "root", "sasl", "shadow", "slurm", "src", "ssh", "sshd", "staff"),
        *("sudo", "sync", "sys", "tape", "tty", "users", "utmp", "uucp", "video", "voice"),
        "www-data",
    )
)
#: Those that packages make, by Debian's policy (9.2.1) and by the habit of systemd.
SYSTEM_PREFIXES = ("_", "systemd-")

BACKENDS = ("nspawn", "qemu")
REPOSITORY_GROUP = "lab_repository"
REPOSITORY_PORT = 8080

#: Facts about the whole lab, on which its hosts agree.
SHARED_VARIABLES = ("lab_name", "lab_network", "lab_mirror")

#: Every variable the lab understands, with the type it must have. ``validate`` uses it too.
LAB_VARIABLES: Mapping[str, type] = {
    "lab_name": str,
    "lab_network": str,
    "lab_mirror": str,
    "lab_address": str,
    "lab_backend": str,
    "lab_release": str,
    "lab_distribution_sim": str,
    "lab_packages": list,
    "lab_devices": list,
    "lab_users": list,
    "lab_shared_folders": list,
    "lab_cpus": int,
    "lab_memory": int,
    # Set by inventories for their own use; the lab does not read them.
    "lab_state": str,
    "lab_repository_facts": dict,
}


@dataclass(frozen=True)
class Device:
    """A character device to be made inside a node, like ``{path: /dev/nvidia0, major: 195, minor: 0}``."""

    path: str
    major: int
    minor: int
    mode: str = "0666"


#: Unprivileged FUSE is what Apptainer mounts images with; every node gets it.
FUSE = Device("/dev/fuse", 10, 229)


@dataclass(frozen=True)
class Node:
    """One node of a lab.

    :param distribution_sim: which of ``DISTRIBUTION_SIMS`` it is taken for; empty for Debian.
    :param packages: Debian packages baked into its base image.
    :param users: normal users, created with the same uids on every node, in this order from 2000.
    :param shared_folders: folders that it shares with all nodes of the lab that name them; a folder of this
        machine, in place of a file system from a server.
    :param cpus: processors of a virtual machine; other nodes have those of this machine.
    :param memory: memory of a virtual machine in MiB.
    """

    name: str
    address: str
    backend: str = "nspawn"
    release: str = "trixie"
    packages: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    devices: tuple[Device, ...] = (FUSE,)
    serves_repository: bool = False
    cpus: int = 2
    memory: int = 1024
    distribution_sim: str = ""
    shared_folders: tuple[str, ...] = ()

    def spec(self) -> dict[str, Any]:
        """All that a running node was made from, as plain data: a different value means a different node."""
        return asdict(self)


@dataclass(frozen=True)
class Lab:
    """A cluster to be.

    :param network: private IPv4 network; its first address belongs to the host's bridge.
    :param mirror: Debian mirror URL, empty to use the one this machine's APT sources name.
    :param inventory: absolute path of the file or folder that describes it.
    :param groups: names of the nodes in each group of the inventory.
    """

    name: str
    network: ipaddress.IPv4Network
    nodes: tuple[Node, ...]
    mirror: str = ""
    inventory: Path = field(default=Path(), compare=False)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """Everything this lab keeps on disk."""
        return lab_home(self.name)

    @property
    def gateway(self) -> str:
        """The host's address on the lab's network."""
        return str(self.network.network_address + 1)

    @property
    def bridge(self) -> str:
        """Name of the host's bridge."""
        return bridge_name(self.name)

    @property
    def repository_server(self) -> Node | None:
        """The node that serves the lab's package repository, if there is one."""
        return next((node for node in self.nodes if node.serves_repository), None)

    def node(self, name: str) -> Node:
        """The node of that name.

        :raises FleetError: there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise FleetError(
            f"node {name}: not in lab {self.name}", f"one of {', '.join(n.name for n in self.nodes)}"
        )


def bridge_name(lab_name: str) -> str:
    """Name of the bridge of a lab."""
    return f"lab-{lab_name}"


def lab_home(lab_name: str) -> Path:
    """State folder of the lab of that name; the name is checked, since folders below it get removed.

    :raises FleetError: not a lab name.
    """
    try:
        _check_lab_name(lab_name)
    except FleetError as error:
        raise FleetError(
            f"lab_name: {error.message}", f"set lab_name in the inventory, or --name, to {error.mend}"
        ) from error
    return state_home() / "labs" / lab_name


def node_home(lab_name: str, node_name: str) -> Path:
    """Everything a node of that lab has on disk."""
    return lab_home(lab_name) / "nodes" / node_name


def lab_cache() -> Path:
    """Cache folder shared by all labs of this user."""
    return cache_home() / "lab"


def check_folders() -> None:
    """Refuse folders whose names mount, overlayfs, QEMU or ssh_config would take for something else.

    :raises FleetError: the path of the cache or of the state has such a character.
    """
    for variable, folder in (("XDG_CACHE_HOME", lab_cache()), ("XDG_STATE_HOME", state_home())):
        if not re.fullmatch(r"[A-Za-z0-9/._+@=-]+", str(folder)):
            raise FleetError(
                f"{folder}: a lab needs a path of letters, digits and / . _ + @ = - alone",
                f"set {variable} to another folder",
            )


def load_lab(inventory: Path) -> Lab:
    """Read the lab that an inventory describes.

    :param inventory: file or folder, as for ``ansible-playbook -i``.
    :raises FleetError: the inventory cannot be read or describes no possible lab; nothing was touched.
    """
    hostvars, groups = _read_inventory(inventory)
    serving = groups.get(REPOSITORY_GROUP, ())
    if not hostvars:
        raise FleetError(f"inventory {inventory}: no hosts", "give it hosts, each with a lab_address")
    nodes = tuple(_node(name, hostvars[name], name in serving) for name in hostvars)
    lab = Lab(
        name=_shared(hostvars, "lab_name"),
        network=parse_network(_shared(hostvars, "lab_network")),
        mirror=_shared(hostvars, "lab_mirror", ""),
        nodes=nodes,
        inventory=inventory.resolve(),
        groups=groups,
    )
    _check_addresses(lab)
    with _naming(f"group {REPOSITORY_GROUP}"):
        check_repository_group(serving)
    return lab


def _read_inventory(inventory: Path) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[str, ...]]]:
    """Variables of every host as written, and the hosts of every group.

    In this process, since ``ansible-inventory`` would take half of the time in which nodes boot.
    """
    if not inventory.exists():
        raise FleetError(f"inventory {inventory}: no such file or folder", "name one with -i")
    # Ansible reads its settings when it is imported.
    os.environ["ANSIBLE_CONFIG"] = str(PROJECT / "ansible.cfg")
    from ansible.errors import AnsibleError  # noqa: PLC0415
    from ansible.inventory.manager import InventoryManager  # noqa: PLC0415
    from ansible.parsing.dataloader import DataLoader  # noqa: PLC0415
    from ansible.vars.manager import VariableManager  # noqa: PLC0415

    try:
        loader = DataLoader()
        parsed = InventoryManager(loader=loader, sources=[str(inventory)])
        variables = VariableManager(loader=loader, inventory=parsed)
        hosts = parsed.get_hosts()
        hostvars = {h.name: variables.get_vars(host=h, include_hostvars=False) for h in hosts}
        groups = {name: tuple(h.name for h in g.get_hosts()) for name, g in parsed.groups.items()}
    except AnsibleError as error:
        raise FleetError(f"inventory {inventory}: {error}", "see the line it names") from error
    return hostvars, groups


# --- what an inventory may say; ``fleet validate`` asks the same functions ----------------------------------


def check_value(variable: str, value: Any) -> None:
    """Refuse a value that a variable of ``LAB_VARIABLES`` cannot have.

    :raises FleetError: what is wrong with the value and what would be right. As with the other checks here,
        the variable and the place are left to the caller to name.
    """
    kind = LAB_VARIABLES[variable]
    if not isinstance(value, kind):
        raise FleetError(f"{value!r} is no {kind.__name__}", f"write a {kind.__name__}")
    _CHECKS.get(variable, bool)(value)


def check_host_name(name: str) -> None:
    """Refuse what cannot be the name of a node.

    :raises FleetError: the name is longer than one label, or has other characters.
    """
    if not NODE_NAME.fullmatch(name):
        raise FleetError("no valid host name for a node of a lab", "use a-z, 0-9 and -")


def check_address(address: ipaddress.IPv4Address, network: ipaddress.IPv4Network) -> None:
    """Refuse an address that no node can have in a network.

    :raises FleetError: it is outside, or taken already.
    """
    what = ""
    if address not in network:
        what = f"outside lab_network {network}"
    elif address in (network.network_address, network.broadcast_address):
        what = f"the network or broadcast address of {network}"
    elif address == network.network_address + 1:
        what = "the address of the lab's bridge"
    if what:
        raise FleetError(
            f"{address} is {what}",
            f"choose one from {network.network_address + 2} to {network.broadcast_address - 1}",
        )


def check_shared(variable: str, values: Mapping[str, Any]) -> None:
    """Refuse values, by host, of a variable that is a fact about the whole lab (``SHARED_VARIABLES``).

    :raises FleetError: the hosts do not agree.
    """
    first_host, first = next(iter(values.items()))
    for name, value in values.items():
        if value != first:
            raise FleetError(
                f"{first!r} on {first_host} but {value!r} on {name}", "set it once, in group_vars/all"
            )


def check_repository_group(hosts: Sequence[str]) -> None:
    """Refuse hosts that cannot serve the lab's repository together.

    :raises FleetError: it is more than one.
    """
    if len(hosts) > 1:
        raise FleetError("more than one host", "leave one")


def parse_network(text: str) -> ipaddress.IPv4Network:
    """The network of a lab: private, with room for a bridge and a handful of nodes.

    :raises FleetError: it is none.
    """
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise FleetError(str(error), "a network like 10.77.1.0/24") from error
    if not network.is_private or network.prefixlen > _LONGEST_PREFIX:
        raise FleetError(
            f"{text} is not a private network of /{_LONGEST_PREFIX} or larger", "try 10.77.1.0/24"
        )
    return network


_LONGEST_PREFIX = 29


def _check_lab_name(text: str) -> None:
    if not LAB_NAME.fullmatch(text):
        raise FleetError(
            f"{text!r} is no name for a lab", "a letter and at most ten of a-z, 0-9 and - after it"
        )


def _check_ipv4(text: str) -> None:
    try:
        ipaddress.IPv4Address(text)
    except ValueError as error:
        raise FleetError(str(error), "an IPv4 address in lab_network") from error


def _check_backend(text: str) -> None:
    if text not in BACKENDS:
        raise FleetError(f"{text!r} is no backend", f"one of {', '.join(BACKENDS)}")


def _check_release(text: str) -> None:
    if not RELEASE_NAME.fullmatch(text):
        raise FleetError(f"{text!r} is no release", "a Debian code name like trixie")


def _check_distribution_sim(text: str) -> None:
    if text and text not in DISTRIBUTION_SIMS:
        mend = f"one of {', '.join(DISTRIBUTION_SIMS)}, or leave it out for Debian"
        raise FleetError(f"{text!r} is no distribution that the lab has a stand-in for", mend)


def _check_names(items: Iterable[Any], pattern: re.Pattern[str]) -> None:
    for item in items:
        if not isinstance(item, str) or not pattern.fullmatch(item):
            raise FleetError(f"{item!r} is no valid name", f"must match {pattern.pattern}")


def _check_users(items: Sequence[Any]) -> None:
    _check_names(items, USER_NAME)
    for item in items:
        if item in SYSTEM_NAMES or item.startswith(SYSTEM_PREFIXES):
            raise FleetError(
                f"{item!r} is a user or group of the system", "name normal users here, such as alice"
            )


def _check_folders(items: Sequence[Any]) -> None:
    _check_names(items, SHARED_FOLDER)
    for item in items:
        if {".", ".."} & set(item.split("/")):
            raise FleetError(f"{item!r} is no valid name", "name the folder itself")


def _check_number(value: int) -> None:
    if isinstance(value, bool) or value < 1:
        raise FleetError(f"{value!r} is no number of anything", "a whole number from 1")


def _shared(hostvars: Mapping[str, Mapping[str, Any]], variable: str, default: Any = None) -> Any:
    values = {name: variables.get(variable, default) for name, variables in hostvars.items()}
    value = next(iter(values.values()))
    with _naming(variable):
        check_shared(variable, values)
        if value is None:
            raise FleetError("is not set", "set it in group_vars/all")
        check_value(variable, value)
    return value


@contextlib.contextmanager
def _naming(place: str) -> Iterator[None]:
    """Put the place before what a check says."""
    try:
        yield
    except FleetError as error:
        raise FleetError(f"{place}: {error.message}", error.mend) from error


def _node(name: str, variables: Mapping[str, Any], serves_repository: bool) -> Node:
    def get(variable: str, default: Any = None) -> Any:
        value = variables.get(variable, default)
        with _naming(f"{variable} of host {name}"):
            if value is None:
                raise FleetError("is not set", "set it in the inventory")
            check_value(variable, value)
        return value

    with _naming(f"host {name}"):
        check_host_name(name)
    unknown = sorted(v for v in variables if v.startswith("lab_") and v not in LAB_VARIABLES)
    if unknown:
        raise FleetError(
            f"{unknown[0]} of host {name}: no variable of the lab", f"one of {', '.join(LAB_VARIABLES)}"
        )
    sim = get("lab_distribution_sim", "")
    shared = get("lab_shared_folders", [])
    if shared and get("lab_backend", "nspawn") != "nspawn":
        raise FleetError(
            f"lab_shared_folders of host {name}: a virtual machine has none", "take it out, or lab_backend"
        )
    needed = DISTRIBUTION_SIMS[sim].packages if sim else ()
    return Node(
        name=name,
        address=get("lab_address"),
        backend=get("lab_backend", "nspawn"),
        release=get("lab_release", "trixie"),
        distribution_sim=sim,
        packages=tuple(sorted({*get("lab_packages", []), *needed})),
        users=tuple(get("lab_users", [])),
        devices=(FUSE, *_devices(get("lab_devices", []))),
        serves_repository=serves_repository,
        cpus=get("lab_cpus", 2),
        memory=get("lab_memory", 1024),
        shared_folders=tuple(shared),
    )


def _devices(items: Iterable[Any]) -> list[Device]:
    devices = []
    for item in items:
        try:
            device = Device(**item)
            valid = (
                re.fullmatch(r"/dev/[A-Za-z0-9/_.-]+", device.path)
                and ".." not in device.path
                and re.fullmatch(r"0?[0-7]{3}", device.mode)
                and device.major >= 0
                and device.minor >= 0
            )
        except TypeError:
            valid = None
        if not valid:
            raise FleetError(
                f"{item!r} is no device",
                "each is {path: /dev/NAME, major: NUMBER, minor: NUMBER, mode: '0666'}",
            )
        devices.append(device)
    return devices


def _check_addresses(lab: Lab) -> None:
    owners: dict[str, str] = {}
    for node in lab.nodes:
        with _naming(f"lab_address of host {node.name}"):
            check_address(ipaddress.IPv4Address(node.address), lab.network)
            owner = owners.setdefault(node.address, node.name)
            if owner != node.name:
                raise FleetError(f"{node.address} belongs to {owner}", "choose another")


#: What a type cannot say of a variable.
_CHECKS: Mapping[str, Callable[[Any], object]] = {
    "lab_name": _check_lab_name,
    "lab_network": parse_network,
    "lab_address": _check_ipv4,
    "lab_backend": _check_backend,
    "lab_release": _check_release,
    "lab_distribution_sim": _check_distribution_sim,
    "lab_packages": lambda items: _check_names(items, PACKAGE_NAME),
    "lab_users": _check_users,
    "lab_shared_folders": _check_folders,
    "lab_devices": _devices,
    "lab_cpus": _check_number,
    "lab_memory": _check_number,
}

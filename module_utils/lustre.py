# SPDX-License-Identifier: Apache-2.0
"""Lustre on a client: what is mounted from where, LNet's configuration, and the modules of the kernel.

Sources: Lustre Operations Manual ("Setting Up LNet", "Mounting a Client"); mount.lustre(8), lnetctl(8) and
lnet.service of lustre-release; modprobe.d(5).
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import typed
from .typed import Field

CONFIGURATION = "/etc/lnet.conf"
#: Where modprobe reads options, in its order.
MODPROBE_FOLDERS = ("/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d", "/usr/lib/modprobe.d")

_NETWORK = re.compile(r"(tcp|o2ib|gni|kfi)([0-9]{0,5})")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_FSNAME = re.compile(r"[A-Za-z0-9_-]{1,8}")
_SUBDIRECTORY = re.compile(r"(/[A-Za-z0-9_.+@=-]+)*")
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
#: Parameters of the module lnet that configure networks: the other way beside lnet.conf.
_STATIC = re.compile(r"(?:^|[\s\"'])(networks|ip2nets|routes)\s*=")


class LustreError(ValueError):
    """What is no NID, source or configuration; the message says which, and the mend."""


class Nid(NamedTuple):
    """An address on a network of LNet."""

    address: str
    network: str

    def __str__(self) -> str:
        return f"{self.address}@{self.network}"


class Source(NamedTuple):
    """What a client mounts: the MGS's nodes, each with all its NIDs, the name, and a folder in it."""

    nodes: Tuple[Tuple[Nid, ...], ...]
    fsname: str
    subdirectory: str

    def __str__(self) -> str:
        nodes = ":".join(",".join(map(str, nids)) for nids in self.nodes)
        return f"{nodes}:/{self.fsname}{self.subdirectory}"

    @property
    def networks(self) -> List[str]:
        return list(dict.fromkeys(nid.network for node in self.nodes for nid in node))


def network(text: str) -> str:
    """Return the name of a network as LNet says it: ``tcp0`` is ``tcp``. Raises LustreError."""
    match = _NETWORK.fullmatch(text)
    if not match:
        raise LustreError(f"{typed.shown(text)} is no network of LNet, such as tcp, tcp1 or o2ib")
    return f"{match.group(1)}{int(match.group(2) or 0) or ''}"


def nid(text: str) -> Nid:
    """Return the NID ``ADDRESS@NETWORK``; without a network it is of tcp. Raises LustreError."""
    address, separator, name = text.partition("@")
    if not _HOST.fullmatch(address) or (separator and not name):
        raise LustreError(f"{typed.shown(text)} is no NID, such as 10.0.0.1@tcp or mds1@o2ib")
    on = network(name or "tcp")
    if on.startswith(("tcp", "o2ib")) and re.fullmatch(r"[0-9.]+", address):
        try:
            address = str(ipaddress.IPv4Address(address))
        except ValueError:
            raise LustreError(f"{typed.shown(text)}: {address} is no IPv4 address") from None
    return Nid(address, on)


def source(text: str) -> Source:
    """Return what ``NID[,NID…][:NID…]:/FSNAME[/FOLDER]`` says.

    A comma is between NIDs of one node, a colon between nodes of which one takes over from the other.
    Raises LustreError.
    """
    servers, separator, rest = text.partition(":/")
    fsname, slash, folder = rest.partition("/")
    if not separator or not servers or not _FSNAME.fullmatch(fsname):
        raise LustreError(
            f"{typed.shown(text)} is nothing that Lustre mounts: write NID[,NID...][:NID...]:/FSNAME, with a"
            " comma between addresses of one server, a colon before the one that takes over, and a name of at"
            " most 8 letters, digits, - and _"
        )
    folder = f"{slash}{folder}".rstrip("/")
    if not _SUBDIRECTORY.fullmatch(folder) or {".", ".."} & set(folder.split("/")):
        raise LustreError(f"{typed.shown(text)}: {folder} is no folder of a file system")
    nodes = tuple(tuple(nid(one) for one in node.split(",")) for node in servers.split(":"))
    seen = [one for node in nodes for one in node]
    twice = [str(one) for one in dict.fromkeys(seen) if seen.count(one) > 1]
    if twice:
        raise LustreError(f"{typed.shown(text)}: {', '.join(twice)} is there twice")
    return Source(nodes, fsname, folder)


def is_source(text: str) -> bool:
    """Return whether a mount is one of Lustre, by what it is mounted from: no other has NIDs."""
    try:
        return "@" in text.partition(":/")[0] and bool(source(text))
    except LustreError:
        return False


# --- LNet ---------------------------------------------------------------------------------------------------


class Network(NamedTuple):
    """A network of LNet on this node: one NI for each interface, and parameters that all of them have."""

    net: str
    interfaces: Tuple[str, ...]
    tunables: Tuple[Tuple[str, int], ...] = ()


class Route(NamedTuple):
    """A way to another network; *hop* and *priority* are LNet's own if they are None."""

    net: str
    gateway: str
    hop: Optional[int] = None
    priority: Optional[int] = None


class Lnet(NamedTuple):
    """A configuration of LNet."""

    networks: Tuple[Network, ...] = ()
    routes: Tuple[Route, ...] = ()


#: Of all drivers, by the names of lnetctl, and those of o2iblnd and socklnd.
TUNABLES = (
    *("peer_timeout", "peer_credits", "peer_buffer_credits", "credits"),
    *("peercredits_hiw", "map_on_demand", "concurrent_sends", "fmr_pool_size", "fmr_flush_trigger"),
    *("fmr_cache", "ntx", "conns_per_peer"),
)
_LND = TUNABLES[4:]


def _network_name(value: object) -> str:
    return network(typed.text()(value))


def _gateway(value: object) -> str:
    return str(nid(typed.text()(value)))


_networks = typed.items(
    typed.nested(
        {
            "net": Field(_network_name, required=True),
            "interfaces": Field(
                typed.items(typed.text(_INTERFACE, "the name of an interface"), least=1), required=True
            ),
            "tunables": Field(typed.nested({name: Field(typed.integer(0)) for name in TUNABLES})),
        }
    ),
    least=1,
)
_routes = typed.items(
    typed.nested(
        {
            "net": Field(_network_name, required=True),
            "gateway": Field(_gateway, required=True),
            "hop": Field(typed.integer(1, 255)),
            "priority": Field(typed.integer(0)),
        }
    )
)


def read(networks: object, routes: object = ()) -> Lnet:
    """Return the configuration that the role's variables say. Raises ValueError, a line for each mistake."""
    found = tuple(
        Network(one["net"], one["interfaces"], tuple(sorted(one.get("tunables", {}).items())))
        for one in _networks(networks)
    )
    names = [one.net for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LustreError(f": {', '.join(twice)} is there twice; give one entry all its interfaces")
    ways = tuple(
        Route(one["net"], one["gateway"], one.get("hop"), one.get("priority")) for one in _routes(routes)
    )
    for way in ways:
        through = nid(way.gateway).network
        if through not in names:
            raise LustreError(f": gateway {way.gateway} is on {through}, which this node has no interface on")
        if way.net in names:
            raise LustreError(f": there is a route to {way.net}, which this node is on itself")
    return Lnet(found, ways)


def render(lnet: Lnet) -> str:
    """Return /etc/lnet.conf, as ``lnetctl import`` reads it."""
    lines = ["net:"]
    for one in lnet.networks:
        lines += [f"    - net type: {one.net}", "      local NI(s):"]
        for interface in one.interfaces:
            lines += ["        - interfaces:", f"              0: {interface}"]
            for title, of_driver in (("tunables", False), ("lnd tunables", True)):
                chosen = [(name, value) for name, value in one.tunables if (name in _LND) == of_driver]
                lines += [f"          {title}:"] if chosen else []
                lines += [f"              {name}: {value}" for name, value in chosen]
    if lnet.routes:
        lines.append("route:")
    for way in lnet.routes:
        lines += [f"    - net: {way.net}", f"      gateway: {way.gateway}"]
        lines += [f"      hop: {way.hop}"] if way.hop is not None else []
        lines += [f"      priority: {way.priority}"] if way.priority is not None else []
    return "\n".join(lines) + "\n"


def parse(text: str) -> Lnet:
    """Return the configuration that ``lnetctl export`` shows, or a file of it; the loopback is left out.

    Raises LustreError for what is none.
    """
    tree = yaml(text)
    networks: List[Network] = []
    for one in _entries(tree, "net"):
        name = str(one.get("net type", ""))
        if name in ("lo", "lo0"):
            continue
        interfaces: List[str] = []
        tunables: Dict[str, int] = {}
        for interface in _entries(one, "local NI(s)"):
            chosen = interface.get("interfaces")
            interfaces += [str(value) for value in chosen.values()] if isinstance(chosen, dict) else []
            for title in ("tunables", "lnd tunables"):
                values = interface.get(title)
                for key, value in values.items() if isinstance(values, dict) else ():
                    if key in TUNABLES and re.fullmatch(r"-?[0-9]+", str(value)):
                        tunables[key] = int(value)
        networks.append(Network(network(name), tuple(interfaces), tuple(sorted(tunables.items()))))
    routes = [
        Route(
            network(str(way.get("net", ""))),
            str(nid(str(way.get("gateway", "")))),
            _number(way.get("hop")),
            _number(way.get("priority")),
        )
        for way in _entries(tree, "route")
    ]
    return Lnet(tuple(networks), tuple(routes))


def differences(wanted: Lnet, running: Lnet) -> List[str]:
    """Return what of *wanted* is not so in *running*, and what that has beyond it, as words; empty if equal.

    Tunables, hops and priorities that are not wanted otherwise may be anything: LNet has its own.
    """
    found = []
    has = {one.net: one for one in running.networks}
    for one in wanted.networks:
        there = has.pop(one.net, None)
        if there is None:
            found.append(f"{one.net} is missing")
            continue
        if sorted(there.interfaces) != sorted(one.interfaces):
            on, instead = ", ".join(there.interfaces) or "nothing", ", ".join(one.interfaces)
            found.append(f"{one.net} is on {on} and not on {instead}")
        values = dict(there.tunables)
        found += [
            f"{one.net} has {key} {values.get(key)} and not {value}"
            for key, value in one.tunables
            if values.get(key) != value
        ]
    found += [f"{name} is not wanted" for name in has]
    ways = {(way.net, way.gateway): way for way in running.routes}
    for way in wanted.routes:
        known = ways.pop((way.net, way.gateway), None)
        if known is None:
            found.append(f"the route to {way.net} by {way.gateway} is missing")
        elif (way.hop not in (None, known.hop)) or (way.priority not in (None, known.priority)):
            found.append(f"the route to {way.net} by {way.gateway} has another hop or priority")
    return found + [f"the route to {net} by {gateway} is not wanted" for net, gateway in ways]


def left_over(before: Lnet, wanted: Lnet, running: Lnet) -> List[str]:
    """Return what *before* asked for, *wanted* leaves to LNet, and *running* still has, as words."""
    found = []
    chosen = {one.net: dict(one.tunables) for one in wanted.networks}
    has = {one.net: dict(one.tunables) for one in running.networks}
    for one in before.networks:
        found += [
            f"{one.net} has {key} {value}, which is not asked for any more"
            for key, value in one.tunables
            if key not in chosen.get(one.net, {key: 0}) and has.get(one.net, {}).get(key) == value
        ]
    asked = {(way.net, way.gateway): way for way in wanted.routes}
    ways = {(way.net, way.gateway): way for way in running.routes}
    for old in before.routes:
        new, now = asked.get((old.net, old.gateway)), ways.get((old.net, old.gateway))
        if (
            new
            and now
            and any(
                was is not None and will is None and there == was
                for was, will, there in (
                    (old.hop, new.hop, now.hop),
                    (old.priority, new.priority, now.priority),
                )
            )
        ):
            found.append(
                f"the route to {old.net} by {old.gateway} has a hop or priority not asked for any more"
            )
    return found


def down(shown: str, wanted: Iterable[str]) -> List[str]:
    """Return what ``lnetctl net show`` says that is not up of the *wanted* networks, as words."""
    states: Dict[str, List[Tuple[str, str]]] = {}
    for one in _entries(yaml(shown), "net"):
        name = str(one.get("net type", ""))
        states[name] = [(str(ni.get("nid")), str(ni.get("status"))) for ni in _entries(one, "local NI(s)")]
    return [f"LNet has no network {name}" for name in wanted if name not in states] + [
        f"LNet's {nid_} is {state}"
        for name in wanted
        for nid_, state in states.get(name, [])
        if state != "up"
    ]


def unreachable(what: Source, lnet: Lnet) -> str:
    """Return why no NID of *what* can be reached with this configuration, empty if one can."""
    names = {one.net for one in lnet.networks} | {way.net for way in lnet.routes}
    if names.intersection(what.networks):
        return ""
    return (
        f"its servers are on {', '.join(what.networks)}, and this node is on"
        f" {', '.join(sorted(names)) or 'no network'}"
    )


# --- what lnetctl writes ------------------------------------------------------------------------------------


def yaml(text: str) -> Dict[str, Any]:
    """Return the mapping that a YAML text is, as far as lnetctl writes YAML: blocks and plain scalars.

    Scalars stay text. Nodes have no YAML library for Python that one could count on. Raises LustreError.
    """
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        content = line.lstrip(" ")
        if content.rstrip() and not content.startswith("#") and content.rstrip() != "---":
            if "\t" in line:
                raise LustreError(f"line {number}: there is a tab")
            lines.append((len(line) - len(content), content.rstrip(), number))
    if not lines:
        return {}
    value, end = _block(lines, 0, lines[0][0])
    if end < len(lines):
        raise LustreError(f"line {lines[end][2]}: it is indented as nothing before it")
    if not isinstance(value, dict):
        raise LustreError("it is a list and no mapping")
    return value


_Lines = List[Tuple[int, str, int]]


def _block(lines: _Lines, position: int, indent: int) -> Tuple[Any, int]:
    """Return the list or mapping that begins at *position*, and the position after it."""
    if _is_item(lines[position][1]):
        sequence: List[Any] = []
        while position < len(lines) and lines[position][0] == indent and _is_item(lines[position][1]):
            content, number = lines[position][1][1:], lines[position][2]
            inner = content.lstrip(" ")
            if not inner:
                raise LustreError(f"line {number}: an entry without a value")
            if _key(inner) is None:
                sequence.append(_scalar(inner))
                position += 1
                continue
            deeper = indent + 1 + len(content) - len(inner)
            lines[position] = (deeper, inner, number)
            value, position = _block(lines, position, deeper)
            sequence.append(value)
        return sequence, position
    mapping: Dict[str, Any] = {}
    while position < len(lines) and lines[position][0] == indent and not _is_item(lines[position][1]):
        _, content, number = lines[position]
        pair = _key(content)
        if pair is None or pair[0] in mapping:
            raise LustreError(f"line {number}: {'a key twice' if pair else 'neither a key nor an entry'}")
        name, rest = pair
        position += 1
        if rest:
            mapping[name] = _scalar(rest)
        elif position < len(lines) and (
            lines[position][0] > indent or (lines[position][0] == indent and _is_item(lines[position][1]))
        ):
            mapping[name], position = _block(lines, position, lines[position][0])
        else:
            mapping[name] = None
    return mapping, position


def _is_item(content: str) -> bool:
    return content == "-" or content.startswith("- ")


def _key(content: str) -> Optional[Tuple[str, str]]:
    match = re.match(r"([^:#\"'\[{]+?):(?:\s+(.*))?$", content)
    return (match.group(1), match.group(2) or "") if match else None


def _scalar(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _entries(tree: Mapping[str, Any], name: str) -> List[Dict[str, Any]]:
    value = tree.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise LustreError(f"{name} is no list of mappings")
    return value


def _number(value: object) -> Optional[int]:
    return int(str(value)) if re.fullmatch(r"-?[0-9]+", str(value)) else None


# --- the node -----------------------------------------------------------------------------------------------


def static_configuration(root: str = "") -> List[str]:
    """Return where options of modprobe configure LNet's networks, each as ``FILE:LINE``.

    With lnet.conf beside them LNet would have both, or what comes first.
    """
    found = []
    names = set()
    for folder in MODPROBE_FOLDERS:
        for file in sorted(Path(f"{root}{folder}").glob("*.conf")):
            if file.name in names or not file.is_file():
                continue  # One of this name in a folder before is read instead.
            names.add(file.name)
            for number, line in _joined(file.read_text(errors="replace").splitlines()):
                words = line.split(None, 2)
                if words[:2] == ["options", "lnet"] and len(words) > 2 and _STATIC.search(words[2]):  # noqa: PLR2004
                    found.append(f"{folder}/{file.name}:{number}")
    return found


def _joined(lines: Sequence[str]) -> Iterable[Tuple[int, str]]:
    """Yield lines with their numbers; one that ends in a backslash goes on in the next."""
    begun, start = "", 0
    for number, line in enumerate(lines, 1):
        start = start if begun else number
        if line.endswith("\\"):
            begun += line[:-1] + " "
            continue
        yield start, begun + line
        begun = ""


def kernel_problem(release: str, root: str = "") -> str:
    """Return why the kernel *release* can't have Lustre: no module was built for it. Empty if it can."""
    has = {
        folder.name
        for folder in Path(f"{root}/lib/modules").glob("*")
        if re.search(r"(?m)(^|/)lustre\.ko", _text(folder / "modules.dep"))
    }
    if release in has:
        return ""
    for_others = f", and there is one for {', '.join(sorted(has))}: boot that" if has else ""
    return (
        f"there is no module lustre for the kernel that runs, {release}{for_others}"
        f"{', or' if has else ': install its package, or'} build it with `dkms autoinstall -k {release}`"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

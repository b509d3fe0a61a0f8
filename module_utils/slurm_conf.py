# SPDX-License-Identifier: Apache-2.0
"""slurm.conf, cgroup.conf and gres.conf of a cluster, from its node classes.

A *node class* is a set of nodes that are equal for Slurm: the same hardware, parameters and GRES. Each class
is one NodeName line, so the files stay short however many nodes there are.
Sources: slurm.conf(5), cgroup.conf(5), gres.conf(5) of Slurm 24.11.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Collection, Dict, List, Mapping, Optional, Sequence, Union

Value = Union[str, int, bool, Sequence[Union[str, int]]]

HEADER = "# Written by Ansible (role slurm); changes made here are lost.\n"

# What a hierarchy needs for proctrack/cgroup and task/cgroup with all Constrain* of DEFAULT_CONSTRAINTS;
# version 2 has no controller for devices (it is eBPF) and none for freezing (it is in the core).
NEEDED_CONTROLLERS = {2: {"cpuset", "memory"}, 1: {"cpuset", "devices", "freezer", "memory"}}

DEFAULT_CONSTRAINTS: Mapping[str, Value] = {
    "ConstrainCores": True,
    "ConstrainDevices": True,
    "ConstrainRAMSpace": True,
    "ConstrainSwapSpace": True,
}

# What a running daemon keeps whatever is in the file, until it is restarted: where it listens, and how it
# authenticates. Since Slurm 23.11 that is all; scontrol(1), reconfigure, and slurm.conf(5), introduction.
FIXED_PARAMETERS = (
    "AuthAltParameters",
    "AuthAltTypes",
    "AuthInfo",
    "AuthType",
    "CommunicationParameters",
    "CredType",
    "SlurmctldHost",
    "SlurmctldPort",
    "SlurmdPort",
)
DEFAULT_SLURMCTLD_PORT = 6817
_FIXED = {name.lower() for name in FIXED_PARAMETERS}

# What a list of is one line each; all others take a list with commas.
_REPEATED = {"epilog", "prolog", "slurmctldhost"}

# Lines that this project writes itself; a second one by way of free parameters would go unnoticed.
_RESERVED = {"nodename", "partitionname", "nodeset", "include"}
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class SlurmConfError(ValueError):
    """The inventory asks for something that Slurm can't have; the message names the variable and the mend."""


@dataclass(frozen=True)
class NodeClass:
    """Nodes that are equal for Slurm.

    *nodes* is a hostlist. *hardware* are the counts of ``slurmd -C``, *cgroup* the result of
    slurm_hardware.read_cgroup, both read on one node of the class. *parameters* are from the inventory
    and win over the hardware. *gres* are dicts of name, count and optionally type, file, flags.
    """

    name: str
    nodes: str
    hardware: Mapping[str, int]
    cgroup: Mapping[str, Union[int, List[str]]]
    parameters: Mapping[str, Value]
    gres: Sequence[Mapping[str, Value]]


@dataclass(frozen=True)
class Partition:
    """A partition: *nodes* is a hostlist or ``ALL``, *parameters* whatever slurm.conf(5) knows for one."""

    name: str
    nodes: str
    parameters: Mapping[str, Value]


def format_value(value: Value, variable: str) -> str:
    """Return *value* as a configuration file spells it: YES and NO, lists with commas, blanks in quotes.

    Raises SlurmConfError, naming *variable*, for what would end or comment out the rest of the line.
    """
    if isinstance(value, bool):
        return "YES" if value else "NO"
    text = str(value) if isinstance(value, (str, int)) else ",".join(str(item) for item in value)
    if not text or not text.isprintable() or set(text) & set('#"\\'):
        raise SlurmConfError(f'{variable} is {text!r}: a value must not be empty or have a #, " or \\ in it')
    return f'"{text}"' if " " in text else text


def format_line(fields: Mapping[str, Value], variable: str) -> str:
    """Return ``Key=value Key=value`` and a line feed. Raises SlurmConfError, naming *variable*."""
    words = []
    for key, value in fields.items():
        if not _KEY.fullmatch(key):
            raise SlurmConfError(f"{variable} has the key {key!r}, which is not the name of a parameter")
        words.append(f"{key}={format_value(value, f'{variable}: {key}')}")
    return " ".join(words) + "\n"


def parameter_lines(parameters: Mapping[str, Value], variable: str = "slurm_parameters") -> str:
    """Return *parameters* as lines of slurm.conf. Raises SlurmConfError, naming *variable*."""
    lines = []
    for key, value in parameters.items():
        if value and key.lower() in _REPEATED and not isinstance(value, (str, int)):
            lines += [format_line({key: one}, variable) for one in value]
        else:
            lines.append(format_line({key: value}, variable))
    return "".join(lines)


def merge(*layers: Mapping[str, Optional[Value]]) -> Dict[str, Value]:
    """Return the *layers* in one, later ones winning.

    Keys are compared as Slurm compares them, without regard to case; None takes a parameter away.
    """
    merged: Dict[str, Value] = {}
    for layer in layers:
        for key, value in layer.items():
            present = next((old for old in merged if old.lower() == key.lower()), key)
            if value is None:
                merged.pop(present, None)
            else:
                merged[present] = value
    return merged


def slurmctld_port(parameters: Mapping[str, Value]) -> int:
    """Return the port at which slurmctld is asked first: SlurmctldPort is a port or a range of them.

    Raises SlurmConfError if it is neither.
    """
    value = merge({"slurmctldport": DEFAULT_SLURMCTLD_PORT}, parameters)["slurmctldport"]
    found = re.fullmatch(r"([0-9]{1,5})(-[0-9]{1,5})?", str(value))
    if not found or not 0 < int(found.group(1)) < 2**16:
        raise SlurmConfError(f"slurm_parameters: SlurmctldPort is {value!r}: make it a port such as 6817")
    return int(found.group(1))


def settings(text: str, names: Collection[str]) -> Dict[str, str]:
    """Return those of *names*, which are in lower case, that the slurm.conf *text* sets.

    What is there more than once, as SlurmctldHost, is joined.
    """
    found: Dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        key = key.strip().lower()
        if key in names:
            found[key] = f"{found[key]} {value.strip()}" if key in found else value.strip()
    return found


def fixed_settings(text: str) -> Dict[str, str]:
    """Return those of FIXED_PARAMETERS, in lower case, that the slurm.conf *text* sets."""
    return settings(text, _FIXED)


def conf_server(controllers: Sequence[str], parameters: Mapping[str, Value]) -> str:
    """Return where the configuration is fetched from, the first controller first. Raises SlurmConfError."""
    port = slurmctld_port(parameters)
    return ",".join(f"{controller}:{port}" for controller in controllers)


def render_slurmd_environment(
    controllers: Sequence[str], parameters: Mapping[str, Value], variable: str = "SLURMD_OPTIONS"
) -> str:
    """Return what systemd gives to slurmd, or to sackd in another *variable*: where its configuration is.

    It also names what a running slurmd keeps, so that the file differs whenever slurmd needs a restart.
    Raises SlurmConfError for a bad SlurmctldPort.
    """
    fixed = {key: value for key, value in merge(parameters).items() if key.lower() in _FIXED}
    kept = format_line({key: fixed[key] for key in sorted(fixed)}, "slurm_parameters")
    return (
        f"{HEADER}# It keeps, until it is restarted: {kept}"
        f'{variable}="--conf-server {conf_server(controllers, parameters)}"\n'
    )


def round_memory(mebibytes: int) -> int:
    """Return *mebibytes* rounded down to its five most significant bits, at most 6 % less.

    Nodes of one class differ by some MiB, and so does one node after a kernel update. A node with less
    memory than slurm.conf says is refused (INVALID_REG), and the file must not change with the node asked.
    """
    dropped = max(0, mebibytes.bit_length() - 5)
    return mebibytes >> dropped << dropped


def cgroup_plugin(classes: Sequence[NodeClass], wanted: str = "auto") -> str:
    """Return CgroupPlugin: *wanted*, or for "auto" what all nodes can have, autodetect or disabled.

    A cluster has one ProctrackType, so either all classes have the needed controllers or none uses them.
    Raises SlurmConfError, naming the classes, if they disagree.
    """
    if wanted != "auto":
        return wanted
    able = {node_class.name: _has_controllers(node_class) for node_class in classes}
    if len(set(able.values())) > 1:
        said = "; ".join(f"{item.name} ({item.nodes}) has {_describe(item.cgroup)}" for item in classes)
        raise SlurmConfError(
            f"the node classes disagree about cgroups: {said}. A cluster has one ProctrackType: "
            "give all nodes the controllers cpuset and memory, or set slurm_cgroup_plugin to disabled"
        )
    return "autodetect" if able and all(able.values()) else "disabled"


def plugin_parameters(plugin: str) -> Dict[str, Value]:
    """Return the parameters of slurm.conf that go with CgroupPlugin=*plugin*."""
    if plugin == "disabled":
        return {
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": ["task/affinity"],
            "JobAcctGatherType": "jobacct_gather/linux",
        }
    return {
        "ProctrackType": "proctrack/cgroup",
        "TaskPlugin": ["task/cgroup", "task/affinity"],
        "JobAcctGatherType": "jobacct_gather/cgroup",
    }


def render_cgroup_conf(plugin: str, parameters: Mapping[str, Value]) -> str:
    """Return cgroup.conf; *parameters* win over the defaults. Raises SlurmConfError."""
    constraints = {} if plugin == "disabled" else DEFAULT_CONSTRAINTS
    settings = merge({"CgroupPlugin": plugin}, constraints, parameters)
    return HEADER + "".join(format_line({key: settings[key]}, "slurm_cgroup_parameters") for key in settings)


def render_gres_conf(classes: Sequence[NodeClass]) -> str:
    """Return gres.conf: one line per class and GRES. Raises SlurmConfError."""
    lines = []
    for node_class in classes:
        for gres in node_class.gres:
            fields = {"NodeName": node_class.nodes, "Name": gres["name"]}
            fields.update({key.capitalize(): gres[key] for key in ("type", "file", "flags") if gres.get(key)})
            if not gres.get("file"):
                fields["Count"] = gres["count"]
            lines.append(format_line(fields, f"slurm_gres of class {node_class.name}"))
    return HEADER + "".join(lines)


def render_slurm_conf(
    parameters: Mapping[str, Value],
    classes: Sequence[NodeClass],
    partitions: Sequence[Partition],
    node_sets: Optional[Mapping[str, str]] = None,
) -> str:
    """Return slurm.conf: one line per parameter, per class, per node set (hostlists by name), per partition.

    Raises SlurmConfError if a parameter would make a line of its own kind, or take configless mode away.
    """
    for key in parameters:
        if key.lower() in _RESERVED:
            raise SlurmConfError(
                f"slurm_parameters has {key}: set slurm_partitions, slurm_node_parameters instead"
            )
    if "enable_configless" not in str(merge({"SlurmctldParameters": ""}, parameters)["SlurmctldParameters"]):
        raise SlurmConfError("slurm_parameters: SlurmctldParameters must have enable_configless in it")

    gres_types = sorted({str(gres["name"]) for node_class in classes for gres in node_class.gres})
    parameters = merge({"GresTypes": gres_types} if gres_types else {}, parameters)
    lines = [parameter_lines(parameters), *map(_node_line, classes)]
    for name, nodes in (node_sets or {}).items():
        lines.append(format_line({"NodeSet": name, "Nodes": nodes}, f"group {name}"))
    for partition in partitions:
        fields = {"PartitionName": partition.name, **merge({"Nodes": partition.nodes}, partition.parameters)}
        lines.append(format_line(fields, f"slurm_partitions: {partition.name}"))
    return HEADER + "".join(lines)


def _node_line(node_class: NodeClass) -> str:
    hardware: Dict[str, Value] = dict(node_class.hardware)
    hardware["RealMemory"] = round_memory(node_class.hardware["RealMemory"])
    if node_class.gres:
        hardware["Gres"] = [
            ":".join(str(gres[key]) for key in ("name", "type", "count") if gres.get(key))
            for gres in node_class.gres
        ]
    fields = {"NodeName": node_class.nodes, **merge(hardware, node_class.parameters)}
    return format_line(fields, f"slurm_node_parameters of class {node_class.name}")


def _has_controllers(node_class: NodeClass) -> bool:
    version, controllers = node_class.cgroup["version"], node_class.cgroup["controllers"]
    needed = NEEDED_CONTROLLERS.get(version) if isinstance(version, int) else None
    return needed is not None and isinstance(controllers, list) and needed.issubset(controllers)


def _describe(cgroup: Mapping[str, Union[int, List[str]]]) -> str:
    controllers = cgroup["controllers"]
    names = ", ".join(controllers) if isinstance(controllers, list) and controllers else "no controllers"
    return f"cgroup v{cgroup['version']} with {names}" if cgroup["version"] else "no controllers"

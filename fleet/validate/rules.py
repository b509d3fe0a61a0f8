"""The rules an inventory is held to.

Each rule is a generator over one :class:`_Inventory`; :func:`check_inventory` runs them all and never stops
at the first finding.
"""

from __future__ import annotations

import ipaddress
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from ClusterShell.NodeSet import NodeSet, NodeSetException
from ClusterShell.NodeUtils import GroupResolver, GroupResolverError, GroupSource, GroupSourceError

from fleet.errors import FleetError
from fleet.hostlist import fold
from fleet.lab import model as lab
from fleet.markup import plain
from fleet.paths import state_home
from fleet.validate import apptainer, file_systems, hardware, images, slurm_containers
from fleet.validate.findings import Finding, Severity, ordered
from fleet.validate.resolve import Resolved, UnresolvedError, contains_unknown, templates
from fleet.validate.vocabulary import GROUPS, OTHER_GROUPS, SLURM_SWITCH, Vocabulary, guess, near
from fleet.validate.written import Definition, Kind, Place, Written, ini_lines, read
from module_utils import apptainer_package_files, slurm_conf, slurm_names, slurm_topology

# RFC 1123, section 2.1: letters, digits and hyphens between dots, at most 63 in a label.
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
# Ansible's names for Python: others cannot be used in a template.
_VARIABLE_NAME = re.compile(r"[A-Za-z_]\w*")
# What a role's prefix may be short of before a slip of the keyboard says nothing any more.
_LONG_ENOUGH = 5


@dataclass(frozen=True, slots=True)
class _Inventory:
    written: Written
    vocabulary: Vocabulary
    resolved: Resolved

    def place(self, host: str, name: str) -> Place | None:
        """Where a host is given a variable, or else where the host is named."""
        own = (d for d in reversed(self.written.definitions) if d.name == name and host in d.hosts)
        definition = next(own, None)
        return Place(definition.file, definition.line) if definition else self.written.hosts.get(host)

    def origin(self, host: str, name: str) -> Place | None:
        """Where a host's value of a variable comes from, None for a default of a role."""
        value = self.resolved.context(host).get(name)
        unknown = contains_unknown(value)  # encrypted values cannot be compared
        given = (
            Place(d.file, d.line)
            for d in reversed(self.written.definitions)
            if d.name == name
            and (contains_unknown(d.value) if unknown else d.value == value)
            and host in self.reach(d)
        )
        return next(given, None)

    def reach(self, definition: Definition) -> list[str]:
        """The hosts a definition is for."""
        hosts = definition.hosts if definition.kind == "host" else self.resolved.members(definition.owner)
        return [host for host in hosts if host in self.resolved.own]


def check_inventory(sources: Sequence[Path], project: Path) -> list[Finding]:
    """Check an inventory against the roles of a checkout without contacting any node.

    ``sources`` are files or directories as given to ``ansible-playbook -i``; ``project`` is the checkout,
    whose ``roles/*/meta/argument_specs.yml`` say what is allowed.  Returns all findings, errors first; an
    inventory is good if none of them has ``Severity.ERROR``.  Nothing in an inventory makes it raise.
    """
    project = project.absolute()
    vocabulary = Vocabulary.of(project)
    written = read(sources)
    resolved = Resolved.of(written, project, vocabulary.defaults.values())
    inventory = _Inventory(_with_unwritten(written, resolved), vocabulary, resolved)
    # Of what depends on hosts and groups nothing is known where some of them are encrypted.
    rules = (_names, _values) if set(written.vaulted) & set(written.inventory_files) else _RULES
    return ordered([*written.findings, *(finding for rule in rules for finding in rule(inventory))])


def _error(rule: str, what: str, mend: str, place: Place | None = None, where: str = "") -> Finding:
    file, line = (place.file, place.line) if place else (None, None)
    return Finding(Severity.ERROR, rule, what, mend, file=file, line=line, where=where)


def _at(definition: Definition, rule: str, what: str, mend: str = "", where: str = "") -> Finding:
    return Finding(
        Severity.ERROR,
        rule,
        what,
        mend,
        definition.name,
        definition.file,
        definition.line,
        where or definition.where,
    )


def _hosts(names: Iterable[str]) -> str:
    return f"host {fold(names)}"


def _with_unwritten(written: Written, resolved: Resolved) -> Written:
    """Add the variables that stand in files which are not YAML, as Ansible has them; the line is searched
    for.

    What one line gives to a range of hosts is one definition.
    """
    known = {(d.kind, owner, d.name) for d in written.definitions for owner in (d.hosts or (d.owner,))}
    others = [file for file in written.inventory_files if file.suffix not in {".yml", ".yaml", ".json"}]
    texts = {file: file.read_text(encoding="utf-8", errors="replace").splitlines() for file in others}
    lines = [(file, line) for file, text in texts.items() for line in ini_lines("\n".join(text))]
    named = {host: Place(file, line.number) for file, line in reversed(lines) for host in line.hosts}
    # Of two lines for one host Ansible takes the later one.
    given = {
        (line.kind, entity, variable): (line.owner, Place(file, line.number))
        for file, line in lines
        for entity in line.hosts or (line.owner,)
        for variable in line.variables
    }
    folded: dict[tuple[str, str, Place, str, Kind], list[tuple[str, Any]]] = defaultdict(list)

    def place(pattern: str) -> Place | None:
        found = (
            Place(file, number)
            for file, lines in texts.items()
            for number, line in enumerate(lines, 1)
            if re.search(pattern, line)
        )
        return next(found, None)

    by_kind: dict[Kind, Any] = {"group": resolved.manager.groups, "host": resolved.manager.hosts}
    for kind, entities in by_kind.items():
        for name, entity in entities.items():
            for variable, value in entity.vars.items():
                if (kind, name, variable) in known or variable in {"inventory_file", "inventory_dir"}:
                    continue
                owner, found = given.get((kind, name, variable)) or (
                    name,
                    place(rf"(^|\s){re.escape(variable)}\s*="),
                )
                if found is not None:
                    folded[variable, owner, found, repr(value), kind].append((name, value))
    for (variable, owner, found, _, kind), entries in folded.items():
        hosts = tuple(name for name, _ in entries) if kind == "host" else ()
        value = entries[0][1]
        written.definitions.append(Definition(variable, value, kind, owner, hosts, found.file, found.line))
    for group in resolved.manager.groups:
        found = place(rf"^\[{re.escape(group)}[\]:]")
        if found and group not in written.groups:
            written.groups[group] = found
    for host in resolved.manager.hosts:
        if host not in written.hosts:
            found = named.get(host) or place(rf"^{re.escape(host)}(\s|$)")
            written.hosts[host] = found or Place(next(iter(written.readable)))
    return written


# --- names --------------------------------------------------------------------------------------------------


def _names(inventory: _Inventory) -> Iterator[Finding]:
    """Variables that no role knows: a misspelt variable is otherwise silently without effect."""
    vocabulary = inventory.vocabulary
    known = vocabulary.names()
    verdicts: dict[str, tuple[str, str, str] | None] = {}
    for definition in inventory.written.definitions:
        name = definition.name
        if name not in verdicts:
            verdicts[name] = None if name in known else _judge_name(name, vocabulary, known)
        verdict = verdicts[name]
        if verdict:
            yield _at(definition, *verdict)


def _judge_name(name: str, vocabulary: Vocabulary, known: set[str]) -> tuple[str, str, str] | None:
    """Rule, mistake and mend for a variable that is not known, or None if it is the site's own."""
    internal = vocabulary.owner(name[2:]) if name.startswith("__") else None
    if internal:
        return (
            "internal-variable",
            f"is internal to {_owner(internal)}",
            "remove it; only documented variables are kept",
        )
    owner = vocabulary.owner(name)
    if owner:
        better = guess(name, vocabulary.options[owner]) or guess(name, known)
        mend = f"did you mean {better}?" if better else f"see the variables of {_owner(owner)}"
        return "unknown-variable", f"not a variable of {_owner(owner)}", mend
    better = near(name, known)
    if better:
        return "misspelt-variable", "nothing reads this variable", f"did you mean {better}?"
    head = name.partition("_")[0]
    prefixes = [name[: at.start()] for at in re.finditer("_", name)] or [head]
    for prefix in prefixes:
        role = near(prefix, (role for role in vocabulary.options if len(role) >= _LONG_ENOUGH), reach=1)
        if role:
            what = f"nothing reads this variable; its prefix {prefix} is one letter away from {_owner(role)}"
            better = guess(role + name.removeprefix(prefix), vocabulary.options[role])
            return "misspelt-variable", what, f"did you mean {better or role + name.removeprefix(prefix)}?"
    if not _VARIABLE_NAME.fullmatch(name):
        return (
            "variable-name",
            "is no name for a variable",
            "use letters, digits and _, not beginning with a digit",
        )
    return None


def _owner(prefix: str) -> str:
    return "the lab" if prefix == "lab" else f"role {prefix}"


# --- values -------------------------------------------------------------------------------------------------


def _values(inventory: _Inventory) -> Iterator[Finding]:
    """Values against argument_specs, judged where they are written, even if something overrides them.

    A template is evaluated once for each set of hosts for which it can turn out differently.
    """
    for definition in inventory.written.definitions:
        option = inventory.vocabulary.option(definition.name)
        # The address is not a role's variable, but every task on a node needs it.
        if option is None and definition.name != "ansible_host":
            continue
        if contains_unknown(definition.value):
            continue
        failures: dict[tuple[str, frozenset[str], bool], list[str]] = defaultdict(list)
        values = []
        for host, value in _outcomes(inventory, definition):
            if isinstance(value, UnresolvedError):
                failures["" if value.missing else str(value), value.missing, value.broken].append(host)
            else:
                values.append(value)
        found = (inventory.vocabulary.problem(definition.name, value) for value in values)
        problems = list(dict.fromkeys(problem for problem in found if problem))
        if problems:
            more = f" (and {len(problems) - 1} more such values)" if problems[1:] else ""
            yield _at(definition, "value", problems[0] + more, _meaning(option))
        for (reason, missing, broken), hosts in failures.items():
            yield from _unresolved(inventory, definition, hosts, missing, reason, broken=broken)


def _outcomes(inventory: _Inventory, definition: Definition) -> Iterator[tuple[str, Any]]:
    """What the value of a definition turns out to be, with a host for which it does; errors as values."""
    if not any(templates(definition.value)):
        yield "", definition.value
        return
    for host in inventory.resolved.representatives(inventory.reach(definition), definition.value):
        try:
            yield host, inventory.resolved.resolve(definition.value, host)
        except UnresolvedError as error:
            yield host, error


def _unresolved(
    inventory: _Inventory,
    definition: Definition,
    hosts: list[str],
    missing: frozenset[str],
    reason: str,
    *,
    broken: bool,
) -> Iterator[Finding]:
    for name in sorted(missing):
        better = guess(name, inventory.resolved.context(hosts[0]).keys() - {definition.name})
        mend = (
            f"did you mean {better}?" if better else f"define {name} for these hosts, or give it a default()"
        )
        yield _at(
            definition, "undefined", f"refers to {name}, which is not defined for {_hosts(hosts)}", mend
        )
    if broken:
        yield _at(definition, "template", f"is a broken template: {reason}", "mend the braces and filters")
    elif reason and not missing:
        what = f"its value cannot be known yet: {reason}"
        mend = _made_later(inventory, reason) or "no mistake if it reads a file that is made later"
        yield replace(_at(definition, "not-known-yet", what, mend), severity=Severity.WARNING)


def _made_later(inventory: _Inventory, text: str) -> str:
    """How to make a file that the text names, empty if that is not known."""
    if str(state_home() / "labs") in text:
        return f"the lab is not up: `fleet lab up -i {inventory.written.readable[0]}` makes it"
    return ""


def _meaning(option: Mapping[str, Any] | None) -> str:
    text = (option or {}).get("description", "")
    first = text[0] if isinstance(text, list) and text else text
    return f"wanted: {plain(' '.join(str(first).split()))}" if first else ""


def _required(inventory: _Inventory) -> Iterator[Finding]:
    """Variables without a default that a role's nodes must have."""
    if inventory.written.vaulted:  # they may stand in a file that is not readable here
        return
    for group, roles in GROUPS.items():
        for name in (name for role in roles for name in inventory.vocabulary.required(role)):
            lacking = [
                h
                for h in inventory.resolved.members(group)
                if inventory.resolved.context(h).get(name) is None
            ]
            if lacking:
                what = f"has no value, and role {inventory.vocabulary.owner(name)} has no default for it"
                finding = _error("required", what, f"set it in group_vars/{group}.yml", where=_hosts(lacking))
                yield replace(finding, variable=name, file=inventory.written.readable[0])


def _key_files(inventory: _Inventory) -> Iterator[Finding]:
    """Public keys that are to be read on the controller and are not there."""
    for definition in inventory.written.definitions:
        if definition.name not in {"apptainer_repository", "apptainer_keys"}:
            continue
        values = [value for _, value in _outcomes(inventory, definition)]
        entries = [entry for value in values for entry in (value if isinstance(value, list) else [value])]
        keys = [entry.get("key") or entry.get("file") for entry in entries if isinstance(entry, dict)]
        for key in dict.fromkeys(key for key in keys if isinstance(key, str)):
            if not inventory.resolved.is_file(key):
                mend = _made_later(inventory, key) or "put the public key there, in ASCII armor"
                finding = _at(definition, "no-such-file", f"there is no file {key} on this machine", mend)
                yield replace(finding, severity=Severity.WARNING)


def _package_files(inventory: _Inventory) -> Iterator[Finding]:
    """Package files of this machine that are not there, or are others than promised."""
    for definition in inventory.written.definitions:
        if definition.name != apptainer_package_files.VARIABLE:
            continue
        values = [value for _, value in _outcomes(inventory, definition) if isinstance(value, list)]
        entries = [entry for value in values for entry in value if isinstance(entry, dict)]
        given = {
            (entry["file"], entry.get("sha256")) for entry in entries if isinstance(entry.get("file"), str)
        }
        for file, digest in sorted(given, key=str):
            if not inventory.resolved.is_file(file):
                mend = _made_later(inventory, file) or "put it there, or name its url"
                finding = _at(definition, "no-such-file", f"there is no file {file} on this machine", mend)
                yield replace(finding, severity=Severity.WARNING)
            elif isinstance(digest, str) and Path(file).is_absolute():
                one = apptainer_package_files.PackageFile(digest, file)
                try:
                    apptainer_package_files.check(Path(file), one)
                except apptainer_package_files.PackageFileError as error:
                    what, mend = str(error).partition(": ")[2], "fetch it again, or correct its sha256"
                    yield _at(definition, "wrong-digest", what, mend)


# --- groups and hosts ---------------------------------------------------------------------------------------


def _no_hosts(inventory: _Inventory) -> Iterator[Finding]:
    """An inventory of nobody, with which every playbook succeeds and does nothing."""
    written = inventory.written
    refused = {finding.file for finding in written.findings} & set(written.inventory_files)
    if written.readable and not inventory.resolved.own and not refused:
        mend = f"put hosts in the groups {', '.join(GROUPS)}"
        yield _error("no-hosts", "has no hosts", mend, Place(written.readable[0]))


def _group_names(inventory: _Inventory) -> Iterator[Finding]:
    """Groups that look like one the playbooks work on, and are not."""
    for name, group in inventory.resolved.manager.groups.items():
        best = None if name in _KNOWN_GROUPS else near(name.lower().replace("-", "_"), _KNOWN_GROUPS)
        if name.lower().replace("-", "_") in _KNOWN_GROUPS and name not in _KNOWN_GROUPS:
            best = name.lower().replace("-", "_")
        if best is None:
            continue
        # slurm_compute_a below slurm_compute is a name somebody chose.
        relatives = {other.name for other in (*group.get_ancestors(), *group.get_descendants())}
        if best not in relatives:
            what = "no playbook works on a group of this name"
            yield _error(
                "misspelt-group",
                what,
                f"did you mean {best}?",
                inventory.written.groups.get(name),
                f"group {name}",
            )


def _functional_groups(inventory: _Inventory) -> Iterator[Finding]:
    """Nodes on which no playbook does anything."""
    idle: dict[bool, list[str]] = defaultdict(list)
    for host in inventory.resolved.own:
        groups = inventory.resolved.groups(host)
        if not groups & GROUPS.keys() and not _is_controller(inventory, host):
            idle[all(group in OTHER_GROUPS or group.startswith("lab_") for group in groups)].append(host)
    mend = f"put it in one of {', '.join(GROUPS)}"
    for nowhere, hosts in idle.items():
        place = inventory.written.hosts.get(hosts[0])
        if nowhere:
            yield _error("no-group", "in no group that gives a node a role", mend, place, _hosts(hosts))
        else:
            finding = _error(
                "no-role", "in groups of the site only, so no role reaches it", mend, place, _hosts(hosts)
            )
            yield replace(finding, severity=Severity.WARNING)


def _is_controller(inventory: _Inventory, host: str) -> bool:
    # The machine Ansible runs on may stand in an inventory to carry settings.
    return host == "localhost" or inventory.resolved.own[host].get("ansible_connection") == "local"


def _host_names(inventory: _Inventory) -> Iterator[Finding]:
    """Names that are no host names; Slurm and the hosts file take the inventory's."""
    for host, place in inventory.written.hosts.items():
        if _HOST_NAME.fullmatch(host):
            continue
        mend = "use letters, digits and hyphens between dots (RFC 1123)"
        if "[" in host:
            mend = "write a hostlist such as c[1-3,7], or a range of Ansible's, c[1:3]"
        yield _error("host-name", "is no valid host name", mend, place, f"host {host}")


def _vars_files(inventory: _Inventory) -> Iterator[Finding]:
    """Variable files that Ansible never reads, since what they are named after is not there."""
    names = {"group": inventory.resolved.manager.groups, "host": inventory.resolved.manager.hosts}
    for kind, owner, file in inventory.written.vars_files:
        if owner in names[kind]:
            continue
        better = near(owner, names[kind]) or guess(owner, names[kind])
        mend = f"did you mean {better}?" if better else f"add the {kind} to the inventory, or remove the file"
        yield _error("orphan-file", f"is never read: there is no {kind} {owner}", mend, Place(file))


# --- addresses ----------------------------------------------------------------------------------------------


def _addresses(inventory: _Inventory) -> Iterator[Finding]:
    """Two hosts at one address are one node that is configured twice."""
    reported: set[frozenset[str]] = set()
    for name in ("lab_address", "ansible_host"):
        at: dict[object, list[str]] = defaultdict(list)
        for host in inventory.resolved.own:
            if _is_controller(inventory, host):
                continue
            address = _lookup(inventory, host, name) or (host if name == "ansible_host" else None)
            if address is not None:
                # Behind one address, ports can tell machines apart.
                port = _lookup(inventory, host, "ansible_port") if name == "ansible_host" else None
                at[_normal(address), str(port)].append(host)
        for hosts in at.values():
            if len(hosts) == 1 or frozenset(hosts) in reported:
                continue
            reported.add(frozenset(hosts))
            address = _lookup(inventory, hosts[-1], name) or hosts[-1]
            finding = _error(
                "duplicate-address",
                f"{address} is the address of {len(hosts)} hosts",
                "give every host an address of its own",
                inventory.place(hosts[-1], name),
                _hosts(hosts),
            )
            yield replace(finding, variable=name)


def _lab(inventory: _Inventory) -> Iterator[Finding]:
    """What ``fleet lab up`` would refuse of the hosts of a lab, beyond single values."""
    needed = ("lab_name", "lab_network", "lab_address")
    shared: dict[str, dict[str, Any]] = {name: {} for name in lab.SHARED_VARIABLES}
    for host in inventory.resolved.own:
        values = {name: _lookup(inventory, host, name) for name in {*needed, *lab.SHARED_VARIABLES}}
        if all(values[name] is None for name in needed):
            continue
        for name in lab.SHARED_VARIABLES:
            if values[name] is not None:
                shared[name][host] = values[name]
        named = inventory.written.hosts.get(host)
        error = _refusal(lab.check_host_name, host)
        if error and _HOST_NAME.fullmatch(host):
            yield _error("lab-host-name", error.message, error.mend, named, _hosts([host]))
        for name in needed:
            # It may stand in a file that is not readable here.
            if name not in inventory.resolved.context(host) and not inventory.written.vaulted:
                finding = _error("lab-incomplete", "a node of the lab needs it", "", where=_hosts([host]))
                yield replace(finding, variable=name, **_where(named))
        address, network = _parsed(values["lab_address"]), _parsed(values["lab_network"])
        if not isinstance(address, ipaddress.IPv4Network) or not isinstance(network, ipaddress.IPv4Network):
            continue
        error = _refusal(lab.check_address, address.network_address, network)
        if error:
            place = inventory.place(host, "lab_address")
            finding = _error("lab-address", error.message, error.mend, place, _hosts([host]))
            yield replace(finding, variable="lab_address")
    for name, by_host in shared.items():
        error = _refusal(lab.check_shared, name, by_host) if by_host else None
        if error:
            place = inventory.origin(list(by_host)[-1], name)
            yield replace(_error("lab-shared", error.message, error.mend, place), variable=name)
    servers = inventory.resolved.members(lab.REPOSITORY_GROUP)
    error = _refusal(lab.check_repository_group, servers)
    if error and any(shared.values()):
        group_place = inventory.written.groups.get(lab.REPOSITORY_GROUP)
        where = f"group {lab.REPOSITORY_GROUP}"
        yield _error("lab-repository", error.message, error.mend, group_place, where)


def _refusal(check: Callable[..., object], *arguments: object) -> FleetError | None:
    """What one of the lab's own checks has against its arguments."""
    try:
        check(*arguments)
    except FleetError as error:
        return error
    return None


def _lookup(inventory: _Inventory, host: str, name: str) -> Any:
    """A resolved value, or None; that it cannot be resolved is said where it is written."""
    try:
        return inventory.resolved.lookup(host, name)
    except UnresolvedError:
        return None


def _normal(address: Any) -> object:
    try:
        return ipaddress.ip_address(str(address))
    except ValueError:
        return str(address).lower()


def _parsed(value: Any) -> object:
    try:
        return ipaddress.IPv4Network(str(value))
    except ValueError:
        return None


def _where(place: Place | None) -> dict[str, Any]:
    return {"file": place.file, "line": place.line} if place else {}


# --- Slurm --------------------------------------------------------------------------------------------------


def _slurm(inventory: _Inventory) -> Iterator[Finding]:
    """Controllers, and what they share; one slurmdbd; a controller for the compute nodes."""
    groups = inventory.written.groups
    controllers = inventory.resolved.members("slurm_controller")
    managed = _managed(inventory, "slurm_controller")
    if len(managed) > 1 and not _lookup(inventory, managed[0], "slurm_state_folder"):
        yield _error(
            "controllers",
            f"has {len(controllers)} hosts ({fold(controllers)}), of which all but the first are backups",
            "set slurm_state_folder to a folder on a file system that all of them share, or leave one host",
            groups.get("slurm_controller"),
            "group slurm_controller",
        )
    accounting = inventory.resolved.members("slurm_accounting")
    if len(accounting) > 1:
        what = f"has {len(accounting)} hosts ({fold(accounting)}); a cluster has one slurmdbd"
        place = groups.get("slurm_accounting")
        yield _error("accounting", what, "leave one", place, "group slurm_accounting")
    for host in accounting:
        distant = _lookup(inventory, host, "slurm_accounting_database_host") not in (None, "localhost")
        # A value that is encrypted is one.
        given = any(d.name == "slurm_accounting_password" for d in inventory.written.definitions)
        if distant and not given:
            what = "is not set, and the database is on another host, which knows slurmdbd by its password"
            mend = "set it, from a vault"
            place = inventory.origin(host, "slurm_accounting_database_host")
            finding = _error("accounting", what, mend, place, _hosts([host]))
            yield replace(finding, variable="slurm_accounting_password")
    if not controllers:
        for group in ("slurm_compute", "slurm_accounting", "slurm_login"):
            if lonely := _managed(inventory, group):
                switch = f"{SLURM_SWITCH}: false where the site runs Slurm itself"
                mend = f"put one host in slurm_controller, or set {switch}"
                what = f"{_KINDS[group]} without a slurm_controller"
                yield _error("no-controller", what, mend, groups.get(group), _hosts(lonely))


_KINDS = {
    "slurm_compute": "compute nodes",
    "slurm_accounting": "slurmdbd",
    "slurm_login": "login nodes",
}
_SLURM_GROUPS = ("slurm_controller", *_KINDS)
# Written once for the cluster, by whichever host comes first.
_CLUSTER_WIDE = (
    "slurm_accounting_database",
    "slurm_accounting_database_host",
    "slurm_cgroup_parameters",
    "slurm_cgroup_plugin",
    "slurm_cluster_name",
    "slurm_extra_files",
    "slurm_parameters",
    "slurm_partitions",
    "slurm_state_folder",
    "slurm_switches",
    "slurm_version",
)


def _slurm_agree(inventory: _Inventory) -> Iterator[Finding]:
    """What the cluster has one of, and hosts are given two."""
    hosts = list(dict.fromkeys(host for group in _SLURM_GROUPS for host in _managed(inventory, group)))
    for name in _CLUSTER_WIDE:
        values: dict[str, str] = {}
        for kind in inventory.resolved.kinds(hosts, {name, *inventory.resolved.reach(name)}):
            value = _lookup(inventory, kind[0], name)
            if value is not None and not contains_unknown(value):
                values.setdefault(repr(value), kind[0])
        if len(values) > 1:
            first, other = list(values.values())[:2]
            what = f"is one thing for {first} and another for {other}, and the cluster has one"
            place = inventory.origin(other, name) or inventory.origin(first, name)
            finding = _error("slurm-agree", what, "set it for all hosts, in group_vars/all", place)
            yield replace(finding, variable=name)


def _slurm_switches(inventory: _Inventory) -> Iterator[Finding]:
    """Switches of all nodes or of none, that are one tree."""
    computing = _managed(inventory, "slurm_compute")
    at = {host: _lookup(inventory, host, "slurm_switch") for host in computing}
    leaves: dict[str, list[str]] = defaultdict(list)
    for host, switch in at.items():
        leaves[str(switch or "")].append(host)
    without = leaves.pop("", [])
    if without and leaves:
        place = inventory.written.hosts.get(without[0])
        what = "is not set, while other compute nodes have a switch: no job would get both"
        finding = _error("topology", what, "give every node one, or none", place, _hosts(without))
        yield replace(finding, variable="slurm_switch")
    for definition in inventory.written.definitions:
        if definition.name != "slurm_switches":
            continue
        for _, switches in _outcomes(inventory, definition):
            try:
                if isinstance(switches, list) and all(isinstance(switch, dict) for switch in switches):
                    slurm_topology.render({name: fold(nodes) for name, nodes in leaves.items()}, switches)
            except slurm_conf.SlurmConfError as error:
                yield _at(definition, "topology", str(error).removeprefix("slurm_switches: "))
            except KeyError:
                pass  # Said of its type.


def _managed(inventory: _Inventory, group: str) -> list[str]:
    """The hosts of a group of Slurm, but those whose Slurm the site runs itself."""
    return [
        host
        for host in inventory.resolved.members(group)
        if _lookup(inventory, host, SLURM_SWITCH) is not False
    ]


def _slurm_names(inventory: _Inventory) -> Iterator[Finding]:
    """Names Slurm cannot have, or has of two hosts: it takes the part before the first dot."""
    same: dict[str, list[str]] = defaultdict(list)
    for host in dict.fromkeys(host for group in _SLURM_GROUPS for host in _managed(inventory, group)):
        try:
            same[slurm_names.node_name(host)].append(host)
        except ValueError:
            if _HOST_NAME.fullmatch(host):
                mend = "name it as `hostname` does there, and put its address into ansible_host"
                place = inventory.written.hosts.get(host)
                yield _error("slurm-name", "has no name for Slurm", mend, place, f"host {host}")
    for name, hosts in same.items():
        if len(hosts) > 1:
            what = f"all are {name} for Slurm, which takes what stands before the first dot"
            mend = "give every node a name of its own before the dot"
            yield _error("slurm-name", what, mend, inventory.written.hosts.get(hosts[-1]), _hosts(hosts))


def _partitions(inventory: _Inventory) -> Iterator[Finding]:
    """Hostlists of partitions: readable, with groups of the inventory, of compute nodes only."""
    compute = NodeSet.fromlist([_short(host) for host in inventory.resolved.members("slurm_compute")])
    groups = {
        name: fold(names)
        for name in inventory.resolved.manager.groups
        if (names := {_short(host) for host in inventory.resolved.members(name)} & set(compute))
    }
    resolver = GroupResolver(GroupSource("inventory", groups))
    for definition in inventory.written.definitions:
        if definition.name != "slurm_partitions":
            continue
        for _, partitions in _outcomes(inventory, definition):
            for partition in partitions if isinstance(partitions, list) else ():
                nodes = partition.get("nodes") if isinstance(partition, dict) else None
                if not isinstance(nodes, str) or nodes == "ALL":
                    continue
                try:
                    wanted = NodeSet(nodes, resolver=resolver)
                except (NodeSetException, GroupResolverError, GroupSourceError) as error:
                    mend = "write a hostlist such as c[1-100],@group, with groups of the inventory"
                    yield _at(definition, "hostlist", f"{nodes!r} is no hostlist: {error}", mend)
                    continue
                if wanted - compute:
                    mend = "add them to slurm_compute, or take them out of the partition"
                    yield _at(
                        definition, "hostlist", f"{wanted - compute} is not in group slurm_compute", mend
                    )
                elif not wanted:
                    mend = "name nodes, or a group of the inventory that has some"
                    yield _at(definition, "hostlist", f"{nodes} names no node of group slurm_compute", mend)


def _short(host: str) -> str:
    return host.partition(".")[0]


# --- pull ---------------------------------------------------------------------------------------------------


def _pull(inventory: _Inventory) -> Iterator[Finding]:
    """Nodes that converge themselves, and can't or have nothing to do."""
    pulling = inventory.resolved.members("pull")
    place = inventory.written.groups.get("pull")
    controllers = [host for host in pulling if "slurm_controller" in inventory.resolved.groups(host)]
    if controllers:
        what = "is in slurm_controller, whose files are made from what compute nodes say: it can't pull"
        yield _error("pull", what, "take it out of group pull", place, _hosts(controllers))
    groups = {"apptainer", "slurm_compute"}
    others = [host for host in pulling if host not in controllers]
    if idle := [host for host in others if not groups & inventory.resolved.groups(host)]:
        mend = f"put it in {' or '.join(sorted(groups))}, or take it out of pull"
        yield _error("pull", "would pull, and has nothing to become", mend, place, _hosts(idle))


def _slurm_containers(inventory: _Inventory) -> Iterator[Finding]:
    """What container jobs are promised, and other variables take back."""
    if "slurm_containers_hooks" not in inventory.vocabulary.names():
        return
    resolved = inventory.resolved
    yield from _judged(
        inventory,
        sorted({*resolved.members("slurm_controller"), *resolved.members("slurm_compute")}),
        slurm_containers.VARIABLES,
        lambda _, values, unknown: slurm_containers.judge(values, unknown),
    )


# --- accelerators and fabrics -------------------------------------------------------------------------------


def _hardware(inventory: _Inventory) -> Iterator[Finding]:
    """What a class of nodes has, said in two places that have to agree."""
    if "gpu_vendor" not in inventory.vocabulary.names():
        return
    resolved = inventory.resolved
    yield from _judged(
        inventory,
        sorted({*resolved.members("gpu"), *resolved.members("infiniband")}),
        hardware.VARIABLES,
        lambda host, values, unknown: hardware.judge(values, resolved.groups(host), unknown),
    )


# --- node health and PBS ------------------------------------------------------------------------------------


def _node_health(inventory: _Inventory) -> Iterator[Finding]:
    """Compute nodes of which some have a health program: Slurm runs the same one on all of them."""
    members = inventory.resolved.members("node_health")
    if not members:
        return
    place = inventory.written.groups.get("node_health")
    computing = inventory.resolved.members("slurm_compute")
    if without := [host for host in computing if host not in members]:
        what = "is in slurm_compute, and not in node_health, whose program Slurm would run there, too"
        yield _error("node_health", what, "put it in group node_health", place, _hosts(without))


# --- file systems -------------------------------------------------------------------------------------------


def _file_systems(inventory: _Inventory) -> Iterator[Finding]:
    """What hosts mount, and what their containers see of it."""
    resolved = inventory.resolved
    if "lustre_file_systems" not in inventory.vocabulary.names():
        return
    owners = ("lustre", "nfs_mounts", "other_mounts")
    mounting = sorted({host for owner in owners for host in resolved.members(owner)})
    if not mounting:
        return
    elsewhere: set[str] = set()

    def learn(host: str, values: dict[str, Any], _: set[str]) -> Iterator[apptainer.Judgement]:
        for some in file_systems.read(values, resolved.groups(host)).values():
            elsewhere.update(one.path for one in some)
        yield from ()

    list(_judged(inventory, mounting, file_systems.VARIABLES, learn))
    yield from _judged(
        inventory,
        sorted({*mounting, *resolved.members("apptainer")}),
        file_systems.VARIABLES,
        lambda host, values, _: file_systems.judge(values, resolved.groups(host), elsewhere),
    )


# --- images -------------------------------------------------------------------------------------------------


def _images(inventory: _Inventory) -> Iterator[Finding]:
    """One host to build on, hosts that have Apptainer, and files that fit each other."""
    resolved, written = inventory.resolved, inventory.written
    if "image_store_images" not in inventory.vocabulary.names():
        return
    builders, stores = resolved.members("image_builder"), resolved.members("image_store")
    if len(builders) > 1:
        what = f"has {len(builders)} hosts ({fold(builders)}); images are built on one"
        place = written.groups.get("image_builder")
        yield _error("image-builder", what, "leave one", place, "group image_builder")
    wanted = [host for host in stores if _lookup(inventory, host, "image_store_images")]
    if wanted and not builders:
        place = written.groups.get("image_store")
        mend = "put one host in image_builder"
        yield _error("image-builder", "images without a host to build them", mend, place, _hosts(wanted))
    hosts = sorted({*builders, *stores, *resolved.members("image_policy")})
    if lacking := [host for host in hosts if "apptainer" not in resolved.groups(host)]:
        what = "builds, stores or judges images, and is not in group apptainer, which verifies them"
        yield _error("image-host", what, "put it in group apptainer", where=_hosts(lacking))
    yield from _judged(
        inventory,
        hosts,
        images.VARIABLES,
        lambda host, values, unknown: images.judge(values, resolved.groups(host), unknown),
    )


# --- Apptainer ----------------------------------------------------------------------------------------------


def _judged(
    inventory: _Inventory,
    hosts: Sequence[str],
    variables: Sequence[str],
    judge: Callable[[str, dict[str, Any], set[str]], Iterable[apptainer.Judgement]],
) -> Iterator[Finding]:
    """What ``judge`` says of a host's variables, asked once for each kind of hosts with the same values.

    Of those that are not known, or wrong, it gets None and their names.
    """
    names = {*variables, SLURM_SWITCH}
    names = names.union(*map(inventory.resolved.reach, names))
    found: dict[tuple[apptainer.Judgement, Place | None], list[str]] = defaultdict(list)
    for kind in inventory.resolved.kinds(hosts, names):
        values: dict[str, Any] = {}
        unknown = set()
        for name in variables:
            try:
                values[name] = inventory.resolved.lookup(kind[0], name)
            except UnresolvedError:
                unknown.add(name)
            else:
                # That has been said where it is written.
                unknown |= {name} if inventory.vocabulary.problem(name, values[name]) else set()
        values |= dict.fromkeys(unknown)
        for judgement in judge(kind[0], values, unknown):
            found[judgement, inventory.origin(kind[0], judgement.variable)].extend(kind)
    for (judgement, place), kinds in found.items():
        severity, rule, variable, what, mend = astuple(judgement)
        finding = Finding(severity, rule, what, mend, variable, where=_hosts(kinds))
        yield replace(finding, **_where(place))


def _apptainer(inventory: _Inventory) -> Iterator[Finding]:
    """What Apptainer makes of its variables, judged once for each kind of hosts that have the same values."""
    if "apptainer_waivers" not in inventory.vocabulary.names():
        return

    def judge(host: str, values: dict[str, Any], unknown: set[str]) -> Iterator[apptainer.Judgement]:
        groups = inventory.resolved.groups(host)
        # Slurm's devices say nothing of a node that it does not run on, or whose devices role gpu knows.
        if (
            "slurm_compute" not in groups
            or ("gpu" in groups and _lookup(inventory, host, "gpu_vendor") not in (None, "none"))
            or _lookup(inventory, host, SLURM_SWITCH) is False
        ):
            values["slurm_gres"] = None
        return apptainer.judge(values, unknown)

    yield from _judged(inventory, inventory.resolved.members("apptainer"), apptainer.VARIABLES, judge)


_KNOWN_GROUPS = (*GROUPS, *OTHER_GROUPS)
_RULES: tuple[Callable[[_Inventory], Iterator[Finding]], ...] = (
    _names,
    _values,
    _required,
    _key_files,
    _package_files,
    _no_hosts,
    _group_names,
    _functional_groups,
    _host_names,
    _vars_files,
    _addresses,
    _lab,
    _slurm,
    _slurm_agree,
    _slurm_names,
    _slurm_switches,
    _partitions,
    _pull,
    _slurm_containers,
    _hardware,
    _node_health,
    _file_systems,
    _images,
    _apptainer,
)

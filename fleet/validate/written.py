"""An inventory's YAML files as they are written: every variable, group and host with its file and line.

PyYAML's composer keeps the line of each key, which Ansible's own loaders drop from the values they return.
Which files belong to an inventory is decided as Ansible decides it (``ansible.inventory.manager``,
``DataLoader.find_vars_files``).  Files that are not YAML (INI, scripts, plugin configurations, vaulted files)
are listed but not read.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from ansible import constants
from ansible.errors import AnsibleError
from ansible.inventory.manager import IGNORED
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.utils.addresses import parse_address
from ansible.plugins.inventory import detect_range, expand_hostname_range
from ansible.template import trust_as_template

from fleet import hostlist
from fleet.validate.findings import Finding, Severity

Kind = Literal["group", "host"]


class Unknown:
    """Stands for a value that cannot be known here, such as one encrypted with Ansible Vault."""


UNKNOWN = Unknown()


@dataclass(frozen=True, slots=True)
class Definition:
    """A variable given to a group, or to the hosts a key such as ``c[1:100]`` stands for, in one place."""

    name: str
    value: Any
    kind: Kind
    owner: str
    hosts: tuple[str, ...]  # of kind "host"; a group's hosts are known to Ansible only
    file: Path
    line: int | None

    @property
    def where(self) -> str:
        """``group all`` or ``host c1``."""
        return f"{self.kind} {self.owner}"


@dataclass(frozen=True, slots=True)
class Place:
    """A file, and a line of it (from 1)."""

    file: Path
    line: int | None = None


@dataclass(slots=True)
class Written:
    """All that was read from the files of an inventory."""

    definitions: list[Definition] = field(default_factory=list)
    groups: dict[str, Place] = field(default_factory=dict)
    hosts: dict[str, Place] = field(default_factory=dict)
    vars_files: list[tuple[Kind, str, Path]] = field(default_factory=list)
    inventory_files: list[Path] = field(default_factory=list)
    vaulted: list[Path] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    readable: list[Path] = field(default_factory=list)  # sources that exist

    def error(self, rule: str, file: Path, line: int | None, what: str, mend: str = "") -> None:
        """Add an ERROR at a place."""
        self.findings.append(Finding(Severity.ERROR, rule, what, mend, file=file, line=line))


def read(sources: Sequence[Path]) -> Written:
    """Read inventory sources (files or directories, as given with ``-i``) and the variable files beside them.

    Never raises for what the files contain: mistakes come back as ``findings``.
    """
    written = Written()
    for source in (path.absolute() for path in sources):
        if not source.exists():
            written.error(
                "source", source, None, "there is no such inventory", "name a file or directory with -i"
            )
            continue
        written.readable.append(source)
        for file in _inventory_files(source):
            written.inventory_files.append(file)
            _read_inventory_file(written, file)
    for folder in dict.fromkeys(path if path.is_dir() else path.parent for path in written.readable):
        _read_vars_folder(written, folder / "group_vars", "group")
        _read_vars_folder(written, folder / "host_vars", "host")
    return written


def expand(pattern: str) -> tuple[str, ...]:
    """The host names an inventory key stands for: ``c[1-2]`` or ``c[1:2]`` → ``c1``, ``c2``; a key that is
    none of both → itself."""
    try:
        if hostlist.is_hostlist(pattern):
            return tuple(hostlist.expand(pattern))
        return tuple(expand_hostname_range(pattern)) if detect_range(pattern) else (pattern,)
    except (AnsibleError, ValueError):
        return (pattern,)


def _inventory_files(source: Path) -> Iterator[Path]:
    if not source.is_dir():
        yield source
        return
    for entry in sorted(source.iterdir()):
        if not IGNORED.search(entry.name.encode(errors="surrogateescape")):
            yield from _inventory_files(entry)


# --- YAML with lines ----------------------------------------------------------------------------------------

# libyaml's parser where PyYAML has it: ten times as fast, the same marks.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """YAML as Ansible reads it: safe types, ``!unsafe`` text is no template, ``!vault`` is not known here."""


def _plain(loader: Any, node: yaml.Node) -> Any:
    return loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else UNKNOWN


_Loader.add_constructor("!unsafe", _plain)
_Loader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG,
    lambda loader, node: trust_as_template(loader.construct_scalar(node)),
)
# Any other tag is Ansible's business (!vault, !vault-encrypted): its value cannot be known here.
_Loader.add_constructor(None, lambda _loader, _node: UNKNOWN)


@dataclass(slots=True)
class _Document:
    """The YAML document of a file, and the loader that makes values of its nodes."""

    written: Written
    file: Path
    root: yaml.Node
    loader: Any

    def value(self, node: yaml.Node) -> Any:
        return self.loader.construct_document(node)

    def items(self, node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node, int]]:
        """Key, value node and line of each entry of a mapping; nothing for other nodes."""
        if isinstance(node, yaml.MappingNode):
            self.loader.flatten_mapping(node)
            for key, value in node.value:
                yield str(key.value), value, key.start_mark.line + 1

    def define(self, node: yaml.Node, kind: Kind, owner: str, hosts: tuple[str, ...] = ()) -> None:
        """Take the entries of a mapping as variables of a group or of hosts."""
        for name, value, line in self.items(node):
            definition = Definition(name, self.value(value), kind, owner, hosts, self.file, line)
            self.written.definitions.append(definition)

    def read_group(self, name: str, node: yaml.Node, line: int) -> None:
        """Take a group of a YAML inventory, and those below it."""
        self.written.groups.setdefault(name, Place(self.file, line))
        for section, content, section_line in self.items(node):
            if section == "vars":
                self.define(content, "group", name)
            elif section == "children":
                for child, child_node, child_line in self.items(content):
                    self.read_group(child, child_node, child_line)
            elif section == "hosts":
                for pattern, variables, host_line in self.items(content):
                    hosts = expand(pattern)
                    for host in hosts:
                        self.written.hosts.setdefault(host, Place(self.file, host_line))
                    self.define(variables, "host", pattern, hosts)
            else:
                what = f"{section} is neither hosts, children nor vars of group {name}: Ansible skips it"
                mend = "put a subgroup below children, a variable below vars"
                self.written.error("group-key", self.file, section_line, what, mend)


def _compose(written: Written, file: Path, *, tolerant: bool = False) -> _Document | None:
    """Parse a file; a mistake becomes a finding, unless the file may be something else than YAML
    (``tolerant``)."""
    loader = None
    try:
        content = file.read_bytes()
        if _is_vaulted(content):
            written.vaulted.append(file)
            return None
        loader = _Loader(content)
        root = loader.get_single_node()
        if root is None or (tolerant and not isinstance(root, yaml.MappingNode)):
            return None
        document = _Document(written, file, root, loader)
        _check_keys(written, file, root, ())
        document.value(root)  # says now what it cannot construct, such as a list used as a key
    except OSError as error:
        written.error("unreadable", file, None, f"cannot be read: {error.strerror}")
        return None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if not tolerant:
            mark = getattr(error, "problem_mark", None)
            what = getattr(error, "problem", None) or str(error).partition("\n")[0]
            line = mark.line + 1 if mark else None
            written.error(
                "yaml", file, line, f"is not valid YAML: {what}", "mend the syntax here or just above"
            )
        return None
    return document


def _is_vaulted(content: bytes) -> bool:
    return content.startswith(b"$ANSIBLE_VAULT")


def _check_keys(written: Written, file: Path, node: yaml.Node, above: tuple[yaml.Node, ...]) -> None:
    """A key written twice loses its first value; an alias to a node around it never ends."""
    if any(node is ancestor for ancestor in above):
        raise yaml.constructor.ConstructorError(None, None, "an alias contains itself", node.start_mark)
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    what = f"{key.value} is written twice, first on line {seen[key.value]}"
                    written.error("duplicate-key", file, line, what, "keep one of them")
                seen[key.value] = line
            children.append(value)
    for child in children:
        _check_keys(written, file, child, (*above, node))


# --- inventory files ----------------------------------------------------------------------------------------


def _read_inventory_file(written: Written, file: Path) -> None:
    is_yaml = file.suffix in constants.YAML_FILENAME_EXTENSIONS
    if file.suffix and not is_yaml:
        with contextlib.suppress(OSError):
            if _is_vaulted(file.read_bytes()):
                written.vaulted.append(file)
        return
    document = _compose(written, file, tolerant=not is_yaml)
    if document is None:
        return
    groups = list(document.items(document.root))
    if any(name == "plugin" for name, _, _ in groups):
        return
    for name, node, line in groups:
        document.read_group(name, node, line)


@dataclass(frozen=True, slots=True)
class IniLine:
    """A line of an INI inventory that names hosts, or sets variables of a group.

    ``owner`` is the group, or the hosts as they are written there, ``c[1:3]``.
    """

    number: int
    kind: Kind
    owner: str
    hosts: tuple[str, ...]
    variables: frozenset[str]


def ini_lines(text: str) -> Iterator[IniLine]:
    """The lines of an INI inventory, to say where Ansible has something from; never raises."""
    group, section = "ungrouped", "hosts"
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        header = re.match(r"\[([^:\]\s]+)(?::(\w+))?\]", line)
        if header:
            group, section = header[1], header[2] or "hosts"
        elif line and line[0] not in "#;" and section == "vars":
            yield IniLine(number, "group", group, (), frozenset([line.partition("=")[0].strip()]))
        elif line and line[0] not in "#;" and section == "hosts":
            with contextlib.suppress(ValueError, AnsibleError):
                key, *settings = shlex.split(line, comments=True)
                pattern = parse_address(key, allow_ranges=True)[0]  # without the port
                names = frozenset(setting.partition("=")[0] for setting in settings)
                yield IniLine(number, "host", pattern, expand(pattern), names)


# --- group_vars and host_vars -------------------------------------------------------------------------------


def _read_vars_folder(written: Written, folder: Path, kind: Kind) -> None:
    if not folder.is_dir():
        return
    loader = DataLoader()
    entries = [entry for entry in sorted(folder.iterdir()) if not re.search(r"^\.|~$", entry.name)]
    read: dict[str, Path] = {}
    for entry in entries:
        owner = entry.stem if entry.suffix in constants.YAML_FILENAME_EXTENSIONS else entry.name
        if owner in read:
            what = f"is never read: Ansible takes {read[owner].name} and no second file for {kind} {owner}"
            written.error("shadowed-file", entry, None, what, f"move its content into {read[owner].name}")
            continue
        read[owner] = entry
        written.vars_files.append((kind, owner, entry))
        for file in map(Path, loader.find_vars_files(str(folder), owner)):
            _read_vars_file(written, file, kind, owner)


def _read_vars_file(written: Written, file: Path, kind: Kind, owner: str) -> None:
    document = _compose(written, file)
    if document is None:
        return
    if isinstance(document.root, yaml.MappingNode):
        document.define(document.root, kind, owner, (owner,) if kind == "host" else ())
    elif document.value(document.root) is not None:
        what = "holds no variables: its top level is not a mapping of names to values"
        written.error(
            "not-a-mapping", file, document.root.start_mark.line + 1, what, "write `name: value` lines"
        )

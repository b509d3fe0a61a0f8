"""What Ansible makes of an inventory: groups, precedence and templates, by Ansible's own code.

Variables are gathered once per distinct set of groups, not once per host: a cluster of thousands of nodes has
a handful of those.  A host's own variables are laid over them.

Templates are evaluated for values that can be known on the controller before a run.  Lookups that would do
something (``pipe``, ``url``, ``password``, ...) are never called, facts of nodes are not known.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import yaml
from ansible.errors import AnsibleError
from ansible.inventory.host import Host
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import EncryptedString
from ansible.plugins.loader import filter_loader, init_plugin_loader, inventory_loader
from ansible.template import Templar, is_trusted_as_template
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

from fleet.inventory import quiet
from fleet.validate.written import UNKNOWN, Written

# Lookups that read and compute, and change nothing anywhere.
HARMLESS_LOOKUPS = frozenset(
    (
        *(
            "config",
            "csvfile",
            "dict",
            "env",
            "file",
            "fileglob",
            "first_found",
            "indexed_items",
            "ini",
            "items",
        ),
        *("list", "nested", "sequence", "subelements", "template", "together", "vars", "varnames"),
    )
)

_ALIAS = re.compile(r"\{\{ *(\w+) *\}\}")


@dataclass(frozen=True, slots=True)
class Template:
    """What a template refers to: free variables, and lookups (``?`` for one whose name is computed)."""

    names: frozenset[str] = frozenset()
    lookups: frozenset[str] = frozenset()
    error: str = ""


class _AnyPlugin(dict[str, Any]):
    """Filters and tests for parsing templates only: every name exists; Ansible has its own to render them."""

    def get(self, _name: str, _default: object = None) -> Any:
        return str


_READER = jinja2.Environment(autoescape=True)
_READER.filters = _READER.tests = _AnyPlugin()


@functools.lru_cache(maxsize=4096)
def analyse(text: str) -> Template:
    """Parse a template; a syntax error is returned, not raised."""
    try:
        tree = _READER.parse(text)
        lookups = {
            _lookup_name(call)
            for call in tree.find_all(jinja2.nodes.Call)
            if isinstance(call.node, jinja2.nodes.Name) and call.node.name in {"lookup", "query", "q"}
        }
        return Template(frozenset(jinja2.meta.find_undeclared_variables(tree)), frozenset(lookups))
    except (jinja2.TemplateError, RecursionError) as error:
        return Template(error=str(error))


def _lookup_name(call: jinja2.nodes.Call) -> str:
    first = call.args[0] if call.args else None
    return str(first.value).rpartition(".")[2] if isinstance(first, jinja2.nodes.Const) else "?"


def templates(value: Any) -> Iterator[str]:
    """The strings inside a value that Ansible would take for templates."""
    if isinstance(value, str):
        if ("{{" in value or "{%" in value) and is_trusted_as_template(value):
            yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from templates(key)
            yield from templates(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from templates(item)


class UnresolvedError(Exception):
    """A value that cannot be had.

    ``missing`` names the variables that are not defined, ``broken`` says that the template is no Jinja.
    Otherwise the value cannot be known before the run; the text says why, and is empty where that is nobody's
    mistake.
    """

    def __init__(
        self, reason: str = "", missing: frozenset[str] = frozenset(), *, broken: bool = False
    ) -> None:
        super().__init__(reason)
        self.missing = missing
        self.broken = broken


@functools.cache
def _load_plugins(plugins: Path) -> None:
    """Make Ansible's plugins and the project's own filters and inventories known; once per process."""
    init_plugin_loader()
    for loader, folder in ((filter_loader, plugins / "filter"), (inventory_loader, plugins / "inventory")):
        if folder.is_dir():
            loader.add_directory(str(folder))


class _Loader(DataLoader):  # type: ignore[misc]
    """Ansible's loader without the copy of what it does not keep: half the time of a large inventory.

    A ``tolerant`` one takes a file that holds no variables for an empty one: :mod:`.written` has said so.
    """

    def __init__(self, *, tolerant: bool = False) -> None:
        super().__init__()
        self._tolerant = tolerant

    def load_from_file(self, file_name: str, cache: str = "all", **kwargs: Any) -> Any:
        unsafe = kwargs.pop("unsafe", False) or cache == "none"  # "unsafe" is Ansible's word for "no copy"
        try:
            content = super().load_from_file(file_name, cache, unsafe, **kwargs)
        except (AnsibleError, yaml.YAMLError, OSError):
            if not self._tolerant:
                raise
            content = None
        return {} if self._tolerant and not isinstance(content, dict) else content


@dataclass(slots=True)
class Resolved:
    """An inventory as Ansible sees it: hosts, groups and values."""

    written: Written
    manager: Any
    variables: Any
    loader: Any
    templar: Any
    defaults: dict[str, Any]
    own: dict[str, dict[str, Any]] = field(default_factory=dict)  # by host: its own variables as written
    _bases: dict[frozenset[str], dict[str, Any]] = field(default_factory=dict)
    _closures: dict[str, frozenset[str]] = field(default_factory=dict)
    _texts: dict[str, set[str]] = field(default_factory=dict)  # by variable: all templates it is ever given
    _unknown: set[str] = field(default_factory=set)  # variables that are encrypted somewhere

    @classmethod
    def of(cls, written: Written, project: Path, defaults: Iterable[Path]) -> Resolved:
        """Let Ansible parse the inventory files; what it refuses is added to the findings of ``written``.

        ``defaults`` are the roles' defaults/main.yml: a value may refer to them.
        """
        with quiet():
            _load_plugins(project / "plugins")
            manager = InventoryManager(_Loader(), [str(path) for path in written.readable], parse=False)
        for file in written.inventory_files:
            _parse(manager, file, written)
        with quiet():
            try:
                manager.reconcile_inventory()
            except AnsibleError as error:
                mend = "mend which group is in which"
                written.error("refused", written.readable[0], None, f"Ansible refuses it: {error}", mend)
            loader = _Loader(tolerant=True)
            # The playbooks' folder, as in a run: group_vars beside the playbooks count.
            loader.set_basedir(str(project / "playbooks"))
            variables = VariableManager(loader, manager)
            HostVars(manager, variables, loader)  # registers itself: templates may refer to hostvars
            merged: dict[str, Any] = {}
            for file in defaults:
                merged |= loader.load_from_file(str(file), trusted_as_template=True)
            resolved = cls(written, manager, variables, loader, Templar(loader, {}), merged)
        resolved._collect()
        return resolved

    def _collect(self) -> None:
        for host in self.manager.hosts.values():
            self.own[host.name] = dict(host.vars)
        for definition in self.written.definitions:
            for host_name in definition.hosts if definition.kind == "host" else ():
                if host_name in self.own:
                    self.own[host_name][definition.name] = definition.value
        everything = [(d.name, d.value) for d in self.written.definitions]
        for entity in (*self.manager.groups.values(), *self.manager.hosts.values()):
            everything.extend(entity.vars.items())
        for name, value in (*everything, *self.defaults.items()):
            for text in templates(value):
                self._texts.setdefault(name, set()).add(text)
            if contains_unknown(value):
                self._unknown.add(name)

    # --- hosts and groups -----------------------------------------------------------------------------------

    def groups(self, host: str) -> frozenset[str]:
        """The names of all groups a host is in, ``all`` included."""
        return frozenset(group.name for group in self.manager.hosts[host].groups) | {"all"}

    def members(self, group: str) -> list[str]:
        """The hosts of a group and its children; empty for a group that does not exist."""
        found = self.manager.groups.get(group)
        return [host.name for host in found.get_hosts()] if found else []

    def representatives(self, hosts: Sequence[str], value: Any) -> list[str]:
        """One host for each way in which a value can turn out for ``hosts``.

        Two hosts see the same value if they are in the same groups and give the same values to the variables
        that the templates in it refer to, directly or through others.
        """
        return [alike[0] for alike in self.kinds(hosts, self.closure(value))]

    def kinds(self, hosts: Sequence[str], names: Set[str]) -> list[list[str]]:
        """``hosts``, those together that see the same values of the variables ``names``.

        ``names`` has to have the variables, too, that these refer to: see :meth:`reach`.
        """
        kinds: dict[object, list[str]] = {}
        for host in hosts:
            own = self.own[host]
            key = tuple((name, repr(own[name])) for name in sorted(names & own.keys()))
            kinds.setdefault((self.groups(host), key), []).append(host)
        return list(kinds.values())

    # --- values ---------------------------------------------------------------------------------------------

    def closure(self, value: Any) -> frozenset[str]:
        """Every variable that the templates in a value refer to, directly or through others."""
        names: set[str] = set()
        for text in templates(value):
            for name in analyse(text).names:
                names |= {name} | self.reach(name)
        return frozenset(names)

    def reach(self, name: str) -> frozenset[str]:
        """Every variable that the values of variable ``name`` refer to, directly or through others."""
        if name not in self._closures:
            reached, pending = set[str](), [name]
            while pending:
                for text in self._texts.get(pending.pop(), ()):
                    fresh = analyse(text).names - reached
                    reached |= fresh
                    pending.extend(fresh)
            self._closures[name] = frozenset(reached)
        return self._closures[name]

    def context(self, host: str) -> dict[str, Any]:
        """All variables of a host as written, by Ansible's precedence; the roles' defaults below them."""
        groups = self.groups(host)
        if groups not in self._bases:
            # Ansible's precedence for the groups alone: a host of the same groups with nothing of its own.
            nobody = Host("~", gen_uuid=False)
            nobody.groups = self.manager.hosts[host].groups
            with quiet():
                self._bases[groups] = self.defaults | self.variables.get_vars(host=nobody)
        names = {"inventory_hostname": host, "inventory_hostname_short": host.partition(".")[0]}
        return self._bases[groups] | self.own[host] | names

    def lookup(self, host: str, name: str) -> Any:
        """The resolved value of a host's variable, or None.  Raises :class:`UnresolvedError`."""
        return self.resolve(self.context(host).get(name), host)

    def resolve(self, value: Any, host: str) -> Any:
        """A value with its templates evaluated in the context of a host.

        Raises :class:`UnresolvedError` where it refers to what is not defined, or not known before a run.
        """
        if contains_unknown(value):
            raise UnresolvedError
        texts = list(templates(value))
        if not texts:
            return value
        context = self.context(host)
        # `ansible_host: "{{ lab_address }}"` needs no template engine, which counts for thousands of hosts.
        alias = _ALIAS.fullmatch(value) if isinstance(value, str) else None
        if alias and alias[1] in context and not any(templates(context[alias[1]])):
            return self.resolve(context[alias[1]], host)
        for text in texts:
            if analyse(text).error:
                raise UnresolvedError(analyse(text).error, broken=True)
        names = self.closure(value)
        involved = [*texts, *(text for name in names for text in self._texts.get(name, ()))]
        if any(analyse(text).lookups - HARMLESS_LOOKUPS for text in involved):
            raise UnresolvedError
        if names & self._unknown:
            raise UnresolvedError
        result = self._evaluate(value, context, names)
        if contains_unknown(result):  # another host's, by way of hostvars
            raise UnresolvedError
        return result

    def is_file(self, name: str) -> bool:
        """Whether the controller has a file, which is looked for where a playbook looks for it."""
        try:
            return bool(self.loader.path_dwim_relative_stack([self.loader.get_basedir()], "files", name))
        except AnsibleError:
            return False

    def _evaluate(self, value: Any, context: dict[str, Any], names: frozenset[str]) -> Any:
        self.templar.available_variables = context
        try:
            with quiet():
                return self.templar.template(value)
        except Exception as error:  # templates run plugins, which raise what they like
            text = str(error)
            missing = frozenset(re.findall(r"'(\w+)' is undefined", text)).difference(context)
            # An encrypted value of another host, or one that may stand in an encrypted file.
            if "undecryptable" in text or (missing and self.written.vaulted):
                raise UnresolvedError from error
            if missing and not any(name.startswith("ansible_") for name in missing):
                raise UnresolvedError(text, missing) from error
            # Facts, and what hangs on them, are known in a run only.
            if missing or "ansible_facts" in names:
                raise UnresolvedError from error
            # A failed lookup is said once, where it is written, and not of all that depends on it.
            if "lookup plugin" in text and not any(analyse(part).lookups for part in templates(value)):
                raise UnresolvedError from error
            raise UnresolvedError(" ".join(text.split()).partition(" Use -vvvvv")[0]) from error


def _parse(manager: Any, file: Path, written: Written) -> None:
    """Let Ansible parse one inventory file; a refusal becomes a finding, unless the file has one already."""
    with quiet() as said:
        try:
            parsed = manager.parse_source(str(file))
        except Exception as error:  # plugins of any kind run here, on content of any kind
            parsed = False
            said.write(f" {error}")
    if not parsed and not any(finding.file == file for finding in written.findings):
        if file in written.vaulted:
            what = "is encrypted with Ansible Vault, so that its hosts and groups are not known"
            mend = "leave the hosts readable, and encrypt values, or files in group_vars and host_vars"
            written.error("vaulted-inventory", file, None, what, mend)
            return
        text = " ".join(said.getvalue().split()).replace(f" {file}", "")
        written.error("refused", file, None, f"Ansible refuses it: {text}", "mend the structure of the file")


def contains_unknown(value: Any) -> bool:
    """Whether a value, or anything inside it, is encrypted."""
    if isinstance(value, dict):
        # The second is how JSON has what is `!vault` in YAML.
        return "__ansible_vault" in value or any(contains_unknown(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(contains_unknown(item) for item in value)
    return value is UNKNOWN or isinstance(value, EncryptedString)

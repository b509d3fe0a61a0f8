# SPDX-License-Identifier: Apache-2.0
"""What is wrong with an Apptainer, wanted or real: thirty rules over one plain description of a node.

A `Node` says what is known, from the inventory alone or from the node itself; what is not known is None, and
a rule that would have to know says nothing. `RULES` is the data; a rule that has several things to say stands
there several times under one id. `judge` gives the findings.

Each rule names its source: a file of https://github.com/apptainer/apptainer or of its guides (admindocs,
userdocs), an issue there, or an advisory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import (
    Any,
    Callable,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from . import apptainer_advisories, apptainer_conf, apptainer_ecl, apptainer_files, apptainer_version
from .apptainer_capability import ROOT_EQUIVALENT, Grants
from .apptainer_conf_lint import Problem
from .apptainer_conf_releases import Value
from .apptainer_waivers import Waiver
from .mounts import NETWORK_TYPES

ERROR, WARNING = "error", "warning"


class Mount(NamedTuple):
    """A mounted file system: mount point and type, as in proc(5), mountinfo."""

    path: str
    kind: str


class PathFact(NamedTuple):
    """What a path is on the node; None for what is not known, as below a network mount.

    exists: whether there is something. writable: whether somebody but root can change or replace it.
    siblings: names beside it that begin with its own.
    resolved: the path without symbolic links.
    """

    exists: Optional[bool] = None
    writable: Optional[bool] = None
    siblings: Tuple[str, ...] = ()
    resolved: Optional[str] = None


class FileFact(NamedTuple):
    """What a file or directory is on the node.

    kind: ``file``, ``directory``, ``symlink``, ``missing`` or ``other``. required: whether setuid mode stops
    every user without it.
    """

    path: str
    kind: str
    uid: int = 0
    gid: int = 0
    mode: int = 0o644
    required: bool = False


class Keyring(NamedTuple):
    """The global keyring. fingerprints: of primary keys, upper case. unreadable: why it can't be read."""

    fingerprints: FrozenSet[str] = frozenset()
    unreadable: str = ""


@dataclass(frozen=True)
class Node:
    """An Apptainer on a node, as far as it is known. Every field may be None for "not known".

    version: ``1.4.5`` or ``1.4.5-2``; package_version, suid_version: those of the packages apptainer and
    apptainer-suid.
    profile: the security profile the site has chosen. suid: whether there is a setuid starter.
    directives: directive → value, as Apptainer takes it. problems: what it takes otherwise than meant.
    ecl: the list; ecl_error: why it can't be read. grants, grants_error: capability.json likewise.
    user_namespaces: whether users can create them; user_namespaces_why: the parameter that decides.
    programs: what nvliblist.conf and dmtcp-conf.yaml have run, as absolute paths.
    paths: path → what it is. leftover: whether /etc/singularity is there beside /etc/apptainer.
    """

    version: Optional[str] = None
    package_version: Optional[str] = None
    suid_version: Optional[str] = None
    profile: Optional[str] = None
    suid: Optional[bool] = None
    directives: Optional[Mapping[str, Value]] = None
    problems: Optional[Sequence[Problem]] = None
    ecl: Optional[apptainer_ecl.Ecl] = None
    ecl_error: Optional[str] = None
    grants: Optional[Grants] = None
    grants_error: Optional[str] = None
    keyring: Optional[Keyring] = None
    files: Optional[Sequence[FileFact]] = None
    user_namespaces: Optional[bool] = None
    user_namespaces_why: str = ""
    has_gpu: Optional[bool] = None
    mounts: Optional[Sequence[Mount]] = None
    programs: Optional[Sequence[str]] = None
    paths: Optional[Mapping[str, PathFact]] = None
    leftover: Optional[bool] = None

    def value(self, directive: str) -> Optional[str]:
        """Return the value of a scalar directive, None if it is not known."""
        value = (self.directives or {}).get(directive)
        return value if isinstance(value, str) else None

    def items(self, directive: str) -> Tuple[str, ...]:
        """Return the items of a list directive, none if they are not known."""
        value = (self.directives or {}).get(directive)
        return value if isinstance(value, tuple) else ()

    def path(self, path: str) -> PathFact:
        """Return what is known of *path*."""
        return (self.paths or {}).get(path, PathFact())

    @property
    def release(self) -> Optional[str]:
        """Return ``X.Y.Z`` of the version."""
        return apptainer_version.parse(self.version).release if self.version else None

    @property
    def setuid_mode(self) -> Optional[bool]:
        """Whether containers are started with the privileges of root: a starter, and the leave to use it."""
        allowed = self.value("allow setuid")
        if self.suid is False or allowed == "no":
            return False
        return True if self.suid and allowed else None

    @property
    def limits(self) -> Tuple[str, ...]:
        """Return what limits which images may run, in words."""
        settings = [f"'{name}'" for name in _LIMITS if self.items(name)]
        settings += [f"'{name} = no'" for name in _CONTAINERS if self.value(name) == "no"]
        if self.value("user bind control") == "no":
            settings.append("'user bind control = no'")
        return (*settings, *(["the ECL"] if self.ecl_active else []))

    @property
    def ecl_active(self) -> bool:
        """Whether there is a list that can be read and is on."""
        return self.ecl is not None and self.ecl.activated


class Finding(NamedTuple):
    """One thing that is wrong.

    id: the rule, ``L12``. subject: the directive, file, advisory or whatever is wrong. evidence: what was
    seen. reference: where to read on. waived: for which reason and until when, empty if it is not;
    severity: ``error`` or ``warning``, whether or not it is waived.
    """

    id: str
    severity: str
    subject: str
    message: str
    mend: str
    reference: str
    evidence: str
    waived: str = ""

    @property
    def stops(self) -> bool:
        """Whether it has to be mended or waived before anything goes on."""
        return self.severity == ERROR and not self.waived

    def __str__(self) -> str:
        """Return it on one line."""
        waived = f" ({self.waived})" if self.waived else ""
        return f"{self.id} {self.severity}{waived}: {self.message}; {self.mend}"


class Hit(NamedTuple):
    """What a rule has found; the templates of the rule's message and mend have these fields."""

    subject: str
    evidence: str = ""
    severity: Optional[str] = None
    mend: str = ""


class Rule(NamedTuple):
    """One rule, or one of the things that it has to say. *message* and *mend* are templates of a `Hit`."""

    id: str
    severity: str
    message: str
    mend: str
    reference: str
    check: Callable[[Node], Iterable[Hit]]


_LIMITS = ("limit container owners", "limit container groups", "limit container paths")
_FORMATS = ("allow container squashfs", "allow container extfs", "allow container dir")
_CONTAINERS = ("allow container sif", "allow container encrypted", *_FORMATS)


# --- what the rules look for --------------------------------------------------------------------------------


def _written(rule: str) -> Callable[[Node], Iterable[Hit]]:
    """Return the check for what is wrong with the text of apptainer.conf."""
    return lambda node: [
        Hit(problem.subject, problem.message) for problem in node.problems or () if problem.rule == rule
    ]


def _if(subject: str, condition: Callable[[Node], object], evidence: str = "") -> Callable[[Node], List[Hit]]:
    return lambda node: [Hit(subject, evidence)] if condition(node) else []


def _set(directive: str, *values: str) -> Callable[[Node], List[Hit]]:
    """Return the check for a directive that has one of *values*."""
    return lambda node: (
        [Hit(directive, f"{directive} = {node.value(directive)}")] if node.value(directive) in values else []
    )


def _unenforceable(node: Node) -> Iterator[Hit]:
    if not node.limits:
        return
    # In this profile the site has said that it knows.
    severity = WARNING if node.profile == "compatible" else None
    if node.setuid_mode is False:
        yield Hit(", ".join(node.limits), "no setuid starter is in use", severity)
    elif node.user_namespaces:
        yield Hit(", ".join(node.limits), "users can create user namespaces", severity)


def _unlisted_formats(node: Node) -> Iterator[Hit]:
    if node.ecl_active:
        yield from (Hit(name, f"{name} = yes") for name in _FORMATS if node.value(name) == "yes")


def _blacklists(node: Node) -> Iterator[Hit]:
    for number, group in enumerate(node.ecl.execgroups if node.ecl else (), 1):
        if group.mode == "blacklist":
            yield Hit(f"execgroup {number} {group.tagname}".strip(), "mode = blacklist")


def _open_groups(node: Node) -> Iterator[Hit]:
    for number, group in enumerate(node.ecl.execgroups if node.ecl_active and node.ecl else (), 1):
        if group.mode == "whitestrict" and not group.keyfp:
            yield Hit(f"execgroup {number} {group.tagname}".strip(), "keyfp = []")


def _missing_keys(node: Node) -> Iterator[Hit]:
    if not node.ecl or not node.ecl.activated or node.keyring is None or node.keyring.unreadable:
        return
    wanted = {
        key.upper() for group in node.ecl.execgroups for key in group.keyfp if group.mode != "blacklist"
    }
    if wanted and not node.keyring.fingerprints:
        yield Hit("the global keyring", "it has no key")
        return
    yield from (Hit(key, "not in the global keyring") for key in sorted(wanted - node.keyring.fingerprints))


def _refused_ecl(node: Node) -> Iterator[Hit]:
    if node.ecl is None or not node.ecl.activated:
        return
    yield from (Hit("ecl.toml", problem) for problem in apptainer_ecl.problems(node.ecl))
    for path in (group.dirpath for group in node.ecl.execgroups if group.dirpath):
        fact = node.path(path)
        if fact.exists is False:
            yield Hit("ecl.toml", f"dirpath {path} is not there")
        elif fact.resolved not in (None, path):
            yield Hit("ecl.toml", f"dirpath {path} is really {fact.resolved}; name that")


def _limit_paths(node: Node) -> Iterator[Hit]:
    for path in node.items("limit container paths"):
        fact = node.path(path)
        if not path.startswith("/"):
            yield Hit(path, "it is not absolute")
        elif fact.exists is False:
            yield Hit(path, "it is not there, and so no container starts")
        elif fact.writable or _in_scratch(path):
            yield Hit(path, "users can put images there, or another directory in its place")
        elif fact.siblings and node.version and apptainer_advisories.order(node.version) < _PREFIX_MENDED:
            yield Hit(path, f"before 1.5.1 it also allows {', '.join(fact.siblings)} beside it")


def _bind_sources(node: Node) -> Iterator[str]:
    yield from (bind.split(":")[0] for bind in node.items("bind path"))


def _missing_binds(node: Node) -> Iterator[Hit]:
    for path in _bind_sources(node):
        if node.path(path).exists is False:
            yield Hit(path, "it is not there")


def _network_binds(node: Node) -> Iterator[Hit]:
    for path in _bind_sources(node):
        above = [mount for mount in node.mounts or () if within(path, mount.path)]
        guarded = node.value("mount slave") == "yes" and any(mount.kind == "autofs" for mount in above)
        # Of two at one place the later one is seen.
        cover = max(reversed(above), key=lambda mount: len(mount.path), default=None)
        if cover and cover.kind in NETWORK_TYPES and not guarded:
            yield Hit(path, f"on {cover.kind}, mounted at {cover.path}")


def _late_mounts(node: Node) -> Iterator[Hit]:
    if node.value("mount slave") == "no":
        for mount in node.mounts or ():
            late = mount.kind == "autofs" or "cvmfs" in mount.kind or within(mount.path, "/cvmfs")
            if late and not any(within(mount.path, kernel) for kernel in ("/proc", "/sys", "/dev")):
                yield Hit(mount.path, f"{mount.kind} at {mount.path}")


def _open_programs(node: Node) -> Iterator[Hit]:
    folders = [(node.value("binary path") or "").split(":"), node.programs or ()]
    for path in (path for group in folders for path in group if path and path != "$PATH"):
        if not path.startswith("/"):
            yield Hit(path, "it hangs on the directory that a user is in")
        elif node.path(path).writable or _in_scratch(path):
            yield Hit(path, "users can write there")


def _half_networks(node: Node) -> Iterator[Hit]:
    who = [name for name in ("allow net users", "allow net groups") if node.items(name)]
    if node.items("allow net networks") and not who:
        yield Hit("allow net networks", "neither 'allow net users' nor 'allow net groups' is set")
    if who and node.directives is not None and not node.items("allow net networks"):
        yield Hit(", ".join(who), "'allow net networks' is not set")


def _open_files(node: Node) -> Iterator[Hit]:
    for file in node.files or ():
        if file.kind == "missing":
            if file.required and node.suid:
                yield Hit(file.path, "it is missing, and the setuid starter refuses to run")
        elif file.kind not in ("file", "directory"):
            yield Hit(file.path, f"it is a {file.kind}")
        elif (file.uid, file.gid) != (0, 0):
            yield Hit(file.path, f"it belongs to uid {file.uid} and gid {file.gid}")
        elif file.mode & 0o022:
            yield Hit(file.path, f"its mode is {file.mode & 0o7777:04o}")


def _grants(dangerous: bool) -> Callable[[Node], Iterable[Hit]]:
    return lambda node: [
        Hit(who, capability)
        for who, capability in (node.grants.all() if node.grants else ())
        if (capability in ROOT_EQUIVALENT) is dangerous
    ]


def _other_suid(node: Node) -> Iterator[Hit]:
    if node.package_version and node.suid_version and node.package_version != node.suid_version:
        evidence = f"apptainer {node.package_version}, apptainer-suid {node.suid_version}"
        yield Hit("apptainer-suid", evidence)


def _advisories(node: Node) -> Iterator[Hit]:
    if node.version is None:
        return
    for advisory in apptainer_advisories.open_advisories(node.version, node.suid, node.directives):
        release = apptainer_advisories.fixed(advisory)
        ways = [f"bring apptainer_version to {release} or later"] if release else []
        ways += [advisory.mitigation] if advisory.mitigation else []
        ways.append(f"waive {advisory.id} in apptainer_waivers if the package has the correction")
        yield Hit(advisory.id, f"Apptainer {node.version}: {advisory.about}", mend="; or ".join(ways))


def within(path: str, folder: str) -> bool:
    """Say whether *path* is *folder* or below it, by their names alone."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _in_scratch(path: str) -> bool:
    """Say whether everybody can write to where *path* is, on any node there is."""
    return any(within(path, folder) for folder in ("/tmp", "/var/tmp", "/dev/shm"))  # noqa: S108


_PREFIX_MENDED = apptainer_advisories.order("1.5.1")

#: Rules in the order of reports.
RULES: Tuple[Rule, ...] = (
    Rule(
        "L01",
        ERROR,
        "{evidence}",
        "correct it or take it out: what Apptainer does not know, it ignores without a word",
        "pkg/util/apptainerconf/parser.go, GetConfig",
        _written("L01"),
    ),
    Rule(
        "L02",
        ERROR,
        "{evidence}",
        "correct it: with it every apptainer command on the node fails, or reads something else",
        "pkg/util/apptainerconf/parser.go, GetConfig",
        _written("L02"),
    ),
    Rule(
        "L03",
        ERROR,
        "{evidence}",
        "leave one: Apptainer takes the first, people expect the last",
        "pkg/util/apptainerconf/parser.go, GetConfig",
        _written("L03"),
    ),
    Rule(
        "L04",
        ERROR,
        "{evidence}",
        "give one value: Apptainer takes what stands before the comma",
        "pkg/util/apptainerconf/parser.go, GetConfig",
        _written("L04"),
    ),
    Rule(
        "L05",
        ERROR,
        "'allow setuid = no' and 'allow user ns = no' leave no way to start a container",
        "allow one of them",
        "pkg/util/apptainerconf/config.go",
        _if(
            "allow user ns",
            lambda node: node.value("allow setuid") == node.value("allow user ns") == "no",
            "allow setuid = no, allow user ns = no",
        ),
    ),
    Rule(
        "L06",
        ERROR,
        "'allow user ns = no' without a setuid starter leaves no way to start a container",
        "set 'allow user ns = yes', or install apptainer-suid (apptainer_profile: enforced)",
        "pkg/util/apptainerconf/config.go",
        _if(
            "allow user ns",
            lambda node: node.value("allow user ns") == "no" and node.suid is False,
            "allow user ns = no, no setuid starter",
        ),
    ),
    Rule(
        "L07",
        ERROR,
        "no container starts: users can't create user namespaces ({evidence}), nor use a setuid starter",
        "set user_namespaces_enabled: true, or install apptainer-suid (apptainer_profile: enforced)",
        "admindocs, user_namespace.rst",
        lambda node: (
            [Hit("user namespaces", node.user_namespaces_why or "they are off")]
            if node.user_namespaces is False and node.setuid_mode is False
            else []
        ),
    ),
    Rule(
        "L08",
        ERROR,
        "nobody is bound by {subject}, because {evidence}: users run an apptainer of their own",
        "choose apptainer_profile: enforced with user_namespaces_enabled: false, or take the limits out",
        "pkg/util/apptainerconf/config.go, the warning above the limits; admindocs, configfiles.rst",
        _unenforceable,
    ),
    Rule(
        "L09",
        ERROR,
        "the ECL is on, but judges only SIF images, and '{evidence}' allows others",
        "set '{subject}' to no",
        "apptainer#1854; admindocs, configfiles.rst",
        _unlisted_formats,
    ),
    Rule(
        "L10",
        ERROR,
        "{subject} of the ECL has the mode blacklist, with which unsigned changes and unknown keys pass",
        "use whitestrict or whitelist, with the keys that are allowed",
        "pkg/syecl/syecl.go",
        _blacklists,
    ),
    Rule(
        "L10",
        ERROR,
        "{subject} of the ECL has the mode whitestrict and no key: everybody's signature passes, even on an"
        " image that was changed",
        "name the keys that have to have signed",
        "internal/pkg/syecl/syecl.go, checkWhiteStrict",
        _open_groups,
    ),
    Rule(
        "L10",
        ERROR,
        "the ECL accepts legacy signatures, which leave all but the file system unsigned",
        "set legacyinsecure = false, and sign old images again",
        "CVE-2020-13845",
        _if("legacyinsecure", lambda node: node.ecl and node.ecl.legacyinsecure, "legacyinsecure = true"),
    ),
    Rule(
        "L10",
        ERROR,
        "the ECL is on, but the global keyring can't be used: {evidence}",
        "write it with `gpg --export`, without --armor",
        "admindocs, configfiles.rst",
        lambda node: (
            [Hit("global keyring", node.keyring.unreadable)]
            if node.ecl_active and node.keyring and node.keyring.unreadable
            else []
        ),
    ),
    Rule(
        "L10",
        ERROR,
        "the ECL is on, but a key that it needs can't be used: {subject}: {evidence}",
        "import the public key into the global keyring, or take its fingerprint out of the ECL",
        "pkg/syecl/syecl.go",
        _missing_keys,
    ),
    Rule(
        "L11",
        ERROR,
        "ecl.toml can't be read, and Apptainer goes on without the ECL: {evidence}",
        "mend the file",
        "pkg/syecl/syecl.go",
        lambda node: [Hit("ecl.toml", node.ecl_error)] if node.ecl_error else [],
    ),
    Rule(
        "L11",
        ERROR,
        "Apptainer refuses every SIF image because of the ECL: {evidence}",
        "mend the file",
        "pkg/syecl/syecl.go",
        _refused_ecl,
    ),
    Rule(
        "L12",
        ERROR,
        "'{evidence}' lets users mount ext4 images of their own with the kernel",
        "set it to no: images are then mounted with FUSE",
        "CVE-2023-30549",
        lambda node: _set("allow setuid-mount extfs", "yes")(node) if node.setuid_mode else [],
    ),
    Rule(
        "L13",
        WARNING,
        "'{evidence}' lets users mount SquashFS images of their own with the kernel, and nothing limits them",
        "set it to iflimited (from 1.3 on) or no",
        "CVE-2023-30549",
        lambda node: (
            _set("allow setuid-mount squashfs", "yes")(node) if node.setuid_mode and not node.limits else []
        ),
    ),
    Rule(
        "L14",
        ERROR,
        "with '{evidence}' users trace the FUSE process and swap what a limited image contains",
        "set it to iflimited (from 1.3 on) or yes",
        "apptainer#1854",
        lambda node: (
            _set("allow setuid-mount squashfs", "no")(node) if node.setuid_mode and node.limits else []
        ),
    ),
    Rule(
        "L15",
        ERROR,
        "{evidence}",
        "bring apptainer_version to a release that has it, or take it out",
        "pkg/util/apptainerconf/config.go",
        _written("L15"),
    ),
    Rule(
        "L16",
        ERROR,
        "'limit container paths' has {subject}: {evidence}",
        "name directories that are there, are root's alone, and have no namesake beside them",
        "CVE-2026-48785; admindocs, configfiles.rst",
        _limit_paths,
    ),
    Rule(
        "L17",
        WARNING,
        "'mount hostfs = yes' shows every file system of the node to every container",
        "set it to no, and name what containers need in 'bind path'",
        "admindocs, configfiles.rst",
        _set("mount hostfs", "yes"),
    ),
    Rule(
        "L18",
        ERROR,
        "{evidence}",
        "give SOURCE or SOURCE:DESTINATION",
        "admindocs, configfiles.rst",
        _written("L18"),
    ),
    Rule(
        "L18",
        ERROR,
        "'bind path' has {subject}, but {evidence}, and so no container starts on this node",
        "make it, or leave it out for the nodes that lack it",
        "admindocs, configfiles.rst",
        _missing_binds,
    ),
    Rule(
        "L18",
        WARNING,
        "'bind path' has {subject}, {evidence}: while it is not mounted, no container starts",
        "mount it with autofs, name the directory above, and keep 'mount slave = yes'",
        "admindocs, configfiles.rst",
        _network_binds,
    ),
    Rule(
        "L19",
        ERROR,
        "'mount slave = no' hides what is mounted later: {evidence}",
        "set it to yes",
        "admindocs, configfiles.rst",
        _late_mounts,
    ),
    Rule(
        "L20",
        WARNING,
        "without overlay and underlay, binds work only where the image has the mount point",
        "set 'enable overlay' to yes",
        "admindocs, configfiles.rst",
        _if(
            "enable overlay",
            lambda node: node.value("enable overlay") == node.value("enable underlay") == "no",
            "enable overlay = no, enable underlay = no",
        ),
    ),
    Rule(
        "L21",
        WARNING,
        "'always use nv = yes' on a node without an NVIDIA GPU warns at every start",
        "set it for the nodes that have one",
        "userdocs, gpu.rst",
        lambda node: _set("always use nv", "yes")(node) if node.has_gpu is False else [],
    ),
    Rule(
        "L22",
        ERROR,
        "'use nvidia-container-cli = yes' does not work with the setuid starter",
        "set it to no, or choose apptainer_profile: rootless",
        "userdocs, gpu.rst",
        lambda node: _set("use nvidia-container-cli", "yes")(node) if node.setuid_mode else [],
    ),
    Rule(
        "L23",
        ERROR,
        "Apptainer runs programs from {subject}, but {evidence}",
        "take it out, or make it and all above it root's alone",
        "admindocs, configfiles.rst",
        _open_programs,
    ),
    Rule(
        "L24",
        ERROR,
        "{subject} has no effect: {evidence}",
        "set 'allow net networks', and 'allow net users' or 'allow net groups'; or none of them",
        "admindocs, configfiles.rst",
        _half_networks,
    ),
    Rule(
        "L25",
        WARNING,
        "'memory fs type = ramfs' has no size limit: a user fills the node's memory",
        "set it to tmpfs",
        "admindocs, configfiles.rst",
        _set("memory fs type", "ramfs"),
    ),
    Rule(
        "L26",
        ERROR,
        "{subject} must be a regular file or directory of root:root that nobody else can write: {evidence}",
        "make it again with owner root:root and mode 0644 (a directory: 0755)",
        "admindocs, configfiles.rst",
        _open_files,
    ),
    Rule(
        "L27",
        ERROR,
        "{subject} may have {evidence} in containers, which is as good as root on the node",
        "run `apptainer capability drop`, or take it out of capability.json",
        "capabilities(7)",
        _grants(dangerous=True),
    ),
    Rule(
        "L27",
        WARNING,
        "{subject} may have {evidence} in containers",
        "run `apptainer capability drop`, or waive L27 with the reason",
        "capabilities(7)",
        _grants(dangerous=False),
    ),
    Rule(
        "L27",
        ERROR,
        "capability.json {evidence}",
        "mend the file",
        "admindocs, configfiles.rst",
        lambda node: [Hit("capability.json", node.grants_error)] if node.grants_error else [],
    ),
    Rule(
        "L28",
        WARNING,
        "'{evidence}' takes capabilities from root in containers",
        "set it to full, or waive L28 with the reason",
        "admindocs, configfiles.rst",
        _set("root default capabilities", "no", "file"),
    ),
    Rule(
        "L28",
        WARNING,
        "'allow pid ns = no' leaves the processes of instances behind when these stop",
        "set it to yes, or waive L28 with the reason",
        "admindocs, configfiles.rst",
        _set("allow pid ns", "no"),
    ),
    Rule(
        "L29",
        ERROR,
        "the setuid starter is of another version than Apptainer: {evidence}",
        "install both at one version, in one transaction",
        "apptainer#1038, apptainer#789",
        _other_suid,
    ),
    Rule(
        "L29",
        WARNING,
        "/etc/singularity is there beside /etc/apptainer, and Apptainer says so at every start",
        "carry over what is still wanted, and remove it",
        "apptainer#87, apptainer#129",
        _if("/etc/singularity", lambda node: node.leftover, "both directories are there"),
    ),
    Rule(
        "L30",
        ERROR,
        "{subject} is open: {evidence}",
        "{mend}",
        "{subject}",
        _advisories,
    ),
)

#: What can be waived. Not L30: to waive every advisory there will ever be is no decision.
WAIVABLE: FrozenSet[str] = frozenset({rule.id for rule in RULES} - {"L30"} | set(apptainer_advisories.BY_ID))


def wanted(
    desired: Mapping[str, Any],
    profile: Optional[str],
    keys: Optional[Sequence[str]] = None,
    user_namespaces: Optional[bool] = None,
) -> Node:
    """Return what is known of a node from *desired*, what `apptainer_state.desired_state` returns.

    keys: the fingerprints of all keys in the global keyring, None if that is the site's own.
    """
    checked = apptainer_files.check(desired, desired["release"])
    return Node(
        version=desired["version"],
        suid=desired["suid"],
        profile=profile,
        directives=apptainer_conf.complete(checked["config"], desired["release"]),
        ecl=checked.get("ecl"),
        grants=checked.get("capabilities"),
        keyring=None if keys is None else Keyring(frozenset(key.upper() for key in keys)),
        user_namespaces=user_namespaces,
        user_namespaces_why="" if user_namespaces is None else f"user_namespaces_enabled: {user_namespaces}",
    )


def judge(node: Node, waivers: Optional[Mapping[str, Waiver]] = None) -> List[Finding]:
    """Return what is wrong with *node*, in the order of `RULES`; what is waived is marked, not left out.

    waivers: what `apptainer_waivers.read` returns. Raises apptainer_version.VersionError.
    """
    return [_finding(rule, hit, waivers or {}) for rule in RULES for hit in rule.check(node)]


def bad_waiver(problem: str) -> Finding:
    """Return the finding for a waiver that does not count."""
    mend = "mend apptainer_waivers"
    return Finding("waiver", ERROR, "apptainer_waivers", problem, mend, "", problem)


def _finding(rule: Rule, hit: Hit, waivers: Mapping[str, Waiver]) -> Finding:
    advisory = apptainer_advisories.BY_ID.get(hit.subject)
    names = (advisory.id, *advisory.aliases) if advisory else (rule.id,)
    waiver = next((waivers[name] for name in names if name in waivers), None)
    texts = {"subject": hit.subject, "evidence": hit.evidence, "mend": hit.mend}
    return Finding(
        rule.id,
        hit.severity or rule.severity,
        hit.subject,
        rule.message.format(**texts),
        rule.mend.format(**texts),
        rule.reference.format(**texts),
        hit.evidence,
        str(waiver) if waiver else "",
    )

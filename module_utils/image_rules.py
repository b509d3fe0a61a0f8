# SPDX-License-Identifier: Apache-2.0
"""What is wrong with an image: rules over one plain description of it.

An `Image` says what was seen, on the file system and in its bytes; `image_facts` makes it. `RULES` is the
data, `judge` gives the findings. What a rule would have to know and nobody could tell counts as wrong: a
policy that forbids setuid files refuses an image whose files can't be listed.
"""

from __future__ import annotations

import datetime
import fnmatch
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from . import image_policy
from .image_lock import Lock
from .image_policy import ERROR, SEVERITIES, WARNING, Policy, Rules, labels_match, path_matches
from .squashfs import Content, Paths
from .typed import printable

MIB = 1024 * 1024
#: In one finding, so many paths; their number is told anyway.
_SHOWN = 5


class Stat(NamedTuple):
    """What tells that a file is the same as before; the times are nanoseconds since 1970."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


class Owned(NamedTuple):
    """Owner and mode of a file or folder; *owner* and *group* are names, or numbers as text."""

    path: str
    uid: int
    gid: int
    owner: str
    group: str
    mode: int


class Partition(NamedTuple):
    """A partition: its object ID, and names of its file system, type and architecture as `sif` has them."""

    id: int
    file_system: str
    type: str
    architecture: str


class Signatures(NamedTuple):
    """What the signatures are worth.

    *signers* are known keys, as `sif_signers` names them, each of which signed every object of every group.
    *problem* says why ``apptainer verify`` with the same keys would refuse the image, or is
    empty.
    """

    signers: Tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Contents:
    """What is in the bytes of an image; None for what nobody asked for.

    *created* is when its root file system was packed (seconds since 1970), None if it does not say.
    *sources* are what it was built from, such as ``docker://debian:13``. Each *…_problem* says why the field
    before it can't be known. *keys* tells which keys the signatures were verified with.
    """

    sha256: Optional[str] = None
    architecture: str = ""
    created: Optional[int] = None
    partitions: Tuple[Partition, ...] = ()
    remarks: Tuple[str, ...] = ()
    labels: Optional[Mapping[str, str]] = None
    labels_problem: str = ""
    sources: Optional[Tuple[str, ...]] = None
    sources_problem: str = ""
    signatures: Optional[Signatures] = None
    keys: str = ""
    root: Optional[Content] = None
    root_problem: str = ""


@dataclass(frozen=True)
class Image:
    """An image as it was found.

    *path* is the one it was asked for, *real* without symbolic links; *file* is the file itself, *folders*
    those above it, nearest first. *failure* is a rule and why nothing more is known: ``readable`` (no file
    that can be read), ``structure`` (no image), ``unchanged`` (it changed meanwhile), ``max_size_mib``.
    *stat* is what *contents* may be remembered for, None if they may not; *remembered* says that they are.
    """

    path: str
    real: str
    symlink: bool = False
    size: int = 0
    file: Optional[Owned] = None
    folders: Tuple[Owned, ...] = ()
    failure: Optional[Tuple[str, str]] = None
    contents: Contents = Contents()
    stat: Optional[Stat] = None
    remembered: bool = False


class Finding(NamedTuple):
    """One thing that is wrong with an image.

    *rule* is a key of the policy, or one of those that are always judged. *evidence* is what was seen, *mend*
    what to do. *scope* names the label scope that demands it, else empty; *waived* says for which reason and
    until when, else empty.
    """

    rule: str
    severity: str
    evidence: str
    mend: str
    scope: str = ""
    waived: str = ""

    def counts(self, severity: str) -> bool:
        """Whether it is at least as bad as *severity*, and not waived."""
        return not self.waived and SEVERITIES.index(self.severity) >= SEVERITIES.index(severity)

    def __str__(self) -> str:
        """Return it on one line."""
        waived = f" ({self.waived})" if self.waived else ""
        scope = f" (scope {self.scope})" if self.scope else ""
        return f"{self.rule} {self.severity}{waived}{scope}: {self.evidence}; {self.mend}"


class Case(NamedTuple):
    """What a rule looks at: an image, what is demanded of it, and what else decides."""

    image: Image
    rules: Rules
    lock: Lock
    revoked: Mapping[str, str]
    now: float

    @property
    def contents(self) -> Contents:
        """What is in the image."""
        return self.image.contents


class Rule(NamedTuple):
    """A rule: *check* yields evidence, *mend* says what to do about it."""

    id: str
    severity: str
    mend: str
    check: Callable[[Case], Iterable[str]]


# --- what the rules look for --------------------------------------------------------------------------------


def _failure(rule: str) -> Callable[[Case], List[str]]:
    return lambda case: (
        [case.image.failure[1]] if case.image.failure and case.image.failure[0] == rule else []
    )


def _revoked(case: Case) -> Iterator[str]:
    sha256 = case.contents.sha256
    if sha256 is not None and sha256 in case.revoked:
        yield f"it is revoked: {case.revoked[sha256]}"


def _locked(case: Case) -> Iterator[str]:
    sha256 = case.contents.sha256
    if case.rules.locked and (sha256 is None or not case.lock.of_digest(sha256)):
        yield f"its SHA-256 {sha256} is not in images.lock"


def _signatures(case: Case) -> Iterator[str]:
    wanted, found = case.rules.signatures, case.contents.signatures
    if wanted is None:
        return
    if found is None or found.problem:
        yield found.problem if found else "its signatures were not verified"
        return
    good = [signer for signer in wanted.allowed if signer in found.signers]
    if len(good) < wanted.required:
        others = [signer for signer in found.signers if signer not in wanted.allowed]
        yield (
            f"{len(good)} of the {wanted.required} signatures by allowed keys"
            + (f", {', '.join(good)}" if good else "")
            + (f"; it is signed by {', '.join(others)}, not allowed" if others else "")
        )


def _architectures(case: Case) -> Iterator[str]:
    allowed = case.rules.architectures
    if allowed is not None and case.contents.architecture not in allowed:
        yield f"it is for {case.contents.architecture}, not {' or '.join(allowed)}"


def _systems(case: Case) -> List[Partition]:
    return [one for one in case.contents.partitions if one.type in ("system", "primary_system")]


def _system_partition(case: Case) -> Iterator[str]:
    systems = _systems(case)
    if not any(one.type == "primary_system" for one in systems):
        yield "it has no primary system partition, so Apptainer can't run it"
    elif len(systems) > 1:
        yield f"it has {len(systems)} system partitions, objects {', '.join(str(one.id) for one in systems)}"


_ENCRYPTED = {"encrypted_squashfs": "squashfs", "gocryptfs_squashfs": "squashfs"}


def _file_systems(case: Case) -> Iterator[str]:
    allowed = case.rules.file_systems
    for one in case.contents.partitions if allowed is not None else ():
        kind = _ENCRYPTED.get(one.file_system, one.file_system)
        if kind not in (allowed or ()):
            yield f"object {one.id} is a partition with {kind}"


def _encryption(case: Case) -> Iterator[str]:
    for one in _systems(case):
        encrypted = one.file_system in _ENCRYPTED
        if case.rules.encryption == image_policy.FORBIDDEN and encrypted:
            yield f"object {one.id}, its root file system, is encrypted"
        elif case.rules.encryption == image_policy.REQUIRED and not encrypted:
            yield f"object {one.id}, its root file system, is not encrypted"


def _overlay(case: Case) -> Iterator[str]:
    for one in case.contents.partitions if case.rules.overlay else ():
        if one.type == "overlay":
            yield f"object {one.id} is a writable overlay, which no signature fixes for long"


def _inside(
    rule: str, what: str, get: Callable[[Content], Optional[Paths]]
) -> Callable[[Case], Iterator[str]]:
    """Return the check for files within the image, of which those are allowed that the rule names."""

    def check(case: Case) -> Iterator[str]:
        allowed: Optional[Tuple[str, ...]] = getattr(case.rules, rule)
        if allowed is None:
            return
        for one in case.contents.partitions:
            # Apptainer mounts it over the rest.
            if one.type == "overlay":
                yield f"object {one.id} is an overlay, whose files nobody lists"
        root = case.contents.root
        if root is None:
            yield f"its files can't be listed: {case.contents.root_problem or 'nobody asked for them'}"
            return
        if root.strange:
            yield f"{root.strange} lines of its list of files are none: names in it have line feeds"
        paths = get(root)
        if paths is None:
            if not root.strange:
                yield "its files have extended attributes, and only squashfs-tools 4.6 and later list them"
            return
        wrong = [path for path in paths.first if not path_matches(path, allowed)]
        more = paths.number - len(paths.first)
        if wrong or more:
            shown = ", ".join(printable(path) for path in wrong[:_SHOWN])
            number = len(wrong) + more
            rest = f" and {number - _SHOWN} more" if number > _SHOWN else ""
            yield f"{what} ({number}): {shown}{rest}"

    return check


def _labels(case: Case) -> Iterator[str]:
    contents = case.contents
    for key, pattern in (case.rules.labels or {}).items():
        if contents.labels_problem:
            yield f"its labels can't be read: {contents.labels_problem}"
            return
        labels = contents.labels or {}
        if not labels_match(labels, {key: pattern}):
            value = labels.get(key)
            has = f"is {printable(value)}" if value is not None else "is missing"
            yield f"its label {key} {has}" + (f", and must be {pattern}" if pattern != "*" else "")


def _bootstrap_sources(case: Case) -> Iterator[str]:
    allowed, contents = case.rules.bootstrap_sources, case.contents
    if allowed is None:
        return
    if contents.sources_problem:
        yield contents.sources_problem
    for source in contents.sources or ():
        if not any(fnmatch.fnmatchcase(source, pattern) for pattern in allowed):
            yield f"it was built from {printable(source)}"


def _max_age_days(case: Case) -> Iterator[str]:
    limit, created = case.rules.max_age_days, case.contents.created
    if limit is None:
        return
    if created is None:
        yield "it does not say when it was built"
        return
    days = int((case.now - created) // 86400)
    day = datetime.datetime.fromtimestamp(created, datetime.timezone.utc).date().isoformat()
    if days > limit:
        yield f"it was built on {day}, {days} days ago, and may be {limit} days old"
    elif days < -1:
        yield f"it says that it was built on {day}, which is to come"


def _max_size_mib(case: Case) -> Iterator[str]:
    yield from _failure("max_size_mib")(case)
    limit = case.rules.max_size_mib
    if not case.image.failure and limit is not None and case.image.size > limit * MIB:
        yield too_large(case.image.size, limit)


def too_large(size: int, limit: int) -> str:
    """Return the evidence for a file of *size* bytes where *limit* MiB are allowed."""
    return f"it has {size} bytes, and may have {limit} MiB"


def _owners(case: Case) -> Iterator[str]:
    allowed = case.rules.owners
    if allowed is None:
        return
    if case.image.file:
        yield from _wrong_owner("it", case.image.file, allowed)
    for folder in case.image.folders:
        # Above all owners there is root, who owns / anyway.
        yield from _wrong_owner(f"its folder {printable(folder.path)}", folder, ("root", "0", *allowed))


def _wrong_owner(what: str, owned: Owned, allowed: Tuple[str, ...]) -> Iterator[str]:
    if not {owned.owner, str(owned.uid)} & set(allowed):
        yield f"{what} belongs to {owned.owner}"


def _groups(case: Case) -> Iterator[str]:
    allowed, file = case.rules.groups, case.image.file
    if allowed is not None and file and not {file.group, str(file.gid)} & set(allowed):
        yield f"it is of group {file.group}"


def _mode(case: Case) -> Iterator[str]:
    most, file = case.rules.mode, case.image.file
    if most is not None and file and file.mode & ~most:
        yield f"it has mode {file.mode:04o}, and may have {most:04o}"


def _folder_mode(case: Case) -> Iterator[str]:
    most = case.rules.folder_mode
    for folder in case.image.folders if most is not None else ():
        # Setuid, setgid and sticky bits give nobody more rights to a folder.
        if folder.mode & 0o777 & ~(most or 0):
            yield f"its folder {printable(folder.path)} has mode {folder.mode:04o}, and may have {most:04o}"


def _symlinks(case: Case) -> Iterator[str]:
    if case.rules.symlinks and case.image.symlink:
        yield f"it is a symbolic link to {printable(case.image.real)}"


RULES: Tuple[Rule, ...] = (
    Rule("readable", ERROR, "give a regular file that can be read", _failure("readable")),
    Rule("structure", ERROR, "build or transfer it again", _failure("structure")),
    Rule("unchanged", ERROR, "wait until nobody writes to it, and check again", _failure("unchanged")),
    Rule("revoked", ERROR, "take it away, and use another version", _revoked),
    Rule("max_size_mib", ERROR, "build a smaller one, or raise max_size_mib", _max_size_mib),
    Rule("symlinks", ERROR, "name the file itself", _symlinks),
    Rule("owners", ERROR, "give it to an allowed owner", _owners),
    Rule("groups", ERROR, "give it to an allowed group", _groups),
    Rule("mode", ERROR, "take the other permissions away", _mode),
    Rule("folder_mode", ERROR, "take the other permissions of that folder away", _folder_mode),
    Rule("locked", ERROR, "lock it with `fleet image lock` if it is the one that was approved", _locked),
    Rule("signatures", ERROR, "have it signed by allowed keys: `apptainer sign`", _signatures),
    Rule("system_partition", ERROR, "build it again with `apptainer build`", _system_partition),
    Rule("architectures", ERROR, "build it for an allowed architecture", _architectures),
    Rule("file_systems", ERROR, "build it again with `apptainer build`, which makes SquashFS", _file_systems),
    Rule("encryption", ERROR, "build it again as the policy wants it", _encryption),
    Rule("overlay", ERROR, "take it out with `apptainer sif del`, and sign again", _overlay),
    Rule(
        "setuid_files",
        ERROR,
        "chmod ug-s in %post, or allow these paths",
        _inside("setuid_files", "files with setuid or setgid", lambda root: root.setuid),
    ),
    Rule(
        "device_nodes",
        ERROR,
        "remove them in %post, or allow these paths",
        _inside("device_nodes", "device nodes", lambda root: root.devices),
    ),
    Rule(
        "file_capabilities",
        ERROR,
        "setcap -r in %post, or allow these paths",
        _inside("file_capabilities", "files with capabilities", lambda root: root.capabilities),
    ),
    Rule(
        "writable_folders",
        ERROR,
        "chmod o-w in %post, or allow these paths",
        _inside("writable_folders", "system folders that everybody may write to", lambda root: root.writable),
    ),
    Rule("labels", ERROR, "set it in %labels", _labels),
    Rule("bootstrap_sources", ERROR, "build it from an allowed source", _bootstrap_sources),
    Rule("max_age_days", ERROR, "build it again, with today's packages", _max_age_days),
    Rule(
        "remarks",
        WARNING,
        "build it again with `apptainer build` unless you know where this comes from",
        lambda case: case.contents.remarks,
    ),
)

# Of an image that nobody could read to its end, nothing else can be said.
_OF_FILE = ("symlinks", "owners", "groups", "mode", "folder_mode")


class Verdict(NamedTuple):
    """What is to be said of one image; *findings* are in the order of `RULES`, waived ones included."""

    path: str
    size: int
    sha256: Optional[str]
    findings: Tuple[Finding, ...]

    def worst(self) -> Optional[str]:
        """Return the worst severity of what is not waived, None if there is nothing."""
        return next((one for one in reversed(SEVERITIES) if self.refused(one)), None)

    def counting(self, severity: str = ERROR) -> List[Finding]:
        """Return the findings that are at least as bad as *severity*."""
        return [finding for finding in self.findings if finding.counts(severity)]

    def refused(self, severity: str = ERROR) -> bool:
        """Whether there is a finding at least as bad as *severity*."""
        return bool(self.counting(severity))

    @property
    def shown(self) -> str:
        """The path as text; bytes that are none are escaped, and what could move a cursor."""
        return printable(self.path)

    def as_dict(self) -> Dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "path": self.shown,
            "size": self.size,
            "sha256": self.sha256,
            "severity": self.worst(),
            "findings": [finding._asdict() for finding in self.findings],
        }


def judge(image: Image, policy: Policy, lock: Lock, now: float) -> Verdict:
    """Hold *image* against *policy*, at the time *now* (seconds since 1970)."""
    folder = image.real.rpartition("/")[0] or "/"
    findings: List[Finding] = []
    for demands in policy.demands(folder, image.contents.sha256, image.contents.labels or {}):
        case = Case(image, demands.rules, lock, policy.revoked, now)
        for rule in RULES:
            if demands.scope and rule.id in (*image_policy.ALWAYS, *image_policy.BESIDES):
                continue
            if image.failure and rule.id not in (*_OF_FILE, image.failure[0]):
                continue
            waiver = demands.waivers.get(rule.id)
            severity = demands.severities.get(rule.id, rule.severity)
            if image.failure and rule.id == image.failure[0]:
                # Nothing else was judged, so nobody has decided to live with it.
                waiver, severity = None, ERROR
            for evidence in rule.check(case):
                waived = str(waiver) if waiver else ""
                findings.append(Finding(rule.id, severity, evidence, rule.mend, demands.scope, waived))
    return Verdict(image.path, image.size, image.contents.sha256, tuple(dict.fromkeys(findings)))

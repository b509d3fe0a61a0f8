# SPDX-License-Identifier: Apache-2.0
"""Image policy: what a site demands of an image, and of which images it demands it.

A policy is plain data (`read` takes what YAML made of the file) with the keys *rules*, *severities*,
*waivers*, *scopes* and *revoked*. A rule that is left out is not judged. A scope changes rules for some
images:

* one that names *directories* or *digests* replaces, rule by rule, what stands above it;
* one that names *labels* can only add demands, as whoever builds an image writes its labels: what it says is
  judged beside the rest, never instead of it.

`image_rules` holds an image against it.
"""

from __future__ import annotations

import datetime
import fnmatch
import hashlib
import json
import re
from dataclasses import dataclass, field, fields, replace
from typing import Any, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Tuple, Union

from . import apptainer_waivers, openpgp, typed
from .apptainer_waivers import Waiver
from .sif import ARCHITECTURES, DEFAULT_LIMITS
from .typed import Field

ERROR, WARNING, INFO = "error", "warning", "info"
#: From the least to the worst.
SEVERITIES = (INFO, WARNING, ERROR)

FILE_SYSTEMS = ("squashfs", "ext3", "archive", "raw")
FORBIDDEN, REQUIRED = "forbidden", "required"

#: Without the rule, too: what is larger is no image that anybody meant, and would be read for minutes.
DEFAULT_MAX_SIZE_MIB = DEFAULT_LIMITS.file_size // (1024 * 1024)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PEM_KEY = re.compile(r"sha256:[0-9a-f]{64}")
_INSIDE = re.compile(r"/.*")
_FOLDER = re.compile(r"/|(/(?!\.{1,2}(/|$))[^/]+)+/?")


class PolicyError(ValueError):
    """A policy that is none; *problems* are sentences that begin with the place."""

    def __init__(self, problems: List[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Signers(NamedTuple):
    """*required* of these *allowed* ones, as `sif_signers` names them, each have to sign all of an image."""

    allowed: Tuple[str, ...]
    required: int


@dataclass(frozen=True)
class Rules:
    """What is demanded; None (or False) for what is not judged. The keys are those of the policy.

    Paths in *setuid_files* and the like are patterns of those that are allowed, within the image. *mode* and
    *folder_mode* are the most permission bits that a file, and the folders above it, may have; *owners* and
    *groups* are names or numbers.
    """

    locked: bool = False
    signatures: Optional[Signers] = None
    architectures: Optional[Tuple[str, ...]] = None
    file_systems: Optional[Tuple[str, ...]] = None
    encryption: Optional[str] = None
    overlay: Optional[str] = None
    setuid_files: Optional[Tuple[str, ...]] = None
    device_nodes: Optional[Tuple[str, ...]] = None
    file_capabilities: Optional[Tuple[str, ...]] = None
    writable_folders: Optional[Tuple[str, ...]] = None
    labels: Optional[Mapping[str, str]] = None
    bootstrap_sources: Optional[Tuple[str, ...]] = None
    max_age_days: Optional[int] = None
    max_size_mib: Optional[int] = None
    owners: Optional[Tuple[str, ...]] = None
    groups: Optional[Tuple[str, ...]] = None
    mode: Optional[int] = None
    folder_mode: Optional[int] = None
    symlinks: Optional[str] = None


@dataclass(frozen=True)
class Scope:
    """Rules for some images: those in *directories*, of *digests*, with *labels*; all that are given.

    *rules* has what the scope says, by key. *severities* and *waivers* are empty where *labels* are given.
    """

    name: str
    directories: Tuple[str, ...] = ()
    digests: Tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    rules: Mapping[str, Any] = field(default_factory=dict)
    severities: Mapping[str, str] = field(default_factory=dict)
    waivers: Mapping[str, Waiver] = field(default_factory=dict)

    def covers(self, folder: str, sha256: Optional[str], labels: Mapping[str, str]) -> bool:
        """Whether it is for an image in *folder* with that digest and these labels."""
        return (
            (not self.directories or any(_below(folder, pattern) for pattern in self.directories))
            and (not self.digests or sha256 in self.digests)
            and labels_match(labels, self.labels)
        )


@dataclass(frozen=True)
class Demands:
    """What is demanded of one image. *scope* names the label scope that adds them, or is empty."""

    rules: Rules
    severities: Mapping[str, str]
    waivers: Mapping[str, Waiver]
    scope: str = ""


@dataclass(frozen=True)
class Policy:
    """A policy that was read. *revoked* has the reason by SHA-256; *fingerprint* tells two policies apart."""

    rules: Rules = Rules()
    severities: Mapping[str, str] = field(default_factory=dict)
    waivers: Mapping[str, Waiver] = field(default_factory=dict)
    scopes: Tuple[Scope, ...] = ()
    revoked: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""

    def demands(self, folder: str, sha256: Optional[str], labels: Mapping[str, str]) -> Tuple[Demands, ...]:
        """Return what is demanded of an image; the first has no label scope, each of the rest has one.

        *folder* is the real path of the folder it is in.
        """
        rules, severities, waivers = self.rules, dict(self.severities), dict(self.waivers)
        adding: List[Scope] = []
        for scope in self.scopes:
            if not scope.covers(folder, sha256, labels):
                continue
            if scope.labels:
                adding.append(scope)
            else:
                rules = replace(rules, **scope.rules)
                severities.update(scope.severities)
                waivers.update(scope.waivers)
        first = Demands(rules, severities, waivers)
        return (
            first,
            *(replace(first, rules=replace(Rules(), **scope.rules), scope=scope.name) for scope in adding),
        )

    def largest(self, folder: str) -> Optional[int]:
        """Return how many MiB an image in *folder* may have, whatever its digest and labels; None for any.

        It is known before the image is read, so that none is read that is too large for every scope. Where
        the rule is waived or less than an error somewhere, none is too large to be read.
        """
        rule = "max_size_mib"
        scopes = [scope for scope in self.scopes if not scope.labels]
        said: List[Union[Policy, Scope]] = [self, *scopes]
        if any(one.severities.get(rule, ERROR) != ERROR or rule in one.waivers for one in said):
            return None
        here = [scope for scope in scopes if replace(scope, digests=()).covers(folder, None, {})]
        limit = self.rules.max_size_mib or DEFAULT_MAX_SIZE_MIB
        limits = [limit]
        for scope in here:
            if rule in scope.rules:
                of_scope = scope.rules[rule] or DEFAULT_MAX_SIZE_MIB
                # A scope of digests may be for this image or not; one of folders alone is.
                limits = [*limits, of_scope] if scope.digests else [of_scope]
        return max(limits)

    @property
    def judged(self) -> FrozenSet[str]:
        """The keys of all rules that it judges of some image."""
        said: List[Mapping[str, Any]] = [vars(self.rules), *(scope.rules for scope in self.scopes)]
        return frozenset(key for rules in said for key, value in rules.items() if value not in (None, False))

    @property
    def reads_labels(self) -> bool:
        """Whether a verdict can hang on the labels of an image."""
        return "labels" in self.judged or any(scope.labels for scope in self.scopes)


# --- the schema ---------------------------------------------------------------------------------------------


def signer(value: object) -> str:
    """Read who signs: a fingerprint, or what `sif_signers.PemKey` names a key in PEM. Raises ValueError."""
    if isinstance(value, str) and _PEM_KEY.fullmatch(value):
        return value
    try:
        return openpgp.check_fingerprint(value)
    except openpgp.OpenPGPError as error:
        raise ValueError(f"is wrong: {error}") from error


def _signers(signers: Tuple[str, ...], required: int = 1) -> Signers:
    if required > len(signers):
        raise ValueError(f".required: must be at most {len(signers)}, the number of signers, not {required}")
    return Signers(signers, required)


_read_signatures = typed.nested(
    {"signers": Field(typed.items(signer, least=1), required=True), "required": Field(typed.integer(1))},
    _signers,
)


def _signatures(value: object) -> Any:
    # Null would be one of them, where somebody meant more.
    if isinstance(value, Mapping) and value.get("required", 1) is None:
        raise ValueError(".required: says nothing; leave it out if one is enough")
    return _read_signatures(value)


def _label_patterns(value: object) -> Dict[str, str]:
    """Read label → pattern of its value."""
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"must be a mapping of labels to patterns, not {typed.shown(value)}")
    for key, pattern in value.items():
        if not isinstance(key, str) or not isinstance(pattern, str) or not pattern:
            raise ValueError(f'.{key}: must be a pattern such as "*" in quotes, not {typed.shown(pattern)}')
    return dict(value)


def _mode(value: object) -> int:
    # A number without quotes is octal or decimal, depending on who reads YAML.
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        raise ValueError(f'must be an octal mode in quotes such as "0644", not {typed.shown(value)}')
    return int(value, 8)


def _owner(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    return str(typed.text(re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]*\$?|[0-9]+"), "a name or a number")(value))


sha256 = typed.text(_SHA256, "a SHA-256 of 64 lower-case hexadecimal digits in quotes")
_allowed_paths = typed.items(typed.text(_INSIDE, "an absolute path within the image"))
_patterns = typed.items(typed.text(), least=1)

#: The rules that a policy can have.
RULES: Mapping[str, Field] = {
    "locked": Field(typed.boolean),
    "signatures": Field(_signatures),
    "architectures": Field(
        typed.items(typed.choice(*(name for name in ARCHITECTURES.values() if name != "unknown")), least=1)
    ),
    "file_systems": Field(typed.items(typed.choice(*FILE_SYSTEMS), least=1)),
    "encryption": Field(typed.choice(REQUIRED, FORBIDDEN)),
    "overlay": Field(typed.choice(FORBIDDEN)),
    "setuid_files": Field(_allowed_paths),
    "device_nodes": Field(_allowed_paths),
    "file_capabilities": Field(_allowed_paths),
    "writable_folders": Field(_allowed_paths),
    "labels": Field(_label_patterns),
    "bootstrap_sources": Field(_patterns),
    "max_age_days": Field(typed.integer(1)),
    "max_size_mib": Field(typed.integer(1)),
    "owners": Field(typed.items(_owner, least=1)),
    "groups": Field(typed.items(_owner, least=1)),
    "mode": Field(_mode),
    "folder_mode": Field(_mode),
    "symlinks": Field(typed.choice(FORBIDDEN)),
}

#: Rules about the files within an image, which have to be listed for them.
INSIDE = frozenset(("setuid_files", "device_nodes", "file_capabilities", "writable_folders"))
#: What is judged always, and can be neither waived nor made less than an error: no image, no verdict.
ALWAYS = ("readable", "structure", "unchanged", "revoked")
#: What is judged always, and can be waived.
BESIDES = ("system_partition", "remarks")
#: What can be waived and given another severity.
WAIVABLE = frozenset((*RULES, *BESIDES))


def _severities(value: object) -> Dict[str, str]:
    fields_of = {rule: Field(typed.choice(*SEVERITIES)) for rule in sorted(WAIVABLE)}
    return dict(typed.nested(fields_of)(value))


def _rules(value: object) -> Dict[str, Any]:
    """Read the rules of all images; one with null is one that somebody forgot to write to its end."""
    result: Dict[str, Any] = typed.nested(RULES)(value)
    assert isinstance(value, Mapping)  # noqa: S101 - or the line above had raised
    empty = [key for key, one in value.items() if one is None]
    if empty:
        raise ValueError(
            "\n".join(f".{key}: says nothing; leave it out if it is not demanded" for key in empty)
        )
    return result


def _scope_rules(value: object) -> Dict[str, Any]:
    """Read the rules of a scope; one with null is there, and says that it is not judged."""
    result = dict(typed.nested(RULES)(value))
    defaults = {one.name: one.default for one in fields(Rules)}
    assert isinstance(value, Mapping)  # noqa: S101 - or the line above had raised
    result.update({key: defaults[key] for key, one in value.items() if one is None})
    return result


def _check_scope(scope: Mapping[str, Any], where: str, problems: List[str]) -> None:
    for key in ("severities", "waivers"):
        if scope.get("labels") and scope.get(key):
            problems.append(
                f"{where}.{key}: is nothing for a scope with labels, which builders of images write: "
                "name directories or digests instead"
            )
    conditions = ("directories", "digests", "labels")
    if not any(scope.get(key) is not None for key in conditions):
        problems.append(f"{where}: names no directories, digests or labels, so it is for no image")
    else:
        # The scope would be for more images than somebody meant.
        empty = [key for key in conditions if key in scope and scope[key] is None]
        problems.extend(f"{where}.{key}: says nothing; leave it out if any will do" for key in empty)


def read(value: object, today: datetime.date) -> Policy:
    """Read a policy from the data that YAML gave, expired waivers being errors from *today* on.

    Raises PolicyError, with everything that is wrong.
    """
    problems: List[str] = []

    def waivers(where: str) -> typed.Reader:
        def reader(value: object) -> Mapping[str, Waiver]:
            good, wrong = apptainer_waivers.read(value, WAIVABLE, today)
            problems.extend(f"{where}waivers: {problem}" for problem in wrong)
            return good

        return reader

    def scope(where: str) -> Mapping[str, Field]:
        return {
            "name": Field(typed.text(), required=True),
            "directories": Field(typed.items(typed.text(_FOLDER, "an absolute path without . and .."), 1)),
            "digests": Field(typed.items(sha256, 1)),
            "labels": Field(_label_patterns),
            "rules": Field(_scope_rules),
            "severities": Field(_severities),
            "waivers": Field(waivers(where)),
        }

    def scopes(value: object) -> Tuple[Scope, ...]:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"must be a list of scopes, not {typed.shown(value)}")
        result = []
        for number, one in enumerate(value, 1):
            where = f"scopes[{number}]"
            good = typed.mapping(one, scope(f"{where}."), where, problems)
            if "name" in good:
                _check_scope(one, where, problems)
                result.append(Scope(**good))
        names = [one.name for one in result]
        problems.extend(
            f"scopes: {name} is there twice; each scope has a name of its own"
            for name in sorted({name for name in names if names.count(name) > 1})
        )
        return tuple(result)

    revoked = typed.items(
        typed.nested({"sha256": Field(sha256, required=True), "reason": Field(typed.text(), required=True)})
    )
    top: Mapping[str, Field] = {
        "rules": Field(_rules),
        "severities": Field(_severities),
        "waivers": Field(waivers("")),
        "scopes": Field(scopes),
        "revoked": Field(revoked),
    }
    good = typed.mapping(value, top, "", problems)
    if problems:
        raise PolicyError(problems)
    return Policy(
        rules=replace(Rules(), **good.get("rules", {})),
        severities=good.get("severities", {}),
        waivers=good.get("waivers", {}),
        scopes=good.get("scopes", ()),
        revoked={one["sha256"]: one["reason"] for one in good.get("revoked", ())},
        fingerprint=fingerprint(value),
    )


def fingerprint(*values: object) -> str:
    """Return a digest that is another one for other data."""
    words = json.dumps(values, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(words.encode()).hexdigest()


def labels_match(labels: Mapping[str, str], patterns: Mapping[str, str]) -> bool:
    """Whether each of the *patterns* has a label with a value that it matches."""
    return all(key in labels and fnmatch.fnmatchcase(labels[key], patterns[key]) for key in patterns)


def path_matches(path: str, patterns: Tuple[str, ...]) -> bool:
    """Whether one of the *patterns* matches *path* component by component, ``*`` within one of them."""
    return any(_components_match(path.split("/"), pattern.split("/")) for pattern in patterns)


def _components_match(components: List[str], patterns: List[str]) -> bool:
    return len(components) == len(patterns) and all(map(fnmatch.fnmatchcase, components, patterns))


def _below(folder: str, pattern: str) -> bool:
    """Whether *folder* is one that *pattern* matches, or below one."""
    patterns = pattern.rstrip("/").split("/")
    return _components_match(folder.rstrip("/").split("/")[: len(patterns)], patterns)

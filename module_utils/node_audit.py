# SPDX-License-Identifier: Apache-2.0
"""What an audit sees of a node: what it is, and what is wrong with it. Nothing is changed.

Every finding is the same flat row, so that it can be counted, folded over nodes, stored and compared. Each
part asks the knowledge that converges and checks use themselves: the record, the rules of Apptainer, the
setuid audit, the policy of images, the health program, the result of the last pull.
"""

from __future__ import annotations

import json
import os
import re
import stat
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from . import (
    apptainer_conf,
    apptainer_profiles,
    apptainer_rules,
    apptainer_version,
    atomic_file,
    health_checks,
    mounts,
    node_health,
    node_record,
    setuid_audit,
)
from . import pull as pulls
from .image_rules import Verdict

ERROR, WARNING, INFO = "error", "warning", "info"
#: Worst first.
SEVERITIES = (ERROR, WARNING, INFO)
#: Settings of the scanner of images.
SCANNER = "/etc/apptainer-fleet/image-scan.json"
_SITE = "run fleet site for this node"
_MAGIC = re.compile(r"[*?[]")


class Finding(NamedTuple):
    """One thing that is wrong.

    :param source: what found it: ``drift``, ``version``, ``profile``, ``rule``, ``advisory``, ``waiver``,
        ``setuid``, ``image``, ``health``, ``pull``, or ``audit`` if it could not be looked at.
    :param rule: what is broken, by the name that *source* has for it.
    :param severity: one of `SEVERITIES`, whether or not it is waived.
    :param subject: the directive, package, unit, mount point or whatever it is about.
    :param message: what is wrong, and *mend* what to do about it.
    :param file: where, and *line* in it from 1; 0 for the whole file.
    :param evidence: what was seen. *reference* is where to read on.
    :param waived: until when and for which reason it is waived, empty if it is not.
    """

    source: str
    rule: str
    severity: str
    subject: str
    message: str
    mend: str
    file: str = ""
    line: int = 0
    evidence: str = ""
    reference: str = ""
    waived: str = ""


# --- drift --------------------------------------------------------------------------------------------------

_WORDS = {"files": "file", "packages": "package", "sysctls": "kernel parameter", "units": "unit"}
_MENDS = {
    "files": f"{_SITE}, which writes it anew; what the site wants otherwise belongs into the inventory",
    "packages": f"{_SITE}, which installs what the inventory has",
    "sysctls": f"{_SITE}, which sets it",
    "units": f"systemctl status {{name}}; {_SITE}, which starts what has to run",
    "mounts": "mount it (mount {name}), or mend what mounts it; then run fleet site for this node",
    "setuid": "if nobody knows what it is for: chmod u-s,g-s {name}, then look where it came from",
}


def drift(content: str, run: node_record.Run, root: str = "") -> Tuple[List[Finding], List[str]]:
    """Compare the node with the record *content*; return what differs, and the setuid programs there are.

    :param content: of `node_record.PATH`, empty if there is none.
    """
    try:
        watch, before = node_record.read(content)
        recorded = node_record.read_lines(content)
    except (ValueError, KeyError) as error:
        said = f"can't be read: {error}" if content else "is not there, so nobody knows what a converge left"
        mend = f"{_SITE}: a whole converge writes it"
        path = node_record.PATH
        return [Finding("drift", "record", WARNING, path, f"the record {said}", mend, path)], []
    now = node_record.look(watch, run, root)
    return (
        [
            _drifted(one, node_record.place(one.name, recorded, now, root) if one.topic == "files" else None)
            for one in node_record.differences(before, now)
        ],
        sorted(now["setuid"]),
    )


def _drifted(one: node_record.Difference, place: Optional[node_record.Place]) -> Finding:
    what = f"{_WORDS.get(one.topic, one.topic.rstrip('s'))} {one.name}"
    was, now = one.was.split(), one.now.split()
    if was[0] == now[0] == "sha256":
        # Digests say nothing to people, but that they differ.
        parts = ["content differs"] if was[1] != now[1] else []
        parts += [f"{' '.join(was[2:])} → {' '.join(now[2:])}"] if was[2:] != now[2:] else []
        message = f"{what}: {', '.join(parts)}"
    else:
        before, after = ("a file" if text.startswith("sha256 ") else text for text in (one.was, one.now))
        message = f"{what}: {before} → {after}"
    evidence = "" if place is None else f"now {place.text.strip()!r}" if place.text else "lines are gone"
    file = one.name if one.topic in ("files", "setuid") else ""
    return Finding(
        "drift", one.topic, ERROR, one.name, f"{message} since the last converge",
        _MENDS[one.topic].format(name=one.name), file, place.line if place else 0, evidence,
    )  # fmt: skip


# --- Apptainer ----------------------------------------------------------------------------------------------


def apptainer(
    node: apptainer_rules.Node,
    wanted: str,
    waivers: Mapping[str, Any],
    problems: Iterable[str] = (),
    conf: Tuple[str, str] = ("", ""),
) -> List[Finding]:
    """Judge the Apptainer of a node: its version, whether its profile holds, rules and advisories.

    :param node: what `apptainer_facts.gather` has found.
    :param wanted: the version of the inventory, empty if it has none.
    :param waivers: what `apptainer_waivers.read` returned, and *problems* of those that do not count.
    :param conf: path and text of apptainer.conf, for the lines.
    """
    found = list(_version(node, wanted))
    if node.profile and node.version:
        mend = f"{_SITE}; see docs/profiles.md"
        for why in broken_profile(node, node.profile):
            message = f"profile {node.profile} does not hold: {why}"
            found.append(Finding("profile", node.profile, ERROR, node.profile, message, mend))
    judged = [*map(apptainer_rules.bad_waiver, problems), *apptainer_rules.judge(node, waivers)]
    return [*found, *(_judged(one, *conf) for one in judged)]


def _version(node: apptainer_rules.Node, wanted: str) -> Iterator[Finding]:
    if not wanted:
        return
    installed = node.package_version or node.version
    mend = (
        f"{_SITE}, or fleet rollout for many; a hold that somebody has set has to go first, or"
        " apptainer_release_hold is true"
    )
    if not installed:
        message = f"Apptainer is not there, wanted is {wanted}"
        yield Finding("version", "missing", ERROR, "apptainer", message, mend)
    elif not apptainer_version.parse(wanted).matches(installed):
        message = f"Apptainer {installed} is installed, wanted is {wanted}"
        yield Finding("version", "differs", ERROR, "apptainer", message, mend)


def broken_profile(node: apptainer_rules.Node, profile: str) -> Iterator[str]:
    """Yield why *profile* does not really hold on *node*; what is not known is no reason."""
    wanted = apptainer_profiles.PROFILES[profile]
    if wanted.suid and node.suid is False:
        yield "there is no setuid starter"
    if not wanted.suid and node.suid:
        yield "there is a setuid starter"
    if node.user_namespaces is not None and node.user_namespaces != wanted.user_namespaces:
        can = "can" if node.user_namespaces else "can't"
        yield f"users {can} create user namespaces ({node.user_namespaces_why})"
    if wanted.whitestrict and not node.ecl_active:
        yield "the list of images (ecl.toml) is not on"
    for setting in wanted.settings:
        value = node.value(setting.directive)
        if not setting.open and value is not None and value not in setting.values:
            yield f"{setting.directive} = {value}"


def _judged(one: apptainer_rules.Finding, path: str, text: str) -> Finding:
    source = "advisory" if one.id == "L30" else "waiver" if one.id == "waiver" else "rule"
    rule = one.subject if source == "advisory" else one.id
    file, line = ("", 0)
    if one.subject.startswith("/"):
        file = one.subject
    elif source == "rule" and path:
        line = _line(text, one.subject)
        file = path if line else ""
    return Finding(
        source, rule, one.severity, one.subject, one.message, one.mend, file, line, one.evidence,
        one.reference, one.waived,
    )  # fmt: skip


def _line(text: str, subject: str) -> int:
    """Where apptainer.conf has *subject*, a directive or ``line 12``; 0 if it has not."""
    number = re.fullmatch(r"line ([0-9]+)", subject)
    if number:
        return int(number[1])
    return next((line.number for line in apptainer_conf.lines(text) if line.name == subject), 0)


# --- setuid -------------------------------------------------------------------------------------------------


def setuid(
    audit: setuid_audit.Audit,
    recorded: Iterable[str],
    allowed: Sequence[str],
    owners: Callable[[List[str]], Optional[Dict[str, str]]],
) -> Iterator[Finding]:
    """Yield the setuid programs that no package has brought, and what old installations have left.

    :param recorded: further setuid programs, those that :func:`drift` has seen.
    :param owners: paths → path → package; None where no package manager can say.
    """
    leftovers = {one.path: one for one in audit.findings if one.path not in allowed}
    programs = {path for path, one in leftovers.items() if one.kind == "setuid"}
    programs.update(path for path in recorded if path not in allowed)
    asked = sorted({*programs, *leftovers})
    packages = owners(asked) if asked else {}
    for path in asked:
        if packages is None or packages.get(path):
            continue
        if path in programs:
            rights = _rights(path)
            yield Finding(
                "setuid", "stray", ERROR, path, f"a setuid program that belongs to no package: {rights}",
                f"if nobody knows what it is for, look at it and remove it: rm {path}; else name it in"
                " node_record_setuid_allowed (node_record_disarm takes the bit from old starters)",
                path, 0, rights,
            )  # fmt: skip
        else:
            kind = {"program": "a program", "configuration": "configuration"}[leftovers[path].kind]
            message = f"{kind} of an old Singularity that belongs to no package"
            yield Finding("setuid", "leftover", WARNING, path, message, f"remove it: rm -r {path}", path)
    if audit.stopped_at is not None:
        yield Finding(
            "audit", "setuid", INFO, "setuid", f"only a part of the file systems was looked through,"
            f" {audit.entries} names, until the time was over at {audit.stopped_at}",
            "run the module setuid_audit with a longer deadline",
        )  # fmt: skip


def _rights(path: str) -> str:
    try:
        status = os.lstat(path)
    except OSError as error:
        return str(error.strerror)
    return f"mode {stat.S_IMODE(status.st_mode):04o} owner {status.st_uid}:{status.st_gid}"


# --- images -------------------------------------------------------------------------------------------------


class Store(NamedTuple):
    """A place with images. *id* is the same on all nodes that share it; *shared*: it is on a network."""

    id: str
    path: str
    shared: bool


def stores(paths: Iterable[str], mountinfo: str) -> List[Store]:
    """Say of each path or pattern which file system it is on, without asking any server."""
    mounted = setuid_audit.visible(mounts.parse(mountinfo))
    found = []
    for path in paths:
        fixed = _MAGIC.split(path)[0]
        place = fixed if fixed == path else fixed.rpartition("/")[0] or "/"
        mount = setuid_audit.mount_of(place, mounted)
        if mount is None or mount.type not in mounts.NETWORK_TYPES:
            found.append(Store(path, path, False))
            continue
        inside = f"{mount.root.rstrip('/')}/{path[len(mount.path.rstrip('/')) :].lstrip('/')}"
        found.append(Store(f"{mount.type} {mount.source} {inside}", path, True))
    return found


def images(verdicts: Iterable[Verdict], store: Store) -> Tuple[List[Finding], Dict[str, Any]]:
    """Return what is wrong with the images of a store, and how many there are."""
    found, number, refused = [], 0, 0
    for verdict in verdicts:
        number += 1
        refused += verdict.refused()
        for one in verdict.findings:
            found.append(
                Finding(
                    "image",
                    one.rule,
                    one.severity,
                    verdict.shown,
                    f"image {verdict.shown}: {one.evidence}",
                    one.mend,
                    verdict.shown,
                    0,
                    f"sha256 {verdict.sha256}" if verdict.sha256 else "",
                    "docs/images.md",
                    one.waived,
                )  # fmt: skip
            )
    return found, {**store._asdict(), "images": number, "refused": refused}


def other_policy(wanted: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield a finding if the scanner of the node works with other settings than the site has."""
    try:
        settings = json.loads(atomic_file.read(SCANNER) or b"null")
    except (OSError, ValueError):
        settings = {}
    if settings is None:
        return
    differing = [name for name in ("policy", "lock", "keyrings") if settings.get(name) != wanted[name]]
    if differing:
        message = f"the scanner of images has another {' and '.join(differing)} than the site"
        mend = "run playbooks/images.yml, or fleet site for this node"
        yield Finding("image", "scanner", WARNING, SCANNER, message, mend, SCANNER)


# --- health, pull -------------------------------------------------------------------------------------------


def health(path: str = node_health.SETTINGS) -> Tuple[List[Finding], str]:
    """Ask the health checks of the node; return what failed, and ``healthy``, ``unhealthy`` or empty.

    Those that do something, and more than look, are not made: what they last said to the health program
    counts.
    """
    if not os.path.exists(path):  # noqa: PTH110
        return [], ""
    state = node_health.remembered(node_health.STATE)
    try:
        settings = node_health.load(path)
    except node_health.HealthError as error:
        mend = f"{_SITE}, which writes its settings"
        return [Finding("health", "settings", ERROR, path, str(error), mend, path)], "unknown"
    looking = [name for name in settings.checks if name not in health_checks.ACTING]
    checks = dict(node_health.examine(settings, state, looking).checks) if looking else {}
    checks.update({name: one for name, one in state.get("acted", {}).items() if name in settings.checks})
    mend = "see docs/node-health.md for this check"
    failed = [(name, str(one["message"])) for name, one in checks.items() if not one["ok"]]
    return [
        Finding("health", name, ERROR, name, f"health check {name}: {message}", mend)
        for name, message in failed
    ], "unhealthy" if failed else "healthy"


def pull(settings: str = pulls.SETTINGS, result: str = pulls.RESULT) -> Tuple[List[Finding], str]:
    """Say how the last pull of the node ended: what is wrong, and ``outcome at commit``; empty if it does
    not converge itself.
    """
    if not os.path.exists(settings):  # noqa: PTH110
        return [], ""
    mend = "systemctl status apptainer-fleet-pull; see docs/pull.md"
    try:
        said = json.loads(atomic_file.read(result) or b"{}")
        outcome, commit, why = (str(said.get(name) or "") for name in ("outcome", "commit", "message"))
    except (OSError, ValueError, AttributeError) as error:
        return [Finding("pull", "result", ERROR, result, f"can't be read: {error}", mend, result)], "unknown"
    if not outcome:
        return [Finding("pull", "never", WARNING, result, "the node has never pulled", mend, result)], "never"
    state = f"{outcome} at {commit[:12]}" if commit else outcome
    if outcome == "converged":
        return [], state
    return [Finding("pull", outcome, ERROR, result, f"the last pull: {outcome}: {why}", mend, result)], state

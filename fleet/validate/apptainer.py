"""The rules of ``module_utils.apptainer_rules`` over what an inventory wants of a node."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from fleet.validate.findings import Severity
from module_utils import (
    apptainer_conf,
    apptainer_conf_lint,
    apptainer_files,
    apptainer_profiles,
    apptainer_rules,
    apptainer_state,
    apptainer_version,
    apptainer_waivers,
    openpgp,
)

_SOURCES = ("package_files", "replace_singularity", "tree")
#: What a judgement hangs on.
VARIABLES = (
    *(f"apptainer_{option}" for option in apptainer_files.FORMATS),
    "apptainer_keys",
    *(f"apptainer_{name}" for name in _SOURCES),
    "apptainer_profile",
    "apptainer_repository",
    "apptainer_version",
    "apptainer_waivers",
    "slurm_gres",
    "user_namespaces_enabled",
)
# Where to look for what a rule speaks of; the configuration, if not here.
_VARIABLE = {
    "L07": "user_namespaces_enabled",
    "L10": "apptainer_ecl",
    "L11": "apptainer_ecl",
    "L27": "apptainer_capabilities",
    "L30": "apptainer_version",
    "waiver": "apptainer_waivers",
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """One thing that is wrong with what is wanted; ``variable`` is where to mend it."""

    severity: Severity
    rule: str
    variable: str
    what: str
    mend: str = ""


def judge(values: Mapping[str, Any], unknown: Set[str] = frozenset()) -> Iterator[Judgement]:
    """Judge the values of ``VARIABLES`` for a node; those of the *unknown* ones are None.

    What types and choices say of a value is taken for granted: a value of another type is left out.
    """
    today = datetime.date.today()
    waivers, problems = apptainer_waivers.read(
        values["apptainer_waivers"] or [], apptainer_rules.WAIVABLE, today
    )
    findings = [apptainer_rules.bad_waiver(problem) for problem in problems]
    node, contradictions = _node(values)
    yield from (one for one in contradictions if one.variable not in unknown)
    for finding in (*findings, *apptainer_rules.judge(node, waivers)):
        severity = Severity.ERROR if finding.stops else Severity.WARNING
        what = f"{finding.message} ({finding.waived})" if finding.waived else finding.message
        variable = _VARIABLE.get(finding.id, "apptainer_config")
        if finding.id == "L08" and node.profile == "enforced":
            # There the limits are the profile's, and one thing alone can make them void.
            variable = "user_namespaces_enabled"
        yield Judgement(severity, finding.id, variable, what, finding.mend)


def _node(values: Mapping[str, Any]) -> tuple[apptainer_rules.Node, list[Judgement]]:
    """What is known of a node, and what of its variables can't be had together."""
    profile, config, version = (values[f"apptainer_{name}"] for name in ("profile", "config", "version"))
    enabled, gres = values["user_namespaces_enabled"], values["slurm_gres"]
    node = apptainer_rules.Node(
        profile=profile,
        user_namespaces=enabled if isinstance(enabled, bool) else None,
        user_namespaces_why=f"user_namespaces_enabled: {str(enabled).lower()}",
        has_gpu=any(isinstance(one, dict) and one.get("name") == "gpu" for one in gres)
        if isinstance(gres, list)
        else None,
    )
    if profile not in apptainer_profiles.PROFILES or not isinstance(config, dict):
        return node, []
    try:
        release = apptainer_version.parse(version).release
    except apptainer_version.VersionError:
        return node, []
    node = replace(node, version=str(version), suid=apptainer_profiles.PROFILES[profile].suid)
    options = {option: values[f"apptainer_{option}"] for option in apptainer_files.FORMATS}
    try:
        node = replace(node, problems=apptainer_conf_lint.check(config, release))
        desired = apptainer_state.desired_state(
            version,
            profile,
            values["apptainer_repository"] or {},
            options,
            {name: values[f"apptainer_{name}"] for name in _SOURCES},
        )
    except apptainer_conf.UnknownReleaseError as error:
        return node, [Judgement(Severity.ERROR, "release", "apptainer_version", str(error))]
    except apptainer_state.StateError as error:
        said = {f"apptainer_config: {problem.message}" for problem in node.problems or ()}
        return node, [
            Judgement(Severity.ERROR, "contradiction", *problem.split(": ", 1))
            for problem in error.problems
            if problem not in said
        ]
    known = apptainer_rules.wanted(desired, profile, fingerprints(values["apptainer_keys"]))
    return replace(
        node,
        version=known.version,
        suid=known.suid,
        directives=known.directives,
        ecl=known.ecl,
        grants=known.grants,
        keyring=known.keyring,
    ), []


def fingerprints(keys: Any) -> list[str] | None:
    """The fingerprints of ``apptainer_keys``; None if the keyring is the site's own, or one is unreadable."""
    try:
        return None if keys is None else [openpgp.check_fingerprint(key["fingerprint"]) for key in keys]
    except (openpgp.OpenPGPError, KeyError, TypeError):
        return None

# SPDX-License-Identifier: Apache-2.0
"""Filters of the role apptainer."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from module_utils import apptainer_rules, apptainer_state, apptainer_waivers


def apptainer_desired_state(
    version: object,
    profile: object,
    repository: Mapping[str, Any],
    options: Mapping[str, Any],
    sources: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Return the desired state of a node: see `module_utils.apptainer_state.desired_state`.

    Raises AnsibleFilterError with one line for each problem, which begins with the variable.
    """
    try:
        return apptainer_state.desired_state(version, profile, repository, options, sources)
    except apptainer_state.StateError as error:
        raise AnsibleFilterError(str(error)) from error


def apptainer_refuse_errors(
    desired: Mapping[str, Any],
    profile: str,
    waivers: object,
    keys: Sequence[Mapping[str, str]] | None = None,
    user_namespaces: bool | None = None,
) -> Mapping[str, Any]:
    """Return the desired state of a node as it is, if no rule finds an error in it that is not waived.

    desired: what `apptainer_desired_state` returns. profile, waivers, keys: ``apptainer_profile``,
    ``apptainer_waivers`` and ``apptainer_keys``. user_namespaces: ``user_namespaces_enabled``, None if that
    is not known here. Raises AnsibleFilterError with one line for each error.
    """
    good, problems = apptainer_waivers.read(waivers, apptainer_rules.WAIVABLE, datetime.date.today())
    fingerprints = None if keys is None else ["".join(key["fingerprint"].split()) for key in keys]
    node = apptainer_rules.wanted(desired, profile, fingerprints, user_namespaces)
    errors = [f"apptainer_waivers: {problem}" for problem in problems]
    errors += [str(finding) for finding in apptainer_rules.judge(node, good) if finding.stops]
    if errors:
        raise AnsibleFilterError("\n".join(errors))
    return desired


def apptainer_finding_texts(findings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return what `apptainer_lint` has found on a host, a line each."""
    return [str(apptainer_rules.Finding(**finding)) for finding in findings]


def apptainer_leftover_texts(configuration: Mapping[str, Any]) -> list[str]:
    """Return what there is to do by hand, of the result of `apptainer_config`: files that packages have left,
    and settings of Singularity that have not been carried over."""
    left = [f"a package has left {file}: compare, and remove it" for file in configuration["leftovers"]]
    return left + [f"not carried over: {text}" for text in configuration["not_inherited"]]


class FilterModule:
    """The filters, for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return filter name → function."""
        return {
            "apptainer_desired_state": apptainer_desired_state,
            "apptainer_refuse_errors": apptainer_refuse_errors,
            "apptainer_finding_texts": apptainer_finding_texts,
            "apptainer_leftover_texts": apptainer_leftover_texts,
        }

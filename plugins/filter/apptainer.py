# SPDX-License-Identifier: Apache-2.0
"""Filters of the role apptainer."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ClusterShell.NodeSet import NodeSet

from module_utils import apptainer_rules, apptainer_state, apptainer_waivers


def apptainer_desired_state(
    version: object, profile: object, repository: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the desired state of a node: see `module_utils.apptainer_state.desired_state`.

    Raises AnsibleFilterError with one line for each problem, which begins with the variable.
    """
    try:
        return apptainer_state.desired_state(version, profile, repository, config)
    except apptainer_state.StateError as error:
        raise AnsibleFilterError(str(error)) from error


def apptainer_refuse_errors(desired: Mapping[str, Any], profile: str, waivers: object) -> Mapping[str, Any]:
    """Return the desired state of a node as it is, if no rule finds an error in it that is not waived.

    desired: what `apptainer_desired_state` returns. profile, waivers: ``apptainer_profile`` and
    ``apptainer_waivers``. Raises AnsibleFilterError with one line for each error.
    """
    good, problems = apptainer_waivers.read(waivers, apptainer_rules.WAIVABLE, datetime.date.today())
    found = apptainer_rules.judge(apptainer_rules.wanted(desired, profile), good)
    errors = [f"apptainer_waivers: {problem}" for problem in problems]
    errors += [str(finding) for finding in found if finding.stops]
    if errors:
        raise AnsibleFilterError("\n".join(errors))
    return desired


def apptainer_findings_by_host(findings: Mapping[str, Sequence[Mapping[str, str]]]) -> list[str]:
    """Return what `apptainer_lint` has found on hosts, one line for each finding.

    findings: host → its findings. A line begins with the hosts that have the finding, as a hostlist.
    """
    hosts: dict[str, list[str]] = defaultdict(list)
    for host, found in findings.items():
        for finding in found:
            hosts[str(apptainer_rules.Finding(**finding))].append(host)
    return [f"{NodeSet.fromlist(names)}: {text}" for text, names in hosts.items()]


class FilterModule:
    """The filters, for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return filter name → function."""
        return {
            "apptainer_desired_state": apptainer_desired_state,
            "apptainer_refuse_errors": apptainer_refuse_errors,
            "apptainer_findings_by_host": apptainer_findings_by_host,
        }

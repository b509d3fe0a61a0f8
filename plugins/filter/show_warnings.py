# SPDX-License-Identifier: Apache-2.0
"""Warnings that are seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible import constants
from ansible.utils.display import Display
from ClusterShell.NodeSet import NodeSet


def show_warnings(lines: Sequence[str]) -> Sequence[str]:
    """Return *lines* as they are, and show each as a warning.

    Those of a module are not seen where its task changed nothing: ansible.cfg hides such tasks, and with them
    what they warn of.
    """
    for line in lines:
        Display().display(f"[WARNING]: {line}", color=constants.COLOR_WARN, stderr=True)
    return lines


def warnings_by_host(texts: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what there is to say of hosts, host → texts, one line for each text.

    A line begins with the hosts that have it, as a hostlist.
    """
    hosts: dict[str, list[str]] = defaultdict(list)
    for host, said in texts.items():
        for text in said:
            hosts[text].append(host)
    return [f"{NodeSet.fromlist(names)}: {text}" for text, names in hosts.items()]


class FilterModule:
    """The filters, for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return filter name → function."""
        return {"show_warnings": show_warnings, "warnings_by_host": warnings_by_host}

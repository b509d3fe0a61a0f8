# SPDX-License-Identifier: Apache-2.0
"""Warnings that are seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ansible import constants
from ansible.utils.display import Display


def show_warnings(lines: Sequence[str]) -> Sequence[str]:
    """Return *lines* as they are, and show each as a warning.

    Those of a module are not seen where its task changed nothing: ansible.cfg hides such tasks, and with them
    what they warn of.
    """
    for line in lines:
        Display().display(f"[WARNING]: {line}", color=constants.COLOR_WARN, stderr=True)
    return lines


class FilterModule:
    """The filter, for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return filter name → function."""
        return {"show_warnings": show_warnings}

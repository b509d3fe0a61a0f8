# SPDX-License-Identifier: Apache-2.0
"""Filter ``with_filters``: what makes Ansible's main process read the filters of the project."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def with_filters(value: Any) -> Any:
    """Return *value* as it is.

    Ansible reads all filter plugins when it looks for one of them, in the process that needs it, and forgets
    them with it. What the main process has read, for an expression of ``hosts:``, all workers have.
    """
    return value


class FilterModule:
    """How Ansible finds the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return name → function."""
        return {"with_filters": with_filters}

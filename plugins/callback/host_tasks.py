# SPDX-License-Identifier: Apache-2.0
"""Callback: how many tasks each host had, skipped ones too, since each costs the controller time."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: host_tasks
type: aggregate
short_description: Number of tasks of each host
description:
  - Writes, when a playbook ends, a JSON object of hosts to the names of their tasks, in order, to the file
    that the environment variable E(HOST_TASKS) names. A skipped task is one, too; one that runs once for all
    hosts is one of the host that it ran for.
  - For tests and benches.
requirements:
  - to be named in C(callbacks_enabled)
"""


class CallbackModule(CallbackBase):
    """Writes the names of each host's tasks."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "host_tasks"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._tasks: dict[str, list[str]] = {}

    def _count(self, result: object, *_: object, **__: object) -> None:
        self._tasks.setdefault(result._host.get_name(), []).append(result._task.get_name())

    v2_runner_on_ok = v2_runner_on_skipped = v2_runner_on_failed = v2_runner_on_unreachable = _count

    def v2_playbook_on_stats(self, stats: object) -> None:
        """Write what was counted."""
        Path(os.environ["HOST_TASKS"]).write_text(json.dumps(self._tasks))

# SPDX-License-Identifier: Apache-2.0
"""Callback plugin: how many tasks of a run were ok, changed or failed, and why it failed, as a JSON file."""

from __future__ import annotations

DOCUMENTATION = """
name: pull_counts
type: aggregate
short_description: Counts of a run as a JSON file
description:
  - Writes the file named in the environment variable E(PULL_COUNTS) when a run ends.
requirements: []
"""

import json
import os
from pathlib import Path

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    """What Ansible calls."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "pull_counts"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self):
        super().__init__()
        self._message = ""

    def v2_runner_on_failed(self, result, ignore_errors=False):
        # The last one ended the run; those before were rescued. With no_log, Ansible has censored it.
        if not ignore_errors:
            said = result.result.get("msg") or result.result.get("stderr") or "no message"
            self._message = f"{result.task.get_name()}: {said}"

    def v2_playbook_on_stats(self, stats):
        total = {"ok": 0, "changed": 0, "failed": 0}
        for host in stats.processed:
            summary = stats.summarize(host)
            total["ok"] += summary["ok"]
            total["changed"] += summary["changed"]
            total["failed"] += summary["failures"] + summary["unreachable"]
        counts = {**total, "message": self._message} if total["failed"] else total
        Path(os.environ["PULL_COUNTS"]).write_text(json.dumps(counts))

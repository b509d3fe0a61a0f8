"""Callback: how long a playbook took. Molecule runs one a phase, so its log says what each phase costs."""

from __future__ import annotations

import time
from pathlib import Path

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: playbook_seconds
type: aggregate
short_description: Wall time of each playbook
description:
  - Prints, when a playbook has ended, its name and the seconds it took.
  - Enabled for the Molecule scenarios, which run one playbook for each phase.
requirements:
  - to be named in C(callbacks_enabled)
"""


class CallbackModule(CallbackBase):
    """Prints ``phase NAME: SECONDS s`` once per playbook."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "playbook_seconds"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_start(self, playbook: object) -> None:
        """Start the clock."""
        self._name = Path(playbook._file_name).stem
        self._started = time.monotonic()

    def v2_playbook_on_stats(self, stats: object) -> None:
        """Say how long it was."""
        self._display.display(f"phase {self._name}: {time.monotonic() - self._started:.1f} s")

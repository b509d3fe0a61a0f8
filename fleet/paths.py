"""Where the project keeps things: the checkout, the per-user cache and the per-user state."""

from __future__ import annotations

import os
from pathlib import Path

#: The checkout this package was started from: playbooks, roles and inventories stand beside it.
PROJECT = Path(__file__).resolve().parents[1]


def cache_home() -> Path:
    """Folder for what can be made again (XDG Base Directory Specification, ``XDG_CACHE_HOME``)."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def state_home() -> Path:
    """Folder for what lives as long as a lab does (the same specification, ``XDG_STATE_HOME``)."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def _xdg(variable: str, fallback: str) -> Path:
    # The specification: a relative path in these variables is invalid and to be ignored.
    configured = Path(os.environ.get(variable, ""))
    base = configured if configured.is_absolute() else Path.home() / fallback
    return base / "apptainer-fleet"

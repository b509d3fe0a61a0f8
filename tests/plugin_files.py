"""Files of plugin folders as modules, which Python does not find by itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

PROJECT = Path(__file__).parent.parent


def load(path: Path) -> ModuleType:
    """Return the file *path* of a plugin folder as a module."""
    spec = importlib.util.spec_from_file_location(f"plugin_{path.parent.name}_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

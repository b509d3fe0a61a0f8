"""ansible.cfg: every setting is one that ansible-core knows, and says why it is there."""

from __future__ import annotations

import configparser
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "ansible.cfg"


@pytest.fixture(scope="module")
def known() -> set[tuple[str, str]]:
    """Section and key of every INI setting of ansible-core and its plugins."""
    program = Path(sys.executable).with_name("ansible-config")
    argv = [str(program), "list", "--type", "all", "--format", "json"]
    output = subprocess.run(argv, capture_output=True, text=True, check=True, cwd="/").stdout
    return set(_ini_keys(json.loads(output)))


def _ini_keys(node: object) -> Iterable[tuple[str, str]]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "ini" and isinstance(value, list):
                yield from ((entry["section"], entry["key"]) for entry in value)
            else:
                yield from _ini_keys(value)
    elif isinstance(node, list):
        for value in node:
            yield from _ini_keys(value)


def _settings(text: str) -> list[tuple[str, str]]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    return [(section, key) for section in parser.sections() for key in parser[section]]


def _unexplained(text: str) -> list[str]:
    """Settings without a comment above them; one comment may stand above settings that follow each other."""
    found = []
    explained = False
    for line in text.splitlines():
        if line.startswith(("#", ";")):
            explained = True
        elif not line.strip() or line.startswith("["):
            explained = False
        elif "=" in line and not explained:
            found.append(line)
    return found


def test_every_setting_is_known(known: set[tuple[str, str]]) -> None:
    assert [
        setting for setting in _settings(CONFIG.read_text(encoding="utf-8")) if setting not in known
    ] == []


def test_every_setting_says_why() -> None:
    assert _unexplained(CONFIG.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("setting", [("defaults", "fork"), ("default", "forks"), ("ssh", "pipelining")])
def test_unknown_setting_would_be_found(known: set[tuple[str, str]], setting: tuple[str, str]) -> None:
    assert setting not in known
    assert ("defaults", "forks") in known


def test_setting_without_reason_would_be_found() -> None:
    assert _unexplained("[defaults]\n# Why.\na = 1\nb = 2\n\nc = 3\n") == ["c = 3"]

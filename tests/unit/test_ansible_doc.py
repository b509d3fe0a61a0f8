"""`ansible-doc` shows each module of library/ as completely as those of Ansible itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
MODULES = sorted(file.stem for file in (PROJECT / "library").glob("*.py"))


@pytest.fixture(scope="module")
def shown():
    """What `ansible-doc` has of all modules, by name."""
    ended = subprocess.run(
        [sys.executable, "-m", "ansible", "doc", "--type", "module", "--json", *MODULES],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not ended.stderr
    return json.loads(ended.stdout)


def undescribed(options, where):
    """The options without a description, those within others included."""
    for name, option in options.items():
        if not option.get("description"):
            yield f"{where}{name}"
        yield from undescribed(option.get("suboptions") or option.get("contains") or {}, f"{where}{name}.")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_documented_completely(shown, name):
    module = shown[name]
    documentation = module["doc"]
    assert documentation["short_description"] and documentation["description"]
    assert "check_mode" in documentation["attributes"]
    assert list(undescribed(documentation.get("options", {}), "")) == []
    assert list(undescribed(module["return"] or {}, "")) == [] and module["return"]
    assert name in module["examples"]

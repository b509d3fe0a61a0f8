"""Filters run on nodes that pull, too, where there is only what Debian's packages bring (role pull)."""

import ast
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
THERE = {*sys.stdlib_module_names, "ansible", "ClusterShell", "jinja2", "yaml", "module_utils"}


@pytest.mark.parametrize(
    "path", sorted((PROJECT / "plugins/filter").glob("*.py")), ids=lambda path: path.stem
)
def test_a_filter_imports_nothing_that_a_node_lacks(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported <= THERE

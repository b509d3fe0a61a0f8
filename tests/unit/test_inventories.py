"""The inventories of the project are valid by its own rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet.validate import Severity, check_inventory

PROJECT = Path(__file__).parents[2]
# By name: an administrator's own stand in the same folder.
OURS = [PROJECT / "inventories" / name for name in ("example", "lab")]
INVENTORIES = [*OURS, *(PROJECT / "molecule").glob("*/inventory")]


@pytest.mark.parametrize("inventory", INVENTORIES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_has_no_error(inventory: Path) -> None:
    findings = check_inventory([inventory], PROJECT)
    # A warning may say that a lab is not up.
    assert [str(finding) for finding in findings if finding.severity is Severity.ERROR] == []

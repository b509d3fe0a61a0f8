"""``python -m fleet.validate -i INVENTORY``: check an inventory; exit code 1 if it has errors."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fleet.validate import Severity, check_inventory, report


def main(argv: list[str] | None = None) -> int:
    """Print the findings, as text or as JSON, and return the exit code: 0 without errors, 1 with."""
    parser = argparse.ArgumentParser(
        prog="python -m fleet.validate", description=(__doc__ or "").partition(":")[2]
    )
    parser.add_argument(
        "-i", "--inventory", action="append", type=Path, required=True, help="may be given repeatedly"
    )
    parser.add_argument(
        "--project", type=Path, default=Path(__file__).parents[2], help="the checkout with the roles"
    )
    parser.add_argument("--json", action="store_true", help="findings as a list of objects")
    arguments = parser.parse_args(argv)
    findings = check_inventory(arguments.inventory, arguments.project)
    print(json.dumps([finding.as_dict() for finding in findings]) if arguments.json else report(findings))
    return int(any(finding.severity is Severity.ERROR for finding in findings))


if __name__ == "__main__":
    sys.exit(main())

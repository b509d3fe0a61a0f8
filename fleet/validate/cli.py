"""``fleet validate``: judge an inventory without contacting a node."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from fleet.paths import PROJECT
from fleet.validate import Severity, check_inventory, report


@click.command()
@click.option(
    "-i",
    "--inventory",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path),
    default=[PROJECT / "inventories/lab"],
    show_default="inventories/lab",
    help="Inventory file or folder; may be given repeatedly.",
)
@click.option(
    "--project",
    type=click.Path(path_type=Path),
    default=PROJECT,
    help="Checkout with the roles.",
    hidden=True,
)
@click.option("--json", "as_json", is_flag=True, help="Findings as a list of objects.")
def validate(sources: tuple[Path, ...], project: Path, as_json: bool) -> None:
    """Check an inventory against the roles' specifications; exit 1 if it has errors."""
    findings = check_inventory(sources, project)
    click.echo(json.dumps([finding.as_dict() for finding in findings]) if as_json else report(findings))
    sys.exit(any(finding.severity is Severity.ERROR for finding in findings))

"""The command ``fleet``."""

from __future__ import annotations

import sys

import click

from fleet import __version__
from fleet.errors import FleetError
from fleet.lab.cli import lab


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fleet")
def cli() -> None:
    """Run Apptainer on a fleet of nodes: try it in a lab, check it, roll it out."""


cli.add_command(lab)


def main() -> None:
    """Entry point; an error that the user can mend is two lines and exit status 1, never a traceback."""
    try:
        cli()
    except FleetError as error:
        click.secho(f"fleet: {error}", fg="red", err=True)
        sys.exit(1)

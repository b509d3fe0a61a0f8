"""The command ``fleet``."""

from __future__ import annotations

import sys

import click
from rich.console import Console

from fleet import __version__
from fleet.errors import FleetError
from fleet.lab.cli import lab
from fleet.paths import PROJECT


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fleet")
def cli() -> None:
    """Run Apptainer on a fleet of nodes: try it in a lab, check it, roll it out."""


cli.add_command(lab)


@cli.command()
@click.option(
    "--install-host-packages", is_flag=True, help="Install what this machine lacks (Debian, Ubuntu)."
)
def demo(install_host_packages: bool) -> None:
    """Act out the main job on a lab: build, sign, transfer, publish, run through Slurm."""
    # Half a second of imports that no other command needs.
    from fleet.demo import run_demo  # noqa: PLC0415

    passed = run_demo(
        PROJECT / "inventories/lab",
        Console(highlight=False),
        install_host_packages=install_host_packages,
    )
    sys.exit(0 if passed else 1)


def main() -> None:
    """Entry point; an error that the user can mend is two lines and exit status 1, never a traceback."""
    try:
        cli()
    except FleetError as error:
        click.secho(f"fleet: {error}", fg="red", err=True)
        sys.exit(1)

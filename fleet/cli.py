"""The command ``fleet``."""

from __future__ import annotations

import errno
import importlib
import os
import sys

import click

from fleet.errors import FleetError
from fleet.paths import PROJECT

COMMANDS = {
    "audit": "fleet.audit.cli:audit",
    "check": "fleet.check:check",
    "demo": "fleet.demo:command",
    "docs": "fleet.docs:command",
    "image": "fleet.images.cli:image",
    "lab": "fleet.lab.cli:lab",
    "nodes": "fleet.nodes:nodes",
    "provision": "fleet.rollout.cli:provision",
    "pull": "fleet.pull:pull",
    "rollout": "fleet.rollout.cli:rollout",
    "site": "fleet.site:site",
    "validate": "fleet.validate.cli:validate",
}


class _Commands(click.Group):
    """Imports a command when it is called: Ansible's own code takes half a second that few of them need."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        # Ansible reads its settings when it is imported; inventories need the project's plugins anywhere.
        os.environ["ANSIBLE_CONFIG"] = str(PROJECT / "ansible.cfg")
        module, attribute = COMMANDS[name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="apptainer-fleet", prog_name="fleet")
def cli() -> None:
    """Run Apptainer on a fleet of nodes: try it in a lab, check it, roll it out."""


def main() -> None:
    """Entry point; an error that the user can mend is two lines and exit status 1, never a traceback."""
    try:
        cli()
    except FleetError as error:
        click.secho(f"fleet: {error}", fg="red", err=True)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        click.secho(f"fleet: {error}\n  mend: make room there", fg="red", err=True)
        sys.exit(1)

"""``python -m fleet``: the command where it is not installed."""

from fleet.cli import main

main()

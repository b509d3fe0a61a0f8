"""apptainer-fleet: the command-line side of the project."""

from importlib.metadata import version

__version__ = version("apptainer-fleet")
